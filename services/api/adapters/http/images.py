"""REST /v2/inference-backends/{backend}/pull: a backend's images on workers, ahead of any model."""

from typing import Annotated

from fastapi import APIRouter, Query, Response
from pydantic import Field, model_validator

from kernel.errors import Refused
from schemas.backends import info_of, knows_version
from schemas.reasons import BackendDisabled, BackendVersionUnknown
from services.api.adapters.http.requests import Body, Label, Text, refusal_of
from services.api.adapters.http.respond import json_response
from services.api.adapters.images import BackendImages
from services.api.adapters.reader import Reader
from services.api.domain.where import Where

Version = Annotated[Text, Field(min_length=1, max_length=64)]
WorkerNames = Annotated[list[Annotated[Text, Field(min_length=1, max_length=256)]], Field(max_length=1000)]


class PullBackend(Body):
    """Which images, and where; nothing: those that a model gets which names no version, on all workers that it could run on."""

    version: Version | None = None
    workers: WorkerNames = []
    """By name or id."""
    worker_selector: Annotated[dict[Label, Label], Field(max_length=64)] | None = None
    """Workers with all of these labels."""

    @model_validator(mode="after")
    def _one_way(self) -> "PullBackend":
        if self.workers and self.worker_selector is not None:
            raise ValueError("workers or worker_selector, not both")
        return self


def make_router(reader: Reader, images: BackendImages) -> APIRouter:
    router = APIRouter(prefix="/v2/inference-backends")

    async def told(backend: str, version: str | None, where: Where, *, begin: bool) -> Response:
        name = await _checked(reader, backend, version)
        document = await images.ask(name, version, where, begin=begin)
        return json_response(document, status_code=202 if begin else 200)

    @router.post(
        "/{backend}/pull",
        status_code=202,
        summary="Pull a backend's images ahead: for each worker the one that a placement would take",
    )
    async def pull(backend: str, body: PullBackend | None = None) -> Response:  # pyright: ignore[reportUnusedFunction]
        wish = body or PullBackend()
        return await told(backend, wish.version, Where(wish.workers, wish.worker_selector), begin=True)

    @router.get("/{backend}/pull", summary="How far a backend's images are on workers; pulls nothing")
    async def look(  # pyright: ignore[reportUnusedFunction]
        backend: str,
        version: Annotated[str | None, Query(min_length=1, max_length=64)] = None,
        worker: Annotated[list[str] | None, Query(description="By name or id; more than once.")] = None,
    ) -> Response:
        return await told(backend, version, Where(worker or ()), begin=False)

    return router


async def _checked(reader: Reader, name_or_id: str, version: str | None) -> str:
    """The backend's name. Raises Refused (not_found, backend_disabled, backend_version_unknown)."""
    name = str((await reader.backend_document(name_or_id))["backend_name"])
    backend = (await reader.backends()).get(name)
    if backend is None:
        raise Refused("not_found", f"there is no backend {name}", status=404)
    if not backend.enabled:
        raise refusal_of(BackendDisabled(backend=name), "backend")
    if version is not None and not knows_version(backend, version):
        info = info_of(backend)
        known = tuple(each for each in (info.oldest, info.newest) if each is not None)
        raise refusal_of(BackendVersionUnknown(backend=name, version=version, known=known), "version")
    return name

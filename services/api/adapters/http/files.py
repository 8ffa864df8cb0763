"""REST /v2/model-files: what of models lies on workers, is on its way there, or is to be."""

from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request, Response
from pydantic import Field, model_validator

from kernel.errors import Refused
from kernel.projections.marks import HighWater
from schemas.source_fields import wrong_field
from schemas.sources import Source
from services.api.adapters.files import ModelFiles
from services.api.adapters.http.requests import Files, Label, Text
from services.api.adapters.http.resources import IdempotencyKey, MinSeq, caller_of, wait_for, written
from services.api.adapters.http.respond import json_response
from services.api.adapters.reader import Document, Reader
from services.api.domain.where import Where

WorkerNames = Annotated[list[Annotated[Text, Field(min_length=1, max_length=256)]], Field(max_length=1000)]


class RequestFiles(Files):
    """Files that workers are to have, whether or not a model runs there."""

    worker_ids: Annotated[WorkerNames, Field(examples=[["gpu-1"]])] = []
    """By id or name."""
    worker_selector: Annotated[dict[Label, Label], Field(max_length=64)] | None = None
    """In place of `worker_ids`: all ready workers with all of these labels."""

    @model_validator(mode="after")
    def _some_workers(self) -> "RequestFiles":
        if self.worker_ids and self.worker_selector is not None:
            raise wrong_field(self, "worker_selector", "worker_ids or worker_selector, not both")
        if not self.worker_ids and self.worker_selector is None:
            raise wrong_field(self, "worker_ids", "say on which workers: worker_ids or worker_selector")
        return self

    def wanted(self) -> Source:
        """Raises Refused (invalid_request)."""
        source = self.to_source()
        if source is None:  # pragma: no cover - the validator has refused it
            raise Refused("invalid_request", "say where the files are", field="source")
        return source


def make_router(reader: Reader, files: ModelFiles, high_water: HighWater) -> APIRouter:
    router = APIRouter(prefix="/v2/model-files")

    def listed(items: list[Document]) -> Response:
        return json_response({"items": items, "seq": str(high_water.position)})

    @router.get("", summary="Model files on workers, and how far they are")
    async def list_files(  # pyright: ignore[reportUnusedFunction]
        min_seq: MinSeq = None,
        worker: Annotated[str | None, Query(description="On this worker only (id or name).")] = None,
        model: Annotated[str | None, Query(description="That this model's instances use only (id or name).")] = None,
        state: Annotated[
            Literal["wanted", "ready", "error", "deleting"] | None, Query(description="In this state only.")
        ] = None,
    ) -> Response:
        await wait_for(high_water, min_seq)
        return listed(await reader.files(worker, model, state))

    @router.post(
        "",
        status_code=201,
        summary="Have files fetched to workers, ahead of any model",
        responses={202: {"description": "durable, not yet projected"}},
    )
    async def request_files(  # pyright: ignore[reportUnusedFunction]
        request: Request, body: RequestFiles, idempotency_key: IdempotencyKey = None
    ) -> Response:
        caller = await caller_of(request, idempotency_key)
        found = await files.request(body.wanted(), Where(body.worker_ids, body.worker_selector), caller)
        document = {
            "items": [{"file_id": file_id, "worker_id": worker_id} for file_id, worker_id in found.items],
            "seq": str(found.written.position),
            "projected": found.written.projected,
        }
        return json_response(document, 201 if found.written.projected else 202)

    @router.get("/{file}", summary="One file resource: its state, how far it is, and which instances use it")
    async def get_file(file: str, min_seq: MinSeq = None) -> Response:  # pyright: ignore[reportUnusedFunction]
        await wait_for(high_water, min_seq)
        return json_response(await reader.file(file))

    @router.post("/{file}/retry", summary="Try files again that could not be had")
    async def retry_file(request: Request, file: str) -> Response:  # pyright: ignore[reportUnusedFunction]
        return written(await files.retry(file, await caller_of(request, None)), 200)

    @router.delete("/{file}", summary="Remove files from a worker's disk; what is being fetched is fetched no more")
    async def delete_file(request: Request, file: str) -> Response:  # pyright: ignore[reportUnusedFunction]
        return written(await files.delete(file, await caller_of(request, None)), 200)

    @router.get("/{file}/timeline", summary="Everything that happened to files on a worker")
    async def file_timeline(file: str) -> Response:  # pyright: ignore[reportUnusedFunction]
        if not (events := await reader.timeline("file", file)):
            await reader.file(file)
        return listed(events)

    return router

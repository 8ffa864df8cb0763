"""REST /v2/inference-backends: what engines there are, as data; read and written as JSON or YAML."""

from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Body, Header, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError

from kernel.errors import Conflict, Refused
from kernel.log.port import Position
from kernel.projections.marks import HighWater
from schemas.backends import InferenceBackend, NotABackend, built_in, read_yaml, write_yaml
from schemas.ours import flags_of_ours, variables_not_allowed
from services.api.adapters.http.requests import refusal_of
from services.api.adapters.http.resources import IfMatch, check_if_match, written
from services.api.adapters.http.resources import caller_of as who_asks
from services.api.adapters.http.respond import json_response
from services.api.adapters.reader import Document, Reader
from services.api.adapters.writer import Writer, Written

YAML = "application/yaml"
"""RFC 9512."""
_DEFINITION: dict[str, Any] = {
    "requestBody": {"content": {YAML: {"schema": {"type": "string"}}}, "required": True},
}


def make_router(reader: Reader, writer: Writer, high_water: HighWater) -> APIRouter:
    router = APIRouter(prefix="/v2/inference-backends")

    async def put(backend: InferenceBackend, if_match: str | None, request: Request, *, is_new: bool) -> Response:
        await _check(backend, reader)
        caller = await who_asks(request, None)
        if is_new:
            try:
                return written(await writer.put_backend(backend, 0, caller), 201)
            except Conflict:
                name = backend.backend_name
                raise Refused("name_taken", f"{name} is defined already; PUT changes it", status=409) from None
        expected = None
        if if_match is not None:
            expected = await _generation(backend.backend_name, if_match)
        try:
            return written(await writer.put_backend(backend, expected, caller), 200)
        except Conflict:
            if if_match is None:
                raise
            raise _somebody_wrote() from None

    async def _generation(name: str, if_match: str | None) -> int:
        found = await reader.backend_document(name)
        generation = 0 if found["generation"] is None else Position.parse(found["generation"]).sequence
        check_if_match(if_match, generation, high_water)
        return generation

    @router.get("", summary="All backends: built-in ones, and those that operators defined")
    async def list_backends() -> Response:  # pyright: ignore[reportUnusedFunction]
        return json_response({"items": await reader.backend_documents(), "seq": str(high_water.position)})

    @router.get("/{backend}", summary="One backend, by name or id; as YAML where that is asked for")
    async def get_backend(  # pyright: ignore[reportUnusedFunction]
        backend: str,
        accept: Annotated[str | None, Header()] = None,
        format_: Annotated[str | None, Query(alias="format", pattern="^(json|yaml)$")] = None,
    ) -> Response:
        found = await reader.backend_document(backend)
        if format_ == "yaml" or (format_ is None and accept is not None and "yaml" in accept):
            return Response(write_yaml(InferenceBackend.model_validate(found)), media_type=YAML)
        headers = {"etag": f'"{found["generation"]}"'} if found["generation"] else None
        return json_response(found, headers=headers)

    @router.post("", status_code=201, summary="Define a backend, or take the place of a built-in one")
    async def create_backend(  # pyright: ignore[reportUnusedFunction]
        request: Request, body: Annotated[InferenceBackend, Body()]
    ) -> Response:
        del body  # read again: unknown fields are mistakes here, and not a newer writer's
        return await put(_from_json(await request.body()), None, request, is_new=True)

    @router.post(
        "/from-yaml",
        status_code=201,
        summary="Define a backend by its YAML (application/yaml)",
        openapi_extra=_DEFINITION,
    )
    async def import_backend(request: Request) -> Response:  # pyright: ignore[reportUnusedFunction]
        return await put(_from_yaml(await request.body()), None, request, is_new=True)

    @router.put("/{backend}", summary="Change a backend: the whole definition. Engines that run are left alone")
    async def change_backend(  # pyright: ignore[reportUnusedFunction]
        request: Request, backend: str, body: Annotated[InferenceBackend, Body()], if_match: IfMatch = None
    ) -> Response:
        del body
        definition = _from_json(await request.body())
        if definition.backend_name != backend and definition.backend_name != await _name_of(backend):
            raise Refused("invalid_request", "a backend keeps its name: define another one", field="backend_name")
        return await put(definition, if_match, request, is_new=False)

    async def _name_of(name_or_id: str) -> str:
        return str((await reader.backend_document(name_or_id))["backend_name"])

    @router.delete("/{backend}", summary="Forget a definition; a built-in one of its name is in force again")
    async def delete_backend(request: Request, backend: str, if_match: IfMatch = None) -> Response:  # pyright: ignore[reportUnusedFunction]
        found = await reader.backend_document(backend)
        check_deletion(found)
        expected = await _generation(backend, if_match)
        try:
            result: Written = await writer.delete_backend(
                found["backend_name"], expected, await who_asks(request, None)
            )
        except Conflict:
            raise _somebody_wrote() from None
        return written(result, 200)

    return router


def check_deletion(found: Document) -> None:
    """Raises Refused (backend_is_built_in, backend_in_use)."""
    name, models = found["backend_name"], found["models"]
    if found["built_in"]:
        raise Refused("backend_is_built_in", f"{name} is built in; `enabled: false` switches it off", status=409)
    if models and not found["replaces_built_in"]:
        most = ", ".join(models[:5]) + (" …" if len(models) > 5 else "")
        raise Refused("backend_in_use", f"models use {name}: {most}", status=409, models=models[:100])


async def _check(backend: InferenceBackend, reader: Reader) -> None:
    """Raises Refused (name_taken, flag_is_ours, variable_not_allowed)."""
    name = backend.backend_name
    for other in {**built_in(), **await reader.backends()}:
        if other.casefold() == name.casefold() and other != name:
            raise Refused(
                "name_taken", f"there is a backend called {other}: write it so", field="backend_name", status=409
            )
    for problem in flags_of_ours(backend.engine, backend.default_backend_param):
        raise refusal_of(problem, "default_backend_param")
    for field, env in (
        ("default_env", backend.default_env),
        *((f"version_configs.{version}.env", each.env) for version, each in backend.version_configs.items()),
    ):
        for problem in variables_not_allowed(env):
            raise refusal_of(problem, field)


def _from_json(body: bytes) -> InferenceBackend:
    try:
        return InferenceBackend.model_validate(orjson.loads(body), extra="forbid")
    except ValidationError as error:
        raise RequestValidationError(error.errors(include_url=False)) from error


def _from_yaml(body: bytes) -> InferenceBackend:
    """Raises Refused (invalid_yaml)."""
    try:
        return read_yaml(body.decode())
    except (NotABackend, UnicodeDecodeError) as error:
        raise Refused("invalid_yaml", str(error), status=400) from error
    except ValidationError as error:
        raise RequestValidationError(error.errors(include_url=False)) from error


def _somebody_wrote() -> Refused:
    return Refused("precondition_failed", "somebody else changed this backend", field="If-Match", status=412)

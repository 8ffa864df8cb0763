"""`GET /v2/model-instances/{id}/logs` and `GET /v2/workers/{id}/logs`: JSON, or text as it is written."""

from typing import Annotated, Any, Final

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import StreamingResponse

from services.api.adapters.http.respond import json_response
from services.api.adapters.logs import SERVICES, Logs, Service
from services.api.adapters.reader import Reader

Tail = Annotated[int, Query(ge=1, le=2000, description="So many lines from the end.")]
Follow = Annotated[bool, Query(description="As plain text, and go on with what is written from now on.")]
TEXT: Final = "text/plain; charset=utf-8"
STREAMED: Final = {"cache-control": "no-store", "x-accel-buffering": "no"}
AS_TEXT: Final[dict[int | str, dict[str, Any]]] = {
    200: {"content": {"text/plain": {}}, "description": "JSON, or text when it is followed or accepted"}
}


def make_router(reader: Reader, logs: Logs) -> APIRouter:
    router = APIRouter(prefix="/v2")

    @router.get(
        "/model-instances/{instance}/logs",
        summary="What an instance's engine wrote; of one that is gone by its id, as long as it is kept",
        responses=AS_TEXT,
    )
    async def instance_logs(  # pyright: ignore[reportUnusedFunction]
        request: Request,
        instance: str,
        tail: Tail = 200,
        follow: Follow = False,
        attempt: Annotated[int | None, Query(ge=1, description="Of this attempt; else of the newest.")] = None,
        previous: Annotated[bool, Query(description="Of the attempt before the newest.")] = False,
    ) -> Response:
        log = await logs.find(instance, attempt, previous=previous)
        if follow:
            text = await logs.follow(log, tail, request.is_disconnected)
            return StreamingResponse(text, media_type=TEXT, headers=STREAMED)
        told = await logs.tail(log, tail)
        return _lines(request, told.lines, attempt=told.attempt)

    @router.get(
        "/workers/{worker}/logs",
        summary="What a worker's agent and downloader have logged lately",
        responses=AS_TEXT,
    )
    async def worker_logs(  # pyright: ignore[reportUnusedFunction]
        request: Request,
        worker: str,
        tail: Tail = 200,
        follow: Follow = False,
        service: Annotated[Service | None, Query(description="Of this one; else of both.")] = None,
    ) -> Response:
        services = SERVICES if service is None else (service,)
        log = await logs.of_worker((await reader.worker(worker))["id"], services, tail)
        if follow:
            text = logs.follow_worker(log, services, request.is_disconnected)
            return StreamingResponse(text, media_type=TEXT, headers=STREAMED)
        return _lines(request, log.lines)

    return router


def _lines(request: Request, lines: tuple[str, ...], **more: object) -> Response:
    if "text/plain" in request.headers.get("accept", ""):
        return Response("".join(f"{line}\n" for line in lines), media_type=TEXT)
    return json_response(more | {"lines": list(lines)})

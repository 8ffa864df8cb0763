"""`GET /v2/events`: server-sent events, every fact in order, resumed exactly where a reader stopped."""

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated, Final

from fastapi import APIRouter, Header, Query, Request
from fastapi.responses import StreamingResponse

from kernel.errors import Refused
from kernel.log.port import Position, Stored
from kernel.projections.marks import HighWater
from schemas.facts import BY_TYPE
from services.api.adapters.feed import Feed, Filter, OtherGeneration

KEEP_ALIVE_SECONDS: Final = 15.0


def make_router(feed: Feed, high_water: HighWater) -> APIRouter:
    router = APIRouter(prefix="/v2")

    @router.get("/events", summary="What happens, as it happens (server-sent events)", response_class=StreamingResponse)
    async def events(  # pyright: ignore[reportUnusedFunction]
        request: Request,
        last_event_id: Annotated[str | None, Header(description="Go on after this event, e.g. `1-4711`.")] = None,
        since: Annotated[
            str | None, Query(description="The same as a parameter; `0` means from the first event.")
        ] = None,
        type: Annotated[list[str] | None, Query(description="Only these types, e.g. `ModelPending`.")] = None,  # noqa: A002
        model: Annotated[str | None, Query(description="Only facts about this model id.")] = None,
        instance: Annotated[str | None, Query(description="Only facts about this instance id.")] = None,
        worker: Annotated[str | None, Query(description="Only facts that concern this worker id.")] = None,
        follow: Annotated[bool, Query(description="False: end after the newest event.")] = True,
    ) -> StreamingResponse:
        position = (
            parse_position(since, high_water, "since")
            if last_event_id is None
            else parse_position(last_event_id, high_water, "Last-Event-ID")
        )
        try:
            start = feed.resume_from(position)
        except OtherGeneration as other:
            raise Refused(
                "other_generation", str(other), field="Last-Event-ID", status=410, resume=str(other.resume)
            ) from other
        if not await feed.is_reached(start):
            raise Refused(
                "invalid_position",
                f"{position} is after the end of the log",
                field="since" if last_event_id is None else "Last-Event-ID",
            )
        unknown = sorted(set(type or ()) - BY_TYPE.keys())
        if unknown:
            raise Refused("unknown_type", f"there is no event type {unknown[0][:80]}", field="type")
        wanted = Filter(frozenset(type or ()), _subjects(model, instance, worker))
        stream = _stream(feed, high_water, start, wanted, request, follow=follow)
        return StreamingResponse(
            stream, media_type="text/event-stream", headers={"cache-control": "no-store", "x-accel-buffering": "no"}
        )

    return router


def parse_position(text: str | None, high_water: HighWater, field: str) -> Position | None:
    """Raises Refused (invalid_position)."""
    if text is None:
        return None
    if text == "0":
        return Position(high_water.mark.generation, 0)
    try:
        return Position.parse(text)
    except ValueError as error:
        raise Refused("invalid_position", str(error), field=field) from error


def _subjects(model: str | None, instance: str | None, worker: str | None) -> tuple[str, ...]:
    subjects: list[str] = []
    for kind, resource_id in (("model", model), ("instance", instance)):
        if resource_id is not None:
            subjects.append(f"muster.facts.*.{kind}.*.{_token(kind, resource_id)}.*")
    if worker is not None:
        subjects.append(f"muster.facts.*.*.{_token('worker', worker)}.*.*")
    return tuple(subjects)


def _token(field: str, text: str) -> str:
    if not text or any(character in text for character in ".*> \t\r\n"):
        raise Refused("invalid_request", "ids contain no dots, wildcards or spaces", field=field)
    return text


async def _stream(
    feed: Feed, high_water: HighWater, start: int, wanted: Filter, request: Request, *, follow: bool
) -> AsyncIterator[bytes]:
    generation = high_water.mark.generation
    yield f": from {generation}-{start}\n\n".encode()
    if not follow and start >= feed.head:
        return
    end = feed.head
    batches = aiter(feed.after(start))
    pending: asyncio.Task[object] | None = None
    try:
        while True:
            step = pending or asyncio.ensure_future(anext(batches))
            done, _ = await asyncio.wait({step}, timeout=KEEP_ALIVE_SECONDS)
            if not done:
                pending = step  # pyright: ignore[reportAssignmentType] - a task of the iterator
                if await request.is_disconnected():
                    return
                yield b": still here\n\n"
                continue
            pending = None
            if isinstance(step.exception(), StopAsyncIteration):
                return
            batch: list[Stored] = step.result()  # pyright: ignore[reportAssignmentType] - what the iterator yields
            chunk = b"".join(_event(generation, event) for event in batch if wanted.takes(event))
            if chunk:
                yield chunk
            if not follow and batch[-1].sequence >= end:
                return
    finally:
        if pending is not None:
            pending.cancel()


def _event(generation: int, event: Stored) -> bytes:
    kind = event.subject.rpartition(".")[2]
    return b"".join(
        (f"id: {generation}-{event.sequence}\nevent: {kind}\ndata: ".encode(), event.body.replace(b"\n", b" "), b"\n\n")
    )

"""REST /v2: models, instances, workers, and what happened to each."""

from collections.abc import Awaitable, Callable
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError

from kernel.bus import Bus
from kernel.errors import Conflict, Refused, Unavailable
from kernel.log.port import Position
from kernel.projections.marks import HighWater
from kernel.telemetry import traceparent_of
from schemas.ids import InstanceId, ModelId, WorkerId
from schemas.models import ModelSpec
from schemas.placements import PlacementAnswer, PlacementQuestion
from services.api.adapters.http.requests import ChangeModel, ChangeWorker, CreateModel
from services.api.adapters.http.respond import json_response
from services.api.adapters.placements import Placements
from services.api.adapters.reader import Document, Reader, spec_document
from services.api.adapters.writer import Caller, Writer, Written, command_id

MinSeq = Annotated[str | None, Query(description="Wait until at least this position is projected, e.g. `1-4711`.")]
IfMatch = Annotated[str | None, Header(description="Write only over this generation (the ETag).")]
IdempotencyKey = Annotated[
    str | None, Header(min_length=1, max_length=255, description="The same key twice is one write, and one answer.")
]
MIN_SEQ_SECONDS = 10.0
CHANGE_TRIES = 5


def make_router(reader: Reader, writer: Writer, high_water: HighWater, bus: Bus) -> APIRouter:
    router = APIRouter(prefix="/v2")
    placements = Placements(reader, bus)

    async def wait(min_seq: str | None) -> None:
        await wait_for(high_water, min_seq)

    def listed(items: list[Document]) -> Response:
        return json_response({"items": items, "seq": str(high_water.position)})

    def one(document: Document) -> Response:
        headers = {"etag": f'"{document["generation"]}"'} if document.get("generation") else None
        return json_response(document, headers=headers)

    async def over_the_newest(
        model: str, if_match: str | None, write: Callable[[ModelId, ModelSpec, int], Awaitable[Written]]
    ) -> Written:
        """Write over what is wanted of the model now; again when somebody else was faster, unless the caller minds."""
        for _ in range(CHANGE_TRIES):
            model_id, spec, generation = await reader.model_wish(model)
            check_if_match(if_match, generation, high_water)
            try:
                return await write(model_id, spec, generation)
            except Conflict:
                if if_match is not None:
                    raise Refused(
                        "precondition_failed", "somebody else changed this model", field="If-Match", status=412
                    ) from None
                await high_water.wait_for(generation + 1, timeout_seconds=1.0)
        raise Conflict("too many writers")

    # -- models ---

    @router.get("/models", summary="All models")
    async def list_models(min_seq: MinSeq = None) -> Response:  # pyright: ignore[reportUnusedFunction]
        await wait(min_seq)
        return listed(await reader.models())

    @router.post(
        "/models",
        status_code=201,
        summary="Run a model",
        responses={202: {"description": "durable, not yet projected"}},
    )
    async def create_model(  # pyright: ignore[reportUnusedFunction]
        request: Request, body: CreateModel, idempotency_key: IdempotencyKey = None
    ) -> Response:
        caller = await caller_of(request, idempotency_key)
        spec = body.spec(body.name, await reader.backends())
        return written(await writer.once(caller, spec.name, lambda: writer.create_model(spec, caller)), 201)

    @router.get("/models/{model}", summary="One model, by id or name")
    async def get_model(model: str, min_seq: MinSeq = None) -> Response:  # pyright: ignore[reportUnusedFunction]
        await wait(min_seq)
        return one(await reader.model(model))

    @router.patch("/models/{model}", summary="Change what is wanted of a model")
    async def change_model(  # pyright: ignore[reportUnusedFunction]
        request: Request,
        model: str,
        body: ChangeModel,
        if_match: IfMatch = None,
        idempotency_key: IdempotencyKey = None,
    ) -> Response:
        caller = await caller_of(request, idempotency_key)

        backends = await reader.backends()

        async def change(model_id: ModelId, spec: ModelSpec, generation: int) -> Written:
            try:
                after = body.over(spec, backends)
            except ValidationError as error:
                raise RequestValidationError(error.errors(include_url=False)) from error
            return await writer.change_model(model_id, spec, after, generation, caller)

        return written(await writer.once(caller, model, lambda: over_the_newest(model, if_match, change)), 200)

    @router.delete("/models/{model}", summary="Stop a model and forget it; its files stay")
    async def delete_model(  # pyright: ignore[reportUnusedFunction]
        request: Request, model: str, if_match: IfMatch = None, idempotency_key: IdempotencyKey = None
    ) -> Response:
        caller = await caller_of(request, idempotency_key)

        async def delete(model_id: ModelId, spec: ModelSpec, generation: int) -> Written:
            return await writer.delete_model(model_id, spec, generation, caller)

        return written(await writer.once(caller, model, lambda: over_the_newest(model, if_match, delete)), 200)

    @router.get("/models/{model}/placement", summary="Why its instances are where they are, or nowhere")
    async def model_placement(model: str) -> Response:  # pyright: ignore[reportUnusedFunction]
        return json_response(await placements.of_model(model))

    @router.delete("/models/{model}/quarantine", summary="Try it again on workers where its engine crashed")
    async def clear_quarantine(  # pyright: ignore[reportUnusedFunction]
        request: Request,
        model: str,
        worker: Annotated[str | None, Query(description="On this one only (id or name).")] = None,
    ) -> Response:
        caller = await caller_of(request, None)
        worker_id = None if worker is None else WorkerId((await reader.worker(worker))["id"])

        async def clear(model_id: ModelId, spec: ModelSpec, generation: int) -> Written:
            return await writer.clear_quarantine(model_id, spec, worker_id, generation, caller)

        return written(await over_the_newest(model, None, clear), 200)

    @router.get("/models/{model}/timeline", summary="Everything that happened to a model")
    async def model_timeline(model: str) -> Response:  # pyright: ignore[reportUnusedFunction]
        return listed(await reader.timeline("model", (await reader.model(model))["id"]))

    # -- what-if ---

    @router.post(
        "/placements",
        summary="Would it run, where, and what would it take? Deploys nothing",
        response_model=PlacementAnswer,
    )
    async def plan(body: PlacementQuestion) -> Response:  # pyright: ignore[reportUnusedFunction]
        return json_response(await placements.plan(body))

    # -- instances ---

    @router.get("/model-instances", summary="All instances")
    async def list_instances(  # pyright: ignore[reportUnusedFunction]
        min_seq: MinSeq = None,
        model: Annotated[str | None, Query(description="Of this model only (id or name).")] = None,
    ) -> Response:
        await wait(min_seq)
        return listed(await reader.instances(model))

    @router.get("/model-instances/{instance}", summary="One instance, by id or name")
    async def get_instance(instance: str, min_seq: MinSeq = None) -> Response:  # pyright: ignore[reportUnusedFunction]
        await wait(min_seq)
        return json_response(await reader.instance(instance))

    @router.delete(
        "/model-instances/{instance}",
        summary="Replace an instance: stop it; while the model wants as many, another starts",
    )
    async def delete_instance(request: Request, instance: str) -> Response:  # pyright: ignore[reportUnusedFunction]
        found = await reader.instance(instance)
        return written(await writer.delete_instance(InstanceId(found["id"]), await caller_of(request, None)), 200)

    @router.get("/model-instances/{instance}/timeline", summary="Everything that happened to an instance")
    async def instance_timeline(instance: str) -> Response:  # pyright: ignore[reportUnusedFunction]
        try:
            instance = (await reader.instance(instance))["id"]
        except Refused:
            if not (events := await reader.timeline("instance", instance)):
                raise
            return listed(events)
        return listed(await reader.timeline("instance", instance))

    # -- workers ---

    @router.get("/workers", summary="All workers")
    async def list_workers(min_seq: MinSeq = None) -> Response:  # pyright: ignore[reportUnusedFunction]
        await wait(min_seq)
        return listed(await reader.workers())

    @router.get("/workers/{worker}", summary="One worker, by id or name")
    async def get_worker(worker: str, min_seq: MinSeq = None) -> Response:  # pyright: ignore[reportUnusedFunction]
        await wait(min_seq)
        return json_response(await reader.worker(worker))

    @router.patch("/workers/{worker}", summary="Label a worker, cordon it, uncordon it")
    async def change_worker(request: Request, worker: str, body: ChangeWorker) -> Response:  # pyright: ignore[reportUnusedFunction]
        found = await reader.worker(worker)
        caller = await caller_of(request, None)
        return written(await writer.change_worker(WorkerId(found["id"]), body.labels, body.cordoned, caller), 200)

    @router.post(
        "/workers/{worker}/drain",
        summary="Empty a worker: its instances are replaced elsewhere, each stopped when another one runs",
    )
    async def drain_worker(request: Request, worker: str) -> Response:  # pyright: ignore[reportUnusedFunction]
        found = await reader.worker(worker)
        return written(await writer.drain_worker(WorkerId(found["id"]), await caller_of(request, None)), 200)

    @router.delete("/workers/{worker}", summary="Forget a worker that is gone for good; its claims are void")
    async def remove_worker(request: Request, worker: str) -> Response:  # pyright: ignore[reportUnusedFunction]
        found = await reader.worker(worker)
        if found["state"] == "ready":
            raise Refused("worker_is_ready", f"{found['name']} is ready: stop its agent first", status=409)
        return written(await writer.remove_worker(WorkerId(found["id"]), await caller_of(request, None)), 200)

    return router


async def wait_for(high_water: HighWater, min_seq: str | None) -> None:
    """Until this position is projected. Raises Refused (invalid_position), Unavailable."""
    if min_seq is None:
        return
    try:
        position = Position.parse(min_seq)
    except ValueError as error:
        raise Refused("invalid_position", str(error), field="min_seq") from error
    if position.generation > max(high_water.mark.generation, 1):
        raise Refused("invalid_position", "this position is of a log that does not exist yet", field="min_seq")
    if position.generation == high_water.mark.generation and not await high_water.wait_for(
        position.sequence, timeout_seconds=MIN_SEQ_SECONDS
    ):
        raise Unavailable(f"{min_seq} is not projected yet")


async def caller_of(request: Request, idempotency_key: str | None) -> Caller:
    actor: str = request.state.actor
    command: str | None = None
    if idempotency_key is not None:
        command = command_id(actor, f"{request.method} {request.url.path}", idempotency_key, await request.body())
    return Caller(
        actor=actor,
        request_id=request.state.request_id,
        traceparent=traceparent_of(request.headers.get("traceparent")),
        command_id=command,
    )


def check_if_match(if_match: str | None, generation: int, high_water: HighWater) -> None:
    """Raises Refused (precondition_failed) when the caller's ETag is not the resource's."""
    if if_match is None or if_match.strip() == "*":
        return
    current = f'"{Position(max(high_water.mark.generation, 1), generation)}"'
    if current not in [tag.strip() for tag in if_match.split(",")]:
        raise Refused(
            "precondition_failed",
            f"the resource is at {current} now",
            field="If-Match",
            status=412,
        )


def written(result: Written, status: int) -> Response:
    """`seq` is the write's position; a read with `min_seq` that says at least this write."""
    document: dict[str, Any] = {"id": result.resource_id, "seq": str(result.position), "projected": result.projected}
    headers: dict[str, str] = {}
    if result.spec is not None:
        document |= spec_document(result.spec) | {"generation": str(result.position)}
        headers["etag"] = f'"{result.position}"'
    return json_response(document, status if result.projected else 202, headers)

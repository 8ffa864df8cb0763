"""Facts in envelopes for tests of the log: short to write, each with an id of its own."""

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final

from kernel.clock import SystemClock
from kernel.log.port import Draft, EventLog, Guard, Stored, Tail
from kernel.log.seal import Cause, seal_fact
from schemas.facts import ModelCreated, ModelDeleted, ModelPending, ModelScaled, WorkerReady
from schemas.facts.base import Fact
from schemas.ids import ModelId, WorkerId
from schemas.models import ModelSpec
from schemas.reasons import Reason
from schemas.sources import LocalPath
from schemas.subjects import api_part_of, name_token

AT: Final = datetime(2026, 11, 23, 12, tzinfo=UTC)
CLOCK: Final = SystemClock()


def a_draft(fact: Fact, *, guard: Guard | None = None, event_id: str | None = None) -> Draft:
    return seal_fact(
        fact,
        event_id=event_id or CLOCK.new_id(),
        at=AT,
        source="/muster/test/0",
        cause=Cause(actor="test"),
        guard=guard,
    )


def created(model: str, *, replicas: int = 1, description: str = "") -> ModelCreated:
    spec = ModelSpec(name=model, replicas=replicas, description=description, source=LocalPath(path="/models/x.gguf"))
    return ModelCreated(model_id=ModelId(model), spec=spec)


def scaled(model: str, replicas: int) -> ModelScaled:
    return ModelScaled(model_id=ModelId(model), name=model, replicas=replicas)


def deleted(model: str) -> ModelDeleted:
    return ModelDeleted(model_id=ModelId(model), name=model)


def pending(model: str, *reasons: Reason) -> ModelPending:
    return ModelPending(model_id=ModelId(model), generation=1, wanted=1, reasons=reasons)


def worker_ready(worker: str) -> WorkerReady:
    return WorkerReady(worker_id=WorkerId(worker))


def part_of(model: str) -> str:
    """All facts of the api about this model."""
    return api_part_of("model", model, name_token(model))


def as_stored(drafts: Sequence[Draft], *, first: int = 1) -> list[Stored]:
    """What these drafts look like in the log when they lie there from this sequence on."""
    return [Stored(n, draft.subject, draft.envelope.to_json()) for n, draft in enumerate(drafts, start=first)]


async def everything(log: EventLog) -> list[Stored]:
    return await log.read("muster.facts.>")


class Reader:
    """Follows a tail in a task of its own and keeps all that it was given."""

    def __init__(self, tail: Tail) -> None:
        self.events: list[Stored] = []
        self._tail = tail
        self._more = asyncio.Condition()
        self._task = asyncio.create_task(self._run())

    async def until(self, count: int, *, seconds: float = 20.0) -> list[Stored]:
        """All events so far, once there are at least this many. Raises what the tail raises, or TimeoutError."""
        async with asyncio.timeout(seconds), self._more:
            await self._more.wait_for(lambda: len(self.events) >= count or self._task.done())
        if self._task.done():
            self._task.result()
        return list(self.events)

    async def failure(self, *, seconds: float = 20.0) -> BaseException | None:
        """What ended the tail."""
        await asyncio.wait({self._task}, timeout=seconds)
        return self._task.exception()

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await self._tail.close()

    async def _run(self) -> None:
        try:
            async for batch in self._tail:
                async with self._more:
                    self.events.extend(batch)
                    self._more.notify_all()
        finally:
            async with self._more:
                self._more.notify_all()

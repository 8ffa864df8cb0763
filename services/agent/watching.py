"""Watches one engine: asks it, looks at what its processes do, and says how it is. What follows from that: `domain/health.py`."""

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from services.agent.adapters.engine_door import EngineDoor
from services.agent.domain.about import About
from services.agent.domain.engine_metrics import tokens_made
from services.agent.domain.health import (
    Answer,
    Health,
    after,
    after_inference,
    at_first,
    needs_look,
    rest_seconds,
    worked,
)
from services.agent.domain.runtime import Activity, ContainerRuntime, EngineId

INFERENCE_TIMEOUT_SECONDS: Final = 30.0


@dataclass(frozen=True, slots=True)
class Inferred:
    answer: Answer
    works: bool
    makes_tokens: bool


@dataclass(frozen=True, slots=True)
class Watch:
    engine: EngineId
    about: About
    door: EngineDoor
    runtime: ContainerRuntime
    inference_seconds: float = 0.0
    """Between two requests for one token; 0: none."""

    async def healths(self) -> AsyncGenerator[Health]:
        """After each probe, for ever."""
        health = at_first(time.monotonic(), self.about.start_timeout_seconds, await self._activity())
        inferring: asyncio.Task[Inferred] | None = None
        infers_at = time.monotonic() + self.inference_seconds
        try:
            while True:
                began = time.monotonic()
                answer = await self.door.probe()
                now = time.monotonic()
                activity = await self._activity() if needs_look(health, answer, now) else None
                health = after(health, answer, activity, now, began)
                if inferring is not None and inferring.done():
                    told, inferring = inferring.result(), None
                    health = after_inference(health, told.answer, works=told.works, makes_tokens=told.makes_tokens)
                    infers_at = now + self.inference_seconds
                yield health
                if self._infers and inferring is None and health.phase == "healthy" and now >= infers_at:
                    inferring = asyncio.create_task(self._infer())
                await asyncio.sleep(rest_seconds(health, answer))
        finally:
            if inferring is not None:
                inferring.cancel()
                with suppress(asyncio.CancelledError):
                    await inferring

    async def _activity(self) -> Activity | None:
        return await self.runtime.activity(self.engine, self.door.traces)

    @property
    def _infers(self) -> bool:
        return self.inference_seconds > 0 and self.about.answers_tokens

    async def _infer(self) -> Inferred:
        began, before, made = time.monotonic(), await self._activity(), await self._tokens_made()
        answer = await self.door.one_token(
            self.about.model, embeds=self.about.embeds, timeout_seconds=INFERENCE_TIMEOUT_SECONDS
        )
        if answer == "well":
            return Inferred(answer, works=True, makes_tokens=True)
        works = worked(before, await self._activity(), time.monotonic() - began)
        return Inferred(answer, works=works, makes_tokens=await self._tokens_made() != made)

    async def _tokens_made(self) -> float | None:
        text = await self.door.metrics()
        return None if text is None else await asyncio.to_thread(tokens_made, text)

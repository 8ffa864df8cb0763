"""Questions to who decides: what-if, and why a model's instances are where they are. Answered from the fleet as it is; nothing changes.

A question over a fleet of its own, or about many replicas, is answered in a thread: the decider goes on meanwhile.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import Final

from nats.aio.msg import Msg
from pydantic import ValidationError

from kernel.bus import MOST_BYTES, Bus
from kernel.errors import Unavailable
from schemas.asks import InspectModel, ModelInspection
from schemas.ids import WorkerId
from schemas.images import ImagesAnswer, ImagesQuestion
from schemas.models import ModelWeights
from schemas.placements import ModelPlacementQuestion, PlacementAnswer, PlacementQuestion
from schemas.reasons import OF_A_WORKERS_HUB, Reason
from schemas.sources import LocalPath, Source
from schemas.subjects import ask, ask_core
from services.scheduler.domain.core import Core
from services.scheduler.domain.images import images_on
from services.scheduler.domain.plan import explain, known_weights, plan, plan_offline, shortened, weights_of

log = logging.getLogger(__name__)

INSPECTION_SECONDS: Final = 5.0
HUB_INSPECTION_SECONDS: Final = 15.0
"""Of one worker; a hub is further away than a disk."""
HUB_SECONDS: Final = 45.0
"""Of all that are asked; the api waits for 60."""
MOST_ASKED: Final = 8
"""Workers whose downloaders are asked what a model weighs that nobody has deployed."""
LARGE: Final = 4
"""Replicas from which on a question is answered in a thread."""


class Questions:
    def __init__(self, bus: Bus, core: Core) -> None:
        self._bus = bus
        self._core = core
        self._one_at_a_time = asyncio.Lock()

    async def answer(self) -> None:
        """Until cancelled."""
        subscriptions = [
            await self._bus.subscribe(ask_core("plan"), self._guarded(self._plan)),
            await self._bus.subscribe(ask_core("placement"), self._guarded(self._placement)),
            await self._bus.subscribe(ask_core("images"), self._guarded(self._images)),
        ]
        try:
            await asyncio.Event().wait()
        finally:
            for subscription in subscriptions:
                await subscription.unsubscribe()

    def _guarded(self, answer: Callable[[bytes], Awaitable[bytes]]) -> Callable[[Msg], Awaitable[None]]:
        async def handle(message: Msg) -> None:
            try:
                await message.respond(await answer(message.data))
            except ValidationError as error:  # only of a newer or older api
                log.warning("a question can't be read: %s", error.errors(include_url=False, include_input=False)[0])

        return handle

    async def _plan(self, body: bytes) -> bytes:
        question = PlacementQuestion.model_validate_json(body)
        if question.fleet is not None:
            async with self._one_at_a_time:
                answer = await asyncio.to_thread(plan_offline, question)
            return _within_limits(answer)
        weights, unusable = weights_of(question), ()
        source = question.model.to_source()
        if weights is None and question.facts is None and source is not None:
            weights, unusable = await self._look(source)
        fleet = self._core.fleet
        answer_of = partial(
            plan, question, unusable=unusable, claims=self._core.placing.claims_on, backends=fleet.all_backends()
        )
        if question.model.replicas < LARGE:
            return _within_limits(answer_of(fleet.machines.in_order(), weights))
        machines = fleet.machines.copies()
        async with self._one_at_a_time:
            answer = await asyncio.to_thread(answer_of, machines, weights)
        return _within_limits(answer)

    async def _look(self, source: Source) -> tuple[ModelWeights | None, tuple[Reason, ...]]:
        """What the files weigh: as it is known, else as the first of a few workers says that has them."""
        if (known := known_weights(self._core.fleet, source)) is not None:
            return known, ()
        ready = [machine.id for machine in self._core.fleet.machines if machine.state == "ready"][:MOST_ASKED]
        if not isinstance(source, LocalPath):
            return await self._look_at_a_hub(ready, source)
        answers = await asyncio.gather(*(self._inspect(worker_id, source, INSPECTION_SECONDS) for worker_id in ready))
        weights = next((answer.weights for answer in answers if answer.weights is not None), None)
        return weights, () if weights is not None else tuple(
            reason.model_copy(update={"worker_id": worker_id})
            for worker_id, answer in zip(ready, answers, strict=True)
            for reason in answer.reasons
        )

    async def _look_at_a_hub(
        self, workers: Iterable[WorkerId], source: Source
    ) -> tuple[ModelWeights | None, tuple[Reason, ...]]:
        """One worker after the other until one knows: its repositories are the same for all, and nobody asks it twice for that."""
        said: list[Reason] = []
        ends_at = asyncio.get_running_loop().time() + HUB_SECONDS
        for worker_id in workers:
            seconds = min(HUB_INSPECTION_SECONDS, ends_at - asyncio.get_running_loop().time())
            if seconds <= 0:
                break
            answer = await self._inspect(worker_id, source, seconds)
            if answer.weights is not None:
                return answer.weights, ()
            if about := tuple(reason for reason in answer.reasons if reason.code not in OF_A_WORKERS_HUB):
                return None, about
            said += (reason.model_copy(update={"worker_id": worker_id}) for reason in answer.reasons)
        return None, tuple(said)

    async def _inspect(self, worker_id: WorkerId, source: Source, seconds: float) -> ModelInspection:
        try:
            question = InspectModel(source=source).model_dump_json().encode()
            message = await self._bus.request(ask(worker_id, "inspect"), question, timeout_seconds=seconds)
            return ModelInspection.model_validate_json(message.data)
        except (Unavailable, ValidationError) as error:
            log.debug("%s does not say what %s weighs: %s", worker_id, source.label, error)
            return ModelInspection()

    async def _placement(self, body: bytes) -> bytes:
        question = ModelPlacementQuestion.model_validate_json(body)
        placement = explain(self._core.placing, self._core.fleet, question.model_id)
        content = placement.model_dump_json().encode()
        if len(content) <= MOST_BYTES or placement.refusal is None:
            return content
        short = placement.model_copy(update={"refusal": shortened(placement.refusal, MOST_BYTES)})
        return short.model_dump_json().encode()

    async def _images(self, body: bytes) -> bytes:
        fleet = self._core.fleet
        answer = images_on(ImagesQuestion.model_validate_json(body), fleet.machines, fleet.all_backends())
        return (answer or ImagesAnswer()).model_dump_json().encode()


def _within_limits(answer: PlacementAnswer) -> bytes:
    content = answer.model_dump_json().encode()
    return content if len(content) <= MOST_BYTES else shortened(answer, MOST_BYTES).model_dump_json().encode()

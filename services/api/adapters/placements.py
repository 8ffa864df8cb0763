"""What the scheduler says of placement: what-if, and why a model's instances are where they are, or nowhere."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import orjson

from kernel.bus import MOST_BYTES, Bus
from kernel.errors import Refused, Unavailable
from schemas.ids import ModelId
from schemas.placements import ModelPlacement, ModelPlacementQuestion, PlacementQuestion
from schemas.preferences import lost
from schemas.subjects import ask_core
from services.api.adapters.reader import Document, Reader

PLAN_SECONDS: Final = 60.0
PLACEMENT_SECONDS: Final = 5.0


class Placements:
    def __init__(self, reader: Reader, bus: Bus) -> None:
        self._reader = reader
        self._bus = bus

    async def plan(self, question: PlacementQuestion) -> Document:
        """Raises Unavailable when no scheduler decides, Refused (question_too_large)."""
        body = question.model_dump_json(exclude_unset=True).encode()
        if len(body) > MOST_BYTES:
            raise Refused(
                "question_too_large",
                f"the question has {len(body)} bytes, {MOST_BYTES} can be asked; `muster plan --file` has no limit",
                status=413,
            )
        message = await self._bus.request(ask_core("plan"), body, timeout_seconds=PLAN_SECONDS)
        answer: Document = orjson.loads(message.data)
        return answer

    async def of_model(self, name_or_id: str) -> Document:
        """Each instance with its place and why, or with its reasons; and what a new one would be told now.

        The refusal is None when none is pending, and when no scheduler is there to ask: the stated reasons stay.
        """
        model = await self._reader.model(name_or_id)
        instances = await self._reader.instances(model["id"])
        names = {worker["id"]: worker["name"] for worker in await self._reader.workers()}
        now = await self._ask(ModelId(model["id"]))
        return {
            "model": model["name"],
            "model_id": model["id"],
            "state": model["state"],
            "replicas": model["replicas"],
            "ready_replicas": model["ready_replicas"],
            "needs": now.needs.model_dump(mode="json") if now is not None and now.needs is not None else None,
            "instances": [_placed(instance, names) for instance in instances],
            "refusal": now.refusal.model_dump(mode="json") if now is not None and now.refusal is not None else None,
            "measured": [each.model_dump(mode="json") for each in now.measured] if now is not None else [],
            "as_of": now.as_of if now is not None else None,
        }

    async def _ask(self, model_id: ModelId) -> ModelPlacement | None:
        question = ModelPlacementQuestion(model_id=model_id).model_dump_json().encode()
        try:
            message = await self._bus.request(ask_core("placement"), question, timeout_seconds=PLACEMENT_SECONDS)
        except Unavailable:
            return None
        return ModelPlacement.model_validate_json(message.data)


def _placed(instance: Document, names: Mapping[str, str]) -> Document:
    why: dict[str, Any] | None = instance["why"]
    runners_up: Sequence[Mapping[str, Any]] = why["runners_up"] if why is not None else ()
    return {
        "id": instance["id"],
        "name": instance["name"],
        "state": instance["state"],
        "since": instance["since"],
        "attempt": instance["attempt"],
        "members": [
            dict(member) | {"worker": names.get(member["worker_id"], member["worker_id"])}
            for member in instance["members"]
        ],
        "parallelism": instance["parallelism"],
        "memory_fraction": instance["memory_fraction"],
        "overcommitted": instance["overcommitted"],
        "why": None
        if why is None
        else {
            "scores": why["scores"],
            "fitting": why["fitting"],
            "runners_up": [
                dict(each) | {"worker": names.get(each["worker_id"], each["worker_id"]), "text": lost(each["lost_by"])}
                for each in runners_up
            ],
        },
        "reasons": instance["reasons"],
        "closest_worker": instance["closest_worker"],
        "suggestions": instance["suggestions"],
        "unlisted": instance["unlisted"],
    }

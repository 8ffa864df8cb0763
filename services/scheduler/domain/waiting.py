"""From blocker to the models that wait for it: what changed says who is looked at again, and nobody else.

A refusal names objections; each can be lifted by one kind of change (`LIFTED_BY`). What is kept of a refusal is one small
number a worker: the kinds of change that must come together there. Where something stands in the way that only the
author can move, no change of a worker matters.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from schemas.ids import ModelId, WorkerId
from schemas.reasons import Reason
from services.scheduler.domain.machines import Lifted
from services.scheduler.domain.placement import Refused

LIFTED_BY: Final[Mapping[str, Lifted]] = {
    "worker_not_ready": Lifted.STATE,
    "worker_cordoned": Lifted.STATE,
    "worker_draining": Lifted.STATE,
    "downloader_silent": Lifted.STATE,
    "labels_do_not_match": Lifted.STATE,
    "inventory_incomplete": Lifted.INVENTORY,
    "backend_not_available": Lifted.INVENTORY,
    "platform_not_supported": Lifted.INVENTORY,
    "accelerator_not_supported": Lifted.INVENTORY,
    "image_missing": Lifted.INVENTORY,
    "driver_too_old": Lifted.INVENTORY,
    "compute_capability_too_low": Lifted.INVENTORY,
    "no_gpu": Lifted.INVENTORY,
    "gpu_not_selected": Lifted.INVENTORY | Lifted.STATE,
    "gpu_unhealthy": Lifted.INVENTORY | Lifted.MEMORY,
    "not_enough_gpus": Lifted.INVENTORY | Lifted.MEMORY,
    "not_enough_disk": Lifted.INVENTORY | Lifted.FILES,
    "gpu_memory_in_use_by_others": Lifted.INVENTORY | Lifted.MEMORY,
    "gpu_share_not_free": Lifted.INVENTORY | Lifted.MEMORY,
    "not_enough_vram": Lifted.INVENTORY | Lifted.MEMORY,
    "not_enough_ram": Lifted.INVENTORY | Lifted.MEMORY,
    "context_does_not_fit": Lifted.INVENTORY | Lifted.MEMORY,
    "gpu_share_too_small": Lifted.INVENTORY | Lifted.MEMORY,
    "quarantined": Lifted.QUARANTINE,
    "unsupported_model": Lifted.FILES,
}
"""Code → what may lift it. Every other objection is about the model's files on the worker.

A selected GPU's id has the worker's name in it, which is a label. What is free matters even where a worker is too small
for the model alone: it may become a member of a group.
"""
OF_CAPACITY: Final = Lifted.INVENTORY | Lifted.MEMORY
"""Of what is not free, or not there: more workers together may have it."""
OF_GROUPS: Final = frozenset({"workers_do_not_add_up", "network_down"})
"""What is said of all workers together."""
OF_THE_FLEET: Final = OF_GROUPS | {"no_workers", "gpu_unknown"}
"""What another worker may lift."""
FIT: Final = Lifted.ALL
"""Of a worker that no rule objects to: it takes part in no group of workers yet."""


@dataclass(slots=True)
class Waiting:
    """A model that has instances without a place."""

    blockers: dict[WorkerId, tuple[Lifted, ...]]
    """Worker → of its objections, what may lift each."""
    stated: dict[WorkerId, tuple[Reason, ...]]
    """What was stated of the workers that were listed."""
    author_only: bool
    """No change of a worker helps."""
    whole: bool
    """Something is wrong with the request as long as the fleet is as it is: one worker alone can't answer."""


class WaitingModels:
    def __init__(self) -> None:
        self._waiting: dict[ModelId, Waiting] = {}

    def __contains__(self, model_id: object) -> bool:
        return model_id in self._waiting

    def __iter__(self) -> Iterator[ModelId]:
        return iter(self._waiting)

    def get(self, model_id: ModelId) -> Waiting | None:
        return self._waiting.get(model_id)

    def refused(self, model_id: ModelId, refused: Refused, listed: int) -> None:
        """`listed`: so many of the closest workers are stated."""
        codes = {reason.code for reason in refused.request}
        self._waiting[model_id] = Waiting(
            {each.worker_id: _blockers(each.reasons) for each in refused.workers},
            {each.worker_id: each.reasons for each in refused.workers[:listed]},
            author_only=bool(codes - OF_THE_FLEET),
            whole=bool(codes - OF_GROUPS),
        )

    def update(self, model_id: ModelId, worker_id: WorkerId, reasons: Sequence[Reason]) -> bool:
        """The worker was looked at again, and still objects. True when what was stated of it does not hold any more."""
        waiting = self._waiting[model_id]
        waiting.blockers[worker_id] = _blockers(reasons)
        return worker_id in waiting.stated and waiting.stated[worker_id] != tuple(reasons)

    def forget(self, model_id: ModelId) -> None:
        self._waiting.pop(model_id, None)

    def freed_by(
        self, lifted: Mapping[WorkerId, Lifted], gone: Collection[WorkerId]
    ) -> dict[ModelId, list[WorkerId] | None]:
        """Whom to look at again: on the workers where something in the way may be gone; None: on all.

        Also who is told something of a worker that is no longer true (it was removed, cordoned, lost).
        """
        found: dict[ModelId, list[WorkerId] | None] = {}
        for model_id, waiting in self._waiting.items():
            if waiting.author_only:
                continue
            workers = [worker_id for worker_id, what in lifted.items() if _concerns(waiting, worker_id, what)]
            is_new = any(worker_id not in waiting.blockers for worker_id in workers)
            if not waiting.stated.keys().isdisjoint(gone) or (workers and (is_new or waiting.whole)):
                found[model_id] = None
            elif workers:
                found[model_id] = workers
        return found


def _concerns(waiting: Waiting, worker_id: WorkerId, what: Lifted) -> bool:
    blockers = waiting.blockers.get(worker_id)
    if blockers is None or any(what & each for each in blockers):
        return True
    return worker_id in waiting.stated and bool(what & (Lifted.STATE | Lifted.INVENTORY))


def _blockers(reasons: Iterable[Reason]) -> tuple[Lifted, ...]:
    found = {LIFTED_BY.get(reason.code, Lifted.FILES) for reason in reasons}
    return tuple(sorted(found)) or (FIT,)

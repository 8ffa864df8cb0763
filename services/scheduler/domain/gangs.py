"""An instance on several workers is one: its members take it up, start, are lost and are found together.

One worker is a gang of one; nothing here asks how many there are.
"""

from dataclasses import dataclass, field

from schemas.ids import InstanceId, WorkerId
from schemas.reasons import Reason
from services.scheduler.domain.fleet import Fleet, Worker
from services.scheduler.domain.instance import Instance, Placement, Running, Unreachable


@dataclass(slots=True)
class TakenUp:
    """Who has taken up its part of an attempt. Not stored: after a take-over the workers' pictures say it again."""

    _by: dict[InstanceId, tuple[int, set[WorkerId]]] = field(
        default_factory=dict[InstanceId, tuple[int, set[WorkerId]]]
    )

    def note(self, instance_id: InstanceId, placement: Placement, worker_id: WorkerId) -> bool:
        """True when all have."""
        attempt, by = self._by.get(instance_id, (0, set[WorkerId]()))
        if attempt != placement.attempt:
            by = set[WorkerId]()
        by.add(worker_id)
        self._by[instance_id] = (placement.attempt, by)
        return not self.missing(instance_id, placement)

    def missing(self, instance_id: InstanceId, placement: Placement) -> list[WorkerId]:
        """Who has not."""
        attempt, by = self._by.get(instance_id, (0, set[WorkerId]()))
        by = by if attempt == placement.attempt else set[WorkerId]()
        return [member.worker_id for member in placement.members if member.worker_id not in by]

    def forget(self, instance_id: InstanceId) -> None:
        self._by.pop(instance_id, None)


def silent_members(fleet: Fleet, placement: Placement) -> list[Worker]:
    """Workers of the attempt that are not heard."""
    workers = (fleet.workers.get(member.worker_id) for member in placement.members)
    return [worker for worker in workers if worker is not None and worker.state == "unreachable"]


def why_silent(fleet: Fleet, placement: Placement) -> tuple[Reason, ...]:
    return tuple(reason for worker in silent_members(fleet, placement) for reason in worker.reasons)


def serves_without(fleet: Fleet, instance: Instance) -> bool:
    """A member is not heard, but the leader is, and it answers: then the gang works, whatever the bus is like."""
    match instance.state:
        case Running():
            return True
        case Unreachable(placement=placement, running=running):
            silent = {worker.id for worker in silent_members(fleet, placement)}
            return running is not None and placement.leader.worker_id not in silent
        case _:
            return False

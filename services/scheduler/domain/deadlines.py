"""How long each state may last. Every state on the way has a deadline; its passing is a fact with a reason.

Measured from the moment this scheduler saw the state (or progress in it), so a take-over or a jump of the wall clock
grants time, never takes it.
"""

import heapq
import itertools
from dataclasses import dataclass, field, replace

from schemas.ids import InstanceId
from services.scheduler.domain.instance import (
    Downloading,
    Failed,
    Instance,
    Pending,
    Running,
    Scheduled,
    Starting,
    Stopping,
    Unreachable,
)
from services.scheduler.domain.policy import Policy


def seconds_in(instance: Instance, policy: Policy) -> float | None:
    """How long the instance may stay in its state without progress; None: as long as it likes."""
    match instance.state:
        case Pending() | Running():
            return None
        case Scheduled(overdue=overdue):
            return None if overdue else policy.accept_seconds
        case Downloading():
            return policy.download_stall_seconds
        case Starting(placement=placement):
            return placement.launch.start_timeout_seconds + policy.start_report_seconds
        case Failed(restart_in_seconds=delay):
            return delay
        case Unreachable(evictable=evictable):
            return None if evictable else policy.eviction_seconds
        case Stopping(drain_seconds=draining) if draining:
            return draining
        case Stopping():
            return policy.stop_repeat_seconds


@dataclass(slots=True)
class Deadlines:
    policy: Policy
    _armed: dict[InstanceId, tuple[object, float]] = field(default_factory=dict[InstanceId, tuple[object, float]])
    _heap: list[tuple[float, int, InstanceId]] = field(default_factory=list[tuple[float, int, InstanceId]])
    _order: "itertools.count[int]" = field(default_factory=itertools.count)

    def watch(
        self, instance_id: InstanceId, instance: Instance | None, now: float, *, progressed: bool = False
    ) -> None:
        """Call after the instance changed, or made progress in its state."""
        seconds = None if instance is None else seconds_in(instance, self.policy)
        if instance is None or seconds is None:
            self._armed.pop(instance_id, None)
            return
        state = instance.state
        if isinstance(state, Unreachable):  # that other workers are silent now grants no time
            state = replace(state, reasons=())
        armed = self._armed.get(instance_id)
        if armed is not None and armed[0] == state and not progressed:
            return
        self._armed[instance_id] = (state, now + seconds)
        heapq.heappush(self._heap, (now + seconds, next(self._order), instance_id))

    def again(self, instance_id: InstanceId, instance: Instance, now: float) -> None:
        """Arm the same state once more."""
        self._armed.pop(instance_id, None)
        self.watch(instance_id, instance, now)

    def due(self, now: float) -> list[InstanceId]:
        """Instances whose deadline has passed; each is named once."""
        found: list[InstanceId] = []
        while self._heap and self._heap[0][0] <= now:
            at, _, instance_id = heapq.heappop(self._heap)
            armed = self._armed.get(instance_id)
            if armed is not None and armed[1] == at:
                found.append(instance_id)
        return list(dict.fromkeys(found))

    def next_at(self) -> float | None:
        while self._heap:
            at, _, instance_id = self._heap[0]
            armed = self._armed.get(instance_id)
            if armed is not None and armed[1] == at:
                return at
            heapq.heappop(self._heap)
        return None

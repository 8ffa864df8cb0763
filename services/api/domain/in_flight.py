"""How many requests each instance has: counted until the last byte went out, whether or not new ones may still go there."""

from dataclasses import dataclass, field

from schemas.ids import InstanceId
from schemas.reports import RequestsInFlight


@dataclass(slots=True)
class InFlight:
    _counts: dict[InstanceId, int] = field(default_factory=dict[InstanceId, int])

    def of(self, instance_id: InstanceId) -> int:
        return self._counts.get(instance_id, 0)

    def total(self) -> int:
        return sum(self._counts.values())

    def begins(self, instance_id: InstanceId) -> None:
        """Call in the same step in which the routes named the instance: no fact may be folded between."""
        self._counts[instance_id] = self.of(instance_id) + 1

    def ends(self, instance_id: InstanceId) -> None:
        left = self._counts[instance_id] - 1
        if left:
            self._counts[instance_id] = left
        else:
            del self._counts[instance_id]

    def picture(self, gateway: str, seq: int) -> RequestsInFlight:
        """`seq`: the last fact that the routes know in this very moment."""
        return RequestsInFlight(gateway=gateway, seq=seq, instances=dict(self._counts))

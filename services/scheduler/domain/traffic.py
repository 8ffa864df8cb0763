"""Requests in flight as gateways tell them: how many an instance has, and when certainly none will come any more.

Not folded from facts: it is this scheduler's own hearing. A gateway tells its complete picture at least every two seconds
and of its start before its first request. What it tells is a promise: whoever has folded the fact that an instance is
being stopped, and counts nothing for it, will never count anything for it again.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from schemas.ids import InstanceId
from schemas.reports import RequestsInFlight

LISTEN_SECONDS: Final = 5.0
"""More than two intervals: whoever listens for so long knows all gateways."""
SILENT_SECONDS: Final = 10.0
"""A gateway that was not heard for so long is not waited for, and its requests are no reason to prefer an instance …"""
FORGOTTEN_SECONDS: Final = 60.0
"""… but those that it counted hold for so long: cut off from the bus alone, it may still be passing them on."""
DEAF_SECONDS: Final = 3.0
"""A scheduler that did nothing for so long did not listen: what gateways told meanwhile may not have been read yet."""


@dataclass(slots=True)
class Picture:
    seq: int
    instances: Mapping[InstanceId, int]
    at: float
    """When it was heard; monotonic seconds."""


@dataclass(slots=True)
class Traffic:
    since: float
    """Monotonic seconds from which on this scheduler has listened without interruption."""
    _listened_at: float = float("-inf")
    _gateways: dict[str, Picture] = field(default_factory=dict[str, Picture])

    def listens(self, now: float) -> None:
        """Call often: who is forgotten, and whether we were deaf, follows from when it was called."""
        if (gap := now - self._listened_at) > DEAF_SECONDS:
            self.since = now
            for each in self._gateways.values():
                each.at += gap
        self._listened_at = max(self._listened_at, now)
        for gateway in [g for g, each in self._gateways.items() if now - each.at >= FORGOTTEN_SECONDS]:
            del self._gateways[gateway]

    def hear(self, told: RequestsInFlight, now: float) -> None:
        self.listens(now)
        self._gateways[told.gateway] = Picture(told.seq, told.instances, now)

    def requests_of(self, instance_id: InstanceId) -> int:
        return sum(
            each.instances.get(instance_id, 0)
            for each in self._gateways.values()
            if self._listened_at - each.at < SILENT_SECONDS
        )

    def is_quiet(self, instance_id: InstanceId, since_seq: int, now: float) -> bool:
        """Nothing is in flight there, and nothing will be: every gateway knows the fact `since_seq`, which ended its routes."""
        if now - self.since < LISTEN_SECONDS:
            return False
        return all(
            instance_id not in each.instances and (each.seq >= since_seq or now - each.at >= SILENT_SECONDS)
            for each in self._gateways.values()
        )

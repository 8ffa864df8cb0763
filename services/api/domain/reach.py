"""How a worker's engines are reached: dialled, or through the bus. What the worker says counts; `auto` is found out.

A worker that could not be dialled, and was reached through the bus, is relayed for a while before it is tried again, by a
connection that carries no request.
"""

from dataclasses import dataclass, field
from typing import Final, Literal

from schemas.ids import WorkerId
from schemas.models import Reach

Way = Literal["direct", "relay"]

RELAYED_SECONDS: Final = 30.0


@dataclass(slots=True)
class Reaches:
    _said: dict[WorkerId, Reach] = field(default_factory=dict[WorkerId, Reach])
    _try_again_at: dict[WorkerId, float] = field(default_factory=dict[WorkerId, float])
    """Workers that were found to be reached through the bus alone."""

    def says(self, worker_id: WorkerId, reach: Reach) -> None:
        if self._said.get(worker_id) != reach:
            self.forget(worker_id)
        self._said[worker_id] = reach

    def forget(self, worker_id: WorkerId) -> None:
        """What was found out: it has another address, say."""
        self._try_again_at.pop(worker_id, None)

    def removed(self, worker_id: WorkerId) -> None:
        self._said.pop(worker_id, None)
        self.forget(worker_id)

    def way(self, worker_id: WorkerId | None) -> Way:
        if worker_id is None:
            return "direct"
        reach = self._of(worker_id)
        return "relay" if reach == "relay" or (reach == "auto" and worker_id in self._try_again_at) else "direct"

    def may_relay(self, worker_id: WorkerId | None) -> bool:
        """After nobody could be connected to."""
        return worker_id is not None and self._of(worker_id) == "auto"

    def was_relayed(self, worker_id: WorkerId, now: float) -> None:
        """An engine that could not be dialled has answered through the bus."""
        if self._of(worker_id) == "auto":
            self._try_again_at.setdefault(worker_id, now + RELAYED_SECONDS)

    def tries_direct(self, worker_id: WorkerId, now: float) -> bool:
        """Whether it is time to try; asking is taking the turn."""
        at = self._try_again_at.get(worker_id)
        if at is None or now < at:
            return False
        self._try_again_at[worker_id] = now + RELAYED_SECONDS
        return True

    def _of(self, worker_id: WorkerId) -> Reach:
        return self._said.get(worker_id, "auto")

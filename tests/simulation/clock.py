"""Time and identity of a simulated world: nothing passes unless somebody says so."""

from collections.abc import Coroutine
from datetime import UTC, datetime, timedelta
from typing import Any, Final, TypeVar

START: Final = datetime(2026, 11, 23, tzinfo=UTC)
T = TypeVar("T")


class VirtualClock:
    """`kernel.clock.Clock`. The wall clock may jump, the monotonic one never does."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.jumped_seconds = 0.0
        """What the wall clock was set forwards (or back) altogether."""
        self._ids = 0

    def now(self) -> datetime:
        return START + timedelta(seconds=self.seconds + self.jumped_seconds)

    def monotonic(self) -> float:
        return 1000.0 + self.seconds

    def new_id(self) -> str:
        self._ids += 1
        return f"{self._ids:05d}"


def finish(work: Coroutine[Any, Any, T]) -> T:
    """Run what never really waits: everything it awaits is there already."""
    try:
        work.send(None)
    except StopIteration as done:
        return done.value
    work.close()
    raise AssertionError(f"{work.__qualname__} waits for something that nobody brings in a simulation")

"""Time and identity for shells. A domain gets both as arguments."""

import time
from datetime import UTC, datetime
from typing import Protocol

from ulid import ULID


class Clock(Protocol):
    def now(self) -> datetime:
        """Wall-clock time with its zone: for people, never for deciding whether a lease has ended."""
        ...

    def monotonic(self) -> float:
        """Seconds that never jump: what every lease and deadline is measured with."""
        ...

    def new_id(self) -> str:
        """A ULID: sorts by time, unique without asking anybody."""
        ...


class SystemClock:
    def now(self) -> datetime:
        return datetime.now(UTC)

    def monotonic(self) -> float:
        return time.monotonic()

    def new_id(self) -> str:
        return str(ULID())

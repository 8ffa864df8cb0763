"""How fast bytes come, and when the rest will be here: from how many were here when."""

from collections import deque
from typing import Final

WINDOW_SECONDS: Final = 10.0
"""The rate is of so many last seconds: it follows a line that becomes slower, and does not jump with each block."""
LEAST_SECONDS: Final = 0.5
"""A rate of less says nothing."""


class Pace:
    """Of one thing that comes."""

    def __init__(self) -> None:
        self._counts: deque[tuple[float, int]] = deque()
        """When, and how many bytes were here: the first one is as old as the window, or the oldest there is."""

    def counted(self, done_bytes: int, at: float) -> None:
        """`at`: seconds of a clock that never goes back."""
        self._counts.append((at, done_bytes))
        while len(self._counts) > 1 and self._counts[1][0] <= at - WINDOW_SECONDS:
            self._counts.popleft()

    @property
    def bytes_per_second(self) -> float | None:
        """None: not known yet."""
        if not self._counts:
            return None
        (began, before), (now, done) = self._counts[0], self._counts[-1]
        return max(done - before, 0) / (now - began) if now - began >= LEAST_SECONDS else None

    def remaining_seconds(self, left_bytes: int) -> float | None:
        """None: not known, or nothing comes."""
        rate = self.bytes_per_second
        return left_bytes / rate if rate else None if left_bytes else 0.0

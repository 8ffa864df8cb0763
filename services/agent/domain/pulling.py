"""How fast an image comes, and when it will be here: from what the container engine counts."""

from collections import deque
from typing import Final

from schemas.reports import PullSeen
from services.agent.domain.runtime import PullProgress

WINDOW_SECONDS: Final = 10.0
"""The rate is of so many last seconds: it follows a line that becomes slower, and does not jump with each block."""
LEAST_SECONDS: Final = 0.5
"""A rate of less says nothing."""


class PullRate:
    """Of one image, while it is pulled."""

    def __init__(self, image: str) -> None:
        self._image = image
        self._counts: deque[tuple[float, int]] = deque()
        """When, and how many bytes were here: the first one is as old as the window, or the oldest there is."""

    def seen(self, progress: PullProgress, at: float) -> PullSeen:
        """`at`: seconds of a clock that never goes back."""
        self._counts.append((at, progress.done_bytes))
        while len(self._counts) > 1 and self._counts[1][0] <= at - WINDOW_SECONDS:
            self._counts.popleft()
        left = max(progress.total_bytes - progress.done_bytes, 0)
        rate = self._rate()
        return PullSeen(
            image=self._image,
            bytes=progress.done_bytes,
            total=progress.total_bytes,
            bytes_per_second=None if rate is None else int(rate),
            remaining_seconds=left / rate if rate else None if left else 0.0,
        )

    def _rate(self) -> float | None:
        (began, before), (now, done) = self._counts[0], self._counts[-1]
        return max(done - before, 0) / (now - began) if now - began >= LEAST_SECONDS else None

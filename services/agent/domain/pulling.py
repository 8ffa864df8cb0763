"""How fast an image comes, and when it will be here: from what the container engine counts."""

from kernel.pace import Pace
from schemas.reports import PullSeen
from services.agent.domain.runtime import PullProgress


class PullRate:
    """Of one image, while it is pulled."""

    def __init__(self, image: str) -> None:
        self._image = image
        self._pace = Pace()

    def seen(self, progress: PullProgress, at: float) -> PullSeen:
        """`at`: seconds of a clock that never goes back."""
        self._pace.counted(progress.done_bytes, at)
        rate = self._pace.bytes_per_second
        return PullSeen(
            image=self._image,
            bytes=progress.done_bytes,
            total=progress.total_bytes,
            bytes_per_second=None if rate is None else int(rate),
            remaining_seconds=self._pace.remaining_seconds(max(progress.total_bytes - progress.done_bytes, 0)),
        )

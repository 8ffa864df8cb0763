"""GPUs that reach each other directly (0) before such as do not (1)."""

from services.scheduler.domain.candidate import Request
from services.scheduler.domain.shapes import Layout


def whole_island(layout: Layout, _request: Request) -> int:
    return int(layout.splits_island)

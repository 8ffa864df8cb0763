"""A worker that has the files (0) before one that must fetch them (1)."""

from services.scheduler.domain.candidate import Request
from services.scheduler.domain.shapes import Layout


def files_present(layout: Layout, request: Request) -> int:
    return 0 if layout.machine.id in request.files_on else 1

"""The roomiest place: percent that are not free, of the fullest GPU that is taken; on the CPU, of RAM."""

from services.scheduler.domain.candidate import Request
from services.scheduler.domain.shapes import Layout


def most_free(layout: Layout, _request: Request) -> int:
    if layout.gpus:
        return 100 - min(gpu.percent_free for gpu in layout.gpus)
    return 100 - layout.machine.ram_free * 100 // max(layout.machine.ram_total, 1)

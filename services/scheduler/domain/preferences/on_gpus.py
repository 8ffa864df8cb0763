"""A model that lies on GPUs wholly (0) before one that lies there in part (1), and that before one in RAM (2)."""

from services.scheduler.domain.candidate import Request
from services.scheduler.domain.shapes import Layout


def on_gpus(layout: Layout, _request: Request) -> int:
    if layout.type is None:
        return 2
    return 0 if layout.take.gpu_layers is None else 1

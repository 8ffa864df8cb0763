"""Whole GPUs and machines stay free: percent of the GPU that stay free; of several GPUs, how many others could have been taken."""

from services.scheduler.domain.candidate import Request
from services.scheduler.domain.shapes import Layout


def tightest(layout: Layout, _request: Request) -> int:
    take = layout.take
    if len(layout.gpus) > 1:
        return layout.qualifying - len(layout.gpus)
    if layout.gpus:
        gpu = layout.gpus[0]
        return (gpu.free - take.vram_bytes) * 100 // gpu.profile.memory_total
    return (layout.machine.ram_free - take.ram_bytes) * 100 // max(layout.machine.ram_total, 1)

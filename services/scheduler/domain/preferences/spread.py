"""Load is spread: promises on the pool for each of its GPUs, in ten-thousandths; on the CPU, promises on the worker."""

from services.scheduler.domain.candidate import Request
from services.scheduler.domain.shapes import Layout


def spread(layout: Layout, _request: Request) -> int:
    if layout.type is None:
        return layout.machine.claims * 10_000
    for pool in layout.machine.pools:
        if pool.type == layout.type:
            return pool.claims * 10_000 // len(pool.gpus)
    raise AssertionError(f"{layout.machine.id} has no pool of {layout.type}")

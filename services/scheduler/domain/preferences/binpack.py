"""Binpack: the worker that has the least memory left over, so that whole machines stay free."""

from services.scheduler.domain.snapshot import Candidate


def tightest_first(candidate: Candidate) -> tuple[int, str]:
    need = candidate.need
    if need is None or not need.vram_bytes:
        return (candidate.free_ram, candidate.worker.name)
    fitting = [free for free in candidate.free_vram.values() if free >= need.vram_bytes]
    return (min(fitting, default=0), candidate.worker.name)

"""Spread (default): the worker with the fewest instances, then the most memory free."""

from services.scheduler.domain.snapshot import Candidate


def most_free_first(candidate: Candidate) -> tuple[int, int, str]:
    free = (
        max(candidate.free_vram.values(), default=0)
        if candidate.need and candidate.need.vram_bytes
        else candidate.free_ram
    )
    return (candidate.instances, -free, candidate.worker.name)

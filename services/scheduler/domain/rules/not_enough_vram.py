"""An instance on one GPU needs one GPU with enough free memory."""

from schemas.models import ModelSpec
from schemas.reasons import NotEnoughVram
from services.scheduler.domain.snapshot import Candidate


def not_enough_vram(candidate: Candidate, _spec: ModelSpec) -> NotEnoughVram | None:
    need = candidate.need
    if need is None or not need.vram_bytes or not candidate.gpus:
        return None
    roomiest = max(candidate.gpus, key=lambda gpu: candidate.free_vram[gpu.index])
    if candidate.free_vram[roomiest.index] >= need.vram_bytes:
        return None
    return NotEnoughVram(
        needed_bytes=need.vram_bytes,
        largest_free_bytes=candidate.free_vram[roomiest.index],
        largest_total_bytes=roomiest.memory_total,
    )

"""RAM that is neither reserved nor promised must suffice."""

from schemas.models import ModelSpec
from schemas.reasons import NotEnoughRam
from services.scheduler.domain.snapshot import Candidate


def not_enough_ram(candidate: Candidate, _spec: ModelSpec) -> NotEnoughRam | None:
    need = candidate.need
    if need is None or candidate.free_ram >= need.ram_bytes:
        return None
    return NotEnoughRam(
        needed_bytes=need.ram_bytes,
        free_bytes=candidate.free_ram,
        total_bytes=candidate.worker.inventory.memory_total,
    )

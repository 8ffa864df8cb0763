"""What the model needs of a GPU must be free there: on one, or on each of several."""

from schemas.reasons import NotEnoughVram
from services.scheduler.domain.candidate import Candidate


def not_enough_vram(candidate: Candidate) -> NotEnoughVram | None:
    short = candidate.shortage
    if short is None or short.freest is None or short.short_of.free >= short.needed_bytes:
        return None
    profile = short.short_of.profile
    return NotEnoughVram(
        worker_id=candidate.machine.id,
        needed_bytes=short.needed_bytes,
        largest_free_bytes=short.short_of.free,
        largest_total_bytes=profile.memory_total,
        reserved_bytes=profile.memory_total - profile.capacity,
        gpus=short.gpus,
    )

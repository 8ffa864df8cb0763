"""An engine reserves its share of each GPU that it runs on: so many GPUs must have that share free."""

from schemas.reasons import GpuShareNotFree
from services.scheduler.domain.candidate import Candidate


def gpu_share_not_free(candidate: Candidate) -> GpuShareNotFree | None:
    short = candidate.shortage
    if short is None or short.take is None or short.take.share is None or short.freest is None:
        return None
    total = short.freest.profile.memory_total
    return GpuShareNotFree(
        worker_id=candidate.machine.id,
        share=short.take.share,
        gpus_needed=short.take.gpus,
        gpus_free=short.qualifying,
        freest_share=int(short.freest.free / total * 1000) / 1000,
        free_bytes=short.freest.free,
        total_bytes=total,
        reserved_bytes=total - short.freest.profile.capacity,
    )

"""What the model needs of a GPU must fit into the share that its engine takes, even of an empty one."""

from schemas.reasons import GpuShareTooSmall
from services.scheduler.domain.candidate import Candidate


def gpu_share_too_small(candidate: Candidate) -> GpuShareTooSmall | None:
    short, estimate = candidate.shortage, candidate.estimate
    if short is None or short.take is not None or short.freest is None or estimate is None:
        return None
    profile = short.freest.profile
    share = estimate.share_on(profile, estimate.parallelisms(short.gpus)[0])
    if share is None or short.needed_bytes > profile.capacity:
        return None
    return GpuShareTooSmall(
        worker_id=candidate.machine.id,
        share=share,
        share_bytes=int(share * profile.memory_total),
        needed_bytes=short.needed_bytes,
        total_bytes=profile.memory_total,
        gpus=short.gpus,
    )

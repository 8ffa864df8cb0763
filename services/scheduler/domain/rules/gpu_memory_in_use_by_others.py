"""Memory that strangers' processes hold is not free. Named where it is what is missing."""

from schemas.reasons import GpuMemoryInUseByOthers
from services.scheduler.domain.candidate import Candidate


def gpu_memory_in_use_by_others(candidate: Candidate) -> GpuMemoryInUseByOthers | None:
    if candidate.estimate is None or candidate.layout is not None:
        return None
    held = [gpu for pool in candidate.pools for gpu in pool.gpus if gpu.used_by_others]
    if not held or not candidate.fits_if_others_were_gone():
        return None
    most = max(held, key=lambda gpu: (gpu.used_by_others, -gpu.index))
    return GpuMemoryInUseByOthers(
        worker_id=candidate.machine.id,
        gpu_index=most.index,
        used_bytes=most.used_by_others,
        total_bytes=most.profile.memory_total,
    )

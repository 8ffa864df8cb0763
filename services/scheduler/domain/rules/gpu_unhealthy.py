"""GPUs that their driver calls broken take no instance; named where the instance would fit with them."""

from schemas.reasons import GpuUnhealthy
from services.scheduler.domain.candidate import Candidate


def gpu_unhealthy(candidate: Candidate) -> GpuUnhealthy | None:
    if candidate.gpus.usable is candidate.gpus.young:
        return None
    broken = [gpu for pool in candidate.gpus.young for gpu in pool.gpus if gpu.unhealthy is not None]
    if not broken or candidate.layout is not None:
        return None
    needed = candidate.request.wanted.gpus or 1
    enough_left = any(len(pool.gpus) >= needed for pool in candidate.pools)
    enough_at_all = any(len(pool.gpus) >= needed for pool in candidate.gpus.young)
    if (enough_left or not enough_at_all) and not candidate.fits_if_all_were_healthy():
        return None
    return GpuUnhealthy(
        worker_id=candidate.machine.id,
        gpu_indexes=tuple(gpu.index for gpu in broken),
        problem=broken[0].unhealthy or "unknown",
    )

"""A GPU's driver must run what the backend's image was built for. Named where no GPU of the worker does."""

from schemas.reasons import DriverTooOld
from services.scheduler.domain.candidate import Candidate


def driver_too_old(candidate: Candidate) -> DriverTooOld | None:
    request = candidate.request
    gpu = candidate.first_old(lambda gpu: request.has_old_driver(gpu.profile.type, gpu.runtime_version))
    if gpu is None or request.info is None:
        return None
    return DriverTooOld(
        worker_id=candidate.machine.id,
        gpu_index=gpu.index,
        runtime_version=gpu.runtime_version or "",
        needed_version=request.info.runtimes[gpu.profile.type],
        backend=request.wish.backend,
        version=request.spec.backend_version,
    )

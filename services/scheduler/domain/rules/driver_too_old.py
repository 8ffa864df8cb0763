"""A GPU's driver must run what the backend's image was built for. Named where no GPU of the worker does."""

from schemas.reasons import DriverTooOld
from services.scheduler.domain.candidate import Candidate


def driver_too_old(candidate: Candidate) -> DriverTooOld | None:
    request = candidate.request
    if request.info is None or any(pool.gpus for pool in candidate.gpus.young):
        return None
    for pool in candidate.gpus.supported:
        for gpu in pool.gpus:
            if request.has_old_driver(pool.type, gpu.runtime_version):
                return DriverTooOld(
                    worker_id=candidate.machine.id,
                    gpu_index=gpu.index,
                    runtime_version=gpu.runtime_version or "",
                    needed_version=request.info.runtimes[pool.type],
                    backend=request.spec.backend,
                    version=request.spec.backend_version,
                )
    return None

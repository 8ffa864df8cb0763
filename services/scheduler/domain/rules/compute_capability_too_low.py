"""A GPU's architecture must be one that the backend supports. Named where no GPU of the worker has one."""

from schemas.reasons import ComputeCapabilityTooLow
from services.scheduler.domain.candidate import Candidate


def compute_capability_too_low(candidate: Candidate) -> ComputeCapabilityTooLow | None:
    request = candidate.request
    if request.info is None or any(pool.gpus for pool in candidate.gpus.young):
        return None
    for pool in candidate.gpus.supported:
        for gpu in pool.gpus:
            if request.has_old_architecture(pool.type, gpu.compute_capability):
                return ComputeCapabilityTooLow(
                    worker_id=candidate.machine.id,
                    gpu_index=gpu.index,
                    compute_capability=gpu.compute_capability or "",
                    needed=request.info.compute_capability or "",
                    backend=request.spec.backend,
                )
    return None

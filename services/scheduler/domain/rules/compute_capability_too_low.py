"""A GPU's architecture must be one that the backend supports. Named where no GPU of the worker has one."""

from schemas.reasons import ComputeCapabilityTooLow
from services.scheduler.domain.candidate import Candidate


def compute_capability_too_low(candidate: Candidate) -> ComputeCapabilityTooLow | None:
    request = candidate.request
    gpu = candidate.first_old(lambda gpu: request.has_old_architecture(gpu.profile.type, gpu.compute_capability))
    if gpu is None or request.info is None:
        return None
    return ComputeCapabilityTooLow(
        worker_id=candidate.machine.id,
        gpu_index=gpu.index,
        compute_capability=gpu.compute_capability or "",
        needed=request.info.compute_capability or "",
        backend=request.wish.backend,
    )

"""What needs a GPU needs a worker that has one."""

from schemas.reasons import NoGpu
from services.scheduler.domain.candidate import Candidate


def no_gpu(candidate: Candidate) -> NoGpu | None:
    return NoGpu(worker_id=candidate.machine.id) if candidate.needs_gpu and not candidate.machine.pools else None

"""A worker that is being drained takes no new instances."""

from schemas.reasons import WorkerDraining
from services.scheduler.domain.candidate import Candidate


def worker_draining(candidate: Candidate) -> WorkerDraining | None:
    return WorkerDraining(worker_id=candidate.machine.id) if candidate.machine.draining else None

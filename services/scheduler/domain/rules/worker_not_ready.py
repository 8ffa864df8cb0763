"""Only a worker whose agent reports takes instances."""

from schemas.reasons import WorkerNotReady
from services.scheduler.domain.candidate import Candidate


def worker_not_ready(candidate: Candidate) -> WorkerNotReady | None:
    machine = candidate.machine
    return None if machine.state == "ready" else WorkerNotReady(worker_id=machine.id, state=machine.state)

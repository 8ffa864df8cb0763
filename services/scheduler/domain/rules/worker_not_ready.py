"""Only a worker whose agent reports takes instances."""

from schemas.models import ModelSpec
from schemas.reasons import WorkerNotReady
from services.scheduler.domain.snapshot import Candidate


def worker_not_ready(candidate: Candidate, _spec: ModelSpec) -> WorkerNotReady | None:
    if candidate.worker.state == "ready":
        return None
    return WorkerNotReady(state=candidate.worker.state)

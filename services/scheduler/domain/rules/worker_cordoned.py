"""A cordoned worker takes no new instances."""

from schemas.models import ModelSpec
from schemas.reasons import WorkerCordoned
from services.scheduler.domain.snapshot import Candidate


def worker_cordoned(candidate: Candidate, _spec: ModelSpec) -> WorkerCordoned | None:
    return WorkerCordoned() if candidate.operator.cordoned else None

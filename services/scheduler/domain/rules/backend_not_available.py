"""The worker must be able to start the backend."""

from schemas.models import ModelSpec
from schemas.reasons import BackendNotAvailable
from services.scheduler.domain.snapshot import Candidate


def backend_not_available(candidate: Candidate, spec: ModelSpec) -> BackendNotAvailable | None:
    available = candidate.worker.inventory.backends
    if spec.backend in available:
        return None
    return BackendNotAvailable(backend=spec.backend, available=tuple(sorted(available)))

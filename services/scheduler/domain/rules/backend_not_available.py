"""A worker without a container runtime starts only what is installed on it."""

from schemas.reasons import BackendNotAvailable
from services.scheduler.domain.candidate import Candidate


def backend_not_available(candidate: Candidate) -> BackendNotAvailable | None:
    inventory = candidate.machine.inventory
    backend = candidate.request.spec.backend
    if inventory.runtime != "process" or backend in inventory.backends:
        return None
    return BackendNotAvailable(
        worker_id=candidate.machine.id, backend=backend, available=tuple(sorted(inventory.backends))
    )

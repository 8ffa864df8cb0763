"""A worker without a container runtime starts only what is installed on it."""

from schemas.reasons import BackendNotAvailable
from services.scheduler.domain.candidate import Candidate


def backend_not_available(candidate: Candidate) -> BackendNotAvailable | None:
    inventory = candidate.machine.inventory
    backend, engine = candidate.request.wish.backend, candidate.request.spec.backend
    is_installed = backend in inventory.backends or (engine != "Custom" and engine in inventory.backends)
    if inventory.runtime != "process" or is_installed:
        return None
    return BackendNotAvailable(
        worker_id=candidate.machine.id, backend=backend, available=tuple(sorted(inventory.backends))
    )

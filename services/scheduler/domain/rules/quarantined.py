"""A model whose engine crashed again and again on a worker is not sent there any more."""

from schemas.reasons import Quarantined
from services.scheduler.domain.candidate import Candidate


def quarantined(candidate: Candidate) -> Quarantined | None:
    crashes = candidate.request.crashes.get(candidate.machine.id)
    return None if crashes is None else Quarantined(worker_id=candidate.machine.id, crashes=crashes)

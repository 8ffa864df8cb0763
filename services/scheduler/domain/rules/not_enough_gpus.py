"""An instance on several GPUs of one worker needs so many of one kind."""

from schemas.reasons import NotEnoughGpus
from services.scheduler.domain.candidate import Candidate


def not_enough_gpus(candidate: Candidate) -> NotEnoughGpus | None:
    needed = candidate.request.wanted.gpus
    if needed is None or not candidate.pools:
        return None
    available = max(len(pool.gpus) for pool in candidate.gpus.young)
    if available >= needed:
        return None
    return NotEnoughGpus(worker_id=candidate.machine.id, needed=needed, available=available)

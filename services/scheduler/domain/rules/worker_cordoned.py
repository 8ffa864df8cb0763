"""A cordoned worker takes no new instances; one with an unhealthy GPU is cordoned if so configured."""

from schemas.reasons import WorkerCordoned
from services.scheduler.domain.candidate import Candidate


def worker_cordoned(candidate: Candidate) -> WorkerCordoned | None:
    machine = candidate.machine
    if not machine.cordoned:
        return None
    broken = [gpu.index for gpu in machine.gpus.values() if gpu.unhealthy is not None] if machine.held_back else []
    return WorkerCordoned(worker_id=machine.id, unhealthy_gpus=tuple(broken))

"""The backend, in the version that is asked for, must run on the kind of GPU that the worker has."""

from schemas.backends import CPU
from schemas.reasons import AcceleratorNotSupported
from services.scheduler.domain.candidate import Candidate


def accelerator_not_supported(candidate: Candidate) -> AcceleratorNotSupported | None:
    info, spec = candidate.request.info, candidate.request.spec
    if (
        info is None
        or not candidate.gpus.ours
        or any(candidate.request.runs_on(pool.type) for pool in candidate.gpus.ours)
    ):
        return None
    if CPU in info.accelerators and not candidate.needs_gpu and spec.cpu_offloading:
        return None
    return AcceleratorNotSupported(
        worker_id=candidate.machine.id,
        backend=candidate.request.wish.backend,
        version=spec.backend_version,
        accelerators=tuple(pool.type for pool in candidate.gpus.ours),
        supported=tuple(kind for kind in info.accelerators if kind != CPU),
    )

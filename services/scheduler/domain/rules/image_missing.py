"""A worker that runs containers needs an image of the backend for its platform and what it has: the model's or the backend's."""

from schemas.backends import CPU
from schemas.reasons import ImageMissing
from services.scheduler.domain.candidate import Candidate


def image_missing(candidate: Candidate) -> ImageMissing | None:
    request, machine = candidate.request, candidate.machine
    if request.info is None or (request.info.platforms and machine.platform not in request.info.platforms):
        return None
    kinds = [pool.type for pool in candidate.gpus.ours if request.runs_on(pool.type)]
    if not kinds and not candidate.needs_gpu:
        kinds = [CPU]
    if not kinds or any(request.has_image(machine, kind) for kind in kinds):
        return None
    return ImageMissing(
        worker_id=machine.id,
        backend=request.wish.backend,
        version=request.spec.backend_version,
        accelerators=tuple(kinds),
        platform=machine.platform,
    )

"""What needs a GPU needs a worker that has one."""

from schemas.models import ModelSpec
from schemas.reasons import NoGpu
from services.scheduler.domain.snapshot import Candidate


def no_gpu(candidate: Candidate, _spec: ModelSpec) -> NoGpu | None:
    if candidate.need is None or not candidate.need.vram_bytes or candidate.worker.inventory.gpus:
        return None
    return NoGpu()

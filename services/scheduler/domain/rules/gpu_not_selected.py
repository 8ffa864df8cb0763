"""A GPU selector that names none of this worker's GPUs rules the worker out."""

from schemas.reasons import GpuNotSelected
from services.scheduler.domain.candidate import Candidate


def gpu_not_selected(candidate: Candidate) -> GpuNotSelected | None:
    selector = candidate.request.spec.gpu_selector
    if candidate.request.selected is None or selector is None or candidate.gpus.ours:
        return None
    return GpuNotSelected(worker_id=candidate.machine.id, wanted=selector.gpu_ids)

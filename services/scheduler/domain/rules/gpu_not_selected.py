"""A GPU selector that names none of this worker's GPUs rules the worker out."""

from schemas.models import ModelSpec
from schemas.reasons import GpuNotSelected
from services.scheduler.domain.snapshot import Candidate


def gpu_not_selected(candidate: Candidate, spec: ModelSpec) -> GpuNotSelected | None:
    if spec.gpu_selector is None or not spec.gpu_selector.gpu_ids or candidate.need is None or candidate.gpus:
        return None
    return GpuNotSelected(wanted=spec.gpu_selector.gpu_ids)

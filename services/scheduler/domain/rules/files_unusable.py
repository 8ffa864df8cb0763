"""What the worker's downloader said of the model's files, when it did not say what they weigh.

The reasons are the downloader's own (model_not_found, model_file_truncated …), or being_inspected before it has answered.
"""

from schemas.models import ModelSpec
from schemas.reasons import BeingInspected, ReasonBase
from services.scheduler.domain.snapshot import Candidate


def files_unusable(candidate: Candidate, _spec: ModelSpec) -> ReasonBase | None:
    if candidate.worker.state != "ready" or not candidate.downloader_alive:
        return None
    if candidate.inspection is None:
        return BeingInspected()
    return candidate.inspection.reasons[0] if candidate.inspection.reasons else None

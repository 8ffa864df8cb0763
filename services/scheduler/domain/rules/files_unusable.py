"""What the worker's downloader said of the model's files, when it did not say what they weigh.

The reasons are the downloader's own (model_not_found, model_file_truncated …), or being_inspected before it has answered.
"""

from schemas.reasons import BeingInspected, ReasonBase, WeightsUnknown
from services.scheduler.domain.candidate import Candidate


def files_unusable(candidate: Candidate) -> ReasonBase | None:
    machine, looked = candidate.machine, candidate.looked
    if looked is not None and looked.reasons:
        return looked.reasons[0].model_copy(update={"worker_id": machine.id})
    estimate = candidate.estimate
    if estimate is not None and estimate.weights.weight_bytes == 0 and estimate.wanted.vram_bytes is None:
        return WeightsUnknown(worker_id=machine.id, path=candidate.request.spec.source.label)
    if estimate is not None and (looked is not None or not candidate.request.must_look):
        return None
    if machine.state != "ready" or not machine.downloader_alive:
        return None  # it can't be asked, which is said already
    return BeingInspected(worker_id=machine.id)

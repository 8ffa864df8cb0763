"""A worker selector asks for every one of its labels; `os`, `arch` and `worker-name` are built in."""

from schemas.reasons import LabelsDoNotMatch
from services.scheduler.domain.candidate import Candidate


def labels_do_not_match(candidate: Candidate) -> LabelsDoNotMatch | None:
    wanted = candidate.request.spec.worker_selector
    if not wanted:
        return None
    labels = candidate.machine.labels
    missing = {name: value for name, value in wanted.items() if labels.get(name) != value}
    return LabelsDoNotMatch(worker_id=candidate.machine.id, wanted=missing) if missing else None

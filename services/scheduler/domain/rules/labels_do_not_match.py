"""A worker selector asks for every one of its labels; `os`, `arch` and `worker-name` are built in."""

from schemas.models import ModelSpec
from schemas.reasons import LabelsDoNotMatch
from services.scheduler.domain.snapshot import Candidate


def labels_do_not_match(candidate: Candidate, spec: ModelSpec) -> LabelsDoNotMatch | None:
    inventory = candidate.worker.inventory
    labels = {
        "os": inventory.os,
        "arch": inventory.arch,
        "worker-name": candidate.worker.name,
    } | candidate.operator.labels
    missing = {name: value for name, value in spec.worker_selector.items() if labels.get(name) != value}
    return LabelsDoNotMatch(wanted=missing) if missing else None

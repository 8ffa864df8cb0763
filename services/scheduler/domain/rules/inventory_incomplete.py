"""What the worker does not tell can't be promised. The first thing that is missing is named; other workers are not concerned."""

from schemas.reasons import InventoryIncomplete
from services.scheduler.domain.candidate import Candidate


def inventory_incomplete(candidate: Candidate) -> InventoryIncomplete | None:
    machine = candidate.machine
    if machine.incomplete is None:
        return None
    field, gpu_index = machine.incomplete
    return InventoryIncomplete(worker_id=machine.id, field=field, gpu_index=gpu_index)

"""Files that are not on the worker yet need room on its disk. A worker that does not tell its disk is not refused."""

from schemas.reasons import NotEnoughDisk
from schemas.value import MOST_BYTES
from services.scheduler.domain.candidate import Candidate


def not_enough_disk(candidate: Candidate) -> NotEnoughDisk | None:
    request, machine = candidate.request, candidate.machine
    free = machine.inventory.disk_free
    if free is None or request.must_look or request.known is None or machine.id in request.files_on:
        return None
    known = request.known
    needed = sum(each.bytes for each in request.pinned) or known.weight_bytes + known.lora_bytes + known.draft_bytes
    if needed <= free:
        return None
    return NotEnoughDisk(worker_id=machine.id, needed_bytes=min(needed, MOST_BYTES), free_bytes=free)

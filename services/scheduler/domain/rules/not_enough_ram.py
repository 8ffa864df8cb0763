"""RAM that is neither reserved nor promised must suffice."""

from schemas.reasons import NotEnoughRam
from services.scheduler.domain.candidate import Candidate


def not_enough_ram(candidate: Candidate) -> NotEnoughRam | None:
    if candidate.estimate is None:
        return None
    machine, layout = candidate.machine, candidate.layout
    needed = candidate.estimate.ram_bytes if layout is None else layout.take.ram_bytes
    if max(machine.ram_free, 0) >= needed or machine.ram_total <= 0:
        return None
    return NotEnoughRam(
        worker_id=machine.id,
        needed_bytes=needed,
        free_bytes=max(machine.ram_free, 0),
        total_bytes=machine.ram_total,
        reserved_bytes=min(machine.inventory.memory_reserved, machine.ram_total),
    )

"""Whether files fit on the disk, beside what is promised to others, and what could make room. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass

from schemas.reasons import NotEnoughDisk
from schemas.value import MOST_BYTES


@dataclass(frozen=True, slots=True)
class Removable:
    """Files that nobody uses."""

    key: str
    bytes: int
    used_at: float
    """When they were used last: seconds of one clock."""


def missing_bytes(needed: int, free: int, promised: int, reserved: int) -> int:
    """How much more would have to be free. 0: it fits."""
    return max(needed + promised + reserved - free, 0)


def refusal(needed: int, free: int, promised: int, reserved: int) -> NotEnoughDisk | None:
    if not missing_bytes(needed, free, promised, reserved):
        return None
    return NotEnoughDisk(
        needed_bytes=min(needed, MOST_BYTES),
        free_bytes=free,
        promised_bytes=min(promised, MOST_BYTES),
        reserved_bytes=min(reserved, MOST_BYTES),
    )


def to_remove(missing: int, candidates: Iterable[Removable]) -> list[Removable] | None:
    """The longest unused ones that make enough room; None: all together do not, and then nothing is removed."""
    chosen: list[Removable] = []
    for each in sorted(candidates, key=lambda each: (each.used_at, each.key)):
        if missing <= 0:
            break
        chosen.append(each)
        missing -= each.bytes
    return chosen if missing <= 0 else None

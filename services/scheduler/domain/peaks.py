"""What engines of a model were measured to hold at most: what is known of it, what of a report is news, what is claimed for it.

A measurement is of one revision (so of one engine, its parameters and files) and of GPUs of one name and number: elsewhere
the same engine holds something else.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Final

from schemas.facts import ModelPeakMeasured
from schemas.models import Member
from schemas.parameters import find, whole_number
from schemas.reports import EngineSeen, has_risen
from schemas.wanted import LAYERS
from services.scheduler.domain.instance import Placement
from services.scheduler.domain.snapshot import Machine

CPU: Final = "cpu"
MARGIN_PERCENT: Final = 10
"""What is claimed beyond the measured peak: nobody has seen the longest conversation yet."""
REVISIONS: Final = 2
"""The newest ones that were measured: the present one, and the one that a rollback goes back to."""
PHASES: Final = ("healthy", "unhealthy", "exited", "stopped")
"""In which a report may tell a peak. What an engine held while it still loaded says little."""


@dataclass(frozen=True, slots=True)
class Where:
    """On what something was measured: only there does it say anything."""

    gpu: str
    """The name of the GPUs, or `CPU`."""
    gpus: int
    """Of the whole instance."""
    workers: int = 1
    gpu_layers: int | None = None
    """Of llama.cpp, when it is told a number: layers that lie on the GPUs."""


@dataclass(frozen=True, slots=True)
class Peak:
    revision: int
    where: Where
    vram_bytes: int | None
    """On one GPU, the largest; None: not measured."""
    ram_bytes: int | None
    """On one worker."""


Peaks = tuple[Peak, ...]
PeakOf = Mapping[Where, Peak]
"""Of one revision."""


def peak_in(fact: ModelPeakMeasured) -> Peak:
    where = Where(fact.gpu, fact.gpus, fact.workers, fact.gpu_layers)
    return Peak(fact.revision, where, fact.peak_vram, fact.peak_ram)


def with_peak(known: Peaks, peak: Peak) -> Peaks:
    """In place of what was known there. Older revisions are forgotten."""
    others = tuple(each for each in known if (each.revision, each.where) != (peak.revision, peak.where))
    together = (*others, peak)
    kept = _newest(together)
    return tuple(each for each in together if each.revision in kept)


def news(known: Peaks, told: Peak) -> Peak | None:
    """What is to be stated of what was told: the first of its kind, or clearly more than was known; else nothing.

    Nothing is stated of a revision that would be forgotten at once.
    """
    if told.revision not in _newest((*known, told)):
        return None
    empty = Peak(told.revision, told.where, None, None)
    before = next((each for each in known if (each.revision, each.where) == (told.revision, told.where)), empty)
    if not has_risen(before.vram_bytes, told.vram_bytes) and not has_risen(before.ram_bytes, told.ram_bytes):
        return None
    return replace(
        told,
        vram_bytes=max(before.vram_bytes or 0, told.vram_bytes or 0) or None,
        ram_bytes=max(before.ram_bytes or 0, told.ram_bytes or 0) or None,
    )


def _newest(peaks: Iterable[Peak]) -> list[int]:
    return sorted({each.revision for each in peaks})[-REVISIONS:]


def of_revision(peaks: Peaks, revision: int) -> dict[Where, Peak]:
    return {each.where: each for each in peaks if each.revision == revision}


def claimed(peak_bytes: int) -> int:
    """What is claimed where the peak is known, rounded up."""
    return -(-peak_bytes * (100 + MARGIN_PERCENT) // 100)


# -- what was told, and of what ---------------------------------------------------------------------------------------


def told_by(seen: EngineSeen, placement: Placement, machine: Machine) -> Peak | None:
    """The peak in a report about this attempt; None when it has none, or nobody can say where it was measured.

    Memory of GPUs that the attempt does not have is not its own, and nothing holds more than there is.
    """
    member, revision = placement.on(machine.id), placement.launch.revision
    if member is None or revision is None or seen.phase not in PHASES:
        return None
    where = where_of(placement, member, machine)
    if where is None:
        return None
    vram = 0
    for index in member.gpu_indexes:
        gpu = machine.gpus.get((member.accelerator or "", index))
        if gpu is not None:
            vram = max(vram, min(seen.peak_vram.get(index, 0), gpu.profile.memory_total))
    ram = min(seen.peak_ram or 0, machine.ram_total)
    return Peak(revision, where, vram or None, ram or None)


def where_of(placement: Placement, member: Member, machine: Machine) -> Where | None:
    """What an attempt runs on, as its member on this machine shows it. None: the machine's GPUs are not what they were."""
    gpus = [machine.gpus.get((member.accelerator or "", index)) for index in member.gpu_indexes]
    name = CPU
    for gpu in gpus:
        if gpu is None:
            return None
        name = gpu.profile.name
    count = sum(len(each.gpu_indexes) for each in placement.members)
    layers = find(placement.launch.parameters, LAYERS) if placement.launch.backend == "llama.cpp" and count else None
    return Where(name, count, len(placement.members), whole_number(layers) if layers is not None else None)

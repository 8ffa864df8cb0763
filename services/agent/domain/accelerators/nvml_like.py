"""Tables of tools that imitate `nvidia-smi`: two lines per GPU, then the processes (Iluvatar, T-Head)."""

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from services.agent.domain.accelerators.answers import boxed_rows
from services.agent.domain.accelerators.quantities import mib, number, used_and_total, whole
from services.agent.domain.accelerators.reading import GpuProcess

_FIRST: Final = re.compile(r"([0-9]{1,3})\s+(\S.*)")
_BUS: Final = re.compile(r"[0-9A-Fa-f]{4,8}:[0-9A-Fa-f]{2}:[0-9A-Fa-f]{2}\.[0-9A-Fa-f]")
_TEMPERATURE: Final = re.compile(r"\b([0-9]+)C\b")
_POWER: Final = re.compile(r"\b([0-9.]+)\s*W\s*/")
_PROCESS: Final = re.compile(
    r"([0-9]{1,3})\s+(?:(?:N/A|[0-9]+)\s+(?:N/A|[0-9]+)\s+)?([0-9]{1,10})\s+(?:\S.*?)?\s*\b([0-9]+)(?:\s*MiB)?"
)


@dataclass(frozen=True, slots=True)
class Line:
    name: str
    third: str
    """The last cell of its first line: clocks, or the count of uncorrected ECC errors."""
    temperature_celsius: float | None
    power_watts: float | None
    memory_used_bytes: int | None
    memory_total_bytes: int | None
    utilisation_percent: float | None


def lines(text: str) -> dict[int, Line]:
    rows = list(boxed_rows(text))
    found: dict[int, Line] = {}
    for first, second in itertools.pairwise(rows):
        if (
            len(first) != 3
            or len(second) != 3
            or not _BUS.fullmatch(first[1])
            or not (head := _FIRST.fullmatch(first[0]))
        ):
            continue
        used, total = used_and_total(second[1])
        temperature, power = _TEMPERATURE.search(second[0]), _POWER.search(second[0])
        found[int(head[1])] = Line(
            name=re.split(r"\s{2,}", head[2])[0],
            third=first[2],
            temperature_celsius=number(temperature[1]) if temperature else None,
            power_watts=number(power[1]) if power else None,
            memory_used_bytes=used,
            memory_total_bytes=total,
            utilisation_percent=number(second[2]),
        )
    return found


def processes(text: str) -> dict[int, list[GpuProcess]] | None:
    """By GPU; None: there is no table of them."""
    _, heading, table = text.partition("Processes:")
    if not heading:
        return None
    held: dict[int, list[GpuProcess]] = {}
    for index, process in _processes(table):
        held.setdefault(index, []).append(process)
    return held


def _processes(table: str) -> Iterator[tuple[int, GpuProcess]]:
    for row in boxed_rows(table):
        if len(row) == 1 and (found := _PROCESS.fullmatch(row[0])):
            pid = whole(found[2])
            if pid is not None:
                yield int(found[1]), GpuProcess(pid, mib(found[3]))

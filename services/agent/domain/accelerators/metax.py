"""MetaX: the table of `mx-smi`, UUIDs of `mx-smi -L`, links of `mx-smi topo -m`.

Formats: MX-SMI 2.1 to 2.3 as users of C500, C550 and N260 pasted them. Until 2.2.4 a line has three cells, later four with the board's
number in front. An idle GPU uses some 800 MiB for its firmware.
"""

import itertools
import re
from typing import Final

from services.agent.domain.accelerators.answers import Answers, boxed_rows, islands, linked_pairs
from services.agent.domain.accelerators.gpus import each_once, with_islands
from services.agent.domain.accelerators.quantities import mib, number, used_and_total
from services.agent.domain.accelerators.reading import GpuProcess, GpuReading
from services.agent.domain.accelerators.vendors import METAX

HEALTHY: Final = ("", "AVAILABLE")
"""GPU-State; the oldest tables have none."""
_BUS: Final = re.compile(r"[0-9A-Fa-f]{4}:[0-9A-Fa-f]{2}:[0-9A-Fa-f]{2}\.[0-9A-Fa-f]")
_NUMBERED: Final = re.compile(r"([0-9]{1,3})\s+(\S.*)")
_TEMPERATURE: Final = re.compile(r"\b([0-9]+)C\b")
_POWER: Final = re.compile(r"\b([0-9.]+)\s*W\s*/")
_DRIVER: Final = re.compile(r"Kernel Mode Driver Version:\s*([^\s|]+)")
_MACA: Final = re.compile(r"MACA Version:\s*([^\s|]+)")
_LISTED: Final = re.compile(r"^GPU#([0-9]{1,3})\b.*\(UUID:\s*([^)\s]+)\s*\)", re.MULTILINE)
_PROCESS: Final = re.compile(r"([0-9]{1,3})\s+([0-9]{1,10})\s+(?:\S.*?)?\s*\b([0-9]+)")


def parse(answers: Answers) -> tuple[GpuReading, ...]:
    """`table` is needed; `list` and `topo` add what they tell. Raises BadOutput."""
    text = answers.get("table", "")
    driver, maca = _DRIVER.search(text), _MACA.search(text)
    uuids = {int(index): uuid for index, uuid in _LISTED.findall(answers.get("list", ""))}
    held = _processes(text)
    readings: list[GpuReading] = []
    rows = list(boxed_rows(text))
    for first, second in itertools.pairwise(rows):
        named = _NUMBERED.fullmatch(first[0])
        if len(first) != len(second) or len(first) not in (3, 4) or not _BUS.fullmatch(first[-2]) or not named:
            continue
        numbered = named if len(first) == 3 else _NUMBERED.fullmatch(first[1])
        if numbered is None:
            continue
        index = int(numbered[1])
        measured = " ".join(second[:-2])
        temperature, power = _TEMPERATURE.search(measured), _POWER.search(measured)
        used, total = used_and_total(second[-2])
        state = second[-1]
        readings.append(
            GpuReading(
                vendor=METAX.name,
                type=METAX.type,
                index=index,
                name=named[2].strip(),
                uuid=uuids.get(index),
                memory_total_bytes=total,
                memory_used_bytes=used,
                utilisation_percent=number(first[-1]),
                temperature_celsius=number(temperature[1]) if temperature else None,
                power_watts=number(power[1]) if power else None,
                driver_version=driver[1] if driver else None,
                runtime_version=maca[1] if maca else None,
                unhealthy=None if state.upper() in HEALTHY else f"mx-smi calls its state {state}",
                processes=None if held is None else tuple(held.get(index, ())),
            )
        )
    found = each_once(readings)
    pairs = linked_pairs(answers.get("topo", ""), "GPU", "MX|PIX")
    return with_islands(found, islands((reading.index for reading in found), pairs))


def _processes(text: str) -> dict[int, list[GpuProcess]] | None:
    _, heading, table = text.partition("Process:")
    if not heading:
        return None
    held: dict[int, list[GpuProcess]] = {}
    for row in boxed_rows(table):
        if len(row) == 1 and (found := _PROCESS.fullmatch(row[0])):
            held.setdefault(int(found[1]), []).append(GpuProcess(int(found[2]), mib(found[3])))
    return held

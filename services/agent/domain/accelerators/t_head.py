"""T-Head: `ppu-smi --query-ppu=… --format=csv`, its table for ECC errors and processes, `ppu-smi topo -m` for links.

Formats: T-Head, "PPU-SMI" manual of SAIL SDK 2.1. A PPU that is split (MIG) is reported as a whole.
"""

import re
from typing import Final

from services.agent.domain.accelerators.answers import Answers, csv_rows, islands, linked_pairs
from services.agent.domain.accelerators.gpus import each_once, with_islands
from services.agent.domain.accelerators.nvml_like import lines, processes
from services.agent.domain.accelerators.quantities import mib, whole, word
from services.agent.domain.accelerators.reading import GpuReading
from services.agent.domain.accelerators.vendors import T_HEAD

_VERSIONS: Final = re.compile(r"Driver Version:\s*(\S+)(?:\s+HGGC Version:\s*([0-9.]+))?")


def parse(answers: Answers) -> tuple[GpuReading, ...]:
    """`query` or `table` is needed, and each adds to the other; `topo` adds links. Raises BadOutput."""
    text = answers.get("table", "")
    shown, held, versions = lines(text), processes(text), _VERSIONS.search(text)
    asked = {index: row for row in csv_rows(answers.get("query", "")) if (index := whole(row.get("index"))) is not None}
    readings: list[GpuReading] = []
    for index in sorted(shown.keys() | asked.keys()):
        row, line = asked.get(index, {}), shown.get(index)
        used, total = mib(row.get("memory.used")), mib(row.get("memory.total"))
        errors = whole(line.third) if line else None
        readings.append(
            GpuReading(
                vendor=T_HEAD.name,
                type=T_HEAD.type,
                index=index,
                name=word(row.get("name")) or (line.name if line else "T-Head PPU"),
                uuid=word(row.get("uuid")),
                memory_total_bytes=line.memory_total_bytes if total is None and line else total,
                memory_used_bytes=line.memory_used_bytes if used is None and line else used,
                utilisation_percent=line.utilisation_percent if line else None,
                temperature_celsius=line.temperature_celsius if line else None,
                power_watts=line.power_watts if line else None,
                driver_version=word(row.get("driver_version")) or (versions[1] if versions else None),
                runtime_version=versions[2] if versions else None,
                unhealthy=f"{errors} uncorrected ECC errors since the driver was loaded" if errors else None,
                processes=None if held is None else tuple(held.get(index, ())),
            )
        )
    found = each_once(readings)
    pairs = linked_pairs(answers.get("topo", ""), "PPU", r"ICN[0-9]+|PIX")
    return with_islands(found, islands((reading.index for reading in found), pairs))

"""Iluvatar: `ixsmi --query-gpu=… --format=csv`, and its table for what the query does not tell.

Formats: IX-ML 3 and 4 (CoreX) as users of BI-V100, BI-V150 and MR-V100 pasted them. No health was seen in it, and
the CUDA version that it names is the one it imitates.
"""

import re
from typing import Final

from services.agent.domain.accelerators.answers import Answers, csv_rows, islands, linked_pairs
from services.agent.domain.accelerators.gpus import each_once, with_islands
from services.agent.domain.accelerators.nvml_like import lines, processes
from services.agent.domain.accelerators.quantities import mib, number, whole, word
from services.agent.domain.accelerators.reading import GpuReading
from services.agent.domain.accelerators.vendors import ILUVATAR

_DRIVER: Final = re.compile(
    r"Driver Version:\s*(\S+)\s"
)  # of output that ends too early, a version may be a part of one


def parse(answers: Answers) -> tuple[GpuReading, ...]:
    """`query` or `table` is needed, and each adds to the other; `topo` adds links. Raises BadOutput."""
    text = answers.get("table", "")
    shown, held, driver = lines(text), processes(text), _DRIVER.search(text)
    asked = {index: row for row in csv_rows(answers.get("query", "")) if (index := whole(row.get("index"))) is not None}
    readings: list[GpuReading] = []
    for index in sorted(shown.keys() | asked.keys()):
        row, line = asked.get(index, {}), shown.get(index)
        used, total = mib(row.get("memory.used")), mib(row.get("memory.total"))
        load, temperature = number(row.get("utilization.gpu")), number(row.get("temperature.gpu"))
        readings.append(
            GpuReading(
                vendor=ILUVATAR.name,
                type=ILUVATAR.type,
                index=index,
                name=word(row.get("name")) or (line.name if line else "Iluvatar GPU"),
                uuid=word(row.get("uuid")),
                memory_total_bytes=line.memory_total_bytes if total is None and line else total,
                memory_used_bytes=line.memory_used_bytes if used is None and line else used,
                utilisation_percent=line.utilisation_percent if load is None and line else load,
                temperature_celsius=line.temperature_celsius if temperature is None and line else temperature,
                power_watts=line.power_watts if line else None,
                driver_version=driver[1] if driver else None,
                processes=None if held is None else tuple(held.get(index, ())),
            )
        )
    found = each_once(readings)
    pairs = linked_pairs(answers.get("topo", ""), "GPU", "PIX")
    return with_islands(found, islands((reading.index for reading in found), pairs))

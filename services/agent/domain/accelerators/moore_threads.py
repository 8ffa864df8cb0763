"""Moore Threads: the table of `mthreads-gmi`, UUIDs of `mthreads-gmi -q`, links of `mthreads-gmi topo -m`.

Formats: mthreads-gmi 1.14 to 2.4 as users of S80, S3000, S4000 and S5000 pasted them. Neither power nor health is in the table.
"""

import re
from typing import Final

from services.agent.domain.accelerators.answers import Answers, islands, linked_pairs
from services.agent.domain.accelerators.gpus import each_once, with_islands
from services.agent.domain.accelerators.quantities import mib, number
from services.agent.domain.accelerators.reading import GpuProcess, GpuReading
from services.agent.domain.accelerators.vendors import MOORE_THREADS

_GPU: Final = re.compile(
    r"^([0-9]{1,3})\s+(\S[^|]*?)\s*\|\s*[0-9A-Fa-f:.]+\s*\|\s*([0-9]+)%\s+([0-9]+)MiB\(([0-9]+)MiB\)[^\n]*"
    r"(?:\n[^|\n]*\|[^|\n]*\|\s*([0-9]+)C\b)?",
    re.MULTILINE,
)
_DRIVER: Final = re.compile(r"Driver Version:\s*(\S+)\s")
_PROCESS: Final = re.compile(r"^([0-9]{1,3})\s+([0-9]{1,10})\s+(?:\S.*?)?\s*\b([0-9]+)MiB\s*$", re.MULTILINE)
_BLOCK: Final = re.compile(r"^GPU ?([0-9]{1,3})\b", re.MULTILINE)
_UUID: Final = re.compile(r"GPU UUID\s*:\s*(\S+)\s")


def parse(answers: Answers) -> tuple[GpuReading, ...]:
    """`table` is needed; `query` and `topo` add what they tell. Raises BadOutput."""
    text = answers.get("table", "")
    gpus, heading, processes = text.partition("Processes:")
    driver = _DRIVER.search(gpus)
    uuids = _uuids(answers.get("query", ""))
    held: dict[int, list[GpuProcess]] = {}
    for index, pid, memory in _PROCESS.findall(processes):
        held.setdefault(int(index), []).append(GpuProcess(int(pid), mib(memory)))
    readings = each_once(
        GpuReading(
            vendor=MOORE_THREADS.name,
            type=MOORE_THREADS.type,
            index=int(index),
            name=name,
            uuid=uuids.get(int(index)),
            memory_total_bytes=mib(total),
            memory_used_bytes=mib(used),
            utilisation_percent=number(load),
            temperature_celsius=number(temperature),
            driver_version=driver[1] if driver else None,
            processes=tuple(held.get(int(index), ())) if heading else None,
        )
        for index, name, load, used, total, temperature in _GPU.findall(gpus)
    )
    pairs = linked_pairs(answers.get("topo", ""), "GPU", r"MT[0-9]+|PIX")
    return with_islands(readings, islands((reading.index for reading in readings), pairs))


def _uuids(text: str) -> dict[int, str]:
    _, *blocks = _BLOCK.split(text)
    pairs = zip(blocks[::2], blocks[1::2], strict=False)
    return {int(index): found[1] for index, block in pairs if (found := _UUID.search(block))}

"""Ascend: the tables of `npu-smi info` and `npu-smi info -t topo`, and `hccn_tool -i N -ip|-link -g`.

Formats: Huawei, "npu-smi Command Reference" and "HCCN Tool Interface Reference"; outputs of drivers 23 to 26 as users pasted them.
Each NPU has two lines; a card with two chips has two pairs of lines, and a column Phy-ID (or Device) that numbers all chips.
MB are MiB.
"""

import itertools
import re
from dataclasses import dataclass
from typing import Final

from services.agent.domain.accelerators.answers import Answers, boxed_rows, islands, linked_pairs
from services.agent.domain.accelerators.gpus import each_once, with_islands
from services.agent.domain.accelerators.quantities import mib, number, whole, word
from services.agent.domain.accelerators.reading import GpuProcess, GpuReading, RocePort
from services.agent.domain.accelerators.vendors import ASCEND

HEALTHY: Final = ("OK", "WARNING")
"""The other values are Alarm, Critical and UNKNOWN. One that has a warning (an optical module without light, say) goes on computing."""
_VERSION: Final = re.compile(r"npu-smi\s+\S+\s+Version:\s*(\S+)")
_PAIR: Final = re.compile(r"([0-9]+)\s*/\s*([0-9]+)")
_LINKS: Final = r"HCCS(?:_SW)?|SIO|PIX"
_ADDRESS: Final = re.compile(r"ipaddr\s*:\s*([0-9A-Fa-f.:]+)\s")
_LINK: Final = re.compile(r"link status\s*:\s*(\S+)\s", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class _Chip:
    npu: int
    chip: int
    device: int | None
    name: str
    health: str
    power: str
    temperature: str
    load: str


def parse(answers: Answers) -> tuple[GpuReading, ...]:
    """`info` is needed; `topo`, and `ip N` and `link N` of each index add what they tell. Raises BadOutput."""
    text = answers.get("info", "")
    rows = list(boxed_rows(text))
    chips = _chips(rows)
    numbered = all(chip.device is not None for chip in chips)
    index_of = {(c.npu, c.chip): c.device if numbered and c.device is not None else c.npu for c in chips}
    held = _processes(rows)
    version = _VERSION.search(text)
    dual = len({chip.npu for chip in chips}) < len(chips)
    readings: list[GpuReading] = []
    for chip in chips:
        memory = _PAIR.findall(chip.load)
        index = index_of[chip.npu, chip.chip]
        readings.append(
            GpuReading(
                vendor=ASCEND.name,
                type=ASCEND.type,
                index=index,
                name=chip.name,
                memory_total_bytes=mib(memory[-1][1]) if memory else None,
                memory_used_bytes=mib(memory[-1][0]) if memory else None,
                utilisation_percent=number(chip.load.split()[0]) if chip.load else None,
                temperature_celsius=number(chip.temperature),
                power_watts=number(chip.power),
                driver_version=version[1] if version else None,
                compute_capability=family(chip.name, dual=dual),
                unhealthy=None if chip.health.upper() in HEALTHY else f"npu-smi calls its health {chip.health}",
                network=_network(answers, index),
                processes=None if held is None else tuple(held.get((chip.npu, chip.chip), ())),
            )
        )
    found = each_once(readings)
    pairs = linked_pairs(answers.get("topo", ""), r"(?:NPU|Phy-ID)", _LINKS)
    return with_islands(found, islands((reading.index for reading in found), pairs))


def family(name: str, *, dual: bool) -> str | None:
    """The variant of CANN that runs on it. `dual`: its cards have two chips (Atlas A3), which call themselves just Ascend910."""
    plain = name.upper().removeprefix("ASCEND")
    if plain.startswith("910B"):
        return "910b"
    if plain.startswith("310P"):
        return "310p"
    return "a3" if plain == "910" and dual else None


def _chips(rows: list[tuple[str, ...]]) -> list[_Chip]:
    found: list[_Chip] = []
    for first, second in itertools.pairwise(rows):
        if len(first) != 3 or len(second) != 3:
            continue
        of_npu, of_chip = first[0].split(), second[0].split()
        power = first[2].split()
        if (
            len(of_npu) < 2
            or not of_npu[0].isdecimal()
            or not of_chip
            or not all(each.isdecimal() for each in of_chip[:2])
        ):
            continue
        npu, chip = whole(of_npu[0]), whole(of_chip[0])
        if npu is None or chip is None or len(power) < 2 or ":" not in second[1]:
            continue
        device = whole(of_chip[1]) if len(of_chip) > 1 else None
        name, health = " ".join(of_npu[1:]), first[1]
        found.append(_Chip(npu, chip, device, name, word(health) or "UNKNOWN", power[0], power[1], second[2]))
    return found


def _processes(rows: list[tuple[str, ...]]) -> dict[tuple[int, int], list[GpuProcess]] | None:
    """None: there is no table of them."""
    start = next((at for at, row in enumerate(rows) if len(row) == 4 and row[1] == "Process id"), None)
    if start is None:
        return None
    held: dict[tuple[int, int], list[GpuProcess]] = {}
    for row in rows[start + 1 :]:
        chip = row[0].split()
        if len(row) == 4 and len(chip) == 2 and (pid := whole(row[1])) is not None:
            npu, number_of_chip = whole(chip[0]), whole(chip[1])
            if npu is not None and number_of_chip is not None:
                held.setdefault((npu, number_of_chip), []).append(GpuProcess(pid, mib(row[3])))
    return held


def _network(answers: Answers, index: int) -> RocePort | None:
    address = _ADDRESS.search(answers.get(f"ip {index}", ""))
    link = _LINK.search(answers.get(f"link {index}", ""))
    if address is None and link is None:
        return None
    return RocePort(address=address[1] if address else None, up=link is not None and link[1].upper() == "UP")

"""Cambricon: the table of `cnmon`, UUIDs and health of `cnmon info`.

Formats: CNMON 4.20 to 6.5 as users of MLU370 and MLU590 pasted them. Ecc-Error is N/A where ECC is off. Links (`cnmon topo`) were
seen in pictures only: they are not read.
"""

import itertools
import re
from typing import Final

from services.agent.domain.accelerators.answers import Answers, boxed_rows
from services.agent.domain.accelerators.gpus import each_once
from services.agent.domain.accelerators.quantities import mib, number, used_and_total, whole
from services.agent.domain.accelerators.reading import GpuProcess, GpuReading
from services.agent.domain.accelerators.vendors import CAMBRICON

_CARD: Final = re.compile(r"([0-9]{1,3})\s+/\s+(\S.*?)(?:\s+v[0-9.]+)?")
"""A slash where the number of a virtual function would be: those are parts of cards that are told themselves."""
_TEMPERATURE: Final = re.compile(r"\b([0-9]+)C\b")
_POWER: Final = re.compile(r"\b([0-9.]+)\s*W\s*/")
_DRIVER: Final = re.compile(r"(?:Driver|On)\s+v?([0-9]\S*)")
_PROCESS: Final = re.compile(r"([0-9]{1,3})\s+\S+\s+([0-9]{1,10})\s+(?:\S.*?)?\s*\b([0-9]+)\s*MiB")
_BLOCK: Final = re.compile(r"^Card\s+([0-9]{1,3})\b", re.MULTILINE)
_UUID: Final = re.compile(r"^\s*UUID\s*:\s*(\S+)\s", re.MULTILINE)
_HEALTH: Final = re.compile(r"^\s*Health State\s*:\s*\n\s*Device\s*:\s*(\S+)\s", re.MULTILINE)


def parse(answers: Answers) -> tuple[GpuReading, ...]:
    """`table` is needed; `info` adds UUIDs and health. Raises BadOutput."""
    text = answers.get("table", "")
    driver = _DRIVER.search(text)
    told = _blocks(answers.get("info", ""))
    held = _processes(text)
    readings: list[GpuReading] = []
    rows = list(boxed_rows(text))
    for first, second in itertools.pairwise(rows):
        card = _CARD.fullmatch(first[0])
        if len(first) != 3 or len(second) != 3 or not card or "MiB" not in second[1]:
            continue
        index = int(card[1])
        temperature, power = _TEMPERATURE.search(second[0]), _POWER.search(second[0])
        used, total = used_and_total(second[1])
        errors = whole(first[2].split()[-1]) if first[2] else None
        readings.append(
            GpuReading(
                vendor=CAMBRICON.name,
                type=CAMBRICON.type,
                index=index,
                name=card[2],
                uuid=uuid[1] if (uuid := _UUID.search(told.get(index, ""))) else None,
                memory_total_bytes=total,
                memory_used_bytes=used,
                utilisation_percent=number(first[2]),
                temperature_celsius=number(temperature[1]) if temperature else None,
                power_watts=number(power[1]) if power else None,
                driver_version=driver[1] if driver else None,
                unhealthy=_what_is_wrong(errors, told.get(index, "")),
                processes=None if held is None else tuple(held.get(index, ())),
            )
        )
    return each_once(readings)


def _processes(text: str) -> dict[int, list[GpuProcess]] | None:
    _, heading, table = text.partition("Processes:")
    if not heading:
        return None
    held: dict[int, list[GpuProcess]] = {}
    for row in boxed_rows(table):
        if len(row) == 1 and (found := _PROCESS.fullmatch(row[0])):
            held.setdefault(int(found[1]), []).append(GpuProcess(int(found[2]), mib(found[3])))
    return held


def _what_is_wrong(ecc_errors: int | None, told: str) -> str | None:
    health = _HEALTH.search(told)
    if health is not None and health[1].lower() != "good":
        return f"cnmon calls its health {health[1]}"
    return f"{ecc_errors} ECC errors" if ecc_errors else None


def _blocks(text: str) -> dict[int, str]:
    """What is said of each card."""
    _, *blocks = _BLOCK.split(text)
    return {int(index): block for index, block in zip(blocks[::2], blocks[1::2], strict=False)}

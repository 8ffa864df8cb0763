"""Hygon: `hy-smi … --json`, a relative of AMD's rocm-smi, and its text for processes and the driver's version.

Formats: DTK 24 to 26 as users pasted them (cards are `DCU` in older ones and `HCU` in newer). The key says the unit of a size.
"""

import re
from typing import Any, Final

from services.agent.domain.accelerators.answers import Answers, islands, json_in, mapping
from services.agent.domain.accelerators.gpus import each_once, with_islands
from services.agent.domain.accelerators.quantities import mib, number, whole, word
from services.agent.domain.accelerators.reading import BadOutput, GpuProcess, GpuReading
from services.agent.domain.accelerators.vendors import HYGON

_CARD: Final = re.compile(r"card([0-9]{1,3})")
_VRAM: Final = re.compile(r"vram total( used)? memory \((b|mib)\)", re.IGNORECASE)
_DRIVER: Final = re.compile(r"Driver Version:\s*(\S+)\s", re.IGNORECASE)
_PROCESS: Final = re.compile(r"^PID\s*:\s*([0-9]{1,10})\s*$", re.MULTILINE)
_HELD_ON: Final = re.compile(r"[HD]CU Index\s*:(.*)")
_HELD: Final = re.compile(r"VRAM USED\(MiB\)\s*:\s*([0-9]+)")
_LINK: Final = re.compile(r"Link type between .* ([0-9]{1,3}) and ([0-9]{1,3})")
_TEMPERATURES: Final = tuple(f"Temperature (Sensor {sensor}) (C)" for sensor in ("junction", "core", "edge", "mem"))


def parse(answers: Answers) -> tuple[GpuReading, ...]:
    """`cards` is needed; `driver`, `pids` and `links` add what they tell. Raises BadOutput.

    Indexes count from 0 in the order of the cards: a DTK that calls the first one card1 has HIP_VISIBLE_DEVICES start at 0 too.
    """
    document = mapping(json_in(answers.get("cards", "")))
    cards = {int(found[1]): mapping(card) for name, card in document.items() if (found := _CARD.fullmatch(name))}
    if not cards:
        raise BadOutput("no GPU in its output")
    index_of = {card: index for index, card in enumerate(sorted(cards))}
    driver = _DRIVER.search(answers.get("driver", ""))
    held = _processes(answers["pids"]) if "pids" in answers else None
    readings = each_once(
        GpuReading(
            vendor=HYGON.name,
            type=HYGON.type,
            index=index_of[card],
            name=word(said.get("Card Series")) or word(said.get("Card series")) or "Hygon DCU",
            uuid=word(said.get("Unique ID")),
            memory_total_bytes=_vram(said, used=False),
            memory_used_bytes=_vram(said, used=True),
            utilisation_percent=number(said.get("HCU use (%)", said.get("DCU use (%)"))),
            temperature_celsius=_temperature(said),
            power_watts=number(said.get("Average Graphics Package Power (W)")),
            driver_version=driver[1] if driver else None,
            processes=None if held is None else tuple(held.get(card, ())),
        )
        for card, said in cards.items()
    )
    return with_islands(readings, islands(index_of.values(), _links(answers, index_of)))


def _vram(said: dict[str, Any], *, used: bool) -> int | None:
    for key, value in said.items():
        found = _VRAM.fullmatch(key)
        if found and bool(found[1]) is used:
            return mib(value) if found[2].lower() == "mib" else whole(value)
    return None


def _temperature(said: dict[str, Any]) -> float | None:
    return next((celsius for key in _TEMPERATURES if (celsius := number(said.get(key))) is not None), None)


def _processes(text: str) -> dict[int, list[GpuProcess]]:
    """Of a process on several cards only the sum is told: what it holds on each is not known."""
    held: dict[int, list[GpuProcess]] = {}
    _, *parts = _PROCESS.split(text)
    for pid, said in zip(parts[::2], parts[1::2], strict=False):
        on, memory = _HELD_ON.search(said), _HELD.search(said)
        cards = re.findall(r"[0-9]{1,3}", on[1]) if on else []
        bytes_ = mib(memory[1]) if memory and len(cards) == 1 else None
        for card in cards:
            held.setdefault(int(card), []).append(GpuProcess(int(pid), bytes_))
    return held


def _links(answers: Answers, index_of: dict[int, int]) -> list[tuple[int, int]]:
    """rocm-smi's form: {"system": {"(Topology) Link type between DRM devices 0 and 1": "XGMI", …}}."""
    try:
        said = mapping(mapping(json_in(answers.get("links", ""))).get("system"))
    except BadOutput:
        return []
    pairs: list[tuple[int, int]] = []
    for key, value in said.items():
        found = _LINK.search(key)
        if found and value == "XGMI" and {int(found[1]), int(found[2])} <= index_of.keys():
            one, other = index_of[int(found[1])], index_of[int(found[2])]
            pairs += [(one, other), (other, one)]
    return pairs

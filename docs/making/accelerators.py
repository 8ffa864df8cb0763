"""docs/reference/accelerators.md: the vendors whose GPUs are detected, what is known of each, and on what that was tried."""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from docs.making.words import GENERATED, table
from services.agent.adapters.probes import amd, ascend, cambricon, hygon, iluvatar, metax, moore_threads, t_head
from services.agent.adapters.probes.tool_probe import ToolProbe
from services.agent.domain.accelerators import nvidia
from services.agent.domain.accelerators.answers import Answers
from services.agent.domain.accelerators.reading import GpuReading
from services.agent.domain.accelerators.vendors import VENDORS, Vendor

TESTS: Final = Path(__file__).parents[2] / "tests" / "services" / "agent" / "accelerators"
TOOLS: Final = (amd, ascend, hygon, moore_threads, iluvatar, metax, cambricon, t_head)
TOLD: Final[Mapping[str, Callable[[GpuReading], object]]] = {
    "UUID": lambda reading: reading.uuid,
    "Memory": lambda reading: reading.memory_total_bytes,
    "Processes": lambda reading: reading.processes,
    "Load": lambda reading: reading.utilisation_percent,
    "Temperature": lambda reading: reading.temperature_celsius,
    "Power": lambda reading: reading.power_watts,
    "Driver": lambda reading: reading.driver_version,
    "Newest runtime": lambda reading: reading.runtime_version,
    "Family": lambda reading: reading.compute_capability,
    "Islands": lambda reading: reading.island,
    "Health": lambda reading: reading.unhealthy,
}


def page() -> str:
    return "\n".join(_lines(TESTS))


def _lines(tests: Path) -> Iterator[str]:
    probes = {probe.vendor.name: probe for probe in (module.probe() for module in TOOLS)}
    verified: dict[str, list[dict[str, str]]] = json.loads((tests / "verified.json").read_text(encoding="utf-8"))
    yield GENERATED
    yield from (
        "# Accelerators",
        "",
        "An agent finds the GPUs of its machine by itself, unless a file (`MUSTER_INVENTORY`) names `gpus`: then no driver is asked.",
        "Nor is one where no engine could use them: the llama.cpp that comes with Muster runs on the CPU (`MUSTER_RUNTIME=process`).",
        "A vendor is asked when a device of it is on the PCI bus (display controller, processor, accelerator), or its tool is there.",
        "",
        "No driver is called in the agent's own process, and every question has a deadline. What costs little is asked every",
        "2.5 seconds, what costs more is asked less often, down to every 5 minutes: asking takes about half a per cent of a core.",
        "Where a tool tells what each process holds, the most that an engine was seen to hold is told as its peak.",
        "GPUs whose driver stops answering stay in the inventory; after three failures in a row they are unhealthy.",
        "",
        "## Who is asked",
        "",
    )
    yield from table(
        ("Vendor", "`vendor`", "`type`", "PCI vendor", "Asked", "When it is missing"),
        (
            (each.label, f"`{each.name}`", f"`{each.type}`", f"`{each.pci_id}`", _asked(each, probes), each.install)
            for each in VENDORS
        ),
    )
    yield from (
        "## What each tells",
        "",
        "As the recordings show it. Where processes are not told, memory of others is what was used before an engine of ours ran.",
        "",
    )
    yield from table(("Vendor", *TOLD), (_told(vendor, probes, tests) for vendor in VENDORS))
    yield from (
        "## What was verified, and on what",
        "",
        "Recordings are put together from outputs that others published: their",
        "[README](../../tests/services/agent/accelerators/recorded/README.md) says which forms are certain and which are guessed.",
        "What was seen to work on hardware is written down in `tests/services/agent/accelerators/verified.json`.",
        "",
    )
    yield from table(
        ("Vendor", "On hardware", "Against recordings"),
        (
            (vendor.label, _on_hardware(verified.get(vendor.name, [])), ", ".join(_cases(tests, vendor)))
            for vendor in VENDORS
        ),
    )


def _asked(vendor: Vendor, probes: Mapping[str, ToolProbe]) -> str:
    if vendor.name not in probes:
        return "NVML, in a process that stays"
    questions = probes[vendor.name].questions
    asked = [f"`{' '.join((vendor.tool, *question.arguments))}`" for question in questions]
    if vendor.name == "ascend":
        asked.append(f"`{ascend.HCCN_TOOL} -i N -ip -g`, `… -link -g`")
    return ", ".join(asked)


def _told(vendor: Vendor, probes: Mapping[str, ToolProbe], tests: Path) -> tuple[str, ...]:
    parse: Callable[[Answers], Any] = probes[vendor.name].parse if vendor.name in probes else nvidia.parse
    readings = [reading for case in _cases(tests, vendor) for reading in parse(_answers(tests, vendor, case))]
    told = ("yes" if any(field(reading) is not None for reading in readings) else "–" for field in TOLD.values())
    return (vendor.label, *told)


def _cases(tests: Path, vendor: Vendor) -> list[str]:
    return sorted(directory.name for directory in (tests / "recorded" / vendor.name).iterdir())


def _answers(tests: Path, vendor: Vendor, case: str) -> dict[str, str]:
    files = (tests / "recorded" / vendor.name / case).iterdir()
    return {file.stem.replace("_", " "): file.read_text(encoding="utf-8") for file in files}


def _on_hardware(entries: list[dict[str, str]]) -> str:
    """Each: `gpu`, `driver`, `date` (ISO 8601), `cases`."""
    said = (f"{entry['gpu']}, driver {entry['driver']}, {entry['date']}: {entry['cases']}" for entry in entries)
    return "; ".join(said) or "not yet"

"""A machine that has the accelerators, and the tools, that a test wants."""

import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from services.agent.adapters.probes.tool import Lookup
from services.agent.adapters.probes.tool_probe import Question
from services.agent.domain.accelerators.vendors import Vendor

HANGS: Final = "exec sleep 1000"
FAILS: Final = "echo 'driver not loaded' >&2; exit 1"
GARBAGE: Final = "head -c 3000 /dev/urandom"
FLOOD: Final = "yes 'megabytes of this'"


def a_machine(root: Path, *vendors: Vendor, device_class: str = "0x030200") -> Path:
    """A /sys with one PCI device of each vendor."""
    for number, vendor in enumerate(vendors):
        a_device(root, f"0000:{number + 1:02x}:00.0", vendor.pci_id, device_class)
    return root


def a_device(root: Path, address: str, vendor_id: str, device_class: str) -> None:
    device = root / "bus" / "pci" / "devices" / address
    device.mkdir(parents=True)
    (device / "vendor").write_text(f"{vendor_id}\n")
    (device / "class").write_text(f"{device_class}\n")


def a_tool(directory: Path, name: str, body: str) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / name).write_text(f"#!/bin/sh\n{body}\n")
    (directory / name).chmod(0o755)


def in_directory(directory: Path) -> Lookup:
    def lookup(name: str, _homes: Sequence[str]) -> str | None:
        path = directory / name
        return str(path) if path.exists() else None

    return lookup


def that_prints(questions: Sequence[Question], answers: Mapping[str, str], files: Path) -> str:
    """The body of a tool that knows the recorded answers, each to its own arguments, and refuses other ones."""
    cases: list[str] = []
    files.mkdir(parents=True, exist_ok=True)
    for question in questions:
        if question.name in answers:
            file = files / f"{question.name}.out"
            file.write_text(answers[question.name], encoding="utf-8")
            cases.append(f"{shlex.quote(' '.join(question.arguments))}) cat {shlex.quote(str(file))} ;;")
    return "\n".join(('case "$*" in', *cases, '*) echo "unknown option: $*" >&2; exit 2 ;;', "esac"))


def fake_nvml(directory: Path, answers: str) -> dict[str, str]:
    """An environment in which `import pynvml` finds a fake: it has the GPUs of a recorded answer."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "scenario.json").write_text(answers, encoding="utf-8")
    source = Path(__file__).with_name("fake_pynvml.py").read_text(encoding="utf-8")
    (directory / "pynvml.py").write_text(source, encoding="utf-8")
    return {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(directory), "HOME": str(directory)}


PYTHON: Final = sys.executable

"""What this machine is, what `muster up` will run on it, and why."""

import platform
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from services.agent.adapters.bundled_llama_cpp import lacks_avx2, lacks_library
from services.agent.domain.accelerators import vendors
from services.agent.domain.accelerators.vendors import ACCELERATOR_CLASSES

VENDORS: Final[Mapping[str, str]] = {vendor.pci_id: vendor.label for vendor in vendors.VENDORS}
"""PCI vendor id → name for people."""


class NotSupported(Exception):
    """This machine can't run `muster up`: one sentence that says what works here instead."""


@dataclass(frozen=True, slots=True)
class Machine:
    gpu_vendors: tuple[str, ...]
    docker: bool

    def choice(self, *, vllm: bool = False) -> str:
        """What was chosen and why, for people. `vllm`: there is a program for it."""
        chosen = f"llama.cpp on the CPU{' and vLLM' if vllm else ''}, as local processes"
        if not self.gpu_vendors:
            return f"{chosen}: no GPU was found"
        found = f"{', '.join(self.gpu_vendors)} GPU" + (" and Docker Engine" if self.docker else ", no Docker Engine")
        if vllm:
            return f"{chosen}: {found} found, for vLLM unless that is a build for processors"
        return f"{chosen}: {found} found, which it does not use (an agent with MUSTER_RUNTIME=docker does)"


def look_at_machine(
    *,
    own_llama_cpp: bool = False,
    system: str = sys.platform,
    machine: str | None = None,
    cpuinfo: Path = Path("/proc/cpuinfo"),
    pci: Path = Path("/sys/bus/pci/devices"),
    docker_socket: Path = Path("/var/run/docker.sock"),
    libgomp: str = "libgomp.so.1",
) -> Machine:
    """Raises NotSupported. `own_llama_cpp`: the bundled engine is not the one that will run."""
    machine = machine or platform.machine()
    if system != "linux" or machine not in ("x86_64", "aarch64"):
        raise NotSupported(
            f"`muster up` runs on Linux (x86_64, aarch64), not on {system} {machine}; the `muster` command itself works here"
            " against a server elsewhere: set MUSTER_URL and MUSTER_API_KEY"
        )
    if not own_llama_cpp and lacks_avx2(machine, cpuinfo):
        raise NotSupported(
            "this processor has no AVX2, which the bundled llama.cpp engine needs; `muster` works here against a server"
            " elsewhere, or set MUSTER_LLAMA_CPP_COMMAND to a llama-server that was built for this machine"
        )
    if not own_llama_cpp and lacks_library(libgomp):
        raise NotSupported(
            f"the bundled llama.cpp engine needs {libgomp}, which is not installed: `apt-get install libgomp1` (elsewhere the"
            " package is called libgomp), or set MUSTER_LLAMA_CPP_COMMAND to a llama-server that does without"
        )
    return Machine(gpu_vendors(pci), docker_socket.exists() or shutil.which("dockerd") is not None)


def gpu_vendors(pci: Path) -> tuple[str, ...]:
    found: set[str] = set()
    for device in sorted(pci.glob("*")):
        try:
            vendor = (device / "vendor").read_text().strip()
            kind = (device / "class").read_text().strip()
        except OSError:
            continue
        if vendor in VENDORS and kind.startswith(ACCELERATOR_CLASSES):
            found.add(VENDORS[vendor])
    return tuple(sorted(found))

"""Whether the bundled llama.cpp can run on this machine."""

import ctypes
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

LIBGOMP: Final = "libgomp.so.1"
CPUINFO: Final = Path("/proc/cpuinfo")


def bundled_version() -> str | None:
    """None: it is not installed."""
    try:
        return version("xllamacpp")
    except PackageNotFoundError:
        return None


def lacks_avx2(machine: str | None = None, cpuinfo: Path = CPUINFO) -> bool:
    """It is built for x86-64-v3."""
    if (machine or platform.machine()) != "x86_64" or not cpuinfo.exists():
        return False
    return " avx2" not in cpuinfo.read_text(errors="replace")


def lacks_library(library: str = LIBGOMP) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return True
    return False

"""What processes cost: processor time and memory, as the kernel counts them."""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

import psutil

MIB = 2**20


def cpu_seconds(pid: int) -> float:
    """Time on a processor, all threads that live; nanoseconds from /proc/<pid>/task/*/schedstat (proc(5)), summed."""
    nanoseconds = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):
            nanoseconds += int((task / "schedstat").read_text().split()[0])
    return nanoseconds / 1e9


def family(pid: int) -> list[int]:
    """A process and everything below it."""
    return [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]


def rss_mib(pid: int) -> float:
    return psutil.Process(pid).memory_info().rss / MIB


def pss_mib(pid: int) -> float:
    """Shared pages divided among those who share them."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    raise ValueError(f"/proc/{pid}/smaps_rollup has no Pss")


def is_python(pid: int) -> bool:
    return Path(psutil.Process(pid).exe()).name.startswith("python")


class CpuMeter:
    """Processor time of named groups of processes from here on."""

    def __init__(self, groups: Mapping[str, int]) -> None:
        self._roots = dict(groups)
        self._before = {name: _each(family(pid)) for name, pid in self._roots.items()}

    def spent(self) -> dict[str, float]:
        """Seconds a group; of processes that came meanwhile all, of those that ended nothing."""
        now = {name: _each(family(pid)) for name, pid in self._roots.items()}
        return {
            name: sum(seconds - self._before[name].get(pid, 0.0) for pid, seconds in processes.items())
            for name, processes in now.items()
        }


def _each(pids: Iterable[int]) -> dict[int, float]:
    found: dict[int, float] = {}
    for pid in pids:
        with suppress(FileNotFoundError, ProcessLookupError):
            found[pid] = cpu_seconds(pid)
    return found

"""Was a process ended by the kernel for want of memory, or by somebody? The kernel's log says so (`man 4 kmsg`).

Where it may not be read (`kernel.dmesg_restrict`, a container) nobody knows, and a kill is a kill.
"""

import errno
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

KERNEL_LOG: Final = Path("/dev/kmsg")
_RECORD: Final = re.compile(rb"\d+,\d+,(\d+),[^;]*;(.*)")
_KILLED: Final = re.compile(rb"[Oo]ut of memory: Kill(?:ed)? process (\d+) ")
_RECORD_BYTES: Final = 8192
_TICKS: Final = os.sysconf("SC_CLK_TCK")


def killed_for_memory(pid: int, start_ticks: int, kernel_log: Path = KERNEL_LOG) -> bool:
    """`start_ticks`: of the process (`man 5 proc_pid_stat`): another one may have had its number before it."""
    try:
        descriptor = os.open(kernel_log, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        return (pid, True) in (
            (victim, seconds >= start_ticks / _TICKS) for seconds, victim in victims(_records(descriptor))
        )
    finally:
        os.close(descriptor)


def victims(records: Iterable[bytes]) -> Iterator[tuple[float, int]]:
    """Seconds since the machine was started, and process ids."""
    for record in records:
        if (said := _RECORD.match(record)) and (killed := _KILLED.search(said[2])):
            yield int(said[1]) / 1e6, int(killed[1])


def _records(descriptor: int) -> Iterator[bytes]:
    while True:
        try:
            if not (record := os.read(descriptor, _RECORD_BYTES)):
                return
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno != errno.EPIPE:  # else it was overwritten meanwhile, and the next one comes
                return
        else:
            yield record

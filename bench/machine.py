"""Where and with what it was measured: without this a figure is a rumour."""

import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Final

from services.up.embedded_postgres import installed

PACKAGES: Final = (
    "muster", "nats-py", "asyncpg", "SQLAlchemy", "fastapi", "uvicorn", "uvloop", "aiohttp", "pydantic", "orjson",
    "faststream", "xllamacpp",
)  # fmt: skip
FSYNC_BYTES: Final = 700
FSYNCS: Final = 500


@dataclass(frozen=True, slots=True)
class Machine:
    at: datetime
    cpu: str
    cores: int
    memory_gib: float
    kernel: str
    fsync_p50_ms: float
    """A 700-byte append and fdatasync in the directory that the servers use: the floor below every durable write."""
    fsync_p99_ms: float
    versions: dict[str, str]


def look_at_machine() -> Machine:
    times = sorted(_fsyncs())
    return Machine(
        at=datetime.now(UTC),
        cpu=_cpu_model(),
        cores=len(os.sched_getaffinity(0)),
        memory_gib=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30,
        kernel=platform.release(),
        fsync_p50_ms=statistics.median(times) * 1e3,
        fsync_p99_ms=times[len(times) * 99 // 100] * 1e3,
        versions={
            "python": platform.python_version(),
            "nats-server": _said_by(Path(sys.executable).with_name("nats-server")),
            "postgres": _said_by(max(installed()) / "postgres"),
        }
        | {name: version(name) for name in PACKAGES},
    )


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _said_by(program: Path) -> str:
    """`nats-server: v2.15.1` → 2.15.1, `postgres (PostgreSQL) 18.4` → 18.4"""
    output = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
    return output.split()[-1].removeprefix("v")


def _fsyncs() -> list[float]:
    taken: list[float] = []
    with tempfile.TemporaryFile(prefix="muster-bench-", buffering=0) as file:
        for _ in range(FSYNCS):
            started = time.perf_counter()
            file.write(bytes(FSYNC_BYTES))
            os.fdatasync(file.fileno())
            taken.append(time.perf_counter() - started)
    return taken

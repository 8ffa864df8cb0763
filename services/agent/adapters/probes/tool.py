"""Running a vendor's tool: with a deadline, a bounded output, and none of the agent's secrets. Linux (`man 2 pidfd_open`)."""

import contextlib
import os
import selectors
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Final

from services.agent.domain.accelerators.vendors import Vendor

MOST_BYTES: Final = 2 * 2**20
"""Of output. `npu-smi info` of 64 NPUs prints some 20 KiB, `amd-smi static --json` of eight GPUs some 60 KiB."""
DYING_SECONDS: Final = 1.0
"""How long a killed tool may take to go. One that a driver holds in the kernel does not go at all."""
_LINE: Final = 300
_PASSED_ON: Final = ("PATH", "HOME", "LD_LIBRARY_PATH", "PYTHONPATH")

Lookup = Callable[[str, Sequence[str]], str | None]
"""A program's name, and directories besides PATH → its path, when it is there."""


@dataclass(frozen=True, slots=True)
class Ran:
    stdout: str
    cpu_seconds: float
    """Of the tool and the children that it waited for."""


class ToolFailed(Exception):
    """It gave no answer. The message is for people."""

    def __init__(
        self,
        message: str,
        *,
        cpu_seconds: float = 0.0,
        hung: bool = False,
        left: subprocess.Popen[bytes] | None = None,
    ) -> None:
        super().__init__(message)
        self.cpu_seconds = cpu_seconds
        self.hung = hung
        """It did not answer in time: nor would it if it was asked something else."""
        self.left = left
        """The process, when even SIGKILL did not end it."""


def find_tool(name: str, homes: Sequence[str]) -> str | None:
    return shutil.which(name) or (shutil.which(name, path=os.pathsep.join(homes)) if homes else None)


def environment(vendor: Vendor, given: Mapping[str, str] = os.environ, *, python: bool = False) -> dict[str, str]:
    """`python`: of a child that imports what the agent could; a tool that is written in Python has modules of its own."""
    kept = {name: given[name] for name in _PASSED_ON if name in given and (python or name != "PYTHONPATH")}
    if vendor.libraries:
        kept["LD_LIBRARY_PATH"] = os.pathsep.join(filter(None, (kept.get("LD_LIBRARY_PATH"), *vendor.libraries)))
    return kept | {"LC_ALL": "C.UTF-8"}


def run(argv: Sequence[str], *, timeout_seconds: float, env: Mapping[str, str], most_bytes: int = MOST_BYTES) -> Ran:
    """Raises ToolFailed."""
    try:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=dict(env),
            start_new_session=True,  # it is killed with all that it started
        )
    except OSError as error:
        raise ToolFailed(f"can't be started: {error.strerror}") from error
    outputs: dict[str, bytearray] = {"stdout": bytearray(), "stderr": bytearray()}
    pidfd = os.pidfd_open(process.pid)
    try:
        why = _listen(process, pidfd, outputs, time.monotonic() + timeout_seconds, most_bytes)
        cpu_seconds = _end(process, pidfd)
    finally:
        os.close(pidfd)
        for pipe in (process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()
    if why == "deadline":
        said = f"no answer within {timeout_seconds:g} s"
    elif why == "flood":
        said = f"more than {most_bytes} bytes of output"
    elif process.returncode != 0:
        said = f"{_ended(process.returncode)}{_last_line(outputs)}"
    else:
        return Ran(outputs["stdout"].decode(errors="replace"), cpu_seconds or 0.0)
    if cpu_seconds is None:
        raise ToolFailed(f"{said}, and it can't be killed: the driver hangs", hung=True, left=process)
    raise ToolFailed(said, cpu_seconds=cpu_seconds, hung=why == "deadline")


def _listen(
    process: subprocess.Popen[bytes], pidfd: int, outputs: dict[str, bytearray], deadline: float, most_bytes: int
) -> str | None:
    """Until it ends; else why it was no longer listened to. What a child of it writes after its end is not waited for."""
    with selectors.DefaultSelector() as selector:
        pipes: list[tuple[str, IO[bytes] | None]] = [("stdout", process.stdout), ("stderr", process.stderr)]
        for name, pipe in pipes:
            if pipe is not None:
                os.set_blocking(pipe.fileno(), False)
                selector.register(pipe, selectors.EVENT_READ, name)
        selector.register(pidfd, selectors.EVENT_READ)
        while True:
            ready = selector.select(max(0.0, deadline - time.monotonic()))
            ended = any(key.data is None for key, _ in ready)
            for key in [key for key in selector.get_map().values() if key.data is not None]:
                while chunk := _some(key.fd):
                    outputs[key.data] += chunk
                    if len(outputs[key.data]) > most_bytes:
                        return "flood"
                if chunk is not None:
                    selector.unregister(key.fileobj)
            if ended:
                return None
            if time.monotonic() >= deadline:
                return "deadline"


def _some(fd: int) -> bytes | None:
    """None: nothing at the moment; empty: nothing any more."""
    try:
        return os.read(fd, 65536)
    except BlockingIOError:
        return None


def _end(process: subprocess.Popen[bytes], pidfd: int) -> float | None:
    """Kills what is left of it, and tells the CPU seconds that it took; None: it did not go."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    with selectors.DefaultSelector() as selector:
        selector.register(pidfd, selectors.EVENT_READ)
        if not selector.select(DYING_SECONDS):
            return None
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return usage.ru_utime + usage.ru_stime


def _ended(code: int) -> str:
    return f"ended by signal {-code}" if code < 0 else f"exit code {code}"


def _last_line(outputs: Mapping[str, bytearray]) -> str:
    for name in ("stderr", "stdout"):
        lines = [line for line in outputs[name].decode(errors="replace").splitlines() if line.strip()]
        if lines:
            return f": {lines[-1].strip()[:_LINE]}"
    return ""

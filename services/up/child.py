"""A server as our child process: it is ready when asked, it ends when told, and it never outlives us."""

import asyncio
import fcntl
import os
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from signal import SIGKILL, Signals
from typing import Final, Literal

from services.up import child_launcher

_LOG_TAIL_BYTES: Final = 4096
_FIRST_PAUSE_SECONDS: Final = 0.002
_LONGEST_PAUSE_SECONDS: Final = 0.05


class ServerFailed(Exception):
    """A server can't start or ended by itself. The sentence says why and, where the user can act, what to do."""

    def __init__(self, program: str, sentence: str, log_tail: str = "") -> None:
        super().__init__(f"{sentence}\n{log_tail}".rstrip())
        self.program = program
        self.sentence = sentence
        self.log_tail = log_tail
        """What the program said last; empty where the sentence says it all."""


@dataclass(frozen=True, slots=True)
class OrdinaryUser:
    """When we are root, the child is not. `owned`: directories that must be its own; no other changes its owner."""

    owned: tuple[Path, ...]
    user_namespace: bool = True
    """False: become the user `nobody`, as where containers may not make user namespaces."""


class Child:
    """Must be started from a thread that lives as long as the child shall: the kernel ends it with that thread."""

    def __init__(
        self,
        command: Sequence[str | Path],
        *,
        log_file: Path,
        death_signal: Literal["TERM", "INT", "KILL"] = "TERM",
        ordinary_user: OrdinaryUser | None = None,
        environment: Mapping[str, str] | None = None,
        directory: Path | None = None,
    ) -> None:
        """`death_signal` is what the child gets when we end without stopping it."""
        self.program = Path(command[0]).name
        self.log_file = log_file
        self._command = [str(part) for part in command]
        self._options = [f"--pdeathsig={death_signal}", f"--parent={os.getpid()}"]
        if ordinary_user is not None:
            self._options += ["--as-ordinary-user", *(f"--owned={path}" for path in ordinary_user.owned)]
            self._options += [] if ordinary_user.user_namespace else ["--no-user-namespace"]
        self._environment = environment
        self._directory = directory
        self._log_begin = 0
        self._pid: int | None = None
        self._exited: asyncio.Task[int] | None = None

    @property
    def pid(self) -> int:
        if self._pid is None:
            raise RuntimeError(f"{self.program} wasn't started")
        return self._pid

    @property
    def exited(self) -> asyncio.Future[int]:
        """The exit status, negative for a signal, once the process has ended. Wait with asyncio.wait: it doesn't cancel."""
        if self._exited is None:
            raise RuntimeError(f"{self.program} wasn't started")
        return self._exited

    @property
    def runs(self) -> bool:
        return self._exited is not None and not self._exited.done()

    async def start(self) -> None:
        """Once for each object. Raises ServerFailed."""
        log = self._open_log()
        try:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-I", "-S", child_launcher.__file__, *self._options, "--", *self._command),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._environment,
                cwd=self._directory,
                start_new_session=True,
            )
        finally:
            os.close(log)
        self._pid = process.pid
        self._exited = asyncio.create_task(process.wait(), name=f"exit of {self.program}")

    async def wait_ready(self, probe: Callable[[], Awaitable[bool]], *, timeout_seconds: float) -> None:
        await self.wait_until(probe, "was ready", timeout_seconds=timeout_seconds)

    async def wait_until(self, probe: Callable[[], Awaitable[bool]], what: str, *, timeout_seconds: float) -> None:
        """Raises ServerFailed when the child ends first, or time does; in the second case it still runs."""
        pause_seconds = _FIRST_PAUSE_SECONDS
        try:
            async with asyncio.timeout(timeout_seconds):
                while self.runs:
                    if await probe():
                        return
                    await asyncio.wait({self.exited}, timeout=pause_seconds)
                    pause_seconds = min(pause_seconds * 1.5, _LONGEST_PAUSE_SECONDS)
        except TimeoutError:
            raise self.failure(f"{timeout_seconds:g} s went by before {self.program} {what}.") from None
        raise self.failure(f"{self.program} ended before it {what} ({describe_exit(self.exited.result())}).")

    async def stop(self, signal: Signals, *, grace_seconds: float) -> None:
        """Returns when the process is gone. After the grace the whole process group is killed."""
        if not self.runs:
            return
        self.kill(signal)
        if not (await asyncio.wait({self.exited}, timeout=grace_seconds))[0]:
            with suppress(ProcessLookupError):
                os.killpg(self.pid, SIGKILL)
            await asyncio.wait({self.exited})

    def kill(self, signal: Signals) -> None:
        """Without waiting."""
        if self.runs:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal)

    def failure(self, sentence: str) -> ServerFailed:
        tail = self.log_tail()
        if (
            not self.runs
            and self._exited is not None
            and self._exited.result() == child_launcher.LAUNCH_FAILED
            and tail
        ):
            return ServerFailed(self.program, tail.splitlines()[-1])
        return ServerFailed(self.program, f"{sentence} Its log: {self.log_file}", tail)

    def log_tail(self) -> str:
        """What this process has written so far, or the end of it."""
        with self.log_file.open("rb") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(self._log_begin, end - _LOG_TAIL_BYTES))
            return file.read().decode(errors="replace").strip()

    def _open_log(self) -> int:
        try:
            log = os.open(self.log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise ServerFailed(self.program, f"{self.log_file} can't be written: {error.strerror}.") from error
        self._log_begin = os.fstat(log).st_size
        return log


def describe_exit(status: int) -> str:
    return f"exit status {status}" if status >= 0 else Signals(-status).name


def hold(lock_file: Path, program: str) -> int:
    """An open file that no second process can hold; closing it, or ending in any way, lets go. Raises ServerFailed.

    Whoever holds it knows that a server found running was left behind by somebody who has ended.
    """
    try:
        lock = os.open(lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ServerFailed(program, f"{lock_file.parent} can't be written: {error.strerror}.") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(lock)
        sentence = f"Another `muster up` runs on {lock_file.parent}: stop it, or choose another --data-dir."
        raise ServerFailed(program, sentence) from error
    return lock


def command_of(pid: int) -> list[str]:
    """Empty when no such process runs (or it is dead and not yet reaped)."""
    try:
        return [part for part in Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0") if part]
    except OSError:
        return []


async def end_leftover(pid: int, signal: Signals, *, grace_seconds: float) -> None:
    """A process that isn't our child: returns when it is gone. Raises PermissionError when it is another user's."""
    try:
        os.kill(pid, signal)
        try:
            async with asyncio.timeout(grace_seconds):
                await _gone(pid)
        except TimeoutError:
            os.kill(pid, SIGKILL)
            await _gone(pid)
    except ProcessLookupError:
        return


async def _gone(pid: int) -> None:
    while command_of(pid):  # noqa: ASYNC110 - another process sets no event
        await asyncio.sleep(_FIRST_PAUSE_SECONDS)

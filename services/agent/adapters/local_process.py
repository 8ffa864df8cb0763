"""Engines as processes of this machine. Linux: ends are noticed through pidfds (`man 2 pidfd_open`).

`<directory>/<instance>/<attempt>.log` is what an engine wrote (`kept_log.py` bounds it), `<attempt>.json` the record by which the
next agent adopts it.
An engine leads a session of its own and is not tied to the agent's life; the group that it leads ends with it. What it may hold is
bounded where the agent may make control groups (`control_groups.py`). No resource limit takes their place: RLIMIT_AS counts what a
GPU's driver only reserves, RLIMIT_NPROC all processes of the user. Core dumps, as large as an engine, are off unless it wants them.
"""

import asyncio
import contextlib
import errno
import logging
import os
import re
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, NamedTuple

from pydantic import ValidationError

from schemas.ids import InstanceId
from schemas.reasons import EngineExited, EngineNotInstalled, UnknownParameter
from schemas.value import Instant, Value
from services.agent.adapters.control_groups import ControlGroups
from services.agent.adapters.kept_log import KeptLog
from services.agent.adapters.oom_killer import killed_for_memory
from services.agent.adapters.written_files import prepare
from services.agent.domain.runtime import (
    LINES_OF_PROGRESS,
    Activity,
    Container,
    EndedBy,
    EngineCommand,
    EngineExit,
    EngineId,
    EngineNotStarted,
    LogPart,
    PullProgress,
    RunningEngine,
    log_mark,
)
from services.agent.settings import SEGMENT_BYTES

log = logging.getLogger(__name__)

LOGS_KEPT: Final = 5
"""Attempts of one instance whose logs are kept, the current one included."""
DAYS_KEPT: Final = 7
"""… and so long those of instances that are gone."""
FORMER_LOG_BYTES: Final = 1024 * 1024
"""What is kept of the end of each former attempt's log, beside one compressed segment before it."""
SEGMENTS_KEPT: Final = 4
ROTATE_SECONDS: Final = 1.0
"""Between two looks at how much the engines have written."""
EXIT_LOG_LINES: Final = 300
"""In which the reason of an end is looked for: vLLM writes a hundred lines of tracebacks after it."""
REST_SECONDS: Final = 5.0
"""How long the end of an engine waits for killed children that the kernel can't let go (of a GPU, say) before it is told."""

_PASSED_ON: Final = ("PATH", "HOME", "LANG", "TMPDIR", "OMP_NUM_THREADS")
_MARK: Final = "MUSTER_ENGINE"
"""Tells an engine apart that was started by an agent that was killed before it could note the process id."""


class _Record(Value):
    boot_id: str
    port: int
    started_at: Instant
    details: dict[str, object]
    pid: int | None = None
    """None: about to be started."""
    start_ticks: int | None = None
    """With pid and boot, this is the process and no later one with its number."""
    ended: bool = False
    ended_by: EndedBy = "itself"
    exit_code: int | None = None
    signal: int | None = None


class _Process(NamedTuple):
    """One line of /proc/<pid>/stat (`man 5 proc_pid_stat`)."""

    state: str
    group: int
    session: int
    start_ticks: int


@dataclass(slots=True)
class _Engine:
    id: EngineId
    record: _Record
    pid: int
    start_ticks: int
    pidfd: int
    grace_ends: float = 0.0
    """On the loop's clock: until then a stopping engine's children may take their time."""
    gone: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def running(self) -> RunningEngine:
        return RunningEngine(self.id, self.pid, self.record.port, self.record.started_at, self.record.details)


class LocalProcessRuntime:
    """A ContainerRuntime without containers. It adopts what runs the first time it is asked anything."""

    def __init__(
        self, directory: Path, groups: ControlGroups | None = None, *, segment_bytes: int = SEGMENT_BYTES
    ) -> None:
        self._groups = groups or ControlGroups()
        self._directory = directory.absolute()
        self._segment_bytes = segment_bytes
        self._rotating: asyncio.Task[None] | None = None
        self._engines: dict[EngineId, _Engine] | None = None
        self._exits: asyncio.Queue[EngineExit] = asyncio.Queue()
        self._endings: set[asyncio.Task[None]] = set()

    async def has_image(self, image: str) -> bool:
        del image
        return False

    async def pull(self, container: Container) -> AsyncIterator[PullProgress]:
        """A process has no image."""
        del container
        return
        yield  # pragma: no cover - makes this a generator

    async def start(self, engine: EngineId, command: EngineCommand, details: Mapping[str, object]) -> RunningEngine:
        if (known := self._known().get(engine)) is not None:
            return known.running
        return self._start(engine, command, details)  # nothing is awaited: a cancelled start has started nothing

    async def stop(self, engine: EngineId, grace_seconds: float) -> None:
        if (known := self._known().get(engine)) is None:
            return
        if known.record.ended_by != "a_stop":
            known.record = known.record.model_copy(update={"ended_by": "a_stop"})
            with contextlib.suppress(OSError):  # the disk is full: the next agent takes it for an end by itself
                self._write(engine, known.record)
        known.grace_ends = asyncio.get_running_loop().time() + grace_seconds
        _signal_group(known, signal.SIGTERM)
        try:
            async with asyncio.timeout(grace_seconds):
                await known.gone.wait()
        except TimeoutError:
            _signal_group(known, signal.SIGKILL)
            await known.gone.wait()

    async def forget(self, engine: EngineId) -> None:
        if engine not in self._known():
            self._path(engine, "json").unlink(missing_ok=True)

    async def list(self) -> tuple[RunningEngine, ...]:
        return tuple(engine.running for engine in self._known().values())

    async def exits(self) -> AsyncIterator[EngineExit]:
        self._known()
        while True:
            yield await self._exits.get()

    async def log_tail(self, engine: EngineId, lines: int) -> tuple[str, ...]:
        return await asyncio.to_thread(self._log(engine).tail, lines)

    async def log_part(self, engine: EngineId, lines: int, after: str | None) -> LogPart | None:
        ended = engine not in self._known()  # seen first: what it wrote last is there when it is gone
        return await asyncio.to_thread(self._log(engine).part, lines, after, ended=ended)

    async def kept_logs(self, instance_id: InstanceId) -> tuple[int, ...]:
        names = (path.stem for path in (self._directory / instance_id).glob("*.log"))
        return tuple(sorted(int(name) for name in names if name.isdecimal()))

    async def peak_ram(self, engine: EngineId) -> int | None:
        known = self._known().get(engine)
        if known is None:
            return None
        return await asyncio.to_thread(_peak_ram, known.pid, known.start_ticks)

    async def activity(self, engine: EngineId, besides: str | None = None) -> Activity | None:
        known = self._known().get(engine)
        if known is None:
            return None

        def look() -> Activity | None:
            session = _session(known.pid, known.start_ticks)
            if not session:
                return None
            mark = log_mark(self._log(engine).tail(LINES_OF_PROGRESS), besides)
            return Activity(sum(map(_busy_seconds, session)), sum(map(_read_bytes, session)), mark)

        return await asyncio.to_thread(look)

    async def close(self) -> None:
        for engine in (self._engines or {}).values():
            asyncio.get_running_loop().remove_reader(engine.pidfd)
            os.close(engine.pidfd)
        self._engines = {}
        if self._rotating is not None:
            self._rotating.cancel()
            await asyncio.gather(self._rotating, return_exceptions=True)
        for ending in self._endings:
            ending.cancel()
        await asyncio.gather(*self._endings, return_exceptions=True)

    def _known(self) -> dict[EngineId, _Engine]:
        if self._engines is None:
            self._engines = {}
            self._adopt()
            self._rotating = asyncio.create_task(self._keep_rotating())
        return self._engines

    def _adopt(self) -> None:
        for path in sorted(self._directory.glob("*/*.json")):
            if not path.stem.isdecimal():
                continue
            engine = EngineId(InstanceId(path.parent.name), int(path.stem))
            try:
                record = _Record.model_validate_json(path.read_bytes())
            except (OSError, ValidationError):  # somebody wrote there: what it told of can't be known to run
                self._exits.put_nowait(EngineExit(engine, None, None, self._log(engine).tail(EXIT_LOG_LINES)))
                continue
            if not record.ended and record.boot_id != _boot_id():  # it ended with the machine
                self._ended(engine, record.model_copy(update={"ended_by": "the_machine"}))
                continue
            pid = None if record.ended else self._pid_of(engine, record)
            if pid is None or not self._watch(engine, record, pid):
                self._ended(engine, record)

    def _pid_of(self, engine: EngineId, record: _Record) -> int | None:
        """The number that the engine has, or had."""
        if record.pid is not None:
            return record.pid
        mark = f"{_MARK}={self._mark(engine)}\0".encode()
        marked = [
            (process.start_ticks, pid) for pid, process in _processes() if process.group == pid and _has(pid, mark)
        ]
        return min(marked)[1] if marked else None  # the eldest: its children may lead groups too

    def _start(self, engine: EngineId, command: EngineCommand, details: Mapping[str, object]) -> RunningEngine:
        machines = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
        environment = machines | dict(command.env) | {_MARK: self._mark(engine)}
        bad = [argument for argument in command.argv if "\0" in argument]
        bad += [name for name, value in environment.items() if not name or "=" in name or "\0" in name + value]
        if bad:
            raise EngineNotStarted((UnknownParameter(parameter=repr(bad[0])),), "no process can be given this")
        program = shutil.which(command.argv[0], path=environment.get("PATH"))
        if program is None:
            raise EngineNotStarted((EngineNotInstalled(program=command.program),), f"no program {command.argv[0]}")
        prepare(command)
        record = _Record(boot_id=_boot_id(), port=command.port, started_at=datetime.now(UTC), details=dict(details))
        try:
            self._path(engine, "log").parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._tidy(engine)
            self._write(
                engine, record, lasting=True
            )  # what was started once is known to have been, whatever happens now
            pid = _spawn(program, command.argv, environment, self._path(engine, "log"))
        except OSError as error:
            self._path(engine, "json").unlink(missing_ok=True)
            unfit = error.errno in {errno.ENOENT, errno.EACCES, errno.ENOEXEC} and error.filename == program
            reason = EngineNotInstalled(program=command.program) if unfit else EngineExited(exit_code=None)
            raise EngineNotStarted((reason,), str(error)) from error
        if not self._watch(engine, record, pid):
            self._path(engine, "json").unlink(missing_ok=True)
            raise EngineNotStarted((EngineExited(exit_code=None),), "somebody else waited for its end")
        self._bound(engine, command, pid)
        watched = self._known()[engine]
        with contextlib.suppress(OSError):  # the disk is full: an agent that adopts it goes by the mark
            self._write(engine, watched.record)
        return watched.running

    def _bound(self, engine: EngineId, command: EngineCommand, pid: int) -> None:
        with contextlib.suppress(OSError):  # it has ended already
            _, most = resource.prlimit(pid, resource.RLIMIT_CORE)
            resource.prlimit(pid, resource.RLIMIT_CORE, (0, most))
        self._groups.enter(engine, command.bounds, lambda: [pid, *_members(pid)])

    def _watch(self, engine: EngineId, record: _Record, pid: int) -> bool:
        """False when there is no such process, or a later one with its number."""
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            return False
        process = _process(pid)  # read after the pidfd is held: from here on this is the process that is watched
        if process is None or (record.start_ticks is not None and process.start_ticks != record.start_ticks):
            os.close(pidfd)
            return False
        record = record.model_copy(update={"pid": pid, "start_ticks": process.start_ticks})
        watched = _Engine(engine, record, pid, process.start_ticks, pidfd)
        self._known()[engine] = watched
        asyncio.get_running_loop().add_reader(pidfd, self._leader_ended, watched)
        return True

    def _leader_ended(self, engine: _Engine) -> None:
        asyncio.get_running_loop().remove_reader(engine.pidfd)
        ending = asyncio.create_task(self._end(engine))
        self._endings.add(ending)
        ending.add_done_callback(self._endings.discard)

    async def _end(self, engine: _Engine) -> None:
        """The leader has ended, and keeps its number until it is waited for: the group can be killed by it."""
        await _until_gone(engine, engine.grace_ends - asyncio.get_running_loop().time())
        _signal_group(engine, signal.SIGKILL)
        await _until_gone(engine, REST_SECONDS)
        self._groups.kill(engine.id)
        exit_code, number = _how_it_ended(engine.pidfd)
        record = engine.record.model_copy(update={"exit_code": exit_code, "signal": number})
        was_killed = exit_code is None and number in (signal.SIGKILL, None)  # None: an adopted one, say
        if was_killed and await asyncio.to_thread(killed_for_memory, engine.pid, engine.start_ticks):
            record = record.model_copy(update={"ended_by": "memory"})
        self._known().pop(engine.id)
        os.close(engine.pidfd)
        self._ended(engine.id, record)
        engine.gone.set()

    def _ended(self, engine: EngineId, record: _Record) -> None:
        if record.ended_by == "itself" and self._groups.was_out_of_memory(engine):
            record = record.model_copy(update={"ended_by": "memory"})
        self._groups.remove(engine)
        with contextlib.suppress(OSError):  # a full disk: the next agent finds out by itself, without the exit code
            self._write(engine, record.model_copy(update={"ended": True}))
        lines = self._log(engine).tail(EXIT_LOG_LINES)
        self._exits.put_nowait(EngineExit(engine, record.exit_code, record.signal, lines, record.ended_by))

    def _tidy(self, engine: EngineId) -> None:
        """Makes room for an attempt: the ends of former ones are answered by it, and their logs shrink and go."""
        running = {other.attempt for other in self._known() if other.instance_id == engine.instance_id}
        folder = self._path(engine, "log").parent
        attempts = {int(path.stem) for path in folder.iterdir() if path.stem.isdecimal()}
        for age, attempt in enumerate(sorted(attempts - running - {engine.attempt}, reverse=True), start=2):
            former = EngineId(engine.instance_id, attempt)
            self._path(former, "json").unlink(missing_ok=True)
            if age > LOGS_KEPT:
                self._log(former).remove()
            else:
                with contextlib.suppress(OSError):  # the disk is full, or there is none
                    self._log(former).close(FORMER_LOG_BYTES)
        self._forget_old_instances()

    def _forget_old_instances(self) -> None:
        """Logs of instances that are gone from here."""
        here = {engine.instance_id for engine in self._known()}
        for folder in self._directory.iterdir():
            logs = list(folder.glob("*.log"))
            if folder.name in here or not logs or any(folder.glob("*.json")):  # an end that nobody answered is told yet
                continue
            if max(path.stat().st_mtime for path in logs) < time.time() - DAYS_KEPT * 86400:
                shutil.rmtree(folder, ignore_errors=True)

    async def _keep_rotating(self) -> None:
        while True:
            await asyncio.sleep(ROTATE_SECONDS)
            for engine in list(self._known()):
                try:
                    await asyncio.to_thread(self._log(engine).rotate)
                except OSError as error:  # the disk is full, say: again in a moment
                    log.warning("the log of %s can't be rotated: %s", engine.instance_id, error)

    def _log(self, engine: EngineId) -> KeptLog:
        return KeptLog(self._path(engine, "log"), self._segment_bytes, SEGMENTS_KEPT)

    def _path(self, engine: EngineId, suffix: str) -> Path:
        return self._directory / engine.instance_id / f"{engine.attempt}.{suffix}"

    def _mark(self, engine: EngineId) -> str:
        return str(self._path(engine, "log"))

    def _write(self, engine: EngineId, record: _Record, *, lasting: bool = False) -> None:
        """`lasting`: returns when it would survive that the power fails."""
        path = self._path(engine, "json")
        part = path.with_suffix(".part")
        with part.open("w", encoding="utf-8") as file:
            file.write(record.model_dump_json())
            if lasting:
                file.flush()
                os.fsync(file.fileno())
        part.replace(path)
        if lasting:
            _sync(path.parent)
            _sync(self._directory)


def _spawn(program: str, argv: tuple[str, ...], environment: Mapping[str, str], log_file: Path) -> int:
    with log_file.open("ab") as output:
        process = subprocess.Popen(
            argv,
            executable=program,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            close_fds=True,
            start_new_session=True,
        )
    process.returncode = 0  # it is waited for through its pidfd: keeps Popen from doing so when it is collected
    return process.pid


def _how_it_ended(pidfd: int) -> tuple[int | None, int | None]:
    """Exit code and signal; neither for an adopted engine, which its own parent waits for."""
    try:
        result = os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG)
    except ChildProcessError:
        return None, None
    if result is None:
        return None, None
    return (result.si_status, None) if result.si_code == os.CLD_EXITED else (None, result.si_status)


def _signal_group(engine: _Engine, number: signal.Signals) -> None:
    if _group(engine):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(engine.pid, number)


async def _until_gone(engine: _Engine, seconds: float) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(max(0.0, seconds)):
            while group := _group(engine):
                await _exit_of(group[0])


async def _exit_of(pid: int) -> None:
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(pidfd, ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(pidfd)
        os.close(pidfd)


def _group(engine: _Engine) -> list[int]:
    """The living members of the engine's group; none once its number belongs to somebody else."""
    leader = _process(engine.pid)
    if leader is not None and leader.start_ticks != engine.start_ticks:
        return []
    return [pid for pid, process in _processes() if process.group == engine.pid and process.state not in "ZX"]


def _processes() -> Iterator[tuple[int, _Process]]:
    for directory in Path("/proc").iterdir():
        if directory.name.isdecimal() and (process := _process(int(directory.name))) is not None:
            yield int(directory.name), process


def _process(pid: int) -> _Process | None:
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:  # it is gone, or not ours to see
        return None
    fields = stat[stat.rindex(b")") + 2 :].split()  # the name before may contain anything
    return _Process(state=fields[0].decode(), group=int(fields[2]), session=int(fields[3]), start_ticks=int(fields[19]))


def _session(pid: int, start_ticks: int) -> list[int]:
    """All processes of the session that this one leads: what it has started is in it, whatever groups that made."""
    leader = _process(pid)
    if leader is None or leader.start_ticks != start_ticks:
        return []
    return _members(pid)


def _members(session: int) -> list[int]:
    return [pid for pid, process in _processes() if process.session == session]


def _peak_ram(pid: int, start_ticks: int) -> int | None:
    return sum(map(_high_water_mark, _session(pid, start_ticks))) or None


def _busy_seconds(pid: int) -> float:
    """On a processor and in its queue, all threads that live: /proc/<pid>/task/*/schedstat (`sched-stats.rst` of Linux)."""
    nanoseconds = 0
    with contextlib.suppress(OSError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(OSError, ValueError):
                ran, waited, _ = (thread / "schedstat").read_text(encoding="ascii").split()
                nanoseconds += int(ran) + int(waited)
    return nanoseconds / 1e9


def _read_bytes(pid: int) -> int:
    """From files and disks: what `read` gave, and what was paged in (`man 5 proc_pid_io`). 0: it has ended, or is not ours."""
    try:
        counters = Path(f"/proc/{pid}/io").read_text(encoding="ascii")
    except OSError:
        return 0
    told = dict(line.split(": ") for line in counters.splitlines())
    return int(told.get("rchar", 0)) + int(told.get("read_bytes", 0))


def _high_water_mark(pid: int) -> int:
    """`VmHWM` (`man 5 proc_pid_status`): the kernel keeps it, so nothing is missed between two looks. 0: it has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_bytes()
    except OSError:
        return 0
    found = re.search(rb"^VmHWM:\s+([0-9]+) kB$", status, re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def _has(pid: int, mark: bytes) -> bool:
    try:
        return mark in Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return False


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def _sync(directory: Path) -> None:
    """What was renamed into it, or made in it, stays (`man 2 fsync`)."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

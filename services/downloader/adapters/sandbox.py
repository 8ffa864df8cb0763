"""Work on a stranger's bytes, in a child process that may take so much time, processor and memory, and no more.

The child is forked from a server that has what it needs imported already: that takes milliseconds. What it says are bytes
of a bounded length, which nobody here unpickles. `multiprocessing` has one such server for a whole process.

A child that needs more than it was given asks for it: connections and credentials stay with the parent.
"""

import asyncio
import contextlib
import os
import resource
import signal
import threading
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import forkserver, get_context, resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Final

Work = Callable[[bytes], bytes]
"""A function of a module: the child is told its name."""
Ask = Callable[[bytes], bytes]
"""Raises `OSError` when the parent has no answer."""
AskingWork = Callable[[bytes, Ask], bytes]
Answer = Callable[[bytes], Awaitable[bytes]]
"""What the parent answers. Raises `OSError` when it can't."""

MOST_ANSWER_BYTES: Final = 2**20
PRELOAD: Final = ("services.downloader.adapters.sandbox", "services.downloader.adapters.inspecting")
_START_SECONDS: Final = 30.0
"""The first child waits for its server, which has to import all that."""
_EXIT_SECONDS: Final = 2.0
"""From the end of what a child says to its own."""
_multiprocessing: Final = threading.Lock()
"""It looks after all children of the process whenever one is started, and not from two threads at once."""
_users: Final[set["Sandbox"]] = set()
"""Of its server."""
_ANSWER: Final = b"="
_PROBLEM: Final = b"!"
_QUESTION: Final = b"?"


class SandboxLimit(Exception):
    """The work came to no answer: it met a limit, crashed, or raised. `again`: another time it may come to one."""

    def __init__(self, problem: str, *, again: bool = False) -> None:
        super().__init__(problem)
        self.problem = problem
        self.again = again


@dataclass(frozen=True, slots=True)
class Limits:
    cpu_seconds: int = 10
    memory_bytes: int = 512 * 2**20
    """Beside what a child that does nothing has."""


@dataclass(slots=True)
class _Child:
    process: ForkServerProcess
    pipe: Connection
    busy: asyncio.Future[bytes | None] | None = None
    """The thread that hears it or tells it something."""


class Sandbox:
    """Belongs to one event loop. `most_at_once`: children; whoever comes when there are so many waits."""

    def __init__(
        self, limits: Limits | None = None, *, most_at_once: int = 4, preload: Sequence[str] = PRELOAD
    ) -> None:
        self._limits = limits or Limits()
        self._preload = list(preload)
        self._context = get_context("forkserver")
        self._most_at_once = most_at_once
        self._slots = asyncio.Semaphore(most_at_once)
        self._parent = ThreadPoolExecutor(1, "sandbox")
        self._listeners = ThreadPoolExecutor(most_at_once, "sandbox-listener")
        self._children: set[ForkServerProcess] = set()
        self._closed = False

    async def run(self, work: Work, argument: bytes, seconds: float = 15.0) -> bytes:
        """Raises `SandboxLimit`. `seconds`: from the child's start; when they are over, or this is cancelled, it is killed."""
        return await self.run_asking(partial(_without_asking, work), argument, _no_answer, seconds)

    async def run_asking(self, work: AskingWork, argument: bytes, answer: Answer, seconds: float = 15.0) -> bytes:
        """As `run`; what the child asks is answered meanwhile, one question after the other."""
        self._require_open()
        async with self._slots:
            self._require_open()
            child = await self._begin(work, argument, seconds)
            limit, patience, message = asyncio.timeout(seconds), 0.0, None
            try:
                async with limit:
                    message = await self._converse(child, answer)
                patience = _EXIT_SECONDS
            except TimeoutError:
                if not limit.expired():
                    raise
            finally:
                ended = asyncio.get_running_loop().run_in_executor(self._parent, self._end, child.process, patience)
                exit_code = await asyncio.shield(ended)
                if child.busy is not None:
                    await asyncio.wait({child.busy})
                child.pipe.close()
        if limit.expired():
            raise _too_slow(seconds)
        return self._understand(message, exit_code, seconds)

    async def _converse(self, child: _Child, answer: Answer) -> bytes | None:
        """What the child says at last. None: it has ended without a word, or within one, or said too much."""
        while True:
            message = await self._listen(child, _hear, child.pipe)
            if message is None or message[:1] != _QUESTION:
                return message
            try:
                reply = _ANSWER + await answer(message[1:])
            except OSError as error:
                reply = _problem(error.strerror or str(error))
            await self._listen(child, _tell, child.pipe, reply)

    async def _listen(self, child: _Child, work: Callable[..., bytes | None], *arguments: object) -> bytes | None:
        child.busy = asyncio.get_running_loop().run_in_executor(self._listeners, work, *arguments)
        return await asyncio.shield(child.busy)

    async def close(self) -> None:
        """Children that still work are killed; nothing of the sandbox is left."""
        if self._closed:
            return
        self._closed = True
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._parent, self._kill_all)
        for _ in range(self._most_at_once):
            await self._slots.acquire()
        await loop.run_in_executor(self._parent, self._leave_server)
        self._parent.shutdown(wait=False)
        self._listeners.shutdown(wait=False)

    def _require_open(self) -> None:
        if self._closed:
            raise RuntimeError("the sandbox is closed")

    async def _begin(self, work: AskingWork, argument: bytes, seconds: float) -> _Child:
        starting = asyncio.get_running_loop().run_in_executor(self._parent, self._start, work, argument, seconds)
        try:
            return await asyncio.wait_for(asyncio.shield(starting), _START_SECONDS)
        except TimeoutError:
            starting.add_done_callback(self._discard)
            raise SandboxLimit(f"no child was started within {_START_SECONDS:g} s", again=True) from None
        except asyncio.CancelledError:
            starting.add_done_callback(self._discard)
            raise
        except (OSError, EOFError) as error:
            raise SandboxLimit(f"no child could be started: {error!r}", again=True) from error

    def _discard(self, starting: asyncio.Future[_Child]) -> None:
        """Nobody waits for this child any more."""
        if not starting.cancelled() and starting.exception() is None:
            child = starting.result()
            child.pipe.close()
            with contextlib.suppress(RuntimeError):  # closed, and all children with it
                self._parent.submit(self._end, child.process, 0.0)

    # In the thread of the parent

    def _start(self, work: AskingWork, argument: bytes, seconds: float) -> _Child:
        pipe, theirs = self._context.Pipe()
        try:
            with _multiprocessing:
                if not _users:
                    self._context.set_forkserver_preload(self._preload)
                _users.add(self)
                process = self._context.Process(
                    target=_work, args=(theirs, work, argument, self._limits, seconds), name="sandboxed", daemon=True
                )
                process.start()
        except BaseException:
            pipe.close()
            raise
        finally:
            theirs.close()
        self._children.add(process)
        return _Child(process, pipe)

    def _end(self, process: ForkServerProcess, patience_seconds: float) -> int | None:
        """The exit code; None: it was ended before."""
        if process not in self._children:
            return None
        self._children.discard(process)
        with _multiprocessing:
            process.join(patience_seconds)
            if process.exitcode is None:
                process.kill()
                process.join()
            exit_code = process.exitcode
            process.close()
        return exit_code

    def _kill_all(self) -> None:
        for process in tuple(self._children):
            self._end(process, 0.0)

    def _leave_server(self) -> None:
        """Without users it is stopped. It ends by itself when this process has ended, however that did."""
        with _multiprocessing:
            if self in _users:
                _users.discard(self)
                if not _users:
                    _stop_server()

    def _understand(self, message: bytes | None, exit_code: int | None, seconds: float) -> bytes:
        match message, exit_code:
            case bytes(), _ if message[:1] == _ANSWER:
                return message[1:]
            case bytes(), _:
                raise SandboxLimit(message[1:].decode("utf-8", "backslashreplace"))
            case None, None:
                raise SandboxLimit("the sandbox was closed", again=True)
            case None, int() if exit_code == -signal.SIGXCPU:
                raise SandboxLimit(f"it took more than {self._limits.cpu_seconds} s of processor time")
            case None, int() if exit_code == -signal.SIGALRM:
                raise _too_slow(seconds)
            case None, int() if exit_code == -signal.SIGKILL:
                raise SandboxLimit("it was killed", again=True)  # for want of memory on the machine, as a rule
            case None, int() if exit_code < 0:
                raise SandboxLimit(f"it crashed with signal {-exit_code} ({signal.strsignal(-exit_code)})")
            case None, int():
                raise SandboxLimit(f"it ended with exit code {exit_code} and without an answer", again=True)


def _stop_server() -> None:
    """There is no public way to. Its tracker of shared memory, of which nobody here has any, is one process more."""
    forkserver._forkserver._stop()  # noqa: SLF001 # pyright: ignore[reportPrivateUsage, reportAttributeAccessIssue] - as said
    resource_tracker._resource_tracker._stop()  # noqa: SLF001 # pyright: ignore[reportPrivateUsage, reportAttributeAccessIssue] - as said


def _hear(pipe: Connection) -> bytes | None:
    try:
        return pipe.recv_bytes(MOST_ANSWER_BYTES + 1)
    except (OSError, EOFError):
        return None


def _tell(pipe: Connection, reply: bytes) -> None:
    with contextlib.suppress(OSError):  # its end is heard next
        pipe.send_bytes(reply)


async def _no_answer(_: bytes) -> bytes:
    raise OSError("nobody answers")


def _too_slow(seconds: float) -> SandboxLimit:
    return SandboxLimit(f"it took longer than {seconds:g} s", again=True)


# In the child


def _work(pipe: Connection, work: AskingWork, argument: bytes, limits: Limits, seconds: float) -> None:
    def ask(question: bytes) -> bytes:
        pipe.send_bytes(_QUESTION + question)
        reply = pipe.recv_bytes()
        if reply[:1] != _ANSWER:
            raise OSError(reply[1:].decode("utf-8", "backslashreplace"))
        return reply[1:]

    try:
        _submit_to(limits, seconds)
        answer = work(argument, ask)
        message = _ANSWER + answer
        if len(answer) > MOST_ANSWER_BYTES:
            message = _problem(f"its answer is longer than {MOST_ANSWER_BYTES} bytes")
    except MemoryError:
        message = _problem(f"it needed more than {limits.memory_bytes} bytes of memory")
    except Exception as error:  # noqa: BLE001 - whatever a stranger's bytes have brought about is told
        message = _problem(f"it failed with {type(error).__name__}: {error}")
    with contextlib.suppress(OSError):
        pipe.send_bytes(message)
    os._exit(0)


def _without_asking(work: Work, argument: bytes, _ask: Ask) -> bytes:
    return work(argument)


def _problem(problem: str) -> bytes:
    return _PROBLEM + problem[:500].encode("utf-8", "backslashreplace")


def _submit_to(limits: Limits, seconds: float) -> None:
    """The alarm ends a child that nobody is left to kill."""
    for number, action in ((signal.SIGINT, signal.SIG_IGN), (signal.SIGALRM, signal.SIG_DFL)):
        signal.signal(number, action)
    signal.setitimer(signal.ITIMER_REAL, seconds + 1)
    _lower(resource.RLIMIT_CORE, 0)
    _lower(resource.RLIMIT_FSIZE, 0)
    _lower(resource.RLIMIT_CPU, limits.cpu_seconds, limits.cpu_seconds + 1)
    _lower(resource.RLIMIT_AS, _address_space_bytes() + limits.memory_bytes)


def _lower(kind: int, limit: int, hard_limit: int | None = None) -> None:
    """At the soft limit of processor time there is a signal that tells; at the hard one, death."""
    _, most = resource.getrlimit(kind)
    wanted = (limit, limit if hard_limit is None else hard_limit)
    resource.setrlimit(kind, wanted if most == resource.RLIM_INFINITY else (min(limit, most), min(wanted[1], most)))


def _address_space_bytes() -> int:
    pages = Path("/proc/self/statm").read_text("ascii").split()[0]
    return int(pages) * resource.getpagesize()

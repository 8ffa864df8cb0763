import asyncio
import contextlib
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import AsyncGenerator, Callable, Generator
from pathlib import Path

import psutil
import pytest
import uvloop

from services.downloader.adapters.sandbox import MOST_ANSWER_BYTES, Limits, Sandbox, SandboxLimit, Work
from tests.services.downloader import sandboxed

A_SECOND_OF_PROCESSOR_TIME = Limits(cpu_seconds=1)


@pytest.fixture
async def sandbox() -> AsyncGenerator[Sandbox, None]:
    sandbox = Sandbox()
    yield sandbox
    await sandbox.close()


def children() -> list[psutil.Process]:
    return psutil.Process().children(recursive=True)


async def until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - of other processes nobody hears
            await asyncio.sleep(0.01)


async def problem_of(sandbox: Sandbox, work: Work, argument: bytes = b"", seconds: float = 30.0) -> str:
    with pytest.raises(SandboxLimit) as caught:
        await sandbox.run(work, argument, seconds)
    return caught.value.problem


# Answers


async def test_a_child_answers(sandbox: Sandbox) -> None:
    assert await sandbox.run(sandboxed.answer_backwards, b"abc") == b"cba"
    assert await sandbox.run(sandboxed.answer_backwards, b"") == b""
    assert await sandbox.run(sandboxed.answer_backwards, bytes(3 * 2**20 // 4)) == bytes(3 * 2**20 // 4)


async def test_each_is_another_process(sandbox: Sandbox) -> None:
    pids = {await sandbox.run(sandboxed.answer_its_pid, b"") for _ in range(3)}
    assert len(pids) == 3
    assert str(os.getpid()).encode() not in pids


async def test_a_child_costs_no_start_of_python(sandbox: Sandbox) -> None:
    await sandbox.run(sandboxed.answer_backwards, b"")
    took: list[float] = []
    for _ in range(10):
        since = time.perf_counter()
        await sandbox.run(sandboxed.answer_backwards, b"")
        took.append(time.perf_counter() - since)
    assert min(took) < 0.1


async def test_fifty_at_once(sandbox: Sandbox) -> None:
    answers = await asyncio.gather(*(sandbox.run(sandboxed.answer_backwards, f"{n:02}".encode()) for n in range(50)))
    assert answers == [f"{n:02}"[::-1].encode() for n in range(50)]


async def test_of_fifty_at_once_each_gets_its_own_end() -> None:
    sandbox = Sandbox(most_at_once=16)
    try:
        works = [
            sandboxed.answer_its_pid,
            sandboxed.abort,
            sandboxed.leave,
            sandboxed.complain,
            sandboxed.kill_itself,
        ] * 10
        ends = await asyncio.gather(*(sandbox.run(work, b"") for work in works), return_exceptions=True)
    finally:
        await sandbox.close()
    assert all(isinstance(end, bytes) for end in ends[::5])
    for beginning, some in (("it crashed with signal 6", ends[1::5]), ("it ended with exit code 3", ends[2::5])):
        assert all(isinstance(end, SandboxLimit) and end.problem.startswith(beginning) for end in some)
    assert all(isinstance(end, SandboxLimit) and end.problem.startswith("it failed") for end in ends[3::5])
    assert all(isinstance(end, SandboxLimit) and end.problem == "it was killed" for end in ends[4::5])


async def test_no_more_than_so_many_work_at_once() -> None:
    sandbox = Sandbox(most_at_once=2)
    await sandbox.run(sandboxed.answer_backwards, b"")
    before = len(children())
    tasks = [asyncio.create_task(sandbox.run(sandboxed.sleep, b"")) for _ in range(6)]
    await until(lambda: len(children()) == before + 2)
    await asyncio.sleep(0.3)
    assert len(children()) == before + 2
    await sandbox.close()
    ends = await asyncio.gather(*tasks, return_exceptions=True)
    assert sorted(type(end).__name__ for end in ends) == ["RuntimeError"] * 4 + ["SandboxLimit"] * 2


# Questions


async def test_what_a_child_asks_is_answered(sandbox: Sandbox) -> None:
    asked: list[bytes] = []

    async def answer(question: bytes) -> bytes:
        asked.append(question)
        return question * 2**17

    assert await sandbox.run_asking(sandboxed.ask_twice, b"ab", answer) == b"ab" * 2**17 + b"ba" * 2**17
    assert asked == [b"ab", b"ba"]


async def test_a_question_without_an_answer_is_an_error_of_the_child(sandbox: Sandbox) -> None:
    async def answer(_: bytes) -> bytes:
        raise ConnectionResetError(104, "Connection reset by peer")

    said = await sandbox.run_asking(sandboxed.ask_and_say_what_fails, b"", answer)
    assert said == b"failed: Connection reset by peer"


async def test_who_answers_too_slowly_is_waited_for_no_longer_than_the_child(sandbox: Sandbox) -> None:
    async def answer(_: bytes) -> bytes:
        await asyncio.sleep(1000)
        return b""

    with pytest.raises(SandboxLimit) as caught:
        await sandbox.run_asking(sandboxed.ask_twice, b"", answer, 0.3)
    assert caught.value.problem == "it took longer than 0.3 s"


async def test_a_mistake_in_the_answer_is_the_parents_own_and_leaves_no_child(sandbox: Sandbox) -> None:
    async def answer(_: bytes) -> bytes:
        raise ZeroDivisionError

    await sandbox.run(sandboxed.answer_backwards, b"")
    before = {child.pid for child in children()}
    with pytest.raises(ZeroDivisionError):
        await sandbox.run_asking(sandboxed.ask_twice, b"", answer)
    assert {child.pid for child in children()} == before


# Limits


async def test_a_child_has_limits(sandbox: Sandbox) -> None:
    assert await sandbox.run(sandboxed.answer_its_limits, b"") == repr([(10, 11), (0, 0), (0, 0)]).encode()


async def test_who_burns_processor_time_is_ended() -> None:
    sandbox = Sandbox(A_SECOND_OF_PROCESSOR_TIME)
    assert await problem_of(sandbox, sandboxed.burn) == "it took more than 1 s of processor time"
    await sandbox.close()


async def test_who_sleeps_is_ended_at_its_time(sandbox: Sandbox) -> None:
    await sandbox.run(sandboxed.answer_backwards, b"")
    since = time.monotonic()
    assert await problem_of(sandbox, sandboxed.sleep, seconds=0.5) == "it took longer than 0.5 s"
    assert 0.5 <= time.monotonic() - since < 5


async def test_memory_is_given_and_then_refused(sandbox: Sandbox) -> None:
    assert await sandbox.run(sandboxed.hog, str(300 * 2**20).encode()) == b"300"
    problem = await problem_of(sandbox, sandboxed.hog, str(600 * 2**20).encode())
    assert problem == f"it needed more than {512 * 2**20} bytes of memory"


@pytest.mark.parametrize(
    ("work", "problem"),
    [
        (sandboxed.abort, "it crashed with signal 6 (Aborted)"),
        (sandboxed.kill_itself, "it was killed"),
        (sandboxed.leave, "it ended with exit code 3 and without an answer"),
        (sandboxed.recurse, "it crashed with signal 11 (Segmentation fault)"),
    ],
)
async def test_how_a_child_ended_is_told(sandbox: Sandbox, work: Work, problem: str) -> None:
    assert await problem_of(sandbox, work) == problem


async def test_what_a_child_raises_is_told_in_short(sandbox: Sandbox) -> None:
    problem = await problem_of(sandbox, sandboxed.complain)
    assert problem.startswith(r"it failed with ZeroDivisionError: \udcffxxx")
    assert len(problem) < 600


async def test_an_answer_may_be_a_mebibyte_long_and_no_longer(sandbox: Sandbox) -> None:
    assert await sandbox.run(sandboxed.answer_so_many_bytes, str(MOST_ANSWER_BYTES).encode()) == bytes(
        MOST_ANSWER_BYTES
    )
    problem = await problem_of(sandbox, sandboxed.answer_so_many_bytes, str(MOST_ANSWER_BYTES + 1).encode())
    assert problem == f"its answer is longer than {MOST_ANSWER_BYTES} bytes"


async def test_a_child_writes_no_file(sandbox: Sandbox, tmp_path: Path) -> None:
    assert "File too large" in await problem_of(sandbox, sandboxed.write_a_file, str(tmp_path / "x").encode())


# What is left


async def test_no_child_is_left_after_an_answer_a_limit_and_a_cancellation(sandbox: Sandbox) -> None:
    await sandbox.run(sandboxed.answer_backwards, b"")
    before = {child.pid for child in children()}
    await problem_of(sandbox, sandboxed.sleep, seconds=0.2)
    task = asyncio.create_task(sandbox.run(sandboxed.sleep, b""))
    await until(lambda: len(children()) > len(before))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert {child.pid for child in children()} == before
    starting = asyncio.create_task(sandbox.run(sandboxed.sleep, b""))
    await asyncio.sleep(0)
    starting.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await starting
    assert await sandbox.run(sandboxed.answer_backwards, b"ab") == b"ba"
    await until(lambda: {child.pid for child in children()} == before)


async def test_closed_it_leaves_no_process_and_no_thread() -> None:
    processes, threads = {child.pid for child in children()}, threading.active_count()
    sandbox = Sandbox()
    working = asyncio.create_task(sandbox.run(sandboxed.sleep, b""))
    assert await sandbox.run(sandboxed.answer_backwards, b"ab") == b"ba"
    assert {child.pid for child in children()} > processes
    await sandbox.close()
    await sandbox.close()
    with pytest.raises(SandboxLimit, match="the sandbox was closed"):
        await working
    with pytest.raises(RuntimeError):
        await sandbox.run(sandboxed.answer_backwards, b"ab")
    assert {child.pid for child in children()} == processes
    await until(lambda: threading.active_count() <= threads)


async def test_one_that_never_worked_has_nothing_to_close() -> None:
    await Sandbox().close()


async def test_a_sandbox_may_follow_another() -> None:
    for _ in range(2):
        sandbox = Sandbox()
        assert await sandbox.run(sandboxed.answer_backwards, b"ab") == b"ba"
        await sandbox.close()


async def test_two_sandboxes_share_what_one_of_them_still_needs() -> None:
    before = {child.pid for child in children()}
    first, second = Sandbox(), Sandbox()
    ends = await asyncio.gather(
        *(
            sandbox.run(work, b"")
            for work in (sandboxed.leave, sandboxed.answer_its_pid)
            for sandbox in (first, second) * 10
        ),
        return_exceptions=True,
    )
    assert {str(end) for end in ends[:20]} == {"it ended with exit code 3 and without an answer"}
    assert len(set(ends[20:])) == 20
    working = asyncio.create_task(second.run(sandboxed.sleep, b"", 1.0))
    await asyncio.sleep(0.1)
    await first.close()
    assert not working.done()
    assert await second.run(sandboxed.answer_backwards, b"ab") == b"ba"
    await second.close()
    with pytest.raises(SandboxLimit):
        await working
    assert {child.pid for child in children()} == before


async def test_a_server_that_was_killed_is_started_again(sandbox: Sandbox) -> None:
    await sandbox.run(sandboxed.answer_backwards, b"")
    (server,) = (child for child in children() if _is_server(child))
    working = asyncio.create_task(sandbox.run(sandboxed.sleep, b"", 1.0))
    await until(lambda: bool(server.children()))
    server.kill()
    assert await sandbox.run(sandboxed.answer_backwards, b"ab") == b"ba"
    with pytest.raises(SandboxLimit):
        await working


PARENT = """
import asyncio, sys
from services.downloader.adapters.sandbox import Sandbox
from tests.services.downloader import sandboxed

async def main():
    sandbox = Sandbox()
    await sandbox.run(sandboxed.answer_backwards, b"")
    await asyncio.gather(*(sandbox.run(sandboxed.sleep, sys.argv[1].encode(), 2.0) for _ in range(int(sys.argv[2]))))
    print("idle", flush=True)
    await asyncio.sleep(1000)

asyncio.run(main())
"""


@pytest.mark.parametrize("working", [0, 2])
async def test_of_a_parent_that_is_killed_no_process_is_left(
    tmp_path: Path, a_short_directory: Path, working: int
) -> None:
    pipe = tmp_path / "pids"
    os.mkfifo(pipe)
    told = os.open(pipe, os.O_RDWR)
    parent = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", PARENT, str(pipe), str(working)),
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "TMPDIR": str(a_short_directory)},
    )
    assert parent.stdout is not None
    if working:
        pids = [int(await asyncio.to_thread(_line, told)) for _ in range(working)]
    else:
        assert await parent.stdout.readline() == b"idle\n"
        pids = []
    os.close(told)
    family = psutil.Process(parent.pid).children(recursive=True)
    assert {child.pid for child in family} >= set(pids)
    assert len(family) == working + 2, "the server, and multiprocessing's tracker"
    parent.send_signal(signal.SIGKILL)
    await parent.wait()
    await until(lambda: not any(_lives(child) for child in family))


@pytest.fixture
def a_short_directory() -> Generator[Path, None, None]:
    """The server's socket is all that is left of it."""
    with tempfile.TemporaryDirectory() as directory:
        yield Path(directory)


def _line(descriptor: int) -> bytes:
    line = b""
    while not line.endswith(b"\n"):
        line += os.read(descriptor, 1)
    return line


def _is_server(process: psutil.Process) -> bool:
    """Others' children may be ending just now."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return "forkserver" in " ".join(process.cmdline())
    return False


def _lives(process: psutil.Process) -> bool:
    """Nobody may be there to reap an orphan."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


# Where it works


def test_it_works_on_uvloop_beside_threads_and_other_children() -> None:
    async def main() -> None:
        sandbox = Sandbox()
        stop = threading.Event()
        busy = [threading.Thread(target=stop.wait) for _ in range(8)]
        for thread in busy:
            thread.start()
        try:
            other = await asyncio.create_subprocess_exec("sleep", "0.2")
            answers = await asyncio.gather(*(sandbox.run(sandboxed.answer_backwards, b"ab") for _ in range(10)))
            assert answers == [b"ba"] * 10
            assert await problem_of(sandbox, sandboxed.sleep, seconds=0.2) == "it took longer than 0.2 s"
            assert await other.wait() == 0
        finally:
            stop.set()
            await sandbox.close()

    uvloop.run(main())

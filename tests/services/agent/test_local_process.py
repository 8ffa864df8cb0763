"""What only engines that are plain processes of this machine have: numbers that are used again, an environment, files."""

import asyncio
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from services.agent.adapters import local_process
from services.agent.adapters.local_process import (
    DAYS_KEPT,
    FORMER_LOG_BYTES,
    SEGMENTS_KEPT,
    LocalProcessRuntime,
)
from services.agent.domain.runtime import ContainerRuntime, EngineExit
from tests.services.agent.engines import GUARD_SECONDS, SLEEPER, Agents, a_script, alive, an_id, kill, log_of, next_exit


@pytest.fixture
async def agents(tmp_path: Path) -> AsyncIterator[Agents]:
    agents = Agents(tmp_path / "engines")
    yield agents
    await agents.end()


@pytest.fixture
def stranger() -> Iterator[int]:
    """A process that the agent has not started. It leads a group, as an engine does."""
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True) as process:
        yield process.pid
        process.kill()


def altered(record: Path, **changes: object) -> None:
    known: dict[str, Any] = json.loads(record.read_bytes())
    record.write_text(json.dumps(known | changes), encoding="utf-8")


async def test_a_process_that_got_the_number_of_a_former_engine_is_not_adopted_and_lives(
    agents: Agents, stranger: int
) -> None:
    kill(agents.start_and_be_killed(an_id(), a_script(SLEEPER), {}))
    altered(agents.directory / "i-1" / "1.json", pid=stranger)

    runtime = agents.a_runtime()

    assert (await next_exit(runtime)).id == an_id()
    assert await runtime.list() == ()
    await runtime.stop(an_id(), 0)
    assert alive(stranger)


async def test_an_engine_of_another_boot_has_ended_with_it_whatever_has_its_number(
    agents: Agents,
) -> None:
    handle = agents.start_and_be_killed(an_id(), a_script(SLEEPER), {})
    altered(agents.directory / "i-1" / "1.json", boot_id="another")
    runtime = agents.a_runtime()
    try:
        ended = await next_exit(runtime)
        assert (ended.id, ended.ended_by) == (an_id(), "the_machine")
        assert await runtime.list() == ()
        assert alive(int(handle))
    finally:
        kill(handle)


async def test_an_agent_killed_before_it_noted_the_number_leaves_an_engine_that_is_found(agents: Agents) -> None:
    handle = agents.start_and_be_killed(an_id(), a_script(SLEEPER), {"model": "tiny"})
    altered(agents.directory / "i-1" / "1.json", pid=None, start_ticks=None)
    runtime = agents.a_runtime()
    (engine,) = await runtime.list()
    assert (engine.handle, engine.details) == (handle, {"model": "tiny"})
    await runtime.stop(an_id(), 0)
    assert not alive(int(handle))


async def test_an_agent_killed_before_it_started_anything_leaves_an_end(agents: Agents) -> None:
    handle = agents.start_and_be_killed(an_id(), a_script(SLEEPER), {})
    altered(agents.directory / "i-1" / "1.json", pid=None, start_ticks=None)
    kill(handle)
    assert (await next_exit(agents.a_runtime())).id == an_id()


async def test_that_an_engine_was_started_is_on_the_disk_before_it_is(
    agents: Agents, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine that loses its power would start the same attempt again."""
    record, synced = agents.directory / "i-1" / "1.json", list[str]()
    sync, spawn = os.fsync, local_process._spawn  # pyright: ignore[reportPrivateUsage] - the moment when there is a process

    def noted(descriptor: int) -> None:
        synced.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        sync(descriptor)

    def spawned(*arguments: Any) -> int:
        assert synced == ["1.part", "i-1", agents.directory.name]
        assert record.exists()
        return spawn(*arguments)

    monkeypatch.setattr(os, "fsync", noted)
    monkeypatch.setattr(local_process, "_spawn", spawned)
    await agents.a_runtime().start(an_id(), a_script(SLEEPER), {})


async def test_a_damaged_record_is_told_as_an_end(agents: Agents) -> None:
    folder = agents.directory / "i-1"
    folder.mkdir(parents=True)
    (folder / "7.json").write_text('{"boot_id": "', encoding="utf-8")
    (folder / "7.log").write_text("the last line\n", encoding="utf-8")
    assert await next_exit(agents.a_runtime()) == EngineExit(an_id(7), None, None, ("the last line",))


async def test_an_engine_has_none_of_the_agents_files_and_sockets(agents: Agents) -> None:
    runtime = agents.a_runtime()
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.set_inheritable(True)
        script = "import os; print([os.readlink(f'/proc/self/fd/{n}') for n in sorted(map(int, os.listdir('/proc/self/fd')))[:-1]])"
        await runtime.start(an_id(), a_script(script), {})
        ended = await next_exit(runtime)
    log = str(agents.directory / "i-1" / "1.log")
    assert ended.log_tail == (str(["/dev/null", log, log]),)


async def test_an_engine_leads_a_session_of_its_own(runtime: ContainerRuntime) -> None:
    script = "import os; print(os.getsid(0) == os.getpgid(0) == os.getpid())"
    await runtime.start(an_id(), a_script(script), {})
    assert (await next_exit(runtime)).log_tail == ("True",)


async def test_an_engine_sees_a_short_list_of_variables_and_its_own(
    runtime: ContainerRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MUSTER_NATS_NKEY_SEED", "SUAsecret")
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy:3128")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    script = "import json, os; print(json.dumps(dict(os.environ)))"
    await runtime.start(an_id(), a_script(script, CUDA_VISIBLE_DEVICES="1", OMP_NUM_THREADS="2"), {})
    seen: dict[str, str] = json.loads((await next_exit(runtime)).log_tail[0])
    passed_on = {"PATH", "HOME", "LANG", "TMPDIR", "LC_CTYPE"}  # the last is set by Python itself
    assert {name: value for name, value in seen.items() if name not in passed_on | {"MUSTER_ENGINE"}} == {
        "OMP_NUM_THREADS": "2",
        "CUDA_VISIBLE_DEVICES": "1",
    }


async def test_stop_gives_an_engine_and_its_children_their_grace(runtime: ContainerRuntime) -> None:
    """The parent ends at once, the child tidies up first: it is not killed meanwhile."""
    parent = """
import subprocess, sys, time
child = '''
import signal, sys, time
def tidy(*_):
    time.sleep(0.3)
    print("tidied up", flush=True)
    sys.exit()
signal.signal(signal.SIGTERM, tidy)
print("ready", flush=True)
time.sleep(600)
'''
subprocess.Popen([sys.executable, "-u", "-c", child])
time.sleep(600)
"""
    await runtime.start(an_id(), a_script(parent), {})
    await log_of(runtime, an_id(), lines=1)
    async with asyncio.timeout(GUARD_SECONDS):
        await runtime.stop(an_id(), grace_seconds=600)
    assert await runtime.log_tail(an_id(), 9) == ("ready", "tidied up")


async def test_the_logs_of_the_last_five_attempts_are_kept_the_former_ones_shortened(agents: Agents) -> None:
    runtime = agents.a_runtime()
    for attempt in range(1, 8):
        script = f"print('first line'); print('x' * {FORMER_LOG_BYTES}); print('last line of {attempt}')"
        await runtime.start(an_id(attempt), a_script(script), {})
        await next_exit(runtime)
    folder = agents.directory / "i-1"
    files = [path for path in folder.iterdir() if path.suffix != ".gz"]
    assert {path.name for path in files} == {"3.log", "4.log", "5.log", "6.log", "7.log", "7.json"}
    assert {path.name[0] for path in folder.glob("*.gz")} == {"3", "4", "5", "6"}
    assert all(path.stat().st_blocks * 512 <= 2 * FORMER_LOG_BYTES for path in files)
    assert await runtime.log_tail(an_id(6), 1) == ("last line of 6",)
    first = await runtime.log_part(an_id(6), 1, "")
    assert first is not None
    assert first.lines == ("first line",)


async def test_logs_of_instances_that_are_gone_are_kept_for_a_week(agents: Agents) -> None:
    runtime = agents.a_runtime()
    for instance in ("i-old", "i-gone"):
        await runtime.start(an_id(instance=instance), a_script("print('once')"), {})
        await next_exit(runtime)
        await runtime.forget(an_id(instance=instance))
    ago = time.time() - (DAYS_KEPT * 86400 + 60)
    os.utime(agents.directory / "i-old" / "1.log", (ago, ago))

    await runtime.start(an_id(instance="i-new"), a_script(SLEEPER), {})

    assert {path.name for path in agents.directory.iterdir()} == {"i-gone", "i-new"}
    assert await runtime.log_tail(an_id(instance="i-gone"), 1) == ("once",)


async def test_the_log_of_a_chatty_engine_is_cut_while_it_runs_and_by_the_agent_that_comes_back(agents: Agents) -> None:
    chatty = "import itertools\nfor n in itertools.count(): print(f'line {n}', flush=n % 100 == 0)"
    engine = agents.start_and_be_killed(an_id(), a_script(chatty), {})
    folder = agents.directory / "i-1"
    runtime = LocalProcessRuntime(agents.directory, segment_bytes=65536)
    try:
        async with asyncio.timeout(GUARD_SECONDS):
            await runtime.list()
            while len(list(folder.glob("*.gz"))) < SEGMENTS_KEPT or (folder / "1.log").stat().st_size < 2**22:  # noqa: ASYNC110 - what happens on the disk
                await asyncio.sleep(0.02)
            part = await runtime.log_part(an_id(), 1000, "")
        assert part is not None
        assert (part.lines[0].split()[0], int(part.lines[0].split()[1])) == ("line", part.skipped)
        assert part.skipped > 0
        assert agents.lives(engine)
    finally:
        await runtime.stop(an_id(), 0)
        await runtime.close()


async def test_an_attempt_that_still_runs_keeps_its_log_and_its_record(agents: Agents) -> None:
    runtime = agents.a_runtime()
    await runtime.start(an_id(1), a_script(f"print('x' * {FORMER_LOG_BYTES}); {SLEEPER}"), {})
    await log_of(runtime, an_id(1), lines=2)
    await runtime.start(an_id(2), a_script(SLEEPER), {})
    await runtime.close()
    assert (agents.directory / "i-1" / "1.log").stat().st_size > FORMER_LOG_BYTES
    assert {engine.id for engine in await agents.a_runtime().list()} == {an_id(1), an_id(2)}


async def test_a_log_line_is_what_a_terminal_would_show_at_last(runtime: ContainerRuntime) -> None:
    script = r"""
import sys
sys.stdout.buffer.write(b"\x1b[31mred\x1b[0m\n10%\r50%\r100%\r\nnul\0 bell\a tab\t \xff\n" + b"y" * 5000 + b"\n")
"""
    await runtime.start(an_id(), a_script(script), {})
    assert (await next_exit(runtime)).log_tail == ("red", "100%", "nul bell tab\t \ufffd", "y" * 2000)


async def test_ends_are_noticed_by_uvloop_too(agents: Agents) -> None:
    """The services run on it."""
    script = f"""
import asyncio, sys, uvloop
from pathlib import Path
from services.agent.adapters.local_process import LocalProcessRuntime
from services.agent.domain.runtime import EngineCommand, EngineId

async def main():
    runtime = LocalProcessRuntime(Path({str(agents.directory)!r}))
    command = EngineCommand((sys.executable, "-c", "raise SystemExit(3)"), {{}}, "script", "/", 9)
    await runtime.start(EngineId("i-1", 1), command, {{}})
    print((await anext(aiter(runtime.exits()))).exit_code)

uvloop.run(main())
"""
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", script, stdout=subprocess.PIPE)
    output, _ = await process.communicate()
    assert output == b"3\n"

"""What an engine may hold, and what happens to one that holds more."""

import os
import resource
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.agent.adapters.control_groups import ControlGroups
from services.agent.adapters.local_process import LocalProcessRuntime
from services.agent.domain.bounds import Ram, bounded, most_ram_bytes
from services.agent.domain.runtime import Bounds, Container, EngineCommand, Needs
from tests.services.agent.engines import SLEEPER, a_script, an_id, log_of, next_exit

GIB = 2**30
MIB = 2**20
sizes = st.integers(min_value=0, max_value=4096 * GIB)


# -- how much ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("claimed", "machine", "shm", "most"),
    [
        (GIB, 64 * GIB, 0, 9 * GIB),
        (GIB, 64 * GIB, 10 * GIB, 19 * GIB),
        (20 * GIB, 64 * GIB, 0, 40 * GIB),
        (40 * GIB, 64 * GIB, 0, 64 * GIB - int(64 * GIB * 0.05)),
        (GIB, 4 * GIB, 0, 3 * GIB),
        (0, 100 * GIB, 10 * GIB, 95 * GIB),
        (GIB, 0, 0, None),
    ],
)
def test_the_bound(claimed: int, machine: int, shm: int, most: int | None) -> None:
    assert most_ram_bytes(Ram(claimed, machine), shm) == most


@given(sizes, sizes, sizes)
def test_no_bound_is_below_a_claim_that_the_machine_can_hold_or_above_the_machine(
    claimed: int, machine: int, shm: int
) -> None:
    most = most_ram_bytes(Ram(claimed, machine), shm)
    if most is not None:
        assert most < machine
        assert most >= min(claimed, machine - max(int(machine * 0.05), GIB))


def test_of_a_container_its_shared_memory_counts_unless_it_is_the_hosts() -> None:
    command = EngineCommand((), {}, "vllm", "/health", 4000, container=Container("image", shm_bytes=10 * GIB))
    limited = bounded(command, Ram(GIB, 64 * GIB)).container
    assert limited is not None
    assert limited.memory_bytes == 19 * GIB
    theirs = replace(command, container=Container("image", shm_bytes=10 * GIB, needs=Needs(host_ipc=True)))
    limited = bounded(theirs, Ram(GIB, 64 * GIB)).container
    assert limited is not None
    assert limited.memory_bytes == 9 * GIB
    assert bounded(replace(command, container=None), Ram(GIB, 64 * GIB)).bounds == Bounds(9 * GIB)


# -- files of the kernel, in a directory like them --------------------------------------------------------------------


def a_group(parent: Path, **files: str) -> Path:
    group = parent / "muster-i-1-1"
    group.mkdir(parents=True)
    for name, text in {"cgroup.procs": "", **files}.items():
        (group / name).write_text(text)
    return group


@pytest.mark.parametrize("name", ["memory.max", "memory.limit_in_bytes"], ids=["version 2", "version 1"])
def test_what_there_is_a_controller_for_is_bounded(tmp_path: Path, name: str) -> None:
    group = a_group(tmp_path, **{name: "max", "pids.max": "max"})
    ControlGroups([tmp_path]).enter(an_id(), Bounds(123 * MIB, 77), lambda: [4711])
    assert (group / name).read_text() == str(123 * MIB)
    assert (group / "pids.max").read_text() == "77"
    assert (group / "cgroup.procs").read_text() == "4711"
    assert {file.name for file in group.iterdir()} == {name, "pids.max", "cgroup.procs"}


def test_who_was_started_meanwhile_is_moved_too(tmp_path: Path) -> None:
    group = a_group(tmp_path)
    seen = iter([[1], [1, 2], [1, 2]])
    ControlGroups([tmp_path]).enter(an_id(), Bounds(), lambda: next(seen))
    assert (group / "cgroup.procs").read_text() == "2"
    assert list(seen) == []


@pytest.mark.parametrize(
    ("files", "killed"),
    [
        ({"memory.events": "low 0\noom 1\noom_kill 1\n"}, True),
        ({"memory.events": "low 0\noom 1\noom_kill 0\n"}, False),
        ({"memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n"}, True),
        ({}, False),
    ],
)
def test_who_was_killed_for_memory_is_known_by_the_kernels_count(
    tmp_path: Path, files: dict[str, str], killed: bool
) -> None:
    a_group(tmp_path, **files)
    assert ControlGroups([tmp_path]).was_out_of_memory(an_id()) is killed


def test_a_group_that_can_not_be_made_is_no_reason_not_to_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ControlGroups([tmp_path / "nowhere"]).enter(an_id(), Bounds(), lambda: [1])
    assert "runs without bounds" in caplog.text


# -- the kernel's own -------------------------------------------------------------------------------------------------


def own_group(controller: str) -> Path | None:
    """Where this process is, of version 1, or of version 2 where its controllers are."""
    for line in Path("/proc/self/cgroup").read_text(encoding="ascii").splitlines():
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(","):
            return Path("/sys/fs/cgroup") / controller / path.lstrip("/")
    return None


@pytest.fixture
def delegated() -> Iterator[Path]:
    """A group of this test's own that bounds memory."""
    parent = own_group("memory")
    if parent is None or not os.access(parent, os.W_OK):
        pytest.skip("no control group with a memory controller can be made here")
    group = parent / f"muster-test-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error}")
    yield group
    group.rmdir()


@pytest.fixture
async def runtime(tmp_path: Path, delegated: Path) -> AsyncIterator[LocalProcessRuntime]:
    runtime = LocalProcessRuntime(tmp_path / "engines", ControlGroups([delegated]))
    yield runtime
    for running in await runtime.list():
        await runtime.stop(running.id, 0)
    await runtime.close()


def groups_in(parent: Path) -> list[str]:
    return [each.name for each in parent.iterdir() if each.is_dir()]


GORGES = """
import subprocess, sys
print("ready")
held = [bytearray(b"x" * 2**20) for _ in range(600)]
print("full")
"""
HAS_A_CHILD = """
import subprocess, sys, time
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
print("ready")
time.sleep(600)
"""


async def test_an_engine_that_holds_more_than_it_may_ends_by_its_memory(runtime: LocalProcessRuntime) -> None:
    command = replace(a_script(GORGES), bounds=Bounds(64 * MIB))
    await runtime.start(an_id(), command, {})
    ended = await next_exit(runtime)
    assert (ended.ended_by, ended.signal) == ("memory", 9)


async def test_one_that_keeps_within_ends_as_it_likes_and_leaves_no_group(
    runtime: LocalProcessRuntime, delegated: Path
) -> None:
    await runtime.start(an_id(), replace(a_script("print('ready')"), bounds=Bounds(256 * MIB)), {})
    ended = await next_exit(runtime)
    assert (ended.ended_by, ended.exit_code) == ("itself", 0)
    assert groups_in(delegated) == []


async def test_all_that_an_engine_starts_is_in_its_group(runtime: LocalProcessRuntime, delegated: Path) -> None:
    running = await runtime.start(an_id(), a_script(HAS_A_CHILD), {})
    await log_of(runtime, an_id(), lines=1)
    group = delegated / "muster-i-1-1"
    pids = [int(pid) for pid in (group / "cgroup.procs").read_text(encoding="ascii").split()]
    assert running.handle in pids
    assert len(pids) == 2
    for pid in pids:
        if pid != running.handle:
            os.kill(pid, 9)


@pytest.fixture
def cores_are_dumped() -> Iterator[None]:
    """By whatever the tests start, as far as they may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_CORE)
    if hard == 0:
        pytest.skip("no core is dumped here in any case")
    resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_CORE, (soft, hard))


@pytest.mark.usefixtures("cores_are_dumped")
async def test_an_engine_dumps_no_core_unless_it_asks_for_one(tmp_path: Path) -> None:
    runtime = LocalProcessRuntime(tmp_path / "engines")
    running = await runtime.start(an_id(), a_script(SLEEPER), {})
    await log_of(runtime, an_id(), lines=1)
    soft, hard = resource.prlimit(int(running.handle), resource.RLIMIT_CORE)
    await runtime.stop(an_id(), 0)
    await runtime.close()
    assert (soft, hard) == (0, resource.getrlimit(resource.RLIMIT_CORE)[1])

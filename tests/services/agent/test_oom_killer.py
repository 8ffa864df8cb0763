"""What the kernel's log says of a process that was killed. Recorded from Linux 6.18 in November 2026."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.agent.adapters.local_process import LocalProcessRuntime
from services.agent.adapters.oom_killer import KERNEL_LOG, killed_for_memory, victims
from tests.services.agent.engines import SLEEPER, a_script, an_id, kill, next_exit

LOG = (
    b"6,14253,53339568062,-;docker0: port 1(vethcaf80cf) entered blocking state\n",
    (
        b"3,15638,54197070099,-;Memory cgroup out of memory: Killed process 13870 (python) total-vm:75224kB,"
        b" anon-rss:64896kB, file-rss:5780kB, shmem-rss:0kB, UID:0 pgtables:188kB oom_score_adj:0\n"
    ),
    b"not a record of the kernel's\n",
)


def test_victims_are_told_with_the_time() -> None:
    assert list(victims(LOG)) == [(54197.070099, 13870)]


def test_a_process_that_had_the_number_before_is_another_one(tmp_path: Path) -> None:
    log = tmp_path / "kmsg"
    log.write_bytes(LOG[1])  # a file gives all of it at once, the kernel a record at a time
    ticks = 54_197 * os.sysconf("SC_CLK_TCK")
    assert killed_for_memory(13870, ticks, log)
    assert not killed_for_memory(13870, ticks * 2, log)
    assert not killed_for_memory(13871, ticks, log)
    assert not killed_for_memory(13870, ticks, tmp_path / "nothing")


@pytest.fixture
def little_memory() -> Iterator[Path]:
    """A control group of this test's own that may hold 60 MB."""
    old, new = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")
    group = (old if old.is_dir() else new) / f"muster-test-{os.getpid()}"
    limit = "memory.limit_in_bytes" if old.is_dir() else "memory.max"
    try:
        group.mkdir()
        (group / limit).write_text(str(60_000_000))
        os.close(os.open(KERNEL_LOG, os.O_RDONLY | os.O_NONBLOCK))
    except OSError as error:
        group.rmdir() if group.exists() else None
        pytest.skip(f"this machine lets us make no control group, or hides the kernel's log: {error}")
    yield group
    group.rmdir()


async def test_an_engine_that_the_kernel_killed_for_memory_is_told_from_one_that_was_killed_by_hand(
    little_memory: Path, tmp_path: Path
) -> None:
    runtime = LocalProcessRuntime(tmp_path)
    greedy = f"import os; open('{little_memory}/cgroup.procs', 'w').write(str(os.getpid())); x = b'x' * 200_000_000"
    await runtime.start(an_id(1), a_script(greedy), {})
    by_the_kernel = await next_exit(runtime)
    engine = await runtime.start(an_id(2), a_script(SLEEPER), {})
    kill(engine.handle)
    by_hand = await next_exit(runtime)
    await runtime.close()
    assert [(each.signal, each.ended_by) for each in (by_the_kernel, by_hand)] == [(9, "memory"), (9, "itself")]

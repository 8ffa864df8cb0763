"""What the kernel's log says of a process that was killed. Recorded from Linux 6.18 in November 2026."""

import os
from pathlib import Path

from services.agent.adapters.oom_killer import killed_for_memory, victims

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

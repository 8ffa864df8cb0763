import os
import subprocess
from pathlib import Path

from services.agent.adapters.probes.owners import engines_of, pids_of_engines

CONTAINER = "3f0c9a" * 10 + "3f0c"


def a_process(proc: Path, pid: int, *, name: str = "python3", session: int, cgroup: str = "0::/user.slice") -> None:
    (proc / str(pid)).mkdir(parents=True)
    (proc / str(pid) / "stat").write_text(f"{pid} ({name}) S 1 {session} {session} 0 -1 4194304\n")
    (proc / str(pid) / "cgroup").write_text(f"{cgroup}\n")


def test_processes_are_told_by_their_session_or_by_their_container(tmp_path: Path) -> None:
    a_process(tmp_path, 10, session=10)
    a_process(tmp_path, 11, session=10, name="VLLM (worker) 1")
    a_process(tmp_path, 20, session=20, cgroup=f"0::/system.slice/docker-{CONTAINER}.scope")
    a_process(tmp_path, 30, session=30)
    assert pids_of_engines([10, 11, 20, 30, 40], [10, CONTAINER], tmp_path) == {10, 11, 20}
    assert pids_of_engines([10, 11, 20, 30, 40], [], tmp_path) == set()
    assert engines_of([10, 11, 20, 30, 40], [10, CONTAINER], tmp_path) == {10: 10, 11: 10, 20: CONTAINER}


def test_a_child_of_an_engine_is_ours_as_the_kernel_tells_it() -> None:
    engine = subprocess.Popen(
        ["sh", "-c", "sleep 1000 & echo $!; wait"], stdout=subprocess.PIPE, start_new_session=True
    )
    try:
        assert engine.stdout is not None
        child = int(engine.stdout.readline())
        assert pids_of_engines([engine.pid, child, os.getpid()], [engine.pid]) == {engine.pid, child}
    finally:
        os.killpg(engine.pid, 9)
        engine.wait()
        if engine.stdout is not None:
            engine.stdout.close()

"""Whose a process is that uses a GPU."""

from collections.abc import Iterable
from pathlib import Path


def pids_of_engines(pids: Iterable[int], handles: Iterable[int | str], proc: Path = Path("/proc")) -> frozenset[int]:
    """Those of `pids` that belong to engines of ours."""
    return frozenset(engines_of(pids, handles, proc))


def engines_of(pids: Iterable[int], handles: Iterable[int | str], proc: Path = Path("/proc")) -> dict[int, int | str]:
    """PID → handle, of those that belong to engines of ours. `handles`: of the engines, as the runtime tells them.

    An engine that is a process leads a session, and its children stay in it; one in a container is told by the container's id, which
    the names of its control groups contain (`man 5 proc_pid_cgroup`).
    """
    known = tuple(handles)
    sessions = {handle for handle in known if isinstance(handle, int)}
    containers = tuple(handle for handle in known if isinstance(handle, str) and handle)
    found: dict[int, int | str] = {}
    for pid in pids:
        if (session := _session(proc, pid)) is not None and session in sessions:
            found[pid] = session
        elif containers:
            groups = _cgroups(proc, pid)
            found.update((pid, each) for each in containers if each in groups)
    return found


def _session(proc: Path, pid: int) -> int | None:
    """Field 6 of /proc/<pid>/stat (`man 5 proc_pid_stat`)."""
    try:
        stat = (proc / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
        return int(stat.rpartition(")")[2].split()[3])
    except (OSError, ValueError, IndexError):
        return None


def _cgroups(proc: Path, pid: int) -> str:
    try:
        return (proc / str(pid) / "cgroup").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""

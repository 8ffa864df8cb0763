"""Control groups for engines that are processes: what they may hold, and whether they were killed for holding more.

Directories that the operator has delegated to the agent (`cgroups(7)`, "Delegation containment"): of version 2 one, in which no
process may be; of version 1 one for each controller. A controller that is not there bounds nothing.
"""

import contextlib
import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from services.agent.domain.runtime import Bounds, EngineId

log = logging.getLogger(__name__)

CONTROLLERS: Final = "+memory +pids"
_MEMORY: Final = ("memory.max", "memory.limit_in_bytes")
_OOM: Final = ("memory.events", "memory.oom_control")
"""Of version 2 and 1."""
_ROUNDS: Final = 5


class ControlGroups:
    def __init__(self, parents: Iterable[Path] = ()) -> None:
        """No parents: no bounds."""
        self._parents = tuple(parents)
        for parent in self._parents:
            with contextlib.suppress(
                OSError
            ):  # of version 1, or given already; what is missing shows when an engine starts
                (parent / "cgroup.subtree_control").write_text(CONTROLLERS, encoding="ascii")

    def enter(self, engine: EngineId, bounds: Bounds, pids: Callable[[], Iterable[int]]) -> None:
        """`pids`: of the engine now; what it starts later is where it is. A group that can't be made is a line in the log: engines
        run without.
        """
        for group in self._groups(engine):
            try:
                group.mkdir(exist_ok=True)
                _bound(group, bounds)
                _move(group, pids)
            except OSError as error:
                log.warning("%s runs without bounds: %s: %s", engine.instance_id, group, error.strerror)

    def was_out_of_memory(self, engine: EngineId) -> bool:
        return any(_oom_kills(group) > 0 for group in self._groups(engine))

    def kill(self, engine: EngineId) -> None:
        """Whatever is left in it, whatever session that made for itself (version 2, Linux 5.14)."""
        for group in self._groups(engine):
            with contextlib.suppress(OSError):
                if (kill := group / "cgroup.kill").exists():
                    kill.write_text("1", encoding="ascii")

    def remove(self, engine: EngineId) -> None:
        for group in self._groups(engine):
            with contextlib.suppress(OSError):  # somebody still ends in it: an empty group costs nothing
                group.rmdir()

    def _groups(self, engine: EngineId) -> list[Path]:
        return [parent / f"muster-{engine.instance_id}-{engine.attempt}" for parent in self._parents]


def _bound(group: Path, bounds: Bounds) -> None:
    if bounds.memory_bytes is not None:
        for name in _MEMORY:
            if (file := group / name).exists():
                file.write_text(str(bounds.memory_bytes), encoding="ascii")
    if (file := group / "pids.max").exists():
        file.write_text(str(bounds.pids), encoding="ascii")
    if (file := group / "memory.oom.group").exists():  # an engine of which one process is killed is no engine
        file.write_text("1", encoding="ascii")


def _move(group: Path, pids: Callable[[], Iterable[int]]) -> None:
    """Until nobody is outside who was started before its parent was moved."""
    moved: set[int] = set()
    for _ in range(_ROUNDS):
        left = set(pids()) - moved
        if not left:
            return
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                (group / "cgroup.procs").write_text(str(pid), encoding="ascii")
        moved |= left


def _oom_kills(group: Path) -> int:
    """`oom_kill N`, in both versions."""
    for name in _OOM:
        with contextlib.suppress(OSError, ValueError):
            words = (group / name).read_text(encoding="ascii").split()
            if "oom_kill" in words:
                return int(words[words.index("oom_kill") + 1])
    return 0

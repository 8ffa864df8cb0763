"""All GPUs of this machine, whoever made them, at little cost: no driver, however it behaves, keeps the agent waiting."""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from schemas.models import Gpu
from services.agent.adapters.probes import amd, ascend, cambricon, hygon, iluvatar, metax, moore_threads, t_head
from services.agent.adapters.probes.nvidia import NvmlProbe
from services.agent.adapters.probes.owners import engines_of, pids_of_engines
from services.agent.adapters.probes.presence import present
from services.agent.adapters.probes.probe import GpuProbe, Probed
from services.agent.adapters.probes.tool import Lookup, find_tool
from services.agent.domain.accelerators.gpus import GpuKey, gpus, held_by_engines, steady
from services.agent.domain.accelerators.reading import GpuReading, Problem
from services.agent.domain.accelerators.rhythm import RETRY_SECONDS, after_failures, rest_seconds

log = logging.getLogger(__name__)

FIRST_PATIENCE_SECONDS: Final = 20.0
"""How long the first answer of a vendor is waited for: a worker that introduces itself without its GPUs is no use."""
PATIENCE_SECONDS: Final = 0.5
"""… and a later one; until it comes, the one before it counts."""
PRESENCE_SECONDS: Final = 60.0
"""Between two looks at the bus."""


@dataclass(frozen=True, slots=True)
class Detected:
    readings: tuple[GpuReading, ...] = ()
    problems: tuple[Problem, ...] = ()


@dataclass(slots=True)
class _Seen:
    probe: GpuProbe
    last: Probed = field(default_factory=Probed)
    """The last that had readings; or the last of all, as long as none had."""
    problems: tuple[Problem, ...] = ()
    failures: int = 0
    """In a row."""
    asked_at: float = 0.0
    due_at: float = float("-inf")
    answered: bool = False
    asking: threading.Thread | None = field(default=None, repr=False)

    @property
    def is_asking(self) -> bool:
        return self.asking is not None and self.asking.is_alive()


def all_probes() -> tuple[GpuProbe, ...]:
    tools = (amd, ascend, hygon, moore_threads, iluvatar, metax, cambricon, t_head)
    return (NvmlProbe(), *(module.probe() for module in tools))


def detect(
    *,
    sysfs: Path = Path("/sys"),
    lookup: Lookup = find_tool,
    probes: Sequence[GpuProbe] | None = None,
    patience_seconds: float = FIRST_PATIENCE_SECONDS,
) -> Detected:
    """Once: what is found now, and what is wrong where something is there that can't be read."""
    detector = Detector(sysfs=sysfs, lookup=lookup, probes=probes, first_patience_seconds=patience_seconds)
    try:
        return detector.look()
    finally:
        detector.close()


class Detector:
    """Looks again and again, for any thread."""

    def __init__(
        self,
        *,
        sysfs: Path = Path("/sys"),
        lookup: Lookup = find_tool,
        probes: Sequence[GpuProbe] | None = None,
        clock: Callable[[], float] = time.monotonic,
        first_patience_seconds: float = FIRST_PATIENCE_SECONDS,
        patience_seconds: float = PATIENCE_SECONDS,
    ) -> None:
        self._sysfs, self._lookup, self._clock = sysfs, lookup, clock
        self._first_patience_seconds, self._patience_seconds = first_patience_seconds, patience_seconds
        self._seen = [_Seen(probe) for probe in (all_probes() if probes is None else probes)]
        self._present: frozenset[str] = frozenset()
        self._present_due_at = float("-inf")
        self._idle_bytes: dict[GpuKey, int] = {}
        self._gpus: tuple[Gpu, ...] = ()
        self._logged: frozenset[Problem] = frozenset()
        self._looking = threading.RLock()

    def look(self) -> Detected:
        """Asks whoever is due, and waits for answers: shortly, unless a vendor never answered yet."""
        with self._looking:
            return self._look()

    def gpus(self, handles: Iterable[int | str] = ()) -> tuple[Gpu, ...]:
        """For the inventory. `handles`: of the engines that run."""
        with self._looking:
            self._gpus = steady(self._gpus, self._reported(tuple(handles)))
            return self._gpus

    @property
    def tells_processes(self) -> bool:
        """Somebody told which processes use a GPU."""
        return any(reading.processes for seen in self._seen for reading in seen.last.readings)

    def held(self, handles: Iterable[int | str]) -> dict[int | str, dict[GpuKey, int]]:
        """Handle → GPU → bytes, as the last answers say: nobody is asked. Engines of which no tool tells are left out."""
        with self._looking:
            readings = [reading for seen in self._seen for reading in seen.last.readings]
        using = {process.pid for reading in readings for process in reading.processes or ()}
        return held_by_engines(readings, engines_of(using, handles))

    def close(self) -> None:
        for seen in self._seen:
            if not seen.is_asking:
                seen.probe.close()

    def _look(self) -> Detected:
        now = self._clock()
        if now >= self._present_due_at:
            self._present_due_at = now + PRESENCE_SECONDS
            self._present = frozenset(vendor.name for vendor in present(self._sysfs, self._lookup))
        here = [seen for seen in self._seen if seen.probe.vendor.name in self._present]
        for seen in here:
            if not seen.is_asking and now >= seen.due_at:
                seen.asked_at = now
                seen.asking = threading.Thread(
                    target=self._ask, args=(seen,), name=f"GPUs of {seen.probe.vendor.label}", daemon=True
                )
                seen.asking.start()
        for seen in here:
            if seen.asking is not None:
                waited = self._clock() - seen.asked_at
                patience = self._patience_seconds if seen.answered else self._first_patience_seconds
                seen.asking.join(max(0.0, patience - waited))
        return Detected(
            tuple(
                reading for seen in here for reading in after_failures(seen.last.readings, seen.failures, seen.problems)
            ),
            tuple(problem for seen in here for problem in (*seen.problems, *self._silent(seen))),
        )

    def _reported(self, running: tuple[int | str, ...]) -> tuple[Gpu, ...]:
        detected = self._look()
        self._log(detected.problems)
        if not running:
            self._idle_bytes = {
                (reading.type, reading.index): reading.memory_used_bytes
                for reading in detected.readings
                if reading.memory_used_bytes is not None
            }
        using = {process.pid for reading in detected.readings for process in reading.processes or ()}
        return gpus(detected.readings, pids_of_engines(using, running), self._idle_bytes)

    def _ask(self, seen: _Seen) -> None:
        seen.due_at = self._clock() + RETRY_SECONDS  # should it die of a fault of its own
        probed = seen.probe.read(self._lookup)
        if probed.readings or not seen.last.readings:
            seen.last = probed
        seen.problems = probed.problems
        seen.failures = 0 if probed.readings else seen.failures + 1
        seen.due_at = self._clock() + (rest_seconds(probed.cpu_seconds) if probed.readings else RETRY_SECONDS)
        seen.answered = True

    def _silent(self, seen: _Seen) -> tuple[Problem, ...]:
        if seen.answered or not seen.is_asking:
            return ()
        vendor = seen.probe.vendor
        said = f"no answer yet after {self._clock() - seen.asked_at:.0f} s"
        return (Problem(vendor.label, vendor.tool, said, vendor.install),)

    def _log(self, problems: tuple[Problem, ...]) -> None:
        """Each once, as long as it lasts."""
        for problem in problems:
            if problem not in self._logged:
                log.warning("GPUs of %s: %s: %s. %s", problem.vendor, problem.tried, problem.said, problem.install)
        self._logged = frozenset(problems)

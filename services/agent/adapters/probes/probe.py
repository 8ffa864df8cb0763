"""The port behind which each vendor's GPUs are read."""

from dataclasses import dataclass
from typing import Protocol

from services.agent.adapters.probes.tool import Lookup
from services.agent.domain.accelerators.reading import GpuReading, Problem
from services.agent.domain.accelerators.vendors import Vendor


@dataclass(frozen=True, slots=True)
class Probed:
    readings: tuple[GpuReading, ...] = ()
    problems: tuple[Problem, ...] = ()
    cpu_seconds: float = 0.0
    """What the answer cost."""


class GpuProbe(Protocol):
    @property
    def vendor(self) -> Vendor: ...

    def read(self, lookup: Lookup) -> Probed:
        """Takes seconds, and ends; a driver that hangs, a tool that is missing or fails is a problem that it tells."""
        ...

    def close(self) -> None: ...

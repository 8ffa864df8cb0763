"""How often a vendor is asked, and what counts while it does not answer."""

from dataclasses import replace
from typing import Final

from services.agent.domain.accelerators.reading import GpuReading, Problem

SHORTEST_SECONDS: Final = 2.5
LONGEST_SECONDS: Final = 300.0
SHARE_OF_A_CORE: Final = 0.005
"""What asking may cost over time: half of what an idle agent may use."""
RETRY_SECONDS: Final = 30.0
"""After a failure."""
FAILURES_UNTIL_UNHEALTHY: Final = 3


def rest_seconds(cpu_seconds: float) -> float:
    """Until a vendor is asked again whose answer cost so much: NVML seconds, `amd-smi` (a Python program) minutes."""
    return min(LONGEST_SECONDS, max(SHORTEST_SECONDS, cpu_seconds / SHARE_OF_A_CORE))


def after_failures(
    last: tuple[GpuReading, ...], failures: int, problems: tuple[Problem, ...]
) -> tuple[GpuReading, ...]:
    """GPUs that were there do not vanish because a tool fails: engines run on them. When it goes on failing they are unhealthy."""
    if failures < FAILURES_UNTIL_UNHEALTHY:
        return last
    said = f"{problems[0].tried}: {problems[0].said}" if problems else "its tool does not answer"
    return tuple(replace(reading, unhealthy=reading.unhealthy or said) for reading in last)

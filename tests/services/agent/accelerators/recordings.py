"""What is recorded of each vendor's tool, by case; and who reads it."""

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Final

from services.agent.domain.accelerators import (
    amd,
    ascend,
    cambricon,
    hygon,
    iluvatar,
    metax,
    moore_threads,
    nvidia,
    t_head,
)
from services.agent.domain.accelerators.answers import Answers
from services.agent.domain.accelerators.reading import GpuReading

RECORDED: Final = Path(__file__).parent / "recorded"
PARSERS: Final[Mapping[str, Callable[[Answers], tuple[GpuReading, ...]]]] = {
    "nvidia": nvidia.parse,
    "amd": amd.parse,
    "ascend": ascend.parse,
    "hygon": hygon.parse,
    "mthreads": moore_threads.parse,
    "iluvatar": iluvatar.parse,
    "metax": metax.parse,
    "cambricon": cambricon.parse,
    "thead": t_head.parse,
}


def recorded(vendor: str, case: str) -> dict[str, str]:
    """Question → what the tool printed."""
    return dict(_recorded(vendor, case))


@cache
def _recorded(vendor: str, case: str) -> Mapping[str, str]:
    return {
        file.stem.replace("_", " "): file.read_text(encoding="utf-8") for file in (RECORDED / vendor / case).iterdir()
    }


def cases(vendor: str) -> list[str]:
    return sorted(directory.name for directory in (RECORDED / vendor).iterdir())


def read(vendor: str, case: str) -> tuple[GpuReading, ...]:
    return PARSERS[vendor](recorded(vendor, case))

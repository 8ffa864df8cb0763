"""Huawei's Ascend NPUs, through `npu-smi`, and `hccn_tool` for the network port of each."""

from services.agent.adapters.probes.tool_probe import Question, ToolProbe
from services.agent.domain.accelerators import ascend
from services.agent.domain.accelerators.reading import GpuReading
from services.agent.domain.accelerators.vendors import ASCEND

HCCN_TOOL = "hccn_tool"


def probe() -> ToolProbe:
    return ToolProbe(
        ASCEND,
        (Question("info", ("info",)), Question("topo", ("info", "-t", "topo"), kept=True)),
        ascend.parse,
        follow_up=ports,
    )


def ports(readings: tuple[GpuReading, ...]) -> tuple[Question, ...]:
    """An NPU of an inference card (310P) has no port."""
    trained_on = [reading.index for reading in readings if reading.compute_capability != "310p"]
    return tuple(
        Question(f"{what} {index}", ("-i", str(index), f"-{what}", "-g"), kept=True, tool=HCCN_TOOL)
        for index in trained_on
        for what in ("ip", "link")
    )

"""Cambricon's MLUs, through `cnmon`."""

from services.agent.adapters.probes.tool_probe import Question, ToolProbe
from services.agent.domain.accelerators import cambricon
from services.agent.domain.accelerators.vendors import CAMBRICON


def probe() -> ToolProbe:
    return ToolProbe(CAMBRICON, (Question("table"), Question("info", ("info",))), cambricon.parse)

"""Iluvatar's GPUs, through `ixsmi`."""

from services.agent.adapters.probes.tool_probe import Question, ToolProbe
from services.agent.domain.accelerators import iluvatar
from services.agent.domain.accelerators.vendors import ILUVATAR

ASKED = "index,name,uuid,memory.total,memory.used,utilization.gpu,temperature.gpu"


def probe() -> ToolProbe:
    return ToolProbe(
        ILUVATAR,
        (
            Question("query", (f"--query-gpu={ASKED}", "--format=csv")),
            Question("table"),
            Question("topo", ("topo", "-m"), kept=True),
        ),
        iluvatar.parse,
    )

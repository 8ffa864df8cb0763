"""T-Head's PPUs, through `ppu-smi`."""

from services.agent.adapters.probes.tool_probe import Question, ToolProbe
from services.agent.domain.accelerators import t_head
from services.agent.domain.accelerators.vendors import T_HEAD

ASKED = "index,name,uuid,memory.total,memory.used,driver_version"


def probe() -> ToolProbe:
    return ToolProbe(
        T_HEAD,
        (
            Question("query", (f"--query-ppu={ASKED}", "--format=csv")),
            Question("table"),
            Question("topo", ("topo", "-m"), kept=True),
        ),
        t_head.parse,
    )

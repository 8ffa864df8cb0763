"""MetaX' GPUs, through `mx-smi`."""

from services.agent.adapters.probes.tool_probe import Question, ToolProbe
from services.agent.domain.accelerators import metax
from services.agent.domain.accelerators.vendors import METAX


def probe() -> ToolProbe:
    return ToolProbe(
        METAX,
        (
            Question("table"),
            Question("list", ("-L",), kept=True),
            Question("topo", ("topo", "-m"), kept=True),
        ),
        metax.parse,
    )

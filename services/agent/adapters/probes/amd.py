"""AMD's GPUs, through `amd-smi` (ROCm 6 and newer)."""

from services.agent.adapters.probes.tool_probe import Question, ToolProbe
from services.agent.domain.accelerators import amd
from services.agent.domain.accelerators.vendors import AMD


def probe() -> ToolProbe:
    return ToolProbe(
        AMD,
        (
            Question("static", ("static", "--asic", "--bus", "--driver", "--vram", "--json")),
            Question("metric", ("metric", "--usage", "--power", "--temperature", "--ecc", "--mem-usage", "--json")),
            Question("process", ("process", "--json")),
            Question("list", ("list", "--json"), kept=True),
            Question("version", ("version", "--json"), kept=True),
            Question("topology", ("topology", "--json"), kept=True),
        ),
        amd.parse,
    )

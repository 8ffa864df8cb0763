"""Hygon's DCUs, through `hy-smi`."""

from services.agent.adapters.probes.tool_probe import Question, ToolProbe
from services.agent.domain.accelerators import hygon
from services.agent.domain.accelerators.vendors import HYGON

SHOWN = ("--showproductname", "--showuniqueid", "--showbus", "--showuse", "--showtemp", "--showpower")


def probe() -> ToolProbe:
    return ToolProbe(
        HYGON,
        (
            Question("cards", (*SHOWN, "--showmeminfo", "vram", "--json")),
            Question("pids", ("--showpids",)),
            Question("driver", ("--showdriverversion",), kept=True),
            Question("links", ("--showtopotype", "--json"), kept=True),
        ),
        hygon.parse,
    )

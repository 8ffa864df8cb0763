"""Moore Threads' GPUs, through `mthreads-gmi`."""

from services.agent.adapters.probes.tool_probe import Question, ToolProbe
from services.agent.domain.accelerators import moore_threads
from services.agent.domain.accelerators.vendors import MOORE_THREADS


def probe() -> ToolProbe:
    return ToolProbe(
        MOORE_THREADS,
        (
            Question("table"),
            Question("query", ("-q",), kept=True),
            Question("topo", ("topo", "-m"), kept=True),
        ),
        moore_threads.parse,
    )

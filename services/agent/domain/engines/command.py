"""Which engine a backend's name stands for. A new engine is a new line here."""

from collections.abc import Callable, Mapping
from typing import Final

from schemas.reasons import BackendUnknown
from services.agent.domain.engines.custom import custom
from services.agent.domain.engines.keys import with_key
from services.agent.domain.engines.llama_cpp import llama_cpp
from services.agent.domain.engines.mindie import mindie
from services.agent.domain.engines.sglang import sglang
from services.agent.domain.engines.start import Start
from services.agent.domain.engines.vllm import vllm
from services.agent.domain.runtime import EngineCommand, EngineNotStarted

ENGINES: Final[Mapping[str, Callable[[Start], EngineCommand]]] = {
    "llama.cpp": llama_cpp,
    "vLLM": vllm,
    "SGLang": sglang,
    "MindIE": mindie,
    "Custom": custom,
}


def command_of(start: Start) -> EngineCommand:
    """The whole command, its program first. Raises EngineNotStarted for what the engine would not understand."""
    backend = start.launch.backend
    engine = ENGINES.get(start.engine)
    if engine is None:
        raise EngineNotStarted(
            (BackendUnknown(backend=backend, known=tuple(ENGINES)),), f"this agent knows no backend {backend}"
        )
    return with_key(start, engine(start))

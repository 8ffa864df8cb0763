"""How each engine is handed the key that it is to ask for: in its environment, or in a file; never on its command line.

Sources: vLLM's `VLLM_API_KEY` (environment variables; guards /v1, /v2, /inference and /cohere, neither /health nor /metrics);
llama.cpp's common/arg.cpp (`LLAMA_API_KEY`; guards all but /health, /models and /v1/models); SGLang's `--api-key`, which no
variable stands for but which its `--config` file may hold (guards all but /health…, /ready… and /metrics). MindIE knows no key.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from schemas.parameters import find
from services.agent.domain.engines.start import Start
from services.agent.domain.runtime import EngineCommand

VARIABLES: Final[Mapping[str, str]] = {"vLLM": "VLLM_API_KEY", "llama.cpp": "LLAMA_API_KEY"}
WHOLE_SERVE: Final = (0, 5, 7)
"""From this version on SGLang has `sglang serve`, and `--config` too."""
_PLACEHOLDER: Final = re.compile(r"\{\{\s*engine_key\s*\}\}")
"""In a value of a model's environment: where an engine that nothing else is known of gets its key."""


def with_key(start: Start, command: EngineCommand) -> EngineCommand:
    """The same engine, told the attempt's key, if there is one and it can ask for one."""
    key = start.engine_key
    env = {name: _PLACEHOLDER.sub(key or "", value) for name, value in command.env.items()}
    if key is None:
        return replace(command, env=env)
    if (variable := VARIABLES.get(start.engine)) is not None:
        return replace(command, env=env | {variable: key})
    if not _reads_a_file(start):
        return replace(command, env=env)
    path = f"{start.directory}/key.yaml"
    files = {**command.files, path: f"api-key: {key}\n"}
    return replace(command, argv=(*command.argv, "--config", path), env=env, files=files)


def asks_for(command: EngineCommand, key: str) -> bool:
    """Was it told?"""
    return any(key in text for text in (*command.env.values(), *command.files.values()))


def _reads_a_file(start: Start) -> bool:
    """One file is all that SGLang reads: one that the user names takes its place. The server of diffusion models has no key."""
    launch = start.launch
    return (
        start.engine == "SGLang"
        and start.directory is not None
        and start.is_leader
        and (start.version is None or start.is_at_least(*WHOLE_SERVE))
        and "image" not in launch.categories
        and find(launch.parameters, ("--config",)) is None
    )

"""llama.cpp's HTTP server, as `llama-server` or from the `xllamacpp` wheel. Source of the flags: its common/arg.cpp."""

from typing import Final

from schemas.parameters import find
from services.agent.domain.engines.flags import arguments, flag
from services.agent.domain.engines.placeholders import substituted
from services.agent.domain.engines.start import Start, default_program
from services.agent.domain.runtime import EngineCommand

PROGRAM: Final = ("llama-server",)


def _program(start: Start) -> tuple[str, ...]:
    if start.launch.run_command is not None:
        return (*start.launch.entrypoint, *substituted(start.launch.run_command, start))
    return default_program(start, PROGRAM)


def llama_cpp(start: Start) -> EngineCommand:
    """Of a model in shards llama.cpp is given the first and finds the others beside it.

    Without any known file it is given the path that the user gave.

    What the user gave comes last and wins; a flag of theirs is not given a second time by us.
    """
    parameters = start.launch.parameters
    program = _program(start)
    ours = (
        flag(("--model", "-m"), start.model_path),
        *((flag(("--mmproj", "-mm"), start.projector),) if start.projector is not None else ()),
        flag(("--alias", "-a"), start.launch.model_name),
        flag("--host", start.host),
        flag("--port", start.port),
        flag("--metrics"),
    )
    return EngineCommand(
        argv=(*program, *arguments(ours, parameters)),
        env=start.launch.env,
        program=program[-1],
        health_path=f"{find(parameters, ('--api-prefix',)) or ''}/health",
        port=start.listens_on(),
    )

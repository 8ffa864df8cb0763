"""llama.cpp's HTTP server, as `llama-server` or from the `xllamacpp` wheel. Source of the flags: its common/arg.cpp."""

from schemas.assignment import AssignedInstance
from schemas.parameters import find, split
from services.agent.domain.runtime import EngineCommand


def llama_cpp(
    assigned: AssignedInstance, weights_paths: tuple[str, ...], port: int, host: str, program: tuple[str, ...]
) -> EngineCommand:
    """`weights_paths`: one file or all shards; llama.cpp is given the first and finds the others beside it.

    Without any it is given the path that the user gave.

    What the user gave comes last and wins; a flag of theirs is not given a second time by us.
    """
    parameters = assigned.launch.parameters
    ours = (
        (("--model", "-m"), min(weights_paths, default=assigned.launch.source.path)),
        (("--alias", "-a"), assigned.launch.model_name),
        (("--host",), host),
        (("--port",), str(port)),
        (("--metrics",), None),
    )
    argv = list(program)
    for names, value in ours:
        if find(parameters, names) is None:
            argv += names[:1] if value is None else (names[0], value)
    their_port = find(parameters, ("--port",)) or ""
    return EngineCommand(
        argv=(*argv, *split(parameters)),
        env=assigned.launch.env,
        program=program[-1],
        health_path=f"{find(parameters, ('--api-prefix',)) or ''}/health",
        port=int(their_port) if their_port.isdecimal() else port,
    )

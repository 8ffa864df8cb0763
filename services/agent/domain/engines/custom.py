"""The author's own image or program. All that is known of it is what the model says."""

from typing import Final

from schemas.parameters import formatted
from services.agent.domain.engines.placeholders import substituted
from services.agent.domain.engines.start import Start
from services.agent.domain.runtime import EngineCommand

HEALTH_PATH: Final = "GPUSTACK_MODEL_HEALTH_CHECK_PATH"
"""In a model's environment: where it answers 200 when it is ready. The peer's users know it."""


def custom(start: Start) -> EngineCommand:
    """The entrypoint, the run command, the parameters: one after the other.

    Without an entrypoint the words are arguments of the image's own. Without a path that tells its health it is taken to
    be well as long as it runs.
    """
    launch = start.launch
    command = substituted(launch.run_command, start) if launch.run_command is not None else ()
    parameters = formatted(launch.parameters, launch.parameter_format)
    argv = (*(launch.entrypoint or start.program), *command, *parameters)
    env = {"PORT": str(start.port), "MODEL_PATH": start.model_path} | launch.env
    return EngineCommand(
        argv=argv,
        env=env,
        program=argv[0] if argv else launch.image or "the image's own program",
        health_path=launch.env.get(HEALTH_PATH) or launch.health_path,
        port=start.port,
    )

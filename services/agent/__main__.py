import os
import sys

from kernel.process import main, run_until_stopped
from services.agent.process import AgentProcess
from services.agent.settings import AgentSettings


async def start() -> None:
    settings = AgentSettings.from_environment()
    await run_until_stopped(AgentProcess(settings), settings)


if __name__ == "__main__":
    if sys.argv[1:2] == ["doctor"]:
        from services.agent import doctor

        code = doctor.main(sys.argv[2:])
        sys.stdout.flush()
        os._exit(code)  # a look that hangs in a driver is not waited for
    main("agent", AgentSettings.from_environment, start)

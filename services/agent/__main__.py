from kernel.process import main, run_until_stopped
from services.agent.process import AgentProcess
from services.agent.settings import AgentSettings


async def start() -> None:
    settings = AgentSettings.from_environment()
    await run_until_stopped(AgentProcess(settings), settings)


if __name__ == "__main__":
    main("agent", AgentSettings.from_environment, start)

from kernel.process import main, run_until_stopped
from services.simulator.process import SimulatorProcess
from services.simulator.settings import SimulatorSettings


async def start() -> None:
    settings = SimulatorSettings.from_environment()
    await run_until_stopped(SimulatorProcess(settings), settings)


if __name__ == "__main__":
    main("simulator", SimulatorSettings.from_environment, start)

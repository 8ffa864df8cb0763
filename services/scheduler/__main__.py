from kernel.process import main, run_until_stopped
from services.scheduler.process import SchedulerProcess
from services.scheduler.settings import SchedulerSettings


async def start() -> None:
    settings = SchedulerSettings.from_environment()
    await run_until_stopped(SchedulerProcess(settings), settings)


if __name__ == "__main__":
    main("scheduler", SchedulerSettings.from_environment, start)

from kernel.process import main, run_until_stopped
from services.api.process import ApiProcess
from services.api.settings import ApiSettings


async def start() -> None:
    settings = ApiSettings.from_environment()
    await run_until_stopped(ApiProcess(settings), settings)


if __name__ == "__main__":
    main("api", ApiSettings.from_environment, start)

from kernel.process import main, run_until_stopped
from services.downloader.process import DownloaderProcess
from services.downloader.settings import DownloaderSettings


async def start() -> None:
    settings = DownloaderSettings.from_environment()
    await run_until_stopped(DownloaderProcess(settings), settings)


if __name__ == "__main__":
    main("downloader", DownloaderSettings.from_environment, start)

"""Without a downloader no file can be checked or fetched."""

from schemas.reasons import DownloaderSilent
from services.scheduler.domain.candidate import Candidate


def downloader_silent(candidate: Candidate) -> DownloaderSilent | None:
    return None if candidate.machine.downloader_alive else DownloaderSilent(worker_id=candidate.machine.id)

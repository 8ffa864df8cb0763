"""Without a downloader no file can be checked or fetched."""

from schemas.models import ModelSpec
from schemas.reasons import DownloaderSilent
from services.scheduler.domain.snapshot import Candidate


def downloader_silent(candidate: Candidate, _spec: ModelSpec) -> DownloaderSilent | None:
    return None if candidate.downloader_alive else DownloaderSilent()

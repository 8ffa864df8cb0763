"""The backend must be built for the worker's operating system and processor."""

from schemas.reasons import PlatformNotSupported
from services.scheduler.domain.candidate import Candidate


def platform_not_supported(candidate: Candidate) -> PlatformNotSupported | None:
    info, machine = candidate.request.info, candidate.machine
    if info is None or not info.platforms or machine.platform in info.platforms:
        return None
    return PlatformNotSupported(
        worker_id=machine.id,
        backend=candidate.request.wish.backend,
        platform=machine.platform,
        supported=info.platforms,
    )

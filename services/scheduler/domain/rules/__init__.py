"""Reasons to refuse a worker: one file each, named like its code. All are asked, about every worker."""

from collections.abc import Callable
from typing import Final

from schemas.models import ModelSpec
from schemas.reasons import ReasonBase
from services.scheduler.domain.rules.backend_not_available import backend_not_available
from services.scheduler.domain.rules.downloader_silent import downloader_silent
from services.scheduler.domain.rules.files_unusable import files_unusable
from services.scheduler.domain.rules.gpu_not_selected import gpu_not_selected
from services.scheduler.domain.rules.labels_do_not_match import labels_do_not_match
from services.scheduler.domain.rules.no_gpu import no_gpu
from services.scheduler.domain.rules.not_enough_ram import not_enough_ram
from services.scheduler.domain.rules.not_enough_vram import not_enough_vram
from services.scheduler.domain.rules.unsupported_model import unsupported_model
from services.scheduler.domain.rules.worker_cordoned import worker_cordoned
from services.scheduler.domain.rules.worker_not_ready import worker_not_ready
from services.scheduler.domain.snapshot import Candidate

Rule = Callable[[Candidate, ModelSpec], ReasonBase | None]

RULES: Final[tuple[Rule, ...]] = (
    worker_not_ready,
    worker_cordoned,
    downloader_silent,
    labels_do_not_match,
    backend_not_available,
    files_unusable,
    unsupported_model,
    gpu_not_selected,
    no_gpu,
    not_enough_ram,
    not_enough_vram,
)

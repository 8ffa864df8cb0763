"""Reasons to refuse a worker: one file each, named like its code. All are asked, about every worker."""

from collections.abc import Callable
from typing import Final

from schemas.reasons import ReasonBase
from services.scheduler.domain.candidate import Candidate
from services.scheduler.domain.rules.accelerator_not_supported import accelerator_not_supported
from services.scheduler.domain.rules.backend_not_available import backend_not_available
from services.scheduler.domain.rules.compute_capability_too_low import compute_capability_too_low
from services.scheduler.domain.rules.context_does_not_fit import context_does_not_fit
from services.scheduler.domain.rules.downloader_silent import downloader_silent
from services.scheduler.domain.rules.driver_too_old import driver_too_old
from services.scheduler.domain.rules.files_unusable import files_unusable
from services.scheduler.domain.rules.gpu_memory_in_use_by_others import gpu_memory_in_use_by_others
from services.scheduler.domain.rules.gpu_not_selected import gpu_not_selected
from services.scheduler.domain.rules.gpu_share_not_free import gpu_share_not_free
from services.scheduler.domain.rules.gpu_share_too_small import gpu_share_too_small
from services.scheduler.domain.rules.gpu_unhealthy import gpu_unhealthy
from services.scheduler.domain.rules.image_missing import image_missing
from services.scheduler.domain.rules.inventory_incomplete import inventory_incomplete
from services.scheduler.domain.rules.labels_do_not_match import labels_do_not_match
from services.scheduler.domain.rules.no_gpu import no_gpu
from services.scheduler.domain.rules.not_enough_disk import not_enough_disk
from services.scheduler.domain.rules.not_enough_gpus import not_enough_gpus
from services.scheduler.domain.rules.not_enough_ram import not_enough_ram
from services.scheduler.domain.rules.not_enough_vram import not_enough_vram
from services.scheduler.domain.rules.platform_not_supported import platform_not_supported
from services.scheduler.domain.rules.quarantined import quarantined
from services.scheduler.domain.rules.unsupported_model import unsupported_model
from services.scheduler.domain.rules.worker_cordoned import worker_cordoned
from services.scheduler.domain.rules.worker_draining import worker_draining
from services.scheduler.domain.rules.worker_not_ready import worker_not_ready

Rule = Callable[[Candidate], ReasonBase | None]

OF_ITS_LIKE: Final[tuple[Rule, ...]] = (
    worker_not_ready,
    worker_cordoned,
    worker_draining,
    inventory_incomplete,
    downloader_silent,
    backend_not_available,
    platform_not_supported,
    no_gpu,
    accelerator_not_supported,
    image_missing,
    driver_too_old,
    compute_capability_too_low,
)
"""What is the same for all workers of one `Machine.likeness`, when no GPUs are selected."""
OF_ITS_OWN: Final[tuple[Rule, ...]] = (
    labels_do_not_match,
    gpu_not_selected,
    quarantined,
    files_unusable,
    unsupported_model,
    not_enough_disk,
)
"""What is each worker's own."""
STANDING: Final = OF_ITS_LIKE + OF_ITS_OWN
"""What does not depend on the memory that is promised now."""
CAPACITY: Final[tuple[Rule, ...]] = (
    not_enough_gpus,
    gpu_unhealthy,
    context_does_not_fit,
    gpu_share_too_small,
    gpu_share_not_free,
    not_enough_vram,
    gpu_memory_in_use_by_others,
    not_enough_ram,
)
"""What does."""
RULES: Final = STANDING + CAPACITY
CAPACITY_CODES: Final = frozenset(rule.__name__ for rule in CAPACITY)

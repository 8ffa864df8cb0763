"""A worker as placement sees it, and what an instance would take there."""

from dataclasses import dataclass

from schemas.models import Gpu, ModelSpec
from services.scheduler.domain.fleet import Inspection, Operator, Worker


@dataclass(frozen=True, slots=True)
class Need:
    """What one instance takes on one worker."""

    spec: ModelSpec
    ram_bytes: int = 0
    vram_bytes: int = 0
    """On one GPU; 0 when it runs on the CPU."""
    context: int | None = None


@dataclass(frozen=True, slots=True)
class Candidate:
    """A worker as placement sees it: what is promised is no longer free, and neither is what strangers hold."""

    worker: Worker
    operator: Operator
    inspection: Inspection | None
    need: Need | None
    """None while the model's files on this worker are not known."""
    downloader_alive: bool
    free_ram: int
    free_vram: dict[int, int]
    instances: int

    @property
    def gpus(self) -> tuple[Gpu, ...]:
        """The GPUs that the request may use."""
        selector = self.need.spec.gpu_selector if self.need else None
        gpus = self.worker.inventory.gpus
        if selector is None or not selector.gpu_ids:
            return gpus
        return tuple(gpu for gpu in gpus if f"{self.worker.name}:{gpu.type}:{gpu.index}" in selector.gpu_ids)

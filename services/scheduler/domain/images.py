"""Which of a backend's images workers would be given: by the rules and the choice of a placement, without a model."""

from collections.abc import Iterator, Mapping
from typing import Final

from schemas.backends import CPU, InferenceBackend
from schemas.images import ImagesAnswer, ImagesQuestion, WorkerImages
from schemas.models import ModelSpec
from schemas.reasons import ImageMissing, Reason, ReasonBase, RunsNoContainers, WorkerNotReady
from schemas.sources import LocalPath
from services.scheduler.domain.candidate import Candidate, Request
from services.scheduler.domain.launching import image_of
from services.scheduler.domain.machines import Machines
from services.scheduler.domain.rules import Rule
from services.scheduler.domain.rules.accelerator_not_supported import accelerator_not_supported
from services.scheduler.domain.rules.compute_capability_too_low import compute_capability_too_low
from services.scheduler.domain.rules.driver_too_old import driver_too_old
from services.scheduler.domain.rules.image_missing import image_missing
from services.scheduler.domain.rules.no_gpu import no_gpu
from services.scheduler.domain.rules.platform_not_supported import platform_not_supported
from services.scheduler.domain.rules.worker_not_ready import worker_not_ready
from services.scheduler.domain.snapshot import Machine


def runs_no_containers(candidate: Candidate) -> RunsNoContainers | None:
    machine = candidate.machine
    return RunsNoContainers(worker_id=machine.id) if machine.inventory.runtime == "process" else None


NOT_FOR_IT: Final[tuple[Rule, ...]] = (runs_no_containers, platform_not_supported, no_gpu, accelerator_not_supported)
"""What no worker of its kind could ever run."""
RULES: Final[tuple[Rule, ...]] = (
    *NOT_FOR_IT,
    image_missing,
    driver_too_old,
    compute_capability_too_low,
    worker_not_ready,
)
"""A worker that is cordoned, or full, may be given an image: it is there when the worker is wanted again."""


def images_on(
    question: ImagesQuestion, machines: Machines, backends: Mapping[str, InferenceBackend]
) -> ImagesAnswer | None:
    """None: there is no such backend."""
    backend = backends.get(question.backend)
    if backend is None:
        return None
    spec = ModelSpec(
        name="images",
        source=LocalPath(path="/"),
        backend=question.backend,
        backend_version=question.version,
        cpu_offloading=question.on_processors,
    )
    request = Request(spec, backends=backends)
    found: list[WorkerImages] = []
    for worker_id in question.worker_ids:
        machine = machines.get(worker_id)
        if machine is None:
            reason = WorkerNotReady(worker_id=worker_id, state="gone")
            found.append(WorkerImages(worker_id=worker_id, reasons=(reason,)))
        else:
            found.append(_on(Candidate(request, machine), backend, machine))
    return ImagesAnswer(workers=tuple(found))


def _on(candidate: Candidate, backend: InferenceBackend, machine: Machine) -> WorkerImages:
    is_for_it = all(rule(candidate) is None for rule in NOT_FOR_IT)
    reasons: tuple[ReasonBase, ...] = tuple(_objections(candidate))
    images = () if reasons else tuple(dict.fromkeys(_images(candidate, backend, machine)))
    if not reasons and not images:  # a backend without any image leaves it to each model
        spec = candidate.request.spec
        missing = ImageMissing(
            worker_id=machine.id,
            backend=backend.backend_name,
            version=spec.backend_version,
            accelerators=_kinds(candidate),
            platform=machine.platform,
        )
        reasons = (missing,)
    told: tuple[Reason, ...] = reasons  # pyright: ignore[reportAssignmentType] - what rules return are of the closed set
    return WorkerImages(worker_id=machine.id, images=images, reasons=told, supported=is_for_it)


def _objections(candidate: Candidate) -> Iterator[ReasonBase]:
    for rule in RULES:
        if (reason := rule(candidate)) is not None:
            yield reason


def _images(candidate: Candidate, backend: InferenceBackend, machine: Machine) -> Iterator[str]:
    for kind in _kinds(candidate):
        chosen = image_of(backend, candidate.request.spec.backend_version, kind, machine, (machine,))
        if chosen is not None:
            yield chosen.image


def _kinds(candidate: Candidate) -> tuple[str, ...]:
    """Of GPUs that an instance could be placed on; `cpu` where there are none."""
    return tuple(pool.type for pool in candidate.gpus.young if pool.gpus) or (CPU,)

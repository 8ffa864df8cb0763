"""Where an instance goes: a pure function of a snapshot, as rich in its refusal as in its choice.

Every rule is asked about every worker. One file a rule in `rules/`, named like its reason's code; preferences order the
workers that no rule objects to; names break ties, so replays agree.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from schemas.ids import WorkerId
from schemas.models import Claim, Gpu, Member, ModelSpec, ModelWeights
from schemas.parameters import find
from schemas.reasons import NoWorkers, Reason, Suggestion
from services.scheduler.domain.fleet import Fleet, Inspection, Worker
from services.scheduler.domain.memory import gguf, safetensors
from services.scheduler.domain.preferences.binpack import tightest_first
from services.scheduler.domain.preferences.spread import most_free_first
from services.scheduler.domain.rules import RULES
from services.scheduler.domain.snapshot import Candidate, Need


@dataclass(frozen=True, slots=True)
class Placed:
    member: Member
    context: int | None


@dataclass(frozen=True, slots=True)
class Refusal:
    reasons: tuple[Reason, ...]
    closest: WorkerId | None
    suggestions: tuple[Suggestion, ...]


@dataclass(frozen=True, slots=True)
class Request:
    spec: ModelSpec
    inspections: dict[WorkerId, Inspection]
    not_on: frozenset[WorkerId] = frozenset()
    """Workers that just failed to take it, and the one that it is moved away from."""


def candidates(request: Request, fleet: Fleet, silent_downloaders: frozenset[WorkerId]) -> list[Candidate]:
    found: list[Candidate] = []
    for worker in sorted(fleet.workers.values(), key=lambda w: (w.name, w.id)):
        if worker.id in request.not_on:
            continue
        ram = worker.inventory.memory_total - worker.inventory.memory_reserved
        vram = {gpu.index: gpu.memory_total - gpu.memory_used_by_others for gpu in worker.inventory.gpus}
        instances = 0
        for open_claim in fleet.claims_on(worker.id):
            instances += 1
            ram -= open_claim.claim.ram
            for index, size in open_claim.claim.vram.items():
                vram[index] = vram.get(index, 0) - size
        inspection = request.inspections.get(worker.id)
        if inspection is not None and inspection.source != request.spec.source:
            inspection = None
        weights = inspection.weights if inspection else None
        found.append(
            Candidate(
                worker=worker,
                operator=fleet.operator_of(worker.id),
                inspection=inspection,
                need=need_of(request.spec, weights, worker) if weights else None,
                downloader_alive=worker.id not in silent_downloaders,
                free_ram=max(ram, 0),
                free_vram={index: max(size, 0) for index, size in vram.items()},
                instances=instances,
            )
        )
    return found


def need_of(spec: ModelSpec, weights: ModelWeights, worker: Worker) -> Need:
    """What the model takes on this worker: VRAM of one GPU where there are GPUs, else RAM."""
    if weights.format == "safetensors":
        return Need(spec, vram_bytes=safetensors.needed_bytes(weights))
    context = gguf.context_of(spec, weights)
    size = gguf.needed_bytes(weights, context)
    layers = find(spec.backend_parameters, gguf.GPU_LAYER_FLAGS)
    wants_gpu = (
        layers not in (None, "0") or (layers is None and bool(worker.inventory.gpus)) or spec.gpu_selector is not None
    )
    if wants_gpu:
        return Need(spec, ram_bytes=gguf.OVERHEAD_BYTES, vram_bytes=size, context=context)
    return Need(spec, ram_bytes=size, context=context)


def place(request: Request, fleet: Fleet, silent_downloaders: frozenset[WorkerId] = frozenset()) -> Placed | Refusal:
    everyone = candidates(request, fleet, silent_downloaders)
    if not everyone and not request.not_on:
        return Refusal((NoWorkers(),), None, ())
    objections = {c.worker.id: objections_to(c, request.spec) for c in everyone}
    fitting = [c for c in everyone if not objections[c.worker.id]]
    if fitting:
        order = tightest_first if request.spec.placement_strategy == "binpack" else most_free_first
        return _placed(min(fitting, key=order))
    reasons = tuple(reason for c in everyone for reason in objections[c.worker.id])
    closest = min(everyone, key=lambda c: _distance(c, objections[c.worker.id]), default=None)
    return Refusal(
        reasons, closest.worker.id if closest else None, _suggestions(request, fleet, silent_downloaders, closest)
    )


def objections_to(candidate: Candidate, spec: ModelSpec) -> tuple[Reason, ...]:
    """What every rule says of this worker; nothing stops early."""
    found = (rule(candidate, spec) for rule in RULES)
    return tuple(reason.model_copy(update={"worker_id": candidate.worker.id}) for reason in found if reason is not None)  # pyright: ignore[reportReturnType] - each ReasonBase that a rule returns is a member of the union


def best_gpu(candidate: Candidate) -> Gpu | None:
    """The roomiest of the GPUs that may be used, for spread; the tightest that fits, for binpack."""
    need = candidate.need
    fitting = [gpu for gpu in candidate.gpus if need is not None and candidate.free_vram[gpu.index] >= need.vram_bytes]
    if not fitting or need is None:
        return None
    sign = 1 if need.spec.placement_strategy == "binpack" else -1
    return min(fitting, key=lambda gpu: (sign * candidate.free_vram[gpu.index], gpu.index))


def _placed(candidate: Candidate) -> Placed:
    need = candidate.need
    if need is None:
        raise AssertionError("a worker without a known need has an objection")
    gpu = best_gpu(candidate) if need.vram_bytes else None
    return Placed(
        Member(
            worker_id=candidate.worker.id,
            address=candidate.worker.address,
            accelerator=gpu.type if gpu else None,
            gpu_indexes=(gpu.index,) if gpu else (),
            claim=Claim(ram=need.ram_bytes, vram={gpu.index: need.vram_bytes} if gpu else {}),
        ),
        need.context,
    )


def _distance(candidate: Candidate, objections: tuple[Reason, ...]) -> tuple[int, int, str]:
    """The fewest objections, then the least memory missing, then the name."""
    missing = 0
    if candidate.need is not None:
        missing = max(candidate.need.ram_bytes - candidate.free_ram, 0)
        if candidate.need.vram_bytes:
            missing += max(candidate.need.vram_bytes - max(candidate.free_vram.values(), default=0), 0)
    return (len(objections), missing, candidate.worker.name)


def _suggestions(
    request: Request, fleet: Fleet, silent_downloaders: frozenset[WorkerId], closest: Candidate | None
) -> tuple[Suggestion, ...]:
    """Changes that were tried, and fit."""
    found: list[Suggestion] = []
    if closest is not None and closest.need is not None and closest.need.context is not None:
        context = closest.need.context // 2
        while context >= SMALLEST_CONTEXT:
            parameters = (*_without_context(request.spec.backend_parameters), f"--ctx-size={context}")
            if _fits(request, fleet, silent_downloaders, parameters):
                found.append(
                    Suggestion(
                        change={"backend_parameters": list(parameters)},
                        text=f"with --ctx-size={context} it fits",
                    )
                )
                break
            context //= 2
    return tuple(found)


SMALLEST_CONTEXT: Final = 256


def _without_context(parameters: tuple[str, ...]) -> Iterable[str]:
    skip = False
    for parameter in parameters:
        name = parameter.partition("=")[0].replace("_", "-")
        if skip:
            skip = False
        elif name in gguf.CONTEXT_FLAGS:
            skip = "=" not in parameter
        else:
            yield parameter


def _fits(request: Request, fleet: Fleet, silent: frozenset[WorkerId], parameters: tuple[str, ...]) -> bool:
    spec = request.spec.model_copy(update={"backend_parameters": parameters})
    changed = Request(spec, request.inspections, request.not_on)
    return any(not objections_to(candidate, spec) for candidate in candidates(changed, fleet, silent))

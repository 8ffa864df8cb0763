"""What-if: the same placement over the fleet as it is, or over one that is described. Changes nothing."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from schemas.backends import InferenceBackend, built_in
from schemas.ids import ModelId, WorkerId
from schemas.models import Claim, Gpu, Inventory, ModelSpec, ModelWeights, Parallelism, Pinned
from schemas.placements import (
    AnswerMeasured,
    AnswerNeeds,
    AskedFacts,
    AskedModel,
    AskedWorker,
    ModelPlacement,
    PlacementAnswer,
    PlacementQuestion,
)
from schemas.reasons import Reason, WeightsUnknown
from schemas.source_fields import ALL as SOURCE_FIELDS
from schemas.sources import LocalPath, Source
from schemas.value import MOST_BYTES
from services.scheduler.domain import explanation
from services.scheduler.domain.candidate import Candidate, Request
from services.scheduler.domain.fleet import Fleet, Model
from services.scheduler.domain.index import GpuIndex
from services.scheduler.domain.instance import Assigned, Pending
from services.scheduler.domain.machines import Machines
from services.scheduler.domain.peaks import Where, of_revision, where_of
from services.scheduler.domain.placement import RUNNERS_UP, Objections, Placed, Refused, place
from services.scheduler.domain.placing import Placing
from services.scheduler.domain.rollout import revision_of
from services.scheduler.domain.snapshot import Machine, copy_of, machine_of
from services.scheduler.domain.suggestions import ClaimsOn, OpenClaimOf, nothing_on, suggestions_for

PLANNED = ModelId("m-planned")


def plan_offline(question: PlacementQuestion) -> PlacementAnswer:
    """Over the fleet that the question describes; an empty one if it describes none."""
    workers = question.fleet or ()
    machines = [described(worker) for worker in workers]
    return plan(question, machines, weights_of(question), claims=_claims_of(workers))


def plan(
    question: PlacementQuestion,
    machines: Sequence[Machine],
    weights: ModelWeights | None,
    *,
    unusable: Sequence[Reason] = (),
    claims: ClaimsOn = nothing_on,
    backends: Mapping[str, InferenceBackend] | None = None,
) -> PlacementAnswer:
    """`unusable`: why nobody could say what the files weigh. `backends`: None: the built-in ones."""
    spec = spec_of(question.model)
    known_backends = built_in() if backends is None else backends
    request = Request(spec, model_id=PLANNED, known=weights, must_look=False, backends=known_backends)
    names = {machine.id: machine.name for machine in machines}
    placements: list[Placed] = []
    refused: Refused | None = None
    fleet = _Sandbox(machines, is_one=spec.replicas == 1)
    for _ in range(spec.replicas if weights is not None else 1):
        answer = fleet.place(request)
        if isinstance(answer, Refused) or weights is None:
            refused = answer if isinstance(answer, Refused) else Refused((), ())
            break
        placements.append(answer)
    needs = needs_of(request, machines)
    if refused is None:
        told = tuple(explanation.placement(request, placed, names) for placed in placements)
        return PlacementAnswer(placed=True, placements=told, needs=needs, summary=explanation.placed_in_words(told))
    if weights is None:
        source = question.model.to_source()
        why = tuple(unusable) or (WeightsUnknown(path="" if source is None else source.label),)
        refused = replace(
            refused,
            request=(*refused.request, *why),
            workers=tuple(replace(each, reasons=_unasked(each, why[0])) for each in refused.workers),
        )
    found = suggestions_for(request, fleet.machines, refused, claims) if weights is not None else ()
    return PlacementAnswer(
        placed=False,
        needs=needs,
        objections=explanation.objections(refused, names),
        closest=None if refused.closest is None else names[refused.closest],
        suggestions=explanation.suggestions(found),
        summary=explanation.refused_in_words(refused, found, fitting=len(placements), wanted=spec.replicas),
        refused_replica=len(placements) + 1 if spec.replicas > 1 else None,
    )


def _unasked(worker: Objections, why: Reason) -> tuple[Reason, ...]:
    """Nobody looks at files for a question: what is waited for elsewhere is what nobody could say here."""
    unknown = why.model_copy(update={"worker_id": worker.worker_id})
    return tuple(unknown if reason.code == "being_inspected" else reason for reason in worker.reasons)


def needs_of(request: Request, machines: Sequence[Machine]) -> AnswerNeeds:
    """Of one instance; the share of a GPU like those of the first worker that has one it could run on."""
    usual = request.usual
    if usual is None:
        return AnswerNeeds(vram=0, ram=0, weight_bytes=0, per_gpu_share=None)
    profiles = [gpu.profile for machine in machines for pool in Candidate(request, machine).pools for gpu in pool.gpus]
    on_cpu = not profiles and usual.may_be_on_cpu
    wanted = request.wanted
    sizes = Parallelism(tensor=wanted.tensor or 1, pipeline=wanted.pipeline or 1, data=wanted.data or 1)
    return AnswerNeeds(
        vram=0 if on_cpu else min(usual.needed_bytes * sizes.data, MOST_BYTES),
        ram=usual.on_cpu.ram_bytes if on_cpu else usual.ram_bytes,
        weight_bytes=usual.weights.weight_bytes,
        per_gpu_share=usual.share_on(profiles[0], sizes) if profiles else wanted.share,
    )


class _Sandbox:
    """The machines, and what was placed on them while one question was answered."""

    def __init__(self, machines: Sequence[Machine], *, is_one: bool) -> None:
        self.machines: Sequence[Machine] = machines
        self._book: Machines | None = None
        if not is_one:
            self._book = Machines()
            for machine in machines:
                self._book.put(copy_of(machine))
            self._index = GpuIndex(self._book)
            self.machines = self._book.in_order()

    def place(self, request: Request) -> Placed | Refused:
        if self._book is None:
            return place(request, self.machines)
        answer = self._index.place(request, runners_up=RUNNERS_UP) or place(request, self.machines)
        if isinstance(answer, Placed):
            for each in answer.places:
                self._book.promise(each.worker_id, PLANNED, each.type, each.claim)
        return answer


# -- what was asked, in the words of placement ------------------------------------------------------------------------


def spec_of(model: AskedModel) -> ModelSpec:
    fields = model.model_dump(exclude=set(SOURCE_FIELDS))
    return ModelSpec.model_validate(fields | {"source": model.to_source() or LocalPath(path="/")})


def weights_of(question: PlacementQuestion) -> ModelWeights | None:
    """None when the question does not tell them."""
    facts = question.facts
    if facts is None or facts.weight_bytes is None:
        return None
    return weights_from(facts, question.model.backend)


def weights_from(facts: AskedFacts, backend: str) -> ModelWeights:
    told = facts.model_dump(exclude_none=True) | {
        "format": facts.format or ("gguf" if backend == "llama.cpp" else "safetensors")
    }
    return ModelWeights.model_validate(told)


def described(worker: AskedWorker) -> Machine:
    inventory = Inventory(
        os=worker.os,
        arch=worker.arch,
        cpu_count=worker.cpu_count,
        memory_total=worker.memory_total,
        memory_reserved=worker.system_reserved.ram,
        vram_reserved=worker.system_reserved.vram,
        disk_free=worker.disk_free,
        gpus=tuple(Gpu.model_validate(gpu.model_dump()) for gpu in worker.gpus),
        backends=worker.backends,
        runtime=worker.runtime,
    )
    return machine_of(
        WorkerId(_token(worker.name)),
        worker.name,
        "",
        worker.state,
        inventory,
        labels=worker.labels,
        cordoned=worker.cordoned,
        draining=worker.draining,
        claims=[(None, _kind(worker, claim.type), Claim(ram=claim.ram, vram=claim.vram)) for claim in worker.claims],
    )


def _kind(worker: AskedWorker, told: str | None) -> str | None:
    kinds = {gpu.type for gpu in worker.gpus}
    return told if told is not None or len(kinds) != 1 else next(iter(kinds))


def _claims_of(workers: Sequence[AskedWorker]) -> ClaimsOn:
    held = {
        WorkerId(_token(worker.name)): [
            OpenClaimOf(
                None,
                claim.model or f"claim {number}",
                WorkerId(_token(worker.name)),
                _kind(worker, claim.type),
                Claim(ram=claim.ram, vram=claim.vram),
            )
            for number, claim in enumerate(worker.claims)
        ]
        for worker in workers
    }
    return lambda worker_id: held.get(worker_id, ())


def _token(name: str) -> str:
    """A worker's id from its name, which may hold dots."""
    return "w-" + name.replace(".", "~")


# -- the fleet as it is -----------------------------------------------------------------------------------------------


def known_weights(fleet: Fleet, source: Source) -> ModelWeights | None:
    """What some model from the same files was found to weigh: of a hub's, also of those that the revision was pinned to."""
    for model_id, model in fleet.models.items():
        wish = fleet.wishes.get(model_id)
        if wish is None:
            continue
        for _, inspection in sorted(model.inspections.items()):
            weights = inspection.weights
            if weights is None or inspection.question.source != wish.spec.source:
                continue
            own = next((each for each in weights.pinned if each.source == wish.spec.source), None)
            if wish.spec.source == source or (own is not None and _is_pinned(source, own)):
                return weights
    return None


def _is_pinned(source: Source, own: Pinned) -> bool:
    """Is this the commit that a hub's branch was pinned to?"""
    if isinstance(source, LocalPath) or isinstance(own.source, LocalPath):
        return False
    return source == own.source.model_copy(update={"revision": own.commit})


def explain(placing: Placing, fleet: Fleet, model_id: ModelId) -> ModelPlacement:
    """Why one more instance of the model finds no place, with every worker's objections; what it needs."""
    wish = fleet.wishes.get(model_id)
    if wish is None or wish.deleted:
        return ModelPlacement(known=False, as_of=fleet.seq)
    request = placing.request_for(model_id)
    machines = fleet.machines.in_order()
    needs = needs_of(request, machines) if request.known is not None else None
    refusal: PlacementAnswer | None = None
    if any(isinstance(instance.state, Pending) for instance in fleet.instances_of(model_id)):
        answer = place(request, machines)
        if isinstance(answer, Refused):
            names = {machine.id: machine.name for machine in machines}
            found = suggestions_for(request, machines, answer, placing.claims_on)
            refusal = PlacementAnswer(
                placed=False,
                needs=needs or needs_of(request, machines),
                objections=explanation.objections(answer, names),
                closest=None if answer.closest is None else names[answer.closest],
                suggestions=explanation.suggestions(found),
                summary=explanation.refused_in_words(answer, found),
            )
    return ModelPlacement(
        known=True, as_of=fleet.seq, needs=needs, refusal=refusal, measured=_measured(placing, fleet, model_id)
    )


def _measured(placing: Placing, fleet: Fleet, model_id: ModelId) -> tuple[AnswerMeasured, ...]:
    """What the model's placed instances claim beside what their like was measured to hold, on each kind of GPUs."""
    alike: Counter[tuple[int | None, Where, int, int, float | None]] = Counter()
    for instance in fleet.instances_of(model_id):
        if not isinstance(instance.state, Assigned):
            continue
        placement = instance.state.placement
        machine = fleet.machines.get(placement.leader.worker_id)
        where = None if machine is None else where_of(placement, placement.leader, machine)
        if where is not None:
            vram = max((size for each in placement.members for size in each.claim.vram.values()), default=0)
            ram = max(each.claim.ram for each in placement.members)
            alike[placement.launch.revision, where, vram, ram, placement.launch.memory_fraction] += 1
    known = fleet.models.get(model_id, Model()).peaks
    request = placing.request_for(model_id)
    _, revision = revision_of(fleet, model_id)
    found: list[AnswerMeasured] = []
    for (of, where, vram, ram, share), count in sorted(alike.items(), key=lambda each: str(each[0])):
        peak = of_revision(known, of).get(where) if of is not None else None
        from_peak = of == revision and request.usual is not None and request.usual.may_claim_peak
        found.append(explanation.measured(where, (vram, ram), share, peak, instances=count, from_peak=from_peak))
    return tuple(found)


def shortened(answer: PlacementAnswer, most_bytes: int) -> PlacementAnswer:
    """The same with so many objections as one message holds, the closest first; the others are counted."""
    kept = list(answer.objections)
    size = len(answer.model_dump_json())
    while kept and size > most_bytes:
        keep = max(len(kept) * most_bytes * 9 // (size * 10), 0)
        kept = kept[:keep]
        rest = Counter(each.code for each in answer.objections[len(kept) :])
        short = answer.model_copy(update={"objections": tuple(kept), "unlisted": dict(sorted(rest.items()))})
        size = len(short.model_dump_json())
        if size <= most_bytes:
            return short
    return answer.model_copy(update={"objections": (), "suggestions": ()})

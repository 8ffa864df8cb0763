"""Where an instance goes: a pure function of a snapshot, as rich in its refusal as in its choice.

This is the specification: every rule about every worker, every preference about every place. One worker first, several
together when none can alone. The index (`index.py`) answers the common questions faster, and never otherwise.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, cast

from schemas.ids import WorkerId
from schemas.models import Claim, Parallelism
from schemas.reasons import (
    BeingInspected,
    GpuUnknown,
    HeadsNotDivisible,
    NetworkDown,
    NoWorkers,
    Reason,
    ReasonBase,
    TooFewGpusSelected,
    TooFewLayers,
    VocabularyNotDivisible,
    WorkersDoNotAddUp,
)
from services.scheduler.domain.candidate import Candidate, Request
from services.scheduler.domain.preferences import preferences_of
from services.scheduler.domain.rules import CAPACITY, CAPACITY_CODES, OF_ITS_LIKE, OF_ITS_OWN
from services.scheduler.domain.shapes import Group, Layout, choose, groups_of
from services.scheduler.domain.snapshot import GpuSlot, Machine, Profile, gpu_ids
from services.scheduler.domain.takes import ALONE, Take

MOST_WORKERS_OF_A_GANG: Final = 32
RUNNERS_UP: Final = 3
REST: Final = OF_ITS_OWN + CAPACITY
HARDWARE: Final = frozenset(
    {
        "no_gpu", "not_enough_gpus", "accelerator_not_supported", "platform_not_supported", "image_missing",
        "compute_capability_too_low",
    }
)  # fmt: skip
"""Objections that only another machine answers."""


@dataclass(frozen=True, slots=True)
class Place:
    """One worker's part of an instance."""

    worker_id: WorkerId
    address: str
    type: str | None
    gpu_indexes: tuple[int, ...]
    claim: Claim


@dataclass(frozen=True, slots=True)
class RunnerUp:
    """A place that would have done as well: its numbers, and the preference that decided against it."""

    worker_id: WorkerId
    gpu_indexes: tuple[int, ...]
    scores: dict[str, int]
    lost_by: str


@dataclass(frozen=True, slots=True)
class Why:
    scores: dict[str, int]
    """Preference → number; lower is liked better, and the first that differs decides."""
    fitting: int
    """Workers that could have taken it."""
    runners_up: tuple[RunnerUp, ...] = ()


@dataclass(frozen=True, slots=True)
class Placed:
    places: tuple[Place, ...]
    """The first leads."""
    take: Take
    parallelism: Parallelism
    context: int
    why: Why | None = None


@dataclass(frozen=True, slots=True)
class Objections:
    """What all rules say of one worker."""

    worker_id: WorkerId
    name: str
    reasons: tuple[Reason, ...]
    missing_bytes: int

    @property
    def distance(self) -> tuple[bool, int, bool, int, str]:
        """Those who have the selected GPUs; the fewest objections; nothing to be bought; the least memory missing; the name."""
        codes = {reason.code for reason in self.reasons}
        elsewhere = "gpu_not_selected" in codes
        return (elsewhere, len(self.reasons), not HARDWARE.isdisjoint(codes), self.missing_bytes, self.name)


@dataclass(frozen=True, slots=True)
class Refused:
    request: tuple[Reason, ...]
    """What is wrong with the request itself, or with all workers together."""
    workers: tuple[Objections, ...]
    """Closest first."""

    @property
    def closest(self) -> WorkerId | None:
        return self.workers[0].worker_id if self.workers else None

    @property
    def reasons(self) -> tuple[Reason, ...]:
        return (*self.request, *(reason for worker in self.workers for reason in worker.reasons))


def place(request: Request, machines: Sequence[Machine]) -> Placed | Refused:
    """Machines in any order; the same ones give the same answer."""
    if not machines:
        return Refused((*request.wanted.problems, NoWorkers()), ())
    wrong = wrong_with(request, machines)
    candidates = [Candidate(request, machine) for machine in machines if machine.id not in request.not_on]
    objections = [(candidate, objections_to(candidate)) for candidate in candidates]
    if not wrong:
        layouts = [layout_of(candidate) for candidate, reasons in objections if not reasons]
        if layouts and not group_is_better(request, layouts):
            return best_of(request, layouts)
        able = [candidate for candidate, reasons in objections if all(r.code in CAPACITY_CODES for r in reasons)]
        gang = place_gang(request, able, [c for c, reasons in objections if reasons and all(map(_passes, reasons))])
        if isinstance(gang, Placed):
            return gang
        if layouts:
            return best_of(request, layouts)
        wrong = gang
    return Refused(
        wrong,
        tuple(
            sorted(
                (
                    Objections(candidate.machine.id, candidate.machine.name, reasons, _missing(candidate, reasons))
                    for candidate, reasons in objections
                ),
                key=lambda each: each.distance,
            )
        ),
    )


def objections_to(candidate: Candidate) -> tuple[Reason, ...]:
    """What every rule says of this worker; nothing stops early."""
    found: list[ReasonBase] = []
    request = candidate.request
    likeness = candidate.machine.likeness
    if request.selected is not None or likeness not in request.fine:
        found = [reason for rule in OF_ITS_LIKE if (reason := rule(candidate)) is not None]
        if not found and request.selected is None:
            request.likes(likeness)
    for rule in REST:
        reason = rule(candidate)
        if reason is not None:
            found.append(reason)
    if len(found) > 1 and not _may_be_a_member(request, found):
        # nobody looks at files for a worker that can't have the instance anyway
        found = [reason for reason in found if not isinstance(reason, BeingInspected)]
    return tuple(found)  # pyright: ignore[reportReturnType] - each ReasonBase that a rule returns is a member of the union


def _may_be_a_member(request: Request, found: Sequence[ReasonBase]) -> bool:
    """The worker is too small alone, and nobody has looked at the files there yet."""
    if not any(isinstance(reason, BeingInspected) for reason in found):
        return False
    others = [reason for reason in cast("Sequence[Reason]", found) if not isinstance(reason, BeingInspected)]
    return all(reason.code in CAPACITY_CODES for reason in others) and may_allow_gang(request)


def layout_of(candidate: Candidate) -> Layout:
    if candidate.layout is None:
        raise AssertionError(f"no rule objects to {candidate.machine.id}, and nothing fits there")
    return candidate.layout


def best_of(
    request: Request, layouts: Sequence[Layout], *, fitting: int | None = None, runners_up: int = RUNNERS_UP
) -> Placed:
    """`fitting`: how many would do, when the layouts are only the best ones."""
    preferences = preferences_of(request)
    scored = sorted(
        (
            (tuple(like(layout, request) for like in preferences), layout.machine.name, layout.machine.id, layout)
            for layout in layouts
        ),
        key=lambda each: each[:3],
    )
    names = [like.__name__ for like in preferences]
    best_score, _, _, best = scored[0]
    others = tuple(
        RunnerUp(
            layout.machine.id,
            tuple(gpu.index for gpu in layout.gpus),
            dict(zip(names, score, strict=True)),
            next((name for name, ours, theirs in zip(names, best_score, score, strict=True) if ours != theirs), "name"),
        )
        for score, _, _, layout in scored[1 : 1 + runners_up]
    )
    return placed_at(request, best, Why(dict(zip(names, best_score, strict=True)), fitting or len(layouts), others))


def placed_at(request: Request, layout: Layout, why: Why | None) -> Placed:
    """On one worker."""
    return Placed(
        places=(place_of(layout),),
        take=layout.take,
        parallelism=layout.take.parallelism,
        context=context_of(request, layout.machine),
        why=why,
    )


def context_of(request: Request, machine: Machine) -> int:
    looked = request.looked.get(machine.id)
    weights = looked.weights if looked is not None and looked.weights is not None else request.known
    if weights is None:
        raise AssertionError("placed without knowing what it weighs")
    return request.estimate(weights)[0].context


def place_of(layout: Layout) -> Place:
    machine = layout.machine
    return Place(machine.id, machine.address, layout.type, tuple(gpu.index for gpu in layout.gpus), layout.claim)


def wrong_with(request: Request, machines: Sequence[Machine]) -> tuple[Reason, ...]:
    """What no worker could make right."""
    found: list[Reason] = list(request.wanted.problems)
    selector = request.spec.gpu_selector
    if request.selected is not None and selector is not None:
        there = {gpu_id for machine in machines for gpu_id in gpu_ids(machine)}
        if unknown := tuple(gpu_id for gpu_id in selector.gpu_ids if gpu_id not in there):
            found.append(GpuUnknown(gpu_ids=unknown))
        if (too_few := _too_few_for_replicas(request, request.selected)) is not None:
            found.append(too_few)
    estimate, wanted = request.usual, request.wanted
    if estimate is not None and request.info is not None and request.info.tensor_parallel:
        sizes, layers = estimate.parallelisms(wanted.gpus or 1)[0], estimate.architecture.layers
        tensor, field = sizes.tensor, "gpu_selector" if wanted.world_size is None else "backend_parameters"
        for what, number in estimate.undivided(tensor):
            if what == "vocabulary":
                found.append(VocabularyNotDivisible(vocabulary_size=number, tensor_parallel_size=tensor, field=field))
            else:
                found.append(
                    HeadsNotDivisible.model_validate(
                        {"heads": number, "tensor_parallel_size": tensor, "of": what, "field": field}
                    )
                )
        if layers is not None and sizes.pipeline > layers:
            found.append(TooFewLayers(layers=layers, pipeline_parallel_size=sizes.pipeline))
    return tuple(found)


def _too_few_for_replicas(request: Request, selected: frozenset[str]) -> TooFewGpusSelected | None:
    """Where the author said how many GPUs an instance has, the selected ones must do for all: each holds as many shares."""
    spec, estimate = request.spec, request.usual
    each = spec.gpu_selector.gpus_per_replica if spec.gpu_selector is not None else None
    if each is None or each > len(selected) or estimate is None or not estimate.takes_share or spec.packed:
        return None
    shares = int(1 / request.wanted.share) if request.wanted.share is not None else 1
    needed = each * spec.replicas
    if needed <= len(selected) * shares:
        return None
    return TooFewGpusSelected(needed=needed, selected=len(selected), replicas=spec.replicas)


def _missing(candidate: Candidate, reasons: Sequence[Reason]) -> int:
    """Bytes: of GPU memory, and of RAM and disk where they are short."""
    missing = candidate.shortage.missing_bytes if candidate.shortage is not None else 0
    for reason in reasons:
        match reason.code:
            case "not_enough_ram" | "not_enough_disk":
                missing += reason.needed_bytes - reason.free_bytes
            case _:
                pass
    return missing


# -- several workers --------------------------------------------------------------------------------------------------


def _passes(reason: Reason) -> bool:
    """Is it gone when the worker is ready and empty?"""
    return reason.code in CAPACITY_CODES or reason.whose == "wait"


def place_gang(
    request: Request, able: Sequence[Candidate], some_day: Sequence[Candidate] = ()
) -> Placed | tuple[Reason, ...]:
    """All members or none, on workers that nothing but memory objects to.

    Why not, when several workers were allowed and did not add up; nothing when they were not allowed. `some_day`: the
    workers to which nothing is objected that may not pass by itself.
    """
    estimate = request.usual
    if estimate is None or not allows_gang(request):
        return ()
    search = _GangSearch(request, able)
    most_gpus = max((len(member.gpus) for member in search.parts), default=0)
    for group in groups_of(estimate, min(len(able), MOST_WORKERS_OF_A_GANG), most_gpus):
        if (placed := search.placed(group)) is not None:
            return placed
    return search.why_not(some_day)


def may_allow_gang(request: Request) -> bool:
    """It allows one, or nobody has looked at its files yet, which may say so."""
    return _wants_gang(request) if request.usual is None else allows_gang(request)


def _wants_gang(request: Request) -> bool:
    wanted = request.wanted
    return (
        request.info is not None
        and request.info.distributes
        and request.spec.distributed_inference_across_workers
        and (wanted.gpus is None or wanted.gpus > 1)
    )


def allows_gang(request: Request) -> bool:
    """May several workers run one instance of it together?"""
    estimate = request.usual
    return estimate is not None and (estimate.takes_share or estimate.spec.backend == "Custom") and _wants_gang(request)


def group_is_better(request: Request, layouts: Sequence[Layout]) -> bool:
    """Than RAM, if there is one: an image that may run there runs on GPUs where it can."""
    return allows_gang(request) and all(layout.type is None for layout in layouts)


def may_gang(request: Request, candidate: Candidate) -> bool:
    """Could this worker be a member of a group? A bound: what the smallest member takes is free on one of its GPUs."""
    if candidate.estimate is None or not allows_gang(request):
        return False
    for pool in candidate.pools:
        for gpu in pool.gpus:
            share = candidate.estimate.share_on(gpu.profile, ALONE)
            least = 0 if share is None or request.spec.packed else int(share * gpu.profile.memory_total)
            if request.wanted.share is None and request.spec.backend == "SGLang":
                least //= 2  # it keeps 128 MiB more for each further GPU of the group
            if gpu.free >= least and gpu.free > 0:
                return True
    return False


@dataclass(frozen=True, slots=True)
class _Part:
    """GPUs of one worker that are alike, and of which a member could be made."""

    candidate: Candidate
    profile: Profile
    gpus: tuple[GpuSlot, ...]
    frees: list[int]
    """What is free of each; the most first."""


def _part(candidate: Candidate, profile: Profile, gpus: tuple[GpuSlot, ...]) -> _Part:
    return _Part(candidate, profile, gpus, sorted([gpu.free for gpu in gpus], reverse=True))


class _GangSearch:
    def __init__(self, request: Request, able: Sequence[Candidate]) -> None:
        self._request = request
        self._able = len(able)
        self._down: dict[WorkerId, tuple[int, ...]] = {}
        self.parts = [part for candidate in able for part in self._parts(candidate)]
        self._profiles = _in_order({part.profile for part in self.parts})
        self._takes: dict[tuple[Profile, Group], Take | None] = {}
        self._able_to: dict[tuple[Profile, int, int, int], list[_Part]] = {}

    def _parts(self, candidate: Candidate) -> Iterator[_Part]:
        for profile, gpus in self._alike(candidate):
            yield _part(candidate, profile, gpus)

    def _alike(self, candidate: Candidate) -> Iterator[tuple[Profile, tuple[GpuSlot, ...]]]:
        """GPUs of a worker of which a member could be made."""
        if candidate.estimate is not self._request.usual:  # other files than elsewhere
            return
        for pool in candidate.pools:
            if pool.is_uniform:
                if pool.gpus:
                    yield pool.gpus[0].profile, pool.gpus
                continue
            by_profile: dict[Profile, list[GpuSlot]] = {}
            down: list[int] = []
            for gpu in pool.gpus:
                if gpu.network_up:
                    by_profile.setdefault(gpu.profile, []).append(gpu)
                else:  # Ascend's GPUs talk to those of other machines over ports of their own
                    down.append(gpu.index)
            if down:
                self._down[candidate.machine.id] = tuple(down)
            for profile, gpus in by_profile.items():
                yield profile, tuple(gpus)

    def placed(self, group: Group) -> Placed | None:
        """Equal members on so many workers, the best ones; None when there are too few."""
        for profile in self._profiles:
            take = self._take(profile, group)
            if take is None:
                continue
            able = self._with(profile, group.gpus, take)
            if len(able) >= group.workers:
                members = self._best([self._layout(part, take) for part in able], group.workers)
                return Placed(
                    places=tuple(place_of(layout) for layout in members),
                    take=take,
                    parallelism=group.parallelism,
                    context=context_of(self._request, members[0].machine),
                )
        return None

    def _with(self, profile: Profile, count: int, take: Take) -> list[_Part]:
        key = (profile, count, take.vram_bytes, take.ram_bytes)
        found = self._able_to.get(key)
        if found is None:
            found = self._able_to[key] = [
                part
                for part in self.parts
                if len(part.gpus) >= count
                and part.frees[count - 1] >= take.vram_bytes
                and part.profile.type == profile.type
                and part.profile.memory_total == profile.memory_total  # whatever the system keeps of it
                and max(part.candidate.machine.ram_free, 0) >= take.ram_bytes
            ]
        return found

    def _layout(self, part: _Part, take: Take) -> Layout:
        fitting = [gpu for gpu in part.gpus if gpu.free >= take.vram_bytes]
        gpus, splits = choose(fitting, take.gpus, tight=self._request.tight)
        return Layout(part.candidate.machine, part.profile.type, gpus, take, len(fitting), splits)

    def _best(self, layouts: list[Layout], count: int) -> list[Layout]:
        preferences = preferences_of(self._request)

        def order(layout: Layout) -> tuple[object, ...]:
            liked = tuple(like(layout, self._request) for like in preferences)
            return (*liked, layout.machine.name, layout.machine.id)

        return sorted(layouts, key=order)[:count]

    def _take(self, profile: Profile, group: Group) -> Take | None:
        key = (profile, group)
        if key not in self._takes:
            self._takes[key] = self._make_take(profile, group)
        return self._takes[key]

    def _make_take(self, profile: Profile, group: Group) -> Take | None:
        estimate = self._request.usual
        if estimate is None:
            return None
        if estimate.spec.backend == "Custom":
            each = -(-estimate.needed_bytes // (group.workers * group.gpus))
            return Take(group.gpus, each, estimate.ram_bytes) if each <= profile.capacity else None
        take = estimate.take(profile, group.gpus, group.parallelism)
        return take if isinstance(take, Take) else None

    def why_not(self, some_day: Sequence[Candidate]) -> tuple[Reason, ...]:
        found: list[Reason] = [
            NetworkDown(worker_id=worker_id, gpu_indexes=indexes) for worker_id, indexes in sorted(self._down.items())
        ]
        if self._able > 1 and (nearest := self._nearest(some_day)) is not None:
            found.append(nearest)
        return tuple(found)

    def _nearest(self, some_day: Sequence[Candidate]) -> WorkersDoNotAddUp | None:
        """Of all groups the one that lacks the fewest GPUs: with nothing on the workers, then as they are now."""
        estimate = self._request.usual
        if estimate is None:
            return None
        kinds = Counter(
            (profile, len(gpus), candidate.machine.inventory.memory_total - candidate.machine.inventory.memory_reserved)
            for candidate in some_day
            for profile, gpus in self._alike(candidate)
        )
        profiles = _in_order({profile for profile, _, _ in kinds})
        best: tuple[int, int, int, str] | None = None
        for group in groups_of(estimate, MOST_WORKERS_OF_A_GANG, max((count for _, count, _ in kinds), default=0)):
            for profile in profiles:
                take = self._take(profile, group)
                if take is not None:
                    needed = group.workers * group.gpus
                    now = len(self._with(profile, group.gpus, take)) * group.gpus
                    empty = min(_members(kinds, profile, group.gpus, take), group.workers) * group.gpus
                    lacks = (needed - empty, needed - now, needed, profile.type)
                    best = lacks if best is None else min(best, lacks)
        if best is None:
            return None
        lacks_ever, lacks_now, needed, kind = best
        return WorkersDoNotAddUp(
            gpus_needed=needed,
            largest_group=needed - lacks_now,
            accelerator=kind,
            largest_if_empty=needed - lacks_ever,
        )


def _in_order(profiles: Collection[Profile]) -> list[Profile]:
    return sorted(profiles, key=lambda each: (each.type, each.memory_total, each.capacity, each.name))


def _members(kinds: Counter[tuple[Profile, int, int]], profile: Profile, gpus: int, take: Take) -> int:
    """Parts of empty workers that could be members."""
    return sum(
        number
        for (other, count, ram), number in kinds.items()
        if count >= gpus
        and other.type == profile.type
        and other.memory_total == profile.memory_total
        and other.capacity >= take.vram_bytes
        and ram >= take.ram_bytes
    )

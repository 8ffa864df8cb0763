"""A request, and one worker that it might go to."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from schemas.backends import CPU, BackendInfo, InferenceBackend, built_in, effective, image_for, images_of, info_of
from schemas.ids import ModelId, WorkerId
from schemas.models import ModelSpec, ModelWeights, Pinned
from schemas.reasons import OF_A_WORKERS_HUB, Reason
from schemas.versions import is_for_processors, is_newer, is_older
from schemas.wanted import Wanted, wanted_of
from services.scheduler.domain.peaks import Peak, PeakOf, Where
from services.scheduler.domain.shapes import Layout, free_of, lay_out, takes_of
from services.scheduler.domain.snapshot import GpuSlot, Machine, Pool, Profile
from services.scheduler.domain.takes import ON_CPU_IF_ALLOWED, Estimate, Take, Takes, estimate_of

MOST_LIKENESSES: Final = 1024
"""Of workers, that are remembered: there may be as many as there are workers, and in time any number."""


@dataclass(frozen=True, slots=True)
class Looked:
    """What one worker's downloader said of a model's files: what they weigh, or why they can't be used."""

    weights: ModelWeights | None
    reasons: tuple[Reason, ...]


@dataclass(slots=True)
class Request:
    """One more instance of a model; everything about it that does not depend on the worker."""

    spec: ModelSpec
    looked: dict[WorkerId, Looked] = field(default_factory=dict[WorkerId, Looked])
    model_id: ModelId | None = None
    not_on: frozenset[WorkerId] = frozenset()
    """Workers that just failed to take it, and the one that it is moved away from."""
    crashes: Mapping[WorkerId, int] = field(default_factory=dict[WorkerId, int])
    """Workers on which the model is quarantined: its crashes in a row there."""
    files_on: frozenset[WorkerId] = frozenset()
    """Workers that have the files already."""
    known: ModelWeights | None = None
    """What the model weighs, as far as anybody knows: on most workers."""
    pins: ModelWeights | None = None
    """What hubs' branches were pinned to, as it was first said."""
    must_look: bool = True
    """The files lie on the workers themselves: each must have looked at them. A hub's are the same for all."""
    peaks: PeakOf = field(default_factory=dict[Where, Peak])
    """What was measured of this revision, where the operator lets it be claimed in place of estimates."""
    backends: Mapping[str, InferenceBackend] = field(default_factory=built_in)
    """By name: those that there are."""
    wish: ModelSpec = field(init=False)
    """`spec` as its author wrote it: without what the backend adds."""
    backend: InferenceBackend | None = field(init=False)
    wanted: Wanted = field(init=False)
    info: BackendInfo | None = field(init=False)
    selected: frozenset[str] | None = field(init=False)
    tight: bool = field(init=False)
    fine: set[object] = field(init=False, default_factory=set[object])
    """Likenesses of workers to which no rule objects that asks for their likeness alone."""
    all_good: set[int] = field(init=False, default_factory=set[int])
    """Makes (`Machine.make`) of workers of which every GPU may be used."""
    _estimates: dict[int, tuple[ModelWeights, Estimate, dict[tuple[Profile, int], Takes]]] = field(init=False)
    _images: dict[tuple[int, str], bool] = field(init=False)
    """Make of workers, kind of GPU → is there an image for it?"""
    _verdict: Looked | None = field(init=False, default=None)
    """What was last said of the repository."""
    _kinds: list[ModelWeights] = field(init=False)
    """One of each that weigh the same, so that equal ones are the same object."""

    def __post_init__(self) -> None:
        self.wish = self.spec
        self.wanted = wanted_of(self.spec, self.backends)
        self.backend = self.backends.get(self.spec.backend)
        self.info = None if self.backend is None else info_of(self.backend, self.spec.backend_version)
        if self.backend is not None:
            self.spec = effective(self.spec, self.backend)
        self._images = {}
        selector = self.spec.gpu_selector
        self.selected = frozenset(selector.gpu_ids) if selector is not None and selector.gpu_ids else None
        self.tight = self.spec.placement_strategy == "binpack"
        self._estimates = {}
        self._kinds = [] if self.known is None else [self.known]
        self.looked = {worker_id: self._alike(looked) for worker_id, looked in self.looked.items()}
        if self.known is None:
            self.known = next(
                (looked.weights for _, looked in sorted(self.looked.items()) if looked.weights is not None), None
            )
        self._judge()

    @property
    def pinned(self) -> tuple[Pinned, ...]:
        """What is to be fetched, on whichever worker."""
        found = self.pins or self.known
        return () if found is None else found.pinned

    @property
    def verdict(self) -> Looked | None:
        """What a hub said of the repository, as long as nobody knows what the model weighs: it holds for all workers."""
        return None if self.must_look or self.known is not None else self._verdict

    def _judge(self) -> None:
        if not self.must_look:
            said = [each for each in self.looked.values() if _is_about_the_repository(each)]
            self._verdict = said[-1] if said else None

    def look(self, worker_id: WorkerId, looked: Looked) -> None:
        """What a downloader says now. Most workers have the same files: one that has them again needs no new estimate."""
        before, after = self.looked.pop(worker_id, None), self._alike(looked)
        self.looked[worker_id] = after  # the newest last
        self._judge()
        if self.known is None or (
            self.must_look
            and after.weights is not None
            and before is not None
            and before.weights is self.known
            and not any(each.weights is self.known for each in self.looked.values())
        ):
            self.known = after.weights
        if len(self._kinds) > 2 * len(self.looked) + 1:
            self._forget_what_nobody_has()

    def looked_at(self, worker_id: WorkerId) -> Looked | None:
        """What is known of the files for this worker. What one worker was told of a repository holds for all; that one of them
        can't reach the hub matters only as long as no other one has the files.
        """
        own = self.looked.get(worker_id)
        if self.must_look:
            return own
        if self.known is not None:
            is_cut_off = own is not None and own.weights is None
            return None if is_cut_off and self.files_on else own
        return self._verdict or own

    def _forget_what_nobody_has(self) -> None:
        kept = {id(each.weights) for each in self.looked.values()} | {id(self.known)}
        self._kinds = [kind for kind in self._kinds if id(kind) in kept]
        self._estimates = {key: known for key, known in self._estimates.items() if key in kept}

    def likes(self, likeness: object) -> None:
        """No rule objects to workers of this likeness that asks for it alone."""
        if len(self.fine) >= MOST_LIKENESSES:
            self.fine.clear()
        self.fine.add(likeness)

    def _alike(self, looked: Looked) -> Looked:
        """With the object that weighs the same. Where the files lie makes no difference to what they take."""
        weights = looked.weights
        if weights is None:
            return looked
        for kind in self._kinds:
            if kind is weights:
                return looked
            if kind.weight_bytes == weights.weight_bytes and weights.model_copy(update={"files": kind.files}) == kind:
                return Looked(kind, looked.reasons)
        self._kinds.append(weights)
        return looked

    def knows_good(self, make: int) -> None:
        """Every GPU of workers of this make may be used, as long as none is selected."""
        if len(self.all_good) >= MOST_LIKENESSES:
            self.all_good.clear()
        self.all_good.add(make)

    def forget(self, worker_id: WorkerId) -> None:
        self.looked.pop(worker_id, None)
        self._judge()

    def estimate(self, weights: ModelWeights) -> tuple[Estimate, dict[tuple[Profile, int], Takes]]:
        """What it takes with these weights; most workers have the same."""
        found = self._estimates.get(id(weights))
        if found is None:
            found = self._estimates[id(weights)] = (
                weights,
                estimate_of(self.spec, self.wanted, weights, self.peaks),
                {},
            )
        return found[1], found[2]

    def is_old(self, kind: str, compute_capability: str | None, runtime_version: str | None) -> bool:
        return self.has_old_architecture(kind, compute_capability) or self.has_old_driver(kind, runtime_version)

    def has_old_driver(self, kind: str, runtime_version: str | None) -> bool:
        """Where a driver does not tell its version, nothing is refused."""
        if self.info is None or self.spec.image_name is not None:
            return False
        return is_older(runtime_version, self.info.runtimes.get(kind))

    def has_old_architecture(self, kind: str, compute_capability: str | None) -> bool:
        """NVIDIA's compute capability."""
        if self.info is None or self.spec.image_name is not None or kind != "cuda":
            return False
        return is_older(compute_capability, self.info.compute_capability)

    def runs_on(self, kind: str) -> bool:
        """The backend, in the version that is wanted."""
        if self.spec.image_name is not None:
            return True
        if self.info is None or kind not in self.info.accelerators:
            return False
        newest, version = self.info.accelerators[kind], self.spec.backend_version
        return newest is None or version is None or not is_newer(version, newest)

    def has_image(self, machine: Machine, kind: str) -> bool:
        """`kind`: of its GPUs, or `cpu`. A worker without a container runtime needs none, and a backend without any leaves it
        to the model, as the api sees to.
        """
        if self.backend is None or self.spec.image_name is not None or machine.inventory.runtime == "process":
            return True
        if next(images_of(self.backend, None), None) is None:
            return True
        known = self._images.get((machine.make, kind))
        if known is None:
            devices = tuple(gpu.name for gpu in machine.inventory.gpus if gpu.type == kind)
            chosen = image_for(self.backend, self.spec.backend_version, kind, machine.platform, devices=devices)
            if len(self._images) >= MOST_LIKENESSES:
                self._images.clear()
            known = self._images[machine.make, kind] = chosen is not None
        return known

    @property
    def commit(self) -> str | None:
        """To which its source is pinned; None: it lies on the workers, or nobody has looked yet."""
        return next((each.commit for each in self.pinned if each.source == self.spec.source), None)

    @property
    def usual(self) -> Estimate | None:
        """What it takes with the weights that are known."""
        return None if self.known is None else self.estimate(self.known)[0]


def _is_about_the_repository(looked: Looked) -> bool:
    return any(reason.code not in OF_A_WORKERS_HUB for reason in looked.reasons)


class Unknown:
    """Not looked at yet."""


UNKNOWN: Final = Unknown()


@dataclass(frozen=True, slots=True)
class Shortage:
    """The way to run on a worker that comes nearest, and the GPU on which it fails."""

    gpus: int
    needed_bytes: int
    """By the model, on each GPU."""
    take: Take | None
    """None: the GPUs are too small even when they are empty."""
    qualifying: int
    """GPUs that have enough free."""
    freest: GpuSlot | None
    short_of: GpuSlot
    """The roomiest GPU that is one too many."""
    missing_bytes: int
    """On all GPUs that it would run on."""


@dataclass(frozen=True, slots=True)
class Gpus:
    """A worker's GPUs in the light of a request."""

    ours: tuple[Pool, ...]
    """Those that the request may use."""
    supported: tuple[Pool, ...]
    """… of kinds that the backend runs on, and has an image for."""
    young: tuple[Pool, ...]
    """… whose architecture and driver are new enough."""
    usable: tuple[Pool, ...]
    """… and that tell their memory and are not broken: those on which an instance can be laid out."""


class Candidate:
    """A worker in the light of a request. What is looked at is found out once, when it is looked at: a fleet has many."""

    __slots__ = ("_estimate", "_gpus", "_layout", "_shortage", "_takes", "looked", "machine", "request")

    def __init__(self, request: Request, machine: Machine) -> None:
        self.request = request
        self.machine = machine
        self.looked = request.looked_at(machine.id)
        self._estimate: tuple[Estimate, dict[tuple[Profile, int], Takes]] | Unknown | None = UNKNOWN
        self._gpus: Gpus | None = None
        self._takes: tuple[dict[Profile, Takes], ...] | None = None
        self._layout: Layout | Unknown | None = UNKNOWN
        self._shortage: Shortage | Unknown | None = UNKNOWN

    @property
    def estimate(self) -> Estimate | None:
        """What it takes with the files as they are here; None: nobody knows what it weighs."""
        found = self._estimate
        if found is UNKNOWN:
            found = self._estimated()
        return None if found is None else found[0]  # pyright: ignore[reportIndexIssue, reportUnknownVariableType] - it is known now

    def _estimated(self) -> tuple[Estimate, dict[tuple[Profile, int], Takes]] | None:
        if self._estimate is UNKNOWN:
            looked = self.looked
            weights = looked.weights if looked is not None and looked.weights is not None else self.request.known
            self._estimate = None if weights is None else self.request.estimate(weights)
        return self._estimate  # pyright: ignore[reportReturnType] - it is known now

    @property
    def gpus(self) -> Gpus:
        if self._gpus is None:
            machine, request = self.machine, self.request
            if request.selected is None and machine.make in request.all_good:
                pools = machine.pools
                self._gpus = Gpus(pools, pools, pools, pools)
                return self._gpus
            ours = self._selected(machine)
            supported = tuple(
                [pool for pool in ours if request.runs_on(pool.type) and request.has_image(machine, pool.type)]
            )
            young = tuple([self._young(pool) for pool in supported])
            usable = tuple([pool if pool.all_usable else _usable(pool) for pool in young])
            self._gpus = Gpus(ours, supported, young, usable)
            if request.selected is None and ours == supported == young == usable:
                request.knows_good(machine.make)
        return self._gpus

    @property
    def pools(self) -> tuple[Pool, ...]:
        """On which an instance can be laid out."""
        return self.gpus.usable

    @property
    def takes(self) -> tuple[dict[Profile, Takes], ...]:
        """Of each of `pools`: what an instance takes there."""
        if self._takes is None:
            found = self._estimated()
            self._takes = () if found is None else tuple([takes_of(found[0], pool, found[1]) for pool in self.pools])
        return self._takes

    @property
    def layout(self) -> Layout | None:
        """The best place on this worker, as far as its GPUs go."""
        if self._layout is UNKNOWN:
            self._layout = None
            if self.estimate is not None:
                self._layout = lay_out(self.machine, self.pools, self.takes, self.estimate, tight=self.request.tight)
        return self._layout  # pyright: ignore[reportReturnType] - it is known now

    @property
    def shortage(self) -> Shortage | None:
        """What the worker lacks on its GPUs, when nothing fits."""
        if self._shortage is UNKNOWN:
            self._shortage = self._find_shortage() if self.layout is None else None
        return self._shortage  # pyright: ignore[reportReturnType] - it is known now

    def _find_shortage(self) -> Shortage | None:
        """None where something else than memory is in the way."""
        estimate = self.estimate
        if estimate is None:
            return None
        wanted = self.request.wanted.gpus
        found: list[tuple[int, int, Shortage]] = []
        for pool, of in zip(self.pools, self.takes, strict=True):
            if not pool.gpus or (wanted is not None and wanted > len(pool.gpus)):
                continue
            in_order = sorted(pool.gpus, key=free_of, reverse=True)  # of as many the one with the lower index
            takes = of[in_order[0].profile]
            take = takes.ways[0] if takes.ways else _beyond_reserve(estimate, in_order[0].profile, len(pool.gpus))
            if take is None and takes.context_short is not None:
                continue
            if take is not None:
                gpus, parallelism = take.gpus, take.parallelism
            else:
                gpus = wanted or max(estimate.counts(len(pool.gpus)), default=1)
                parallelism = estimate.parallelisms(gpus)[0]
            needed = estimate.needed_on(in_order[0].profile, gpus, parallelism)
            enough = max(take.vram_bytes, needed) if take is not None else needed
            short_of = in_order[min(gpus, len(in_order)) - 1]
            qualifying = len([gpu for gpu in pool.gpus if gpu.free >= enough])
            missing = sum([max(enough - gpu.free, 0) for gpu in in_order[:gpus]])
            shortage = Shortage(gpus, needed, take, qualifying, in_order[0], short_of, missing)
            found.append((0 if take is not None else 1, enough - short_of.free, shortage))
        return min(found, key=lambda each: each[:2])[2] if found else None

    def first_old(self, is_old: Callable[[GpuSlot], bool]) -> GpuSlot | None:
        """Where no GPU of the worker is new enough: the first that is too old in this respect."""
        if self.request.info is None or any(pool.gpus for pool in self.gpus.young):
            return None
        return next((gpu for pool in self.gpus.supported for gpu in pool.gpus if is_old(gpu)), None)

    def fits_if_others_were_gone(self) -> bool:
        return self._fits(self.pools, without_others=True)

    def fits_if_all_were_healthy(self) -> bool:
        return self._fits(tuple(_telling(pool) for pool in self.gpus.young), without_others=False)

    def _fits(self, pools: tuple[Pool, ...], *, without_others: bool) -> bool:
        if self.estimate is None:
            return False
        takes = tuple(takes_of(self.estimate, pool, {}) for pool in pools)
        free = GpuSlot.free_without_others if without_others else free_of
        return lay_out(self.machine, pools, takes, self.estimate, tight=True, free=free) is not None

    @property
    def needs_gpu(self) -> bool:
        """Nothing of it runs on a processor alone."""
        request = self.request
        if request.info is not None and CPU not in request.info.accelerators:
            return True
        layers = request.wanted.gpu_layers
        if request.spec.backend in ON_CPU_IF_ALLOWED and not request.spec.cpu_offloading:
            return True
        if request.spec.backend == "vLLM" and not self._has_build_for_processors:
            return True
        return request.spec.gpu_selector is not None or (layers is not None and layers > 0)

    @property
    def _has_build_for_processors(self) -> bool:
        """Of vLLM, which is another one than for GPUs. Whether there is an image of it is told by `image_missing`."""
        inventory = self.machine.inventory
        if self.machine.pools:
            return False
        return inventory.runtime != "process" or any(
            is_for_processors(inventory.backends.get(name)) for name in (self.request.wish.backend, "vLLM")
        )

    def _selected(self, machine: Machine) -> tuple[Pool, ...]:
        selected = self.request.selected
        if selected is None:
            return machine.pools
        found: list[Pool] = []
        for pool in machine.pools:
            gpus = tuple(gpu for gpu in pool.gpus if f"{machine.name}:{pool.type}:{gpu.index}" in selected)
            if gpus:
                found.append(Pool(pool.type, gpus))
        return tuple(found)

    def _young(self, pool: Pool) -> Pool:
        is_old = self.request.is_old
        if not any(is_old(pool.type, *age) for age in pool.ages):
            return pool
        return Pool(
            pool.type,
            tuple(gpu for gpu in pool.gpus if not is_old(pool.type, gpu.compute_capability, gpu.runtime_version)),
        )


def _beyond_reserve(estimate: Estimate, profile: Profile, most: int) -> Take | None:
    """The share that the user asks for, where only what is kept for the system is in the way of it."""
    for gpus in estimate.counts(most):
        parallelism = estimate.parallelisms(gpus)[0]
        share = estimate.share_on(profile, parallelism)
        if share is None or int(share * profile.memory_total) <= profile.capacity:
            return None
        reserved = int(share * profile.memory_total)
        if estimate.is_manual or estimate.needed_on(profile, gpus, parallelism) <= reserved:
            return Take(gpus, reserved, estimate.ram_bytes, share, parallelism)
    return None


def _usable(pool: Pool) -> Pool:
    return Pool(pool.type, tuple(gpu for gpu in pool.gpus if gpu.is_usable))


def _telling(pool: Pool) -> Pool:
    return Pool(pool.type, tuple(gpu for gpu in pool.gpus if gpu.profile.memory_total > 0))

"""How an instance lies on GPUs: one, several of one worker, several workers; and which GPUs of a worker are taken.

The fewest GPUs that fit; of a worker's GPUs a whole island (NVLink, one PCIe switch) before a split one, then the
tightest (`binpack`) or the freest (`spread`). Several workers: one kind of GPU, the same number on each.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Final

from schemas.models import Claim, Parallelism
from services.scheduler.domain.snapshot import GpuSlot, Machine, Pool, Profile
from services.scheduler.domain.takes import ON_CPU_IF_ALLOWED, Estimate, Take, Takes

Free = Callable[[GpuSlot], int]
MOST_PROFILES: Final = 1024
"""For which it is remembered what an instance takes."""


free_of: Final[Free] = attrgetter("free")


@dataclass(frozen=True, slots=True)
class Layout:
    """An instance, or one member of it, on one machine."""

    machine: Machine
    type: str | None
    """Kind of GPU; None: on the CPU."""
    gpus: tuple[GpuSlot, ...]
    take: Take
    qualifying: int
    """GPUs of the pool that could have been taken."""
    splits_island: bool = False

    @property
    def claim(self) -> Claim:
        return Claim(ram=self.take.ram_bytes, vram={gpu.index: self.take.vram_bytes for gpu in self.gpus})


@dataclass(frozen=True, slots=True)
class Gang:
    """An instance over several machines; the first leads."""

    members: tuple[Layout, ...]
    parallelism: Parallelism


def takes_of(estimate: Estimate, pool: Pool, cache: dict[tuple[Profile, int], Takes]) -> dict[Profile, Takes]:
    most = len(pool.gpus)
    found: dict[Profile, Takes] = {}
    for gpu in pool.gpus:
        profile = gpu.profile
        if profile not in found:
            takes = cache.get((profile, most))
            if takes is None:
                if len(cache) >= MOST_PROFILES:
                    cache.clear()
                takes = cache[profile, most] = estimate.takes(profile, most)
            found[profile] = takes
    return found


def lay_out(
    machine: Machine,
    pools: Sequence[Pool],
    takes: Sequence[dict[Profile, Takes]],
    estimate: Estimate,
    *,
    tight: bool,
    free: Free | None = None,
) -> Layout | None:
    """The best way on one machine, whatever RAM it has: the fewest GPUs, whole layers before halves, GPUs before the CPU."""
    free = free or free_of
    best: Layout | None = None
    for pool, of in zip(pools, takes, strict=True):
        found = _whole(machine, pool, of, tight=tight, free=free, below=len(best.gpus) if best else None)
        if found is not None and (best is None or _rank(found, tight) < _rank(best, tight)):
            best = found
    if best is None and estimate.layered is not None:
        best = _partial(machine, pools, estimate, free=free) or _in_ram(machine, estimate)
    elif best is None and estimate.spec.backend in ON_CPU_IF_ALLOWED and _may_be_in_ram(machine, estimate):
        best = Layout(machine, None, (), estimate.on_cpu, 0)
    return best


def _rank(layout: Layout, tight: bool) -> tuple[int, bool, int, str]:
    left = min(gpu.percent_free for gpu in layout.gpus)
    return (len(layout.gpus), layout.splits_island, left if tight else -left, layout.type or "")


def _whole(
    machine: Machine, pool: Pool, of: dict[Profile, Takes], *, tight: bool, free: Free, below: int | None
) -> Layout | None:
    if len(of) == 1:
        (takes,) = of.values()
        if not takes.ways:
            return None
        frees = sorted(map(free, pool.gpus), reverse=True)
        for take in takes.ways:
            if below is not None and take.gpus > below:
                return None
            if take.gpus <= len(frees) and frees[take.gpus - 1] >= take.vram_bytes:
                fitting = [gpu for gpu in pool.gpus if free(gpu) >= take.vram_bytes]
                gpus, splits = choose(fitting, take.gpus, tight=tight)
                return Layout(machine, pool.type, gpus, take, len(fitting), splits)
        return None
    return _mixed(machine, pool, of, tight=tight, free=free)


def _mixed(machine: Machine, pool: Pool, of: dict[Profile, Takes], *, tight: bool, free: Free) -> Layout | None:
    """GPUs of one kind and several sizes: those on which the instance takes the same go together, the smallest first."""
    alike: dict[tuple[int, int], dict[Profile, Take]] = {}
    for profile, takes in of.items():
        for way in takes.ways:
            alike.setdefault((way.gpus, way.vram_bytes), {})[profile] = way
    for (count, size), ways in sorted(alike.items(), key=lambda each: each[0]):
        fitting = [gpu for gpu in pool.gpus if gpu.profile in ways and free(gpu) >= size]
        if len(fitting) >= count:
            gpus, splits = choose(fitting, count, tight=tight)
            return Layout(machine, pool.type, gpus, ways[gpus[0].profile], len(fitting), splits)
    return None


def choose(fitting: Sequence[GpuSlot], count: int, *, tight: bool) -> tuple[tuple[GpuSlot, ...], bool]:
    """So many of the GPUs that fit, and whether that splits islands where there are any."""
    in_order = sorted(fitting, key=lambda gpu: (gpu.free if tight else -gpu.free, gpu.index))
    if count == 1:
        return (in_order[0],), False
    islands: dict[int, list[GpuSlot]] = {}
    for gpu in in_order:
        if gpu.island is not None:
            islands.setdefault(gpu.island, []).append(gpu)
    if not islands:
        return _by_index(in_order[:count]), False
    whole = [island for island in islands.values() if len(island) >= count]
    if not whole:
        return _by_index(in_order[:count]), True
    island = min(whole, key=lambda each: (len(each) if tight else -len(each), each[0].index))
    return _by_index(island[:count]), False


def _by_index(gpus: Sequence[GpuSlot]) -> tuple[GpuSlot, ...]:
    return tuple(sorted(gpus, key=lambda gpu: gpu.index))


def _partial(machine: Machine, pools: Sequence[Pool], estimate: Estimate, *, free: Free) -> Layout | None:
    roomiest = max(
        ((free(gpu), -gpu.index, pool.type, gpu) for pool in pools for gpu in pool.gpus),
        key=lambda each: each[:2],
        default=None,
    )
    if roomiest is None:
        return None
    take = estimate.partly(roomiest[0], roomiest[3].profile.name)
    return None if take is None else Layout(machine, roomiest[2], (roomiest[3],), take, 1)


def _may_be_in_ram(machine: Machine, estimate: Estimate) -> bool:
    """An image that may run without a GPU does so where there is none, and as a last resort where there is room for it:
    where there is not, what its GPUs lack is what is told. vLLM's builds are for the one or the other.
    """
    spec = estimate.spec
    room = not machine.pools or (spec.backend == "Custom" and machine.ram_free >= estimate.on_cpu.ram_bytes)
    return spec.cpu_offloading and spec.gpu_selector is None and room


def _in_ram(machine: Machine, estimate: Estimate) -> Layout | None:
    """llama.cpp runs in RAM where there is no GPU, where it was told to, and as a last resort where that is allowed."""
    spec, layers = estimate.spec, estimate.wanted.gpu_layers
    asks_for_gpus = (layers is not None and layers > 0) or spec.gpu_selector is not None
    told = layers == 0
    if told or (not asks_for_gpus and (not machine.pools or spec.cpu_offloading)):
        return Layout(machine, None, (), estimate.on_cpu, 0)
    return None


# -- several workers --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Group:
    """Equal members on workers that have a pool of one kind: how many, with how many GPUs, how divided."""

    workers: int
    gpus: int
    parallelism: Parallelism


def groups_of(estimate: Estimate, most_workers: int, most_gpus: int) -> Iterator[Group]:
    """Fewest workers first, then fewest GPUs. Tensor parallel inside a worker, pipeline parallel across, unless told otherwise."""
    wanted = estimate.wanted
    if wanted.world_size is not None:
        told = Parallelism(tensor=wanted.tensor or 1, pipeline=wanted.pipeline or 1, data=wanted.data or 1)
        world = wanted.world_size
        for workers in range(2, most_workers + 1):
            each = world // workers
            if world % workers or each > most_gpus or each == 0:
                continue
            if each % told.tensor and told.tensor % each:
                continue
            yield Group(workers, each, told)
        return
    for workers in range(2, most_workers + 1):
        for each in range(1, most_gpus + 1):
            if wanted.gpus is not None and workers * each != wanted.gpus:
                continue
            if (divided := _sizes_over(estimate, workers, each)) is not None:
                yield Group(workers, each, divided)


def _sizes_over(estimate: Estimate, workers: int, each: int) -> Parallelism | None:
    """How the model is shared out among so many workers with so many GPUs each; None: it can't be."""
    if estimate.spec.backend == "Custom":
        return Parallelism()
    if not estimate.may_pipeline:  # MindIE, on powers of two; what excludes pipelines
        is_odd = estimate.spec.backend == "MindIE" and each & (each - 1)
        return None if is_odd or not estimate.divides(workers * each) else Parallelism(tensor=workers * each)
    if estimate.wanted.gpus is None and not estimate.divides(each):
        return None  # another number of GPUs does it without stages inside a worker
    return estimate.divided(workers * each, each)

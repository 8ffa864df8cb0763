"""Workers as placement sees them: what is promised is no longer free, and neither is what strangers hold.

Kept up to date event by event (`MachineBook`) or made from a description (what-if); placement itself changes nothing here.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import Final
from weakref import WeakValueDictionary

from schemas.ids import ModelId, WorkerId
from schemas.models import Claim, Gpu, Inventory
from schemas.versions import is_for_processors, platform_of


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Profile:
    """GPUs of one profile are alike to an engine. There is one object for each (`profile_of`), so comparing is cheap."""

    type: str
    name: str
    """What its maker calls it, its type where that is not told: what engines were measured to hold is known by it.

    Where a worker has several of one type, all of their names: which of them an instance gets is open until it is laid out.
    """
    memory_total: int
    capacity: int
    """Without what is reserved for the system."""


_PROFILES: Final[WeakValueDictionary[tuple[str, str, int, int], Profile]] = WeakValueDictionary()
"""Those that are in use: a worker that reports other numbers again and again leaves nothing behind."""


def profile_of(kind: str, name: str, memory_total: int, capacity: int) -> Profile:
    profile = _PROFILES.get((kind, name, memory_total, capacity))
    if profile is None:
        profile = _PROFILES[kind, name, memory_total, capacity] = Profile(kind, name, memory_total, capacity)
    return profile


@dataclass(slots=True)
class GpuSlot:
    index: int
    profile: Profile
    used_by_others: int
    unhealthy: str | None
    island: int | None
    compute_capability: str | None
    runtime_version: str | None
    network_up: bool
    claimed: int = 0
    claims: int = 0
    free: int = 0

    def __post_init__(self) -> None:
        self.free = max(self.profile.capacity - self.used_by_others, 0)

    def promise(self, size: int) -> None:
        self._set(self.claimed + size, self.claims + 1)

    def release(self, size: int) -> None:
        self._set(self.claimed - size, self.claims - 1)

    def _set(self, claimed: int, claims: int) -> None:
        self.claimed, self.claims = claimed, claims
        self.free = max(self.profile.capacity - self.used_by_others - claimed, 0)

    def free_without_others(self) -> int:
        return max(self.profile.capacity - self.claimed, 0)

    @property
    def is_usable(self) -> bool:
        return self.unhealthy is None and self.profile.memory_total > 0

    @property
    def percent_free(self) -> int:
        return self.free * 100 // self.profile.memory_total


@dataclass(slots=True)
class Pool:
    """The GPUs of one kind on one worker: a worker with two vendors' GPUs is two pools."""

    type: str
    gpus: tuple[GpuSlot, ...]
    all_usable: bool = True
    """Each tells its memory, and its driver calls none broken."""
    ages: tuple[tuple[str | None, str | None], ...] = ()
    """Compute capability and runtime version: each pair that is there."""
    is_uniform: bool = False
    """All alike, and the network of each is up."""

    def __post_init__(self) -> None:
        self.is_uniform = all(gpu.network_up and gpu.profile is self.gpus[0].profile for gpu in self.gpus)
        self.all_usable = all(gpu.is_usable for gpu in self.gpus)
        self.ages = tuple(dict.fromkeys([(gpu.compute_capability, gpu.runtime_version) for gpu in self.gpus]))

    @property
    def claims(self) -> int:
        return sum([gpu.claims for gpu in self.gpus])


@dataclass(slots=True)
class Machine:
    id: WorkerId
    name: str
    address: str
    state: str
    inventory: Inventory
    labels: Mapping[str, str]
    cordoned: bool = False
    """By the operator, or (`held_back`) because a GPU is unhealthy."""
    held_back: bool = False
    draining: bool = False
    downloader_alive: bool = True
    ram_total: int = 0
    ram_free: int = 0
    claims: int = 0
    platform: str = ""
    incomplete: tuple[str, int | None] | None = None
    """What the worker does not tell, and of which GPU: `("memory_total", 3)`."""
    pools: tuple[Pool, ...] = ()
    gpus: dict[tuple[str, int], GpuSlot] = field(default_factory=dict[tuple[str, int], GpuSlot])
    """By kind and index."""
    make: int = 0
    """Workers with the same number have the same hardware and software (`_make_of`)."""
    replicas: dict[ModelId, int] = field(default_factory=dict[ModelId, int])
    """Instances of each model that have memory promised here."""

    @property
    def likeness(self) -> tuple[int, str, bool, bool, bool]:
        """All that tells it from other workers, beside its name, its labels, its files and what is promised on it."""
        return (self.make, self.state, self.cordoned, self.draining, self.downloader_alive)

    def promise(self, model_id: ModelId | None, kind: str | None, claim: Claim) -> None:
        """`kind`: of the GPUs that the claim's indexes are of."""
        self.ram_free -= claim.ram
        self.claims += 1
        for index, size in claim.vram.items():
            if kind is not None and (gpu := self.gpus.get((kind, index))) is not None:
                gpu.promise(size)
        if model_id is not None:
            self.replicas[model_id] = self.replicas.get(model_id, 0) + 1

    def release(self, model_id: ModelId | None, kind: str | None, claim: Claim) -> None:
        self.ram_free += claim.ram
        self.claims -= 1
        for index, size in claim.vram.items():
            if kind is not None and (gpu := self.gpus.get((kind, index))) is not None:
                gpu.release(size)
        if model_id is not None:
            left = self.replicas.get(model_id, 0) - 1
            if left > 0:
                self.replicas[model_id] = left
            else:
                self.replicas.pop(model_id, None)


def machine_of(
    worker_id: WorkerId,
    name: str,
    address: str,
    state: str,
    inventory: Inventory,
    *,
    labels: Mapping[str, str] | None = None,
    cordoned: bool = False,
    cordon_unhealthy: bool = False,
    draining: bool = False,
    downloader_alive: bool = True,
    claims: Iterable[tuple[ModelId | None, str | None, Claim]] = (),
) -> Machine:
    names: dict[str, set[str]] = {}
    for gpu in inventory.gpus:
        names.setdefault(gpu.type, set()).add(gpu.name or gpu.type)
    slots = tuple(
        _slot(gpu, " + ".join(sorted(names[gpu.type])), inventory)
        for gpu in sorted(inventory.gpus, key=lambda gpu: (gpu.type, gpu.index))
    )
    kinds = dict.fromkeys(slot.profile.type for slot in slots)
    platform = platform_of(inventory.os, inventory.arch)
    held_back = cordon_unhealthy and any(slot.unhealthy is not None for slot in slots)
    built_in = {"os": inventory.os, "arch": platform.rpartition("/")[2], "worker-name": name}
    machine = Machine(
        id=worker_id,
        name=name,
        address=address,
        state=state,
        inventory=inventory,
        labels=built_in | dict(labels or {}),
        cordoned=cordoned or held_back,
        held_back=held_back,
        draining=draining,
        downloader_alive=downloader_alive,
        ram_total=inventory.memory_total,
        ram_free=inventory.memory_total - inventory.memory_reserved,
        platform=platform,
        incomplete=_incomplete(inventory),
        pools=tuple(Pool(kind, tuple(slot for slot in slots if slot.profile.type == kind)) for kind in kinds),
        make=_make_of(platform, inventory, slots),
        gpus={(slot.profile.type, slot.index): slot for slot in slots},
    )
    for model_id, kind, claim in claims:
        machine.promise(model_id, kind, claim)
    return machine


_MAKES: Final[dict[object, int]] = {}
MOST_MAKES: Final = 4096
"""More are forgotten, and get other numbers when they are seen again."""
_NEXT_MAKE: Final = count()


def _make_of(platform: str, inventory: Inventory, slots: tuple[GpuSlot, ...]) -> int:
    traits = tuple(
        (slot.profile, slot.unhealthy is None, slot.compute_capability, slot.runtime_version) for slot in slots
    )
    backends = (
        tuple(sorted((name, is_for_processors(version)) for name, version in inventory.backends.items()))
        if inventory.runtime == "process"
        else None
    )
    make = (platform, inventory.memory_total <= 0, inventory.runtime == "process", backends, traits)
    number = _MAKES.get(make)
    if number is None:
        if len(_MAKES) >= MOST_MAKES:
            _MAKES.clear()
        number = _MAKES[make] = next(_NEXT_MAKE)
    return number


def _incomplete(inventory: Inventory) -> tuple[str, int | None] | None:
    """The first thing that is missing."""
    for gpu in inventory.gpus:
        if gpu.memory_total <= 0:
            return ("memory_total", gpu.index)
    return ("memory_total", None) if inventory.memory_total <= 0 else None


def _slot(gpu: Gpu, name: str, inventory: Inventory) -> GpuSlot:
    return GpuSlot(
        index=gpu.index,
        profile=profile_of(gpu.type, name, gpu.memory_total, max(gpu.memory_total - inventory.vram_reserved, 0)),
        used_by_others=gpu.memory_used_by_others,
        unhealthy=gpu.unhealthy,
        island=gpu.island,
        compute_capability=gpu.compute_capability,
        runtime_version=gpu.runtime_version,
        network_up=gpu.network is None or gpu.network.up,
    )


def gpu_ids(machine: Machine) -> Iterator[str]:
    for pool in machine.pools:
        for gpu in pool.gpus:
            yield f"{machine.name}:{pool.type}:{gpu.index}"


def copy_of(
    machine: Machine, *, labels: Mapping[str, str] | None = None, cordoned: bool | None = None, others: bool = True
) -> Machine:
    inventory = machine.inventory
    if not others:
        gpus = tuple(gpu.model_copy(update={"memory_used_by_others": 0}) for gpu in inventory.gpus)
        inventory = inventory.model_copy(update={"gpus": gpus})
    copy = machine_of(
        machine.id,
        machine.name,
        machine.address,
        machine.state,
        inventory,
        labels=machine.labels if labels is None else labels,
        cordoned=machine.cordoned if cordoned is None else cordoned,
        cordon_unhealthy=machine.held_back,
        draining=machine.draining,
        downloader_alive=machine.downloader_alive,
    )
    copy.ram_free, copy.claims, copy.replicas = machine.ram_free, machine.claims, dict(machine.replicas)
    for key, gpu in machine.gpus.items():
        twin = copy.gpus[key]
        twin.promise(gpu.claimed)
        twin.claims = gpu.claims
    return copy

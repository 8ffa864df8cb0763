"""The fast path: an index over all GPUs, brought up to date by each event, for requests that fit on one worker.

It answers "placed there", which is then what `place` answers, or "ask `place`" (None). Sets of workers are the bits of one
integer, in the order of their names, so the lowest bit is the first name. For each profile of GPU and each k there is, by
how much is free of the k-th freest GPU, the set of workers: what fits is a few unions, and what is liked best a few
intersections in the order of the preferences. Workers whose GPUs are not alike are asked one by one.
"""

from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from schemas.ids import ModelId, WorkerId
from schemas.models import ModelWeights
from services.scheduler.domain.candidate import MOST_LIKENESSES, Candidate, Request
from services.scheduler.domain.machines import Machines
from services.scheduler.domain.placement import Placed, best_of, placed_at, wrong_with
from services.scheduler.domain.rules import OF_ITS_LIKE, OF_ITS_OWN
from services.scheduler.domain.shapes import Layout
from services.scheduler.domain.snapshot import Machine, Pool, Profile
from services.scheduler.domain.takes import Take

MOST_IRREGULAR: Final = 64
MOST_TRIES: Final = 16
MOST_GPUS: Final = 64
MOST_CHANGES: Final = 50_000
"""Of workers' standing, that the journal holds."""
STEP: Final = 10
"""Percents of one coarse level."""


class Levels:
    """Sets of workers by a number of bytes: exact, and by percent for quick unions."""

    __slots__ = ("_coarse", "_fine", "_total", "values")

    def __init__(self, total: int) -> None:
        self._total = total
        self._fine = [0] * 101
        self._coarse = [0] * (100 // STEP + 1)
        self.values: dict[int, int] = {}

    def add(self, value: int, bit: int) -> None:
        level = value * 100 // self._total
        self._fine[level] |= bit
        self._coarse[level // STEP] |= bit
        self.values[value] = self.values.get(value, 0) | bit

    def remove(self, value: int, bit: int) -> None:
        left = self.values[value] & ~bit
        if left:
            self.values[value] = left
        else:
            del self.values[value]
        level = value * 100 // self._total
        self._fine[level] &= ~bit
        coarse = level // STEP
        self._coarse[coarse] &= ~bit

    def at_least(self, value: int, among: int) -> int:
        """Those of `among` that have so many bytes."""
        level = value * 100 // self._total
        if level > 100:
            return 0
        found = 0
        coarse = level // STEP
        for each in self._coarse[coarse + 1 :]:
            found |= each
        for each in self._fine[level + 1 : (coarse + 1) * STEP]:
            found |= each
        found &= among
        boundary = self._fine[level] & among
        if boundary:
            for exact, workers in self.values.items():
                if exact >= value and exact * 100 // self._total == level:
                    found |= workers & boundary
        return found

    def highest(self, among: int) -> tuple[int, int]:
        """The highest percent that any of `among` has, and who has it. `among` is not empty, and all of it is here."""
        for coarse in range(100 // STEP, -1, -1):
            if self._coarse[coarse] & among:
                for level in range(min(coarse * STEP + STEP - 1, 100), coarse * STEP - 1, -1):
                    if found := self._fine[level] & among:
                        return level, found
        raise AssertionError("nobody of them is here")


@dataclass(slots=True)
class Sheaf:
    """All workers that have GPUs of one profile, and no others."""

    profile: Profile
    members: int = 0
    largest: int = 0
    """GPUs of the worker with the most."""
    kth: list[Levels] = field(default_factory=list[Levels])
    """By what is free of the k-th freest GPU; k from 1."""
    free: dict[int, int] = field(default_factory=dict[int, int])
    """Bytes that are free of some GPU → workers that have one such."""
    sizes: list[int] = field(default_factory=list[int])
    """Those bytes, sorted."""
    loads: dict[int, int] = field(default_factory=dict[int, int])
    """Load → workers."""


@dataclass(slots=True)
class Entry:
    """One worker as it stands in its sheaf."""

    bit: int
    sheaf: Sheaf | None
    """None: it has no GPU, or its GPUs are not alike."""
    frees: tuple[int, ...] = ()
    load: int = 0
    replicas: dict[ModelId, int] = field(default_factory=dict[ModelId, int])


@dataclass(slots=True)
class Known:
    """What is kept of one model's request."""

    request: Request
    weights: ModelWeights | None
    """What it was known to weigh."""
    is_wrong: bool = False
    """No worker could take it."""
    eligible: int = 0
    """Workers that no standing rule objects to."""
    at: int = 0
    """How much of the journal it has seen."""
    generation: int = -1
    others: int = 0
    """Workers on which the model weighs something else."""
    files: int = 0
    """Workers that have its files."""
    likenesses: dict[object, bool] = field(default_factory=dict[object, bool])
    """Does no rule object to workers of this likeness?"""
    ways: dict[Profile, tuple[Take, ...]] = field(default_factory=dict[Profile, tuple[Take, ...]])


class GpuIndex:
    def __init__(self, machines: Machines) -> None:
        self._machines = machines
        self._order: list[Machine] = []
        self._entries: dict[WorkerId, Entry] = {}
        self._sheaves: dict[Profile, Sheaf] = {}
        self._irregular = 0
        self._journal: list[WorkerId] = []
        """Workers whose standing changed."""
        self._generation = 0
        """Raised whenever all bits are given anew."""
        self._known: dict[ModelId, Known] = {}
        self._hosts: dict[ModelId, dict[int, int]] = {}
        """Model → instances of it on a worker → workers."""

    # -- what changed -------------------------------------------------------------------------------------------------

    def _catch_up(self) -> None:
        machines = self._machines
        if machines.members_changed or not self._order:
            self._renumber()
            return
        if machines.standing:
            for worker_id in machines.standing:
                self._replace(worker_id)
                self._journal.append(worker_id)
            machines.standing.clear()
            self._forget_what_nobody_has()
        for worker_id in machines.dirty:
            self._refresh(worker_id)
        machines.dirty.clear()

    def _renumber(self) -> None:
        machines = self._machines
        self._order = list(machines.in_order())
        self._entries, self._sheaves, self._hosts = {}, {}, {}
        self._irregular, self._journal = 0, []
        self._generation += 1
        for position, machine in enumerate(self._order):
            self._insert(machine, 1 << position)
        machines.members_changed = False
        machines.standing.clear()
        machines.dirty.clear()

    def _forget_what_nobody_has(self) -> None:
        """Whatever workers report, and however often, no more is kept than there are workers and models."""
        for sheaf in [sheaf for sheaf in self._sheaves.values() if not sheaf.members]:
            del self._sheaves[sheaf.profile]
            for known in self._known.values():
                known.ways.pop(sheaf.profile, None)
        if len(self._journal) > MOST_CHANGES:
            self._journal.clear()
            self._known.clear()  # each model is looked at anew when it is asked for

    def _replace(self, worker_id: WorkerId) -> None:
        machine = self._machines.get(worker_id)
        entry = self._entries.get(worker_id)
        if machine is None or entry is None:
            raise AssertionError(f"{worker_id} came or went without being noticed")
        self._order[entry.bit.bit_length() - 1] = machine
        self._take_out(entry)
        self._irregular &= ~entry.bit
        self._insert(machine, entry.bit)

    def _insert(self, machine: Machine, bit: int) -> None:
        pool = _regular(machine)
        entry = self._entries[machine.id] = Entry(bit, None)
        if pool is None:
            if machine.pools:
                self._irregular |= bit
        else:
            profile = pool.gpus[0].profile
            sheaf = self._sheaves.get(profile)
            if sheaf is None:
                sheaf = self._sheaves[profile] = Sheaf(profile)
            sheaf.members |= bit
            while len(sheaf.kth) < len(pool.gpus):
                sheaf.kth.append(Levels(profile.memory_total))
            sheaf.largest = max(sheaf.largest, len(pool.gpus))
            entry.sheaf = sheaf
        self._put_in(entry, machine)

    def _put_in(self, entry: Entry, machine: Machine) -> None:
        bit = entry.bit
        entry.replicas = dict(machine.replicas)
        for model_id, count in entry.replicas.items():
            hosts = self._hosts.setdefault(model_id, {})
            hosts[count] = hosts.get(count, 0) | bit
        sheaf = entry.sheaf
        if sheaf is None:
            return
        pool = machine.pools[0]
        entry.frees = tuple(sorted([gpu.free for gpu in pool.gpus], reverse=True))
        for levels, value in zip(sheaf.kth, entry.frees, strict=False):
            levels.add(value, bit)
        for value in set(entry.frees):
            workers = sheaf.free.get(value)
            if workers is None:
                insort(sheaf.sizes, value)
                workers = 0
            sheaf.free[value] = workers | bit
        entry.load = pool.claims * 10_000 // len(pool.gpus)
        sheaf.loads[entry.load] = sheaf.loads.get(entry.load, 0) | bit

    def _take_out(self, entry: Entry) -> None:
        bit = entry.bit
        for model_id, count in entry.replicas.items():
            _clear(self._hosts[model_id], count, bit)
        sheaf = entry.sheaf
        if sheaf is None:
            return
        sheaf.members &= ~bit
        for levels, value in zip(sheaf.kth, entry.frees, strict=False):
            levels.remove(value, bit)
        for value in set(entry.frees):
            left = sheaf.free[value] & ~bit
            if left:
                sheaf.free[value] = left
            else:
                del sheaf.free[value]
                del sheaf.sizes[bisect_left(sheaf.sizes, value)]
        _clear(sheaf.loads, entry.load, bit)

    def _refresh(self, worker_id: WorkerId) -> None:
        """What is promised on the worker is not what it was."""
        machine, entry = self._machines.get(worker_id), self._entries.get(worker_id)
        if machine is None or entry is None:
            return
        bit, sheaf = entry.bit, entry.sheaf
        for model_id in entry.replicas.keys() | machine.replicas.keys():
            before, after = entry.replicas.get(model_id, 0), machine.replicas.get(model_id, 0)
            if before != after:
                hosts = self._hosts.setdefault(model_id, {})
                if before:
                    _clear(hosts, before, bit)
                if after:
                    hosts[after] = hosts.get(after, 0) | bit
                    entry.replicas[model_id] = after
                else:
                    entry.replicas.pop(model_id, None)
        if sheaf is None:
            return
        pool = machine.pools[0]
        frees = tuple(sorted([gpu.free for gpu in pool.gpus], reverse=True))
        if frees != entry.frees:
            for levels, was, now in zip(sheaf.kth, entry.frees, frees, strict=False):
                if was != now:
                    levels.remove(was, bit)
                    levels.add(now, bit)
            before_set, after_set = set(entry.frees), set(frees)
            for value in before_set - after_set:
                left = sheaf.free[value] & ~bit
                if left:
                    sheaf.free[value] = left
                else:
                    del sheaf.free[value]
                    del sheaf.sizes[bisect_left(sheaf.sizes, value)]
            for value in after_set - before_set:
                workers = sheaf.free.get(value)
                if workers is None:
                    insort(sheaf.sizes, value)
                    workers = 0
                sheaf.free[value] = workers | bit
            entry.frees = frees
        load = pool.claims * 10_000 // len(pool.gpus)
        if load != entry.load:
            _clear(sheaf.loads, entry.load, bit)
            sheaf.loads[load] = sheaf.loads.get(load, 0) | bit
            entry.load = load

    # -- answers ------------------------------------------------------------------------------------------------------

    def place(self, request: Request, *, runners_up: int | None = None) -> Placed | None:
        """None: ask `place`. `runners_up`: so many are told with `why`; None: no `why` at all, which is faster."""
        if request.model_id is None or request.selected is not None or request.wanted.problems or request.not_on:
            return None
        self._catch_up()
        known = self._know(request)
        if known.is_wrong:
            return None
        layouts: list[Layout] = []
        one_by_one = self._irregular | known.others
        among = known.eligible & ~one_by_one
        tries = 0
        fitting = 0
        while len(layouts) <= (runners_up or 0):
            found = self._best(known, among)
            if found is None:
                break
            profile, take, bit, count = found
            if not layouts:
                fitting = count
            machine = self._order[bit.bit_length() - 1]
            among &= ~bit
            layout = self._layout(request, machine, profile, take)
            if layout is None:
                tries += 1
                if tries > MOST_TRIES:
                    return None
                continue
            layouts.append(layout)
        irregular = known.eligible & one_by_one
        if irregular:
            if irregular.bit_count() > MOST_IRREGULAR:
                return None
            others = list(self._one_by_one(request, irregular))
            fitting += len(others)
            layouts += others
        if not layouts or any(layout.take.gpu_layers is not None or layout.type is None for layout in layouts[:1]):
            return None
        if runners_up is None and len(layouts) == 1:
            return placed_at(request, layouts[0], None)
        return best_of(request, layouts, fitting=fitting, runners_up=runners_up or 0)

    def _layout(self, request: Request, machine: Machine, profile: Profile, take: Take) -> Layout | None:
        """As the specification lays it out there; None where RAM is short."""
        candidate = Candidate(request, machine)
        layout = candidate.layout
        if layout is None or max(machine.ram_free, 0) < layout.take.ram_bytes:
            return None
        if layout.take.gpus != take.gpus or layout.gpus[0].profile is not profile:
            raise AssertionError(f"the index and the specification differ about {machine.id}")
        return layout

    def _one_by_one(self, request: Request, workers: int) -> Iterator[Layout]:
        while workers:
            bit = workers & -workers
            workers ^= bit
            machine = self._order[bit.bit_length() - 1]
            layout = Candidate(request, machine).layout
            if layout is not None and max(machine.ram_free, 0) >= layout.take.ram_bytes:
                yield layout

    def _know(self, request: Request) -> Known:
        model_id = request.model_id
        if model_id is None:
            raise AssertionError("asked for no model")
        known = self._known.get(model_id)
        if (
            known is None
            or known.request is not request
            or known.weights is not request.known
            or known.generation != self._generation
        ):
            known = self._known[model_id] = Known(
                request,
                request.known,
                bool(wrong_with(request, ())),
                generation=self._generation,
                at=len(self._journal),
            )
            for machine in self._order:
                known.eligible |= self._standing(known, machine)
                if machine.id in request.files_on:
                    known.files |= self._entries[machine.id].bit
        elif known.at < len(self._journal):
            for worker_id in set(self._journal[known.at :]):
                bit = self._entries[worker_id].bit
                machine = self._order[bit.bit_length() - 1]
                known.eligible = (known.eligible & ~bit) | self._standing(known, machine)
            known.at = len(self._journal)
        return known

    def look_again(self, model_id: ModelId, worker_id: WorkerId) -> None:
        """What is known of the model on this worker changed."""
        known, entry = self._known.get(model_id), self._entries.get(worker_id)
        if known is not None and entry is not None:
            bit = entry.bit
            machine = self._order[bit.bit_length() - 1]
            known.eligible = (known.eligible & ~bit) | self._standing(known, machine)
            known.files = known.files | bit if worker_id in known.request.files_on else known.files & ~bit

    def forget(self, model_id: ModelId) -> None:
        self._known.pop(model_id, None)
        if not self._hosts.get(model_id):
            self._hosts.pop(model_id, None)

    def _standing(self, known: Known, machine: Machine) -> int:
        """The worker's bit, when no standing rule objects to it."""
        candidate = Candidate(known.request, machine)
        bit = self._entries[machine.id].bit
        known.others = known.others & ~bit if candidate.estimate is known.request.usual else known.others | bit
        likeness = machine.likeness
        fine = known.likenesses.get(likeness)
        if fine is None:
            if len(known.likenesses) >= MOST_LIKENESSES:
                known.likenesses.clear()
            fine = known.likenesses[likeness] = all(rule(candidate) is None for rule in OF_ITS_LIKE)
        if not fine:
            return 0
        for rule in OF_ITS_OWN:
            if rule(candidate) is not None:
                return 0
        return bit

    def _ways(self, known: Known, sheaf: Sheaf) -> tuple[Take, ...]:
        ways = known.ways.get(sheaf.profile)
        if ways is None:
            usual = known.request.usual
            ways = usual.takes(sheaf.profile, min(sheaf.largest, MOST_GPUS)).ways if usual is not None else ()
            known.ways[sheaf.profile] = ways = tuple(way for way in ways if way.gpu_layers is None)
        return ways

    def _best(self, known: Known, among: int) -> tuple[Profile, Take, int, int] | None:
        """The place that is liked best: profile, way, worker; and how many would do with as few GPUs."""
        by_count: dict[int, list[tuple[Sheaf, Take]]] = {}
        for sheaf in self._sheaves.values():
            if sheaf.members & among:
                for way in self._ways(known, sheaf):
                    if way.gpus <= len(sheaf.kth):
                        by_count.setdefault(way.gpus, []).append((sheaf, way))
        for count in sorted(by_count):
            fitting = [
                (sheaf, way, found)
                for sheaf, way in by_count[count]
                if (found := sheaf.kth[count - 1].at_least(way.vram_bytes, among))
            ]
            if fitting:
                total = sum(found.bit_count() for _, _, found in fitting)
                sheaf, way, bit = (
                    self._tightest(known, fitting) if known.request.tight else self._spread(known, fitting)
                )
                return sheaf.profile, way, bit, total
        return None

    def _spread(self, known: Known, fitting: Sequence[tuple[Sheaf, Take, int]]) -> tuple[Sheaf, Take, int]:
        fitting = self._apart(known, fitting)
        loads = sorted({load for sheaf, _, _ in fitting for load in sheaf.loads})
        for load in loads:
            lightest = [
                (sheaf, way, left) for sheaf, way, found in fitting if (left := found & sheaf.loads.get(load, 0))
            ]
            if lightest:
                lightest = _with_files(known, lightest)
                freest = [(*sheaf.kth[way.gpus - 1].highest(left), sheaf, way) for sheaf, way, left in lightest]
                most = max(each[0] for each in freest)
                return _first([(sheaf, way, left) for level, left, sheaf, way in freest if level == most])
        raise AssertionError("a worker has no load")

    def _tightest(self, known: Known, fitting: Sequence[tuple[Sheaf, Take, int]]) -> tuple[Sheaf, Take, int]:
        tight: list[tuple[int, Sheaf, Take, int]] = []
        for sheaf, way, found in fitting:
            level, left = _least_left(sheaf, way, found)
            tight.append((level, sheaf, way, left))
        least = min(each[0] for each in tight)
        best = self._apart(known, [(sheaf, way, left) for level, sheaf, way, left in tight if level == least])
        return _first(_with_files(known, best))

    def _apart(self, known: Known, fitting: Sequence[tuple[Sheaf, Take, int]]) -> Sequence[tuple[Sheaf, Take, int]]:
        """Where the fewest instances of the model are."""
        model_id = known.request.model_id
        hosts = self._hosts.get(model_id) if model_id is not None else None
        if not hosts:
            return fitting
        taken = 0
        for workers in hosts.values():
            taken |= workers
        free = [(sheaf, way, left) for sheaf, way, found in fitting if (left := found & ~taken)]
        if free:
            return free
        for count in sorted(hosts):
            few = [(sheaf, way, left) for sheaf, way, found in fitting if (left := found & hosts[count])]
            if few:
                return few
        raise AssertionError("a worker hosts neither none nor some")


def _least_left(sheaf: Sheaf, way: Take, found: int) -> tuple[int, int]:
    """As the preference `tightest` counts: the least, and who has it."""
    if way.gpus > 1:
        for spare in range(len(sheaf.kth) - way.gpus + 1):
            position = way.gpus + spare
            more = sheaf.kth[position].at_least(way.vram_bytes, found) if position < len(sheaf.kth) else 0
            if exactly := found & ~more:
                return spare, exactly
        raise AssertionError("more GPUs qualify than there are")
    total = sheaf.profile.memory_total
    best: int | None = None
    workers = 0
    for position in range(bisect_left(sheaf.sizes, way.vram_bytes), len(sheaf.sizes)):
        value = sheaf.sizes[position]
        level = (value - way.vram_bytes) * 100 // total
        if best is not None and level > best:
            break
        if here := sheaf.free[value] & found:
            best = level
            workers |= here
    if best is None:
        raise AssertionError("it fits, and no GPU is large enough")
    return best, workers


def _with_files(known: Known, fitting: Sequence[tuple[Sheaf, Take, int]]) -> list[tuple[Sheaf, Take, int]]:
    if known.files:
        there = [(sheaf, way, left) for sheaf, way, found in fitting if (left := found & known.files)]
        if there:
            return there
    return list(fitting)


def _first(fitting: Sequence[tuple[Sheaf, Take, int]]) -> tuple[Sheaf, Take, int]:
    """By name."""
    sheaf, way, bit = min(((sheaf, way, found & -found) for sheaf, way, found in fitting), key=lambda each: each[2])
    return sheaf, way, bit


def _regular(machine: Machine) -> Pool | None:
    """Its one pool, when an instance could take any of its GPUs as well as any other."""
    if len(machine.pools) != 1:
        return None
    (pool,) = machine.pools
    if not pool.all_usable or len(pool.ages) > 1 or len(pool.gpus) > MOST_GPUS:
        return None
    if any(gpu.profile is not pool.gpus[0].profile for gpu in pool.gpus):
        return None
    islands = {gpu.island for gpu in pool.gpus}
    return pool if len(islands) == 1 else None


def _clear(sets: dict[int, int], key: int, bit: int) -> None:
    left = sets[key] & ~bit
    if left:
        sets[key] = left
    else:
        del sets[key]

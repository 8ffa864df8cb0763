"""Every life that an instance can have, tried out on the real decider.

A small world: two workers, one model that wants one instance. From each situation that was not met before, everything
that can happen next is tried. What the decider says is folded, and each change of the instance's state is noted.
A situation is coarse and a life is short, so that it takes a second; a finer search (23,000 lives) found no more.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from schemas.asks import ModelInspection
from schemas.facts import InstanceDeletionRequested, ModelCreated, ModelScaled, WorkerRemovalRequested
from schemas.facts.base import Fact
from schemas.facts.instance import InstanceFact
from schemas.ids import InstanceId, ModelId, WorkerId
from schemas.models import Inventory, ModelSpec, ModelWeights
from schemas.reasons import EngineExited, ModelNotFound
from schemas.reports import (
    EnginePhase,
    EngineReported,
    EngineSeen,
    FilePhase,
    FileReported,
    FileSeen,
    WorkerLeaving,
    WorkerObserved,
)
from schemas.sources import LocalPath
from services.scheduler.domain.assignments import assigned_to
from services.scheduler.domain.core import Core, Decision, Now
from services.scheduler.domain.draining import is_draining
from services.scheduler.domain.fleet import Fleet, evolve
from services.scheduler.domain.instance import Instance, placement_of
from services.scheduler.domain.policy import Policy

START: Final = datetime(2026, 1, 1, tzinfo=UTC)
MODEL: Final = ModelId("m-1")
ALPHA: Final = WorkerId("w-alpha")
BETA: Final = WorkerId("w-beta")
POLICY: Final = Policy()
LONGEST: Final = 5
"""Steps of a life. The last ones bring changes that no shorter life has; lives of eight steps brought no more."""


@dataclass(frozen=True, slots=True)
class Change:
    """One fact moved one instance. None: it was not there, or is no more."""

    before: str | None
    fact: type[InstanceFact]
    after: str | None


@dataclass(slots=True)
class World:
    core: Core = field(init=False)
    told: Fleet = field(default_factory=Fleet)
    """What the facts alone add up to."""
    seconds: float = 0.0
    counter: int = 0
    silent: set[WorkerId] = field(default_factory=set[WorkerId])
    engines: dict[tuple[InstanceId, int, WorkerId], EnginePhase] = field(
        default_factory=dict[tuple[InstanceId, int, WorkerId], EnginePhase]
    )
    changes: set[Change] = field(default_factory=set[Change])
    seen: dict[str, Instance] = field(default_factory=dict[str, Instance])
    """An instance in each state."""

    def __post_init__(self) -> None:
        self.core = Core(Fleet(), POLICY, self.now)
        spec = ModelSpec(name="m", source=LocalPath(path="/m.gguf"))
        self.wish(ModelCreated(model_id=MODEL, spec=spec))

    @property
    def now(self) -> Now:
        return Now(START + timedelta(seconds=self.seconds), self.seconds)

    def take(self, decision: Decision) -> None:
        for fact in decision.facts:
            self._fold(fact)
        for worker_id in decision.workers:
            document = assigned_to(self.core.fleet, worker_id, 1)
            attempts = [(each.instance_id, each.attempt) for each in document.instances]
            self.core.published(worker_id, attempts, document.election, document.seq)

    def wish(self, fact: Fact) -> None:
        evolve(self.core.fleet, fact, self.core.fleet.seq, self.now.at)
        self._fold(fact)
        self.take(self.core.wished(fact, self.now))

    def hear(self, kind: type[Any], worker_id: WorkerId, **says: Any) -> None:
        self.counter += 1
        identity = {"worker_id": worker_id, "boot_id": "b", "counter": self.counter, "observed_at": self.now.at}
        self.take(self.core.heard(kind.model_validate(identity | says), self.now))

    def pass_time(self, seconds: float) -> None:
        """Whoever is not silent goes on beating."""
        self.seconds += seconds
        for worker_id in sorted(self.core.fleet.workers):
            if worker_id not in self.silent:
                self.take(self.core.beat(worker_id, "agent", self.now))
                self.take(self.core.beat(worker_id, "downloader", self.now))
        self.take(self.core.time_passed(self.now))

    def _fold(self, fact: Fact) -> None:
        instance_id = fact.instance_id if isinstance(fact, InstanceFact) else InstanceId("none")
        before = self.told.instances.get(instance_id)
        evolve(self.told, fact, self.told.seq, self.now.at)
        after = self.told.instances.get(instance_id)
        if isinstance(fact, InstanceFact):
            self.changes.add(Change(before and before.state.kind, type(fact), after and after.state.kind))
        if after is not None:
            self.seen.setdefault(after.state.kind, after)

    def instances(self) -> list[Instance]:
        return sorted(self.core.fleet.instances.values(), key=lambda instance: instance.id)

    def situation(self) -> object:
        """What matters for what can happen next; times, counts and claims left out."""
        fleet = self.core.fleet
        return (
            tuple((worker.id, worker.state) for worker in fleet.workers.values()),
            tuple(
                (
                    instance.state.kind,
                    (placement := placement_of(instance.state)) and placement.leader.worker_id,
                    getattr(instance.state, "evictable", None),
                    getattr(instance.state, "running", None) is not None,
                    getattr(instance.state, "explained", None),
                    is_draining(instance),
                )
                for instance in self.instances()
            ),
        )


Step = Callable[[World], None]


def joins(worker_id: WorkerId) -> Step:
    """A picture that is true: the worker's engines, as of the newest assignment."""

    def step(world: World) -> None:
        world.silent.discard(worker_id)
        engines = [
            EngineSeen(instance_id=instance_id, attempt=attempt, phase=phase, ports=(4000,))
            for (instance_id, attempt, where), phase in sorted(world.engines.items())
            if where == worker_id
        ]
        world.hear(
            WorkerObserved,
            worker_id,
            name=worker_id,
            address="127.0.0.1",
            agent_version="1",
            inventory=Inventory(
                os="linux", arch="amd64", cpu_count=1, memory_total=2**34, backends={"llama.cpp": None}
            ),
            engines=engines,
            assigned_election=1,
            assigned_seq=world.core.fleet.seq,
        )
        world.take(world.core.beat(worker_id, "downloader", world.now))

    return step


def loses_engines(world: World) -> None:
    world.engines = {key: phase for key, phase in world.engines.items() if key[2] != ALPHA}
    joins(ALPHA)(world)


def inspected(*, usable: bool) -> Step:
    weights = ModelWeights(format="gguf", weight_bytes=2**30, files=("/m.gguf",))
    answer = ModelInspection(weights=weights) if usable else ModelInspection(reasons=(ModelNotFound(path="/m.gguf"),))

    def step(world: World) -> None:
        for question in world.core.questions(world.now):
            world.take(world.core.inspected(question, answer, world.now))

    return step


def engine(phase: EnginePhase) -> Step:
    """About the newest attempt of each instance, wherever it was placed."""

    def step(world: World) -> None:
        for instance in world.instances():
            if (placement := placement_of(instance.state)) is None:
                continue
            worker_id = placement.leader.worker_id
            key = (instance.id, placement.attempt, worker_id)
            if phase in ("exited", "stopped"):
                world.engines.pop(key, None)
            else:
                world.engines[key] = phase
            reasons = (EngineExited(exit_code=1),) if phase == "exited" else ()
            seen = EngineSeen(
                instance_id=instance.id, attempt=placement.attempt, phase=phase, reasons=reasons, ports=(4000,)
            )
            world.hear(EngineReported, worker_id, engine=seen)

    return step


def file(phase: FilePhase) -> Step:
    def step(world: World) -> None:
        for each in sorted(world.core.fleet.files.values(), key=lambda f: f.id):
            reasons = (ModelNotFound(path="/m.gguf"),) if phase == "failed" else ()
            seen = FileSeen(file_id=each.id, wanted=each.wanted, phase=phase, reasons=reasons, paths=("/m.gguf",))
            world.hear(FileReported, each.worker_id, file=seen)

    return step


def falls_silent(world: World) -> None:
    world.silent.add(ALPHA)
    world.pass_time(POLICY.lease_seconds + 1)


def leaves(world: World) -> None:
    world.engines = {key: phase for key, phase in world.engines.items() if key[2] != ALPHA}
    world.silent.add(ALPHA)
    world.hear(WorkerLeaving, ALPHA, engines_stopped=True)


def deadline_passes(world: World) -> None:
    at = world.core.next_deadline()
    if at is not None:
        world.pass_time(max(at - world.seconds, 0.0))


def wishes(fact: Fact) -> Step:
    def step(world: World) -> None:
        if not world.core.fleet.wishes[MODEL].deleted:
            world.wish(fact)

    return step


def deletes_instances(world: World) -> None:
    for instance in world.instances():
        world.wish(InstanceDeletionRequested(instance_id=instance.id))


def removes_the_worker(world: World) -> None:
    if ALPHA in world.core.fleet.workers:
        world.wish(WorkerRemovalRequested(worker_id=ALPHA))


PHASES: Final[tuple[EnginePhase, ...]] = ("accepted", "loading", "healthy", "unhealthy", "exited", "stopped")
STEPS: Final[tuple[Step, ...]] = (
    joins(ALPHA), joins(BETA), inspected(usable=True), inspected(usable=False),
    *(engine(phase) for phase in PHASES), file("ready"), file("failed"),
    loses_engines, leaves, falls_silent, deadline_passes,
    wishes(ModelScaled(model_id=MODEL, name="m", replicas=0)), deletes_instances, removes_the_worker,
)  # fmt: skip


def lived(steps: tuple[Step, ...]) -> World:
    world = World()
    for step in steps:
        step(world)
    return world


def all_lives() -> Iterator[World]:
    """Breadth first, so the shortest life that leads to a situation is the one that goes on."""
    met: set[object] = set()
    lives: list[tuple[Step, ...]] = [()]
    for _ in range(LONGEST):
        longer: list[tuple[Step, ...]] = []
        for life in lives:
            for step in STEPS:
                world = lived((*life, step))
                yield world
                situation = world.situation()
                if situation not in met and len(world.core.fleet.instances) == 1:
                    met.add(situation)
                    longer.append((*life, step))
        lives = longer

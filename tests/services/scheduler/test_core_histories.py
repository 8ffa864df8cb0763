"""Random histories through the decider: whatever is heard, in whatever order, what must hold holds.

The world here lies as real ones do: workers vanish and return, reports come late, twice, for old attempts, engines die.
"""

import os
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from schemas.asks import ModelInspection
from schemas.facts import (
    InstanceDeletionRequested,
    InstanceScheduled,
    ModelCreated,
    ModelDeleted,
    ModelFileDeleting,
    ModelFileDeletionRefused,
    ModelFileDeletionRequested,
    ModelFileRequested,
    ModelFileWanted,
    ModelScaled,
    WorkerRemovalRequested,
)
from schemas.facts.base import Fact
from schemas.ids import InstanceId, ModelId, WorkerId
from schemas.models import Gpu, Inventory, ModelSpec, ModelWeights, Pinned
from schemas.reasons import EngineExited, HubUnreachable
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
from schemas.sources import HuggingFace, LocalPath, file_id_of
from services.scheduler.adapters.snapshots import dump, parse
from services.scheduler.domain.assignments import assigned_to
from services.scheduler.domain.core import Core, Decision, Now, Question
from services.scheduler.domain.fleet import Fleet, evolve
from services.scheduler.domain.instance import (
    Downloading,
    Failed,
    Pending,
    Running,
    Scheduled,
    Starting,
    Stopping,
    Unreachable,
)
from services.scheduler.domain.placement import Refused, place
from services.scheduler.domain.placing import Placing
from services.scheduler.domain.policy import Policy

START = datetime(2026, 11, 23, tzinfo=UTC)
GIB = 2**30
MODELS = [ModelId("m-a"), ModelId("m-b"), ModelId("m-h")]
"""The last one's files are a hub's."""
WORKERS = [WorkerId("w-1"), WorkerId("w-2"), WorkerId("w-3")]
SIZES = {ModelId("m-a"): 3 * GIB, ModelId("m-b"): 6 * GIB, ModelId("m-h"): 2 * GIB}
HUB = HuggingFace(repo_id="muster/tiny")
COMMITS = ("c1" * 20, "c2" * 20)
CUT_OFF = WORKERS[1]
"""Does not reach the hub."""


@dataclass
class World:
    """A log, a decider, and workers that may or may not tell the truth."""

    log: list[tuple[Fact, int, datetime]] = field(default_factory=list[tuple[Fact, int, datetime]])
    seconds: float = 0.0
    counters: dict[str, int] = field(default_factory=dict[str, int])
    dies_after: int | None = None
    """The next decision of more facts than this is cut off here: its scheduler dies, another one takes over."""
    dies_at: tuple[int, int] | None = None
    """The decision of this number is cut off after so many facts."""
    decided: list[int] = field(default_factory=list[int])
    """How many facts each decision had."""
    commit: str = COMMITS[0]
    """What the hub's branch names."""
    reached: frozenset[WorkerId] = frozenset(WORKERS) - {CUT_OFF}
    """By whom the hub is reached."""
    core: Core = field(init=False)

    def __post_init__(self) -> None:
        self.core = Core(Fleet(), Policy(), self.now())

    def now(self) -> Now:
        return Now(START + timedelta(seconds=self.seconds), 1000.0 + self.seconds)

    def append(self, decision: Decision) -> Decision:
        if self.dies_at is not None and self.dies_at[0] == len(self.decided):
            self.dies_after = self.dies_at[1]
        self.decided.append(len(decision.facts))
        if self.dies_after is not None and len(decision.facts) > self.dies_after:
            decision, self.dies_after = Decision(decision.facts[: self.dies_after]), None
            self.note(decision.facts)
            self.take_over()
            return decision
        self.note(decision.facts)
        if decision.facts:
            self.core.fleet.seq = len(self.log)
        for worker_id in decision.workers:
            document = assigned_to(self.core.fleet, worker_id, 1)
            attempts = [(i.instance_id, i.attempt) for i in document.instances]
            self.core.published(worker_id, attempts, document.election, document.seq)
        for question in self.core.questions(self.now()):
            self.append(self.core.inspected(question, self.inspect(question), self.now()))
        return decision

    def inspect(self, question: Question) -> ModelInspection:
        size, source = SIZES[question.model_id], question.about.source
        pinned: tuple[Pinned, ...] = ()
        if not isinstance(source, LocalPath):
            if question.worker_id not in self.reached:
                return ModelInspection(reasons=(HubUnreachable(host="hub", problem="no route"),))
            pinned = (Pinned(source=source, commit=self.commit, bytes=size),)
        return ModelInspection(weights=ModelWeights(format="gguf", weight_bytes=size, files=("/m",), pinned=pinned))

    def note(self, facts: Iterable[Fact]) -> None:
        for fact in facts:
            self.log.append((fact, len(self.log) + 1, self.now().at))

    def wish(self, fact: Fact) -> None:
        self.note([fact])
        evolve(self.core.fleet, fact, len(self.log), self.now().at)
        self.append(self.core.wished(fact, self.now()))

    def identity(self, worker_id: WorkerId) -> dict[str, object]:
        self.counters[worker_id] = self.counters.get(worker_id, 0) + 1
        return {
            "worker_id": worker_id,
            "boot_id": "b",
            "counter": self.counters[worker_id],
            "observed_at": self.now().at,
        }

    def take_over(self) -> None:
        """Another scheduler folds the log and goes on."""
        self.core = Core(self.replayed(), Policy(), self.now())
        self.append(self.core.took_over(self.now()))
        check_nothing_is_half_done(self.core.fleet)

    def replayed(self) -> Fleet:
        fleet = Fleet()
        for fact, sequence, at in self.log:
            evolve(fleet, fact, sequence, at)
        return fleet


def spec(name: str, replicas: int) -> ModelSpec:
    source = HUB if name == "h" else LocalPath(path=f"/{name}")
    return ModelSpec(name=name, replicas=replicas, source=source, backend_parameters=("--ctx-size=1",))


def inventory(worker_id: WorkerId) -> Inventory:
    gpus = (Gpu(index=0, vendor="nvidia", type="cuda", name="x", memory_total=8 * GIB),) if worker_id == "w-3" else ()
    return Inventory(
        os="linux", arch="amd64", cpu_count=4, memory_total=8 * GIB, gpus=gpus, backends={"llama.cpp": "1"}
    )


# -- what can happen ------------------------------------------------------------------------------------------------------


def create(world: World, n: int) -> None:
    model = MODELS[n % 3]
    if model not in world.core.fleet.wishes:
        world.wish(ModelCreated(model_id=model, spec=spec(model.removeprefix("m-"), n % 4)))
    elif not world.core.fleet.wishes[model].deleted:
        world.wish(ModelScaled(model_id=model, name=world.core.fleet.wishes[model].spec.name, replicas=n % 5))


def delete(world: World, n: int) -> None:
    model = MODELS[n % 3]
    if (wish := world.core.fleet.wishes.get(model)) and not wish.deleted and n % 7 == 0:
        world.wish(ModelDeleted(model_id=model, name=wish.spec.name))


def delete_instance(world: World, n: int) -> None:
    ids = sorted(world.core.fleet.instances)
    if ids:
        world.wish(InstanceDeletionRequested(instance_id=ids[n % len(ids)]))


def picture(world: World, n: int) -> None:
    """A complete picture: some engines of what is assigned, as of some document, truthful or old."""
    worker = WORKERS[n % 3]
    document = assigned_to(world.core.fleet, worker, 1)
    engines = tuple(
        EngineSeen(
            instance_id=i.instance_id,
            attempt=i.attempt,
            phase=("loading", "healthy")[n % 2],
            ports=(4000,),
            peak_ram=n % 4 * GIB,
            peak_vram={0: n % 3 * GIB},
        )
        for k, i in enumerate(document.instances)
        if (n + k) % 3
    )
    world.append(
        world.core.heard(
            WorkerObserved.model_validate(
                world.identity(worker)
                | {
                    "name": worker,
                    "address": "127.0.0.1",
                    "agent_version": "1",
                    "inventory": inventory(worker),
                    "engines": engines,
                    "assigned_election": 1,
                    "assigned_seq": world.core.fleet.seq if n % 2 else 0,
                }
            ),
            world.now(),
        )
    )


def beats(world: World, n: int) -> None:
    for worker in WORKERS[: 1 + n % 3]:
        world.append(world.core.beat(worker, "agent", world.now()))
        world.append(world.core.beat(worker, "downloader", world.now()))


def engine_report(world: World, n: int) -> None:
    """About any attempt of any instance, by any worker: late, early, forged."""
    ids = sorted(world.core.fleet.instances)
    if not ids:
        return
    instance = world.core.fleet.instances[ids[n % len(ids)]]
    phase = ("accepted", "loading", "healthy", "healthy", "unhealthy", "exited", "stopped")[n % 7]
    engine = EngineSeen(
        instance_id=instance.id,
        attempt=max(1, instance.attempt - (n % 5 == 0)),
        phase=phase,
        ports=(4000 + n % 3,),
        exit_code=1 if phase == "exited" else None,
        reasons=(EngineExited(exit_code=1),) if phase == "exited" else (),
        peak_ram=n % 4 * GIB,
        peak_vram={0: n % 3 * GIB},
    )
    worker = WORKERS[n % 3]
    world.append(
        world.core.heard(EngineReported.model_validate(world.identity(worker) | {"engine": engine}), world.now())
    )


def file_report(world: World, n: int) -> None:
    for file in list(world.core.fleet.files.values()):
        seen = FileSeen(
            file_id=file.id, wanted=file.wanted - (n % 4 == 0), phase=("ready", "failed")[n % 5 == 0], bytes=1
        )
        if seen.phase == "failed":
            seen = seen.model_copy(update={"reasons": (EngineExited(exit_code=None),)})
        world.append(
            world.core.heard(FileReported.model_validate(world.identity(file.worker_id) | {"file": seen}), world.now())
        )


def file_is_requested(world: World, n: int) -> None:
    """On any worker, of any commit that there was; also where it is, or where it is being deleted."""
    worker, commit = WORKERS[n % 3], COMMITS[n % 2]
    file_id = file_id_of(HUB, commit, worker)
    world.wish(ModelFileRequested(file_id=file_id, worker_id=worker, source=HUB, commit=commit, bytes=GIB))


def file_deletion_is_requested(world: World, n: int) -> None:
    """Of what is there, and of what is not."""
    worker, commit = WORKERS[n % 3], COMMITS[n % 5 == 0]
    world.wish(ModelFileDeletionRequested(file_id=file_id_of(HUB, commit, worker), worker_id=worker))


def files_are_deleted(world: World, n: int) -> None:
    """As was asked for, or to make room; or it is said so late."""
    for k, file in enumerate(list(world.core.fleet.files.values())):
        if (n + k) % 3:
            seen = FileSeen(file_id=file.id, wanted=file.wanted - (n % 4 == 0), phase="deleted")
            report = FileReported.model_validate(world.identity(file.worker_id) | {"file": seen})
            world.append(world.core.heard(report, world.now()))


def hub_moves_on(world: World, n: int) -> None:
    world.commit = COMMITS[n % 2]


def farewell(world: World, n: int) -> None:
    worker = WORKERS[n % 3]
    world.append(
        world.core.heard(
            WorkerLeaving.model_validate(world.identity(worker) | {"engines_stopped": bool(n % 2)}), world.now()
        )
    )


def time_passes(world: World, n: int) -> None:
    world.seconds += (0.5, 3.0, 11.0, 20.0, 70.0, 1000.0)[n % 6]
    world.append(world.core.time_passed(world.now()))


def take_over(world: World, n: int) -> None:
    del n
    world.take_over()


def dies_in_the_middle(world: World, n: int) -> None:
    """Of the next decision that has so many facts."""
    world.dies_after = 1 + n % 4


STEPS: list[Callable[[World, int], None]] = [
    create, create, delete, delete_instance, picture, picture, picture, beats, beats, beats, engine_report,
    engine_report, engine_report, file_report, file_report, farewell, time_passes, time_passes, take_over, dies_in_the_middle,
    dies_in_the_middle, file_is_requested, file_is_requested, file_deletion_is_requested, files_are_deleted, hub_moves_on,
]  # fmt: skip
HISTORIES = st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 1000)), max_size=60)
MANY = settings(
    max_examples=int(os.environ.get("HISTORIES", "150")), deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


def live(history: list[tuple[Callable[[World, int], None], int]]) -> World:
    world = World()
    for step, number in history:
        step(world, number)
        check_claims(world.core.fleet)
        check_machines(world.core.fleet)
        check_nobody_is_overlooked(world.core)
        check_one_asks_the_hub(world.core.fleet)
        check_nothing_in_use_is_deleted(world.core.fleet)
    world.dies_after = None
    return world


def check_claims(fleet: Fleet) -> None:
    """No byte of a worker is promised twice."""
    for worker in fleet.workers.values():
        claims = list(fleet.claims_on(worker.id))
        assert sum(claim.claim.ram for claim in claims) <= worker.inventory.memory_total
        for gpu in worker.inventory.gpus:
            assert sum(claim.claim.vram.get(gpu.index, 0) for claim in claims) <= gpu.memory_total


def check_machines(fleet: Fleet) -> None:
    """What placement sees is what the log adds up to."""
    fresh = replace(fleet)
    assert len(fleet.machines) == len(fleet.workers)
    for machine in fresh.machines:
        machine.downloader_alive = True
    for machine in fleet.machines:
        assert fresh.machines.get(machine.id) == replace(machine, downloader_alive=True)


def check_nobody_is_overlooked(core: Core) -> None:
    """A pending instance that placement would place was not looked at when it should have been, and what it was told holds."""
    fresh = Placing(core.fleet)
    for instance in core.fleet.instances.values():
        if isinstance(instance.state, Pending):
            request = fresh.request_for(instance.model_id)
            assert request.files_on == core.placing.request_for(instance.model_id).files_on
            answer = place(request, list(core.fleet.machines))
            assert isinstance(answer, Refused), (instance, answer)
            told = {(reason.worker_id, reason.code) for reason in instance.state.reasons}
            assert told == {(reason.worker_id, reason.code) for reason in answer.reasons}, instance
            assert instance.state.closest in {None, *core.fleet.workers}


def check_one_asks_the_hub(fleet: Fleet) -> None:
    """Of the workers that are to fetch the same and are heard, one has nobody else to ask; unless somebody has it."""
    for commit in COMMITS:
        alike = fleet.like(HUB, commit)
        heard = {each.worker_id for each in alike if (m := fleet.machines.get(each.worker_id)) and m.state == "ready"}
        asking: list[WorkerId] = []
        for each in alike:
            if each.state != "wanted" or each.worker_id not in heard:
                continue
            machine = fleet.machines.get(each.worker_id)
            assert machine is not None
            (file,) = [f for f in assigned_to(fleet, each.worker_id, 1).files if f.file_id == each.id]
            assert {near.worker_id for near in file.neighbours} <= heard - {each.worker_id}
            if not file.neighbours and machine.downloader_alive:
                asking.append(each.worker_id)
        assert len(asking) <= 1, asking


def check_nothing_in_use_is_deleted(fleet: Fleet) -> None:
    for claim in fleet.claims.values():
        for file_id in claim.file_ids:
            assert file_id not in fleet.files or fleet.files[file_id].state != "deleting", claim


def check_nothing_is_half_done(fleet: Fleet) -> None:
    """What must follow from a fact has followed."""
    for instance in fleet.instances.values():
        match instance.state:
            case Failed(restart_in_seconds=planned, final=final):
                assert planned is not None or final, instance
            case Stopping():
                assert any(claim.instance_id == instance.id for claim in fleet.claims.values()), instance
            case Scheduled(placement) | Downloading(placement) | Starting(placement) | Running(placement):
                for member in placement.members:
                    assert fleet.workers[member.worker_id].state != "unreachable", instance
                    if isinstance(instance.state, Scheduled | Downloading | Starting):
                        assert all(fleet.files[file_id].state != "failed" for file_id in member.file_ids), instance
            case Pending(explained=explained):
                assert explained, instance
            case Unreachable():
                pass
    for file_id, wish in fleet.file_wishes.items():
        if wish.seq > fleet.file_answers.get(file_id, 0) and wish.worker_id in fleet.workers:
            state = fleet.files[file_id].state if file_id in fleet.files else None
            assert state in (("wanted", "ready") if wish.want == "ready" else (None, "deleting")), wish


@MANY
@given(HISTORIES)
def test_no_memory_is_promised_twice_over_any_history(
    history: list[tuple[Callable[[World, int], None], int]],
) -> None:
    live(history)


@MANY
@given(HISTORIES)
def test_replaying_the_log_gives_the_same_fleet(history: list[tuple[Callable[[World, int], None], int]]) -> None:
    world = live(history)
    replayed = world.replayed()

    assert replayed == world.core.fleet
    assert list(replayed.files) == list(world.core.fleet.files), "who was first is who asks the hub"


@MANY
@given(HISTORIES)
def test_a_snapshot_is_the_same_as_a_replay(history: list[tuple[Callable[[World, int], None], int]]) -> None:
    from kernel.log.port import LogState  # noqa: PLC0415 - only here

    world = live(history)
    state = LogState(1, START, 1, len(world.log))

    read = parse(dump(world.core.fleet, state), state)
    assert read is not None
    assert read == world.core.fleet
    assert [each.id for each in read.like(HUB, COMMITS[0])] == [
        each.id for each in world.core.fleet.like(HUB, COMMITS[0])
    ]


@MANY
@given(HISTORIES, st.randoms(use_true_random=False))
def test_facts_of_different_owners_fold_in_any_interleaving(
    history: list[tuple[Callable[[World, int], None], int]], dice: random.Random
) -> None:
    """The scheduler applies its own facts before it has read the api's that lie between."""
    world = live(history)
    api = [entry for entry in world.log if entry[0].owner == "api"]
    own = [entry for entry in world.log if entry[0].owner == "scheduler"]
    woven, a, s = Fleet(), list(api), list(own)
    created = {entry[0].model_id for entry in api if isinstance(entry[0], ModelCreated)}
    for fact, sequence, at in [e for e in a if isinstance(e[0], ModelCreated)]:
        evolve(woven, fact, sequence, at)  # what is decided about a model follows its creation
    a = [e for e in a if not isinstance(e[0], ModelCreated)]
    assert created >= set(woven.wishes)
    while a or s:
        fact, sequence, at = (a if a and (not s or dice.random() < 0.5) else s).pop(0)
        evolve(woven, fact, sequence, at)
    woven.seq = world.core.fleet.seq

    assert woven.workers == world.core.fleet.workers
    assert woven.instances == world.core.fleet.instances
    assert woven.claims == world.core.fleet.claims
    assert woven.wishes == world.core.fleet.wishes
    assert woven.files == world.core.fleet.files
    assert list(woven.files) == list(world.core.fleet.files)
    assert woven.file_wishes == world.core.fleet.file_wishes
    assert woven.file_answers == world.core.fleet.file_answers
    assert woven.forgotten == world.core.fleet.forgotten
    assert [model.pins for _, model in sorted(woven.models.items())] == [
        model.pins for _, model in sorted(world.core.fleet.models.items())
    ]
    assert [model.peaks for _, model in sorted(woven.models.items())] == [
        model.peaks for _, model in sorted(world.core.fleet.models.items())
    ]


@MANY
@given(HISTORIES)
def test_deciding_twice_equals_deciding_once(history: list[tuple[Callable[[World, int], None], int]]) -> None:
    world = live(history)
    world.append(world.core.time_passed(world.now()))

    assert world.core.time_passed(world.now()).facts == []


@MANY
@given(HISTORIES)
def test_a_user_is_answered_once(history: list[tuple[Callable[[World, int], None], int]]) -> None:
    world = live(history)
    world.take_over()
    answered = [
        (fact.file_id, fact.request) for fact, _, _ in world.log
        if isinstance(fact, ModelFileWanted | ModelFileDeleting | ModelFileDeletionRefused) and fact.request is not None
    ]  # fmt: skip

    assert len(answered) == len(set(answered))


@MANY
@given(HISTORIES)
def test_one_model_is_of_one_commit_whatever_becomes_of_the_branch_and_of_workers(
    history: list[tuple[Callable[[World, int], None], int]],
) -> None:
    log = live(history).log
    requested = {fact.file_id for fact, _, _ in log if isinstance(fact, ModelFileRequested)}
    wanted = {
        fact.commit for fact, _, _ in log
        if isinstance(fact, ModelFileWanted) and fact.source == HUB and fact.file_id not in requested
    }  # fmt: skip

    assert len(wanted) <= 1


@MANY
@given(HISTORIES)
def test_everything_that_does_not_run_has_a_reason(
    history: list[tuple[Callable[[World, int], None], int]],
) -> None:
    world = live(history)
    for instance in world.core.fleet.instances.values():
        match instance.state:
            case Pending(reasons=reasons) | Failed(reasons=reasons) | Unreachable(reasons=reasons):
                assert reasons, instance
            case _:
                pass
    for model in world.core.fleet.models.values():
        if model.status is not None and model.status.state != "ready":
            assert model.status.reasons, model


@MANY
@given(HISTORIES)
def test_attempts_only_ever_rise(history: list[tuple[Callable[[World, int], None], int]]) -> None:
    attempts: dict[InstanceId, int] = {}
    for fact, _, _ in live(history).log:
        if isinstance(fact, InstanceScheduled):
            assert fact.attempt > attempts.get(fact.instance_id, 0)
            attempts[fact.instance_id] = fact.attempt


@MANY
@given(HISTORIES)
def test_when_the_world_heals_everything_that_fits_runs(
    history: list[tuple[Callable[[World, int], None], int]],
) -> None:
    """All workers are back and tell the truth: once every backoff has passed nothing is left in between."""
    world = live(history)
    world.reached = frozenset(WORKERS)
    for _ in range(90):
        for worker in WORKERS:
            world.append(world.core.beat(worker, "agent", world.now()))
            world.append(world.core.beat(worker, "downloader", world.now()))
            tell_the_truth(world, worker)
        world.seconds += 5.0
        world.append(world.core.time_passed(world.now()))
    stuck = [i for i in world.core.fleet.instances.values() if type(i.state).__name__ not in ("Running", "Pending")]
    assert stuck == []
    for instance in world.core.fleet.instances.values():
        if isinstance(instance.state, Pending):
            codes = {reason.code for reason in instance.state.reasons}
            assert codes <= {"not_enough_ram", "not_enough_vram"}, instance
    assert {file.state for file in world.core.fleet.files.values()} <= {"ready", "failed"}
    assert all(file.reasons for file in world.core.fleet.files.values() if file.state == "failed")


def all_beat(world: World) -> None:
    beats(world, 2)


def all_tell_the_truth(world: World) -> None:
    for worker in WORKERS:
        tell_the_truth(world, worker)


def engines_of_one_worker(phase: EnginePhase) -> Callable[[World], None]:
    def happens(world: World) -> None:
        """The attempts that are assigned to the first worker that has some."""
        for worker in WORKERS:
            if assigned := assigned_to(world.core.fleet, worker, 1).instances:
                for each in assigned:
                    seen = EngineSeen(
                        instance_id=each.instance_id,
                        attempt=each.attempt,
                        phase=phase,
                        reasons=(EngineExited(exit_code=1),),
                    )
                    report = EngineReported.model_validate(world.identity(worker) | {"engine": seen})
                    world.append(world.core.heard(report, world.now()))
                return

    return happens


def all_files(phase: FilePhase) -> Callable[[World], None]:
    def happens(world: World) -> None:
        for file in list(world.core.fleet.files.values()):
            reasons = (EngineExited(exit_code=None),) if phase == "failed" else ()
            seen = FileSeen(file_id=file.id, wanted=file.wanted, phase=phase, bytes=1, reasons=reasons)
            report = FileReported.model_validate(world.identity(file.worker_id) | {"file": seen})
            world.append(world.core.heard(report, world.now()))

    return happens


def seconds_pass(seconds: float) -> Callable[[World], None]:
    def happens(world: World) -> None:
        world.seconds += seconds
        world.append(world.core.time_passed(world.now()))

    return happens


def everybody_leaves(world: World) -> None:
    for number in range(len(WORKERS)):
        farewell(world, number)


def everybody_is_removed(world: World) -> None:
    for worker in WORKERS:
        world.wish(WorkerRemovalRequested(worker_id=worker))


def wants(replicas: int) -> Callable[[World], None]:
    def happens(world: World) -> None:
        model = MODELS[0]
        fact = ModelScaled(model_id=model, name="a", replicas=replicas)
        world.wish(fact if model in world.core.fleet.wishes else ModelCreated(model_id=model, spec=spec("a", replicas)))

    return happens


def wants_of_the_hub(replicas: int) -> Callable[[World], None]:
    def happens(world: World) -> None:
        world.wish(ModelCreated(model_id=MODELS[2], spec=spec("h", replicas)))

    return happens


def wants_no_more_of_the_hub(world: World) -> None:
    world.wish(ModelDeleted(model_id=MODELS[2], name="h"))


def files_are_requested(world: World) -> None:
    for number in range(len(WORKERS)):
        file_is_requested(world, 2 * number)


def deletions_are_requested(world: World) -> None:
    for number in range(len(WORKERS)):
        file_deletion_is_requested(world, number + 6)


def every_instance_is_replaced(world: World) -> None:
    for instance_id in sorted(world.core.fleet.instances):
        world.wish(InstanceDeletionRequested(instance_id=instance_id))


Story = tuple[Callable[[World], None], ...]
THERE: Story = (all_tell_the_truth, all_beat, wants(3))
RUNNING: Story = (*THERE, all_tell_the_truth)
STORIES: dict[str, Story] = {
    "runs": RUNNING,
    "crashes": (*RUNNING, engines_of_one_worker("exited")),
    "is unhealthy": (*RUNNING, engines_of_one_worker("unhealthy")),
    "is stopped by others": (*RUNNING, engines_of_one_worker("stopped"), seconds_pass(1)),
    "falls silent": (*RUNNING, seconds_pass(11), seconds_pass(11), all_beat, all_tell_the_truth),
    "is evicted": (*RUNNING, seconds_pass(11), all_beat, seconds_pass(5), all_beat, seconds_pass(11)),
    "leaves": (*RUNNING, everybody_leaves),
    "is removed": (*RUNNING, everybody_leaves, everybody_is_removed),
    "is scaled down": (*RUNNING, wants(0), engines_of_one_worker("stopped"), all_tell_the_truth),
    "is replaced": (*RUNNING, every_instance_is_replaced, all_tell_the_truth),
    "has no files": (*THERE, engines_of_one_worker("accepted"), all_files("failed")),
    "gets its files": (*THERE, engines_of_one_worker("accepted"), all_files("ready")),
    "is not taken up": (*THERE, seconds_pass(9), all_beat, seconds_pass(9), all_beat, seconds_pass(9)),
    "gets its files from the hub": (
        all_tell_the_truth, all_beat, wants_of_the_hub(3), engines_of_one_worker("accepted"), all_files("ready"),
    ),
    "loses files that were requested": (
        all_tell_the_truth, all_beat, files_are_requested, wants_of_the_hub(3), all_files("ready"), all_files("deleted"),
    ),
    "fails while it starts": (
        all_tell_the_truth, all_beat, wants_of_the_hub(3), all_files("ready"), engines_of_one_worker("loading"), all_files("failed"),
    ),
    "is asked to delete files": (
        all_tell_the_truth, all_beat, files_are_requested, all_files("ready"), deletions_are_requested, wants_of_the_hub(3),
        all_files("deleted"),
    ),
    "is asked to delete what is in use": (
        all_tell_the_truth, all_beat, wants_of_the_hub(3), all_files("ready"), all_tell_the_truth, deletions_are_requested,
        wants_no_more_of_the_hub, deletions_are_requested, all_tell_the_truth, deletions_are_requested, all_files("deleted"),
    ),
    "is removed with files": (
        all_tell_the_truth, all_beat, files_are_requested, wants_of_the_hub(3), everybody_leaves, everybody_is_removed,
        all_tell_the_truth,
    ),
    "never starts": (*THERE, all_files("ready"), engines_of_one_worker("loading"), all_beat, seconds_pass(1000)),
}  # fmt: skip


def tell(story: Story, dies_at: tuple[int, int] | None = None) -> World:
    world = World(dies_at=dies_at)
    for happens in story:
        happens(world)
        check_claims(world.core.fleet)
        check_one_asks_the_hub(world.core.fleet)
        check_nothing_in_use_is_deleted(world.core.fleet)
    return world


@pytest.mark.parametrize("story", STORIES.values(), ids=STORIES.keys())
def test_a_scheduler_that_dies_between_any_two_facts_leaves_nothing_half_done(story: Story) -> None:
    """Each decision of each story is cut off at each place; `World.take_over` checks what the next scheduler makes of it."""
    decided = tell(story).decided
    assert max(decided) > 1, "nothing could be cut off"
    for number, count in enumerate(decided):
        for cut in range(1, count):
            world = tell(story, dies_at=(number, cut))
            assert world.replayed() == world.core.fleet


def tell_the_truth(world: World, worker: WorkerId) -> None:
    document = assigned_to(world.core.fleet, worker, 1)
    for file in document.files:
        phase: FilePhase = "deleted" if file.want == "deleted" else "ready"
        seen = FileSeen(file_id=file.file_id, wanted=file.wanted, phase=phase, bytes=1, paths=("/m",))
        world.append(
            world.core.heard(FileReported.model_validate(world.identity(worker) | {"file": seen}), world.now())
        )
    document = assigned_to(world.core.fleet, worker, 1)
    engines = tuple(
        EngineSeen(
            instance_id=i.instance_id,
            attempt=i.attempt,
            phase="healthy" if i.want == "running" else "accepted",
            ports=(4000,),
        )
        for i in document.instances
    )
    world.append(
        world.core.heard(
            WorkerObserved.model_validate(
                world.identity(worker)
                | {
                    "name": worker,
                    "address": "127.0.0.1",
                    "agent_version": "1",
                    "inventory": inventory(worker),
                    "engines": engines,
                    "assigned_election": 1,
                    "assigned_seq": world.core.fleet.seq,
                }
            ),
            world.now(),
        )
    )


def test_the_check_finds_a_promise_that_is_too_large() -> None:
    """The invariant can fail: a claim beyond the machine is noticed."""
    world = World()
    picture(world, 0)
    beats(world, 2)
    world.wish(ModelCreated(model_id=MODELS[0], spec=spec("a", 1)))
    claim = next(iter(world.core.fleet.claims.values()))
    bigger = claim.claim.model_copy(update={"ram": 100 * GIB})
    world.core.fleet.open_claim(replace(claim, attempt=99, claim=bigger))

    with pytest.raises(AssertionError):
        check_claims(world.core.fleet)


def test_what_a_replaced_attempt_claims_stays_promised_until_its_engine_is_seen_gone() -> None:
    """The worker of attempt 1 fell silent; attempt 2 runs elsewhere and crashes: attempt 1 may still hold its memory."""
    world = World()
    for worker in range(2):
        picture(world, worker)
    beats(world, 2)
    world.wish(ModelCreated(model_id=MODELS[0], spec=spec("a", 1)))
    for worker in WORKERS[:2]:
        tell_the_truth(world, worker)
    (instance,) = world.core.fleet.instances.values()
    first = next(iter(world.core.fleet.claims.values())).worker_id
    (other,) = set(WORKERS[:2]) - {first}
    for _ in range(6):
        world.seconds += 5
        world.append(world.core.beat(other, "agent", world.now()))
        world.append(world.core.beat(other, "downloader", world.now()))
        world.append(world.core.time_passed(world.now()))
    claims = world.core.fleet.claims
    assert [(c.attempt, c.worker_id) for c in claims.values()] == [(1, first), (2, other)]

    engine = EngineSeen(instance_id=instance.id, attempt=2, phase="exited", exit_code=1)
    report = EngineReported.model_validate(world.identity(other) | {"engine": engine})
    world.append(world.core.heard(report, world.now()))
    assert (1, first) in [(c.attempt, c.worker_id) for c in world.core.fleet.claims.values()]

    tell_the_truth(world, first)  # it is back, its assignment is without attempt 1, and so is its picture
    assert (1, first) not in [(c.attempt, c.worker_id) for c in world.core.fleet.claims.values()]

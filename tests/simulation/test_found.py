"""The shortest stories of bugs that the simulation has found. They are gone; the stories stay."""

import asyncio
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

from kernel.bus import Bus
from kernel.clock import SystemClock
from kernel.edge import Edge
from kernel.log.seal import Cause, seal_fact
from schemas.asks import ModelInspection
from schemas.assignment import Assigned
from schemas.facts import (
    InstanceDeleted,
    InstanceFailed,
    InstanceScheduled,
    InstanceUnreachable,
    ModelCreated,
    ModelDeleted,
    ModelEnded,
    ModelFileForgotten,
    ModelFileWanted,
    ModelInspected,
    ModelPending,
    ModelScaled,
    ModelUpdated,
    WorkerRemovalRequested,
)
from schemas.facts.base import Fact
from schemas.ids import FileId, InstanceId, ModelId, WorkerId
from schemas.models import Inventory, ModelSpec, ModelWeights
from schemas.reasons import NoWorkers
from schemas.reports import (
    EnginePhase,
    EngineReported,
    EngineSeen,
    FileReported,
    FileSeen,
    Report,
    WorkerLeaving,
    WorkerObserved,
)
from schemas.sources import LocalPath
from services.scheduler.domain.assignments import assigned_to
from services.scheduler.domain.core import Core, Decision, Now, Question
from services.scheduler.domain.deadlines import Deadlines
from services.scheduler.domain.fleet import Fleet, evolve, question_about
from services.scheduler.domain.instance import Instance, Placement, Scheduled, Stopping
from services.scheduler.domain.policy import Policy
from tests.simulation.api import Tables
from tests.simulation.lines import Answer, Entry
from tests.simulation.world import World

AT = datetime(2026, 11, 23, tzinfo=UTC)
GIB = 2**30
MODEL = ModelId("m-a")
ONE, TWO = WorkerId("w-1"), WorkerId("w-2")


def spec(path: str = "/a", replicas: int = 1) -> ModelSpec:
    return ModelSpec(name="a", replicas=replicas, source=LocalPath(path=path), start_timeout_seconds=20.0)


class Story:
    """A decider, and what it is told."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.sequence = 0
        self.counter = 0
        self.election = 1
        self.facts: list[Fact] = []
        self.core = Core(Fleet(), Policy(), self.now)

    @property
    def now(self) -> Now:
        return Now(AT + timedelta(seconds=self.seconds), 1000.0 + self.seconds)

    def decided(self, decision: Decision) -> list[Fact]:
        self.facts.extend(decision.facts)
        self.sequence += len(decision.facts)
        self.core.fleet.seq = self.sequence
        for worker_id in sorted(self.core.fleet.workers):
            document = assigned_to(self.core.fleet, worker_id, self.election)
            attempts = [(i.instance_id, i.attempt) for i in document.instances]
            self.core.published(worker_id, attempts, self.election, document.seq)
        return decision.facts

    def wish(self, fact: Fact) -> list[Fact]:
        self.sequence += 1
        evolve(self.core.fleet, fact, self.sequence, self.now.at)
        return self.decided(self.core.wished(fact, self.now))

    def identity(self, worker_id: WorkerId, boot_id: str = "b") -> dict[str, Any]:
        self.counter += 1
        return {"worker_id": worker_id, "boot_id": boot_id, "counter": self.counter, "observed_at": self.now.at}

    def hear(self, report: Report) -> list[Fact]:
        return self.decided(self.core.heard(report, self.now))

    def engine(
        self, worker_id: WorkerId, phase: EnginePhase, attempt: int = 1, port: int = 4000, boot_id: str = "b"
    ) -> list[Fact]:
        seen = EngineSeen(instance_id=InstanceId("i-a-0"), attempt=attempt, phase=phase, ports=(port,))
        return self.hear(EngineReported(**self.identity(worker_id, boot_id), engine=seen))

    def picture(
        self, worker_id: WorkerId, engines: Iterable[EngineSeen] = (), read: tuple[int, int] | None = None
    ) -> list[Fact]:
        election, seq = read or (self.election, self.sequence)
        has = Inventory(os="linux", arch="amd64", cpu_count=8, memory_total=16 * GIB, backends={"llama.cpp": "1"})
        return self.hear(
            WorkerObserved(
                **self.identity(worker_id),
                name=worker_id,
                address="10.0.0.1",
                agent_version="1",
                inventory=has,
                engines=tuple(engines),
                assigned_election=election,
                assigned_seq=seq,
            )
        )

    def beats(self, *workers: WorkerId) -> None:
        for worker_id in workers:
            self.decided(self.core.beat(worker_id, "agent", self.now))
            self.decided(self.core.beat(worker_id, "downloader", self.now))

    def passes(self, seconds: float, *heard: WorkerId) -> list[Fact]:
        """In small portions, in which these workers are heard."""
        before = len(self.facts)
        for _ in range(round(seconds * 2)):
            self.seconds += 0.5
            self.beats(*heard)
            self.decided(self.core.time_passed(self.now))
        return self.facts[before:]

    def runs_on(self, *workers: WorkerId) -> "Story":
        """These workers are there, and one instance of a model was given its place on the first."""
        for worker_id in workers:
            self.picture(worker_id)
        self.beats(*workers)
        self.wish(ModelCreated(model_id=MODEL, spec=spec()))
        for worker_id in workers:
            weights = ModelWeights(format="gguf", weight_bytes=GIB, files=("/a",))
            question = Question(MODEL, worker_id, self.core.fleet.wishes[MODEL].generation, question_about(spec()))
            self.decided(self.core.inspected(question, ModelInspection(weights=weights), self.now))
        assert isinstance(self.core.fleet.instances[InstanceId("i-a-0")].state, Scheduled)
        return self


def test_what_was_inspected_is_the_source_of_its_generation_in_any_interleaving() -> None:
    created = ModelCreated(model_id=MODEL, spec=spec("/a"))
    updated = ModelUpdated(model_id=MODEL, spec=spec("/b"))
    inspected = ModelInspected(model_id=MODEL, worker_id=ONE, generation=1, question=question_about(spec("/a")))
    decided, replayed = Fleet(), Fleet()
    for sequence, fact in ((1, created), (3, inspected), (2, updated)):  # the scheduler has not read 2 yet
        evolve(decided, fact, sequence, AT)
    for sequence, fact in ((1, created), (2, updated), (3, inspected)):
        evolve(replayed, fact, sequence, AT)

    assert replayed == decided


def test_news_of_a_file_does_not_postpone_a_restart() -> None:
    story = Story().runs_on(ONE)
    story.engine(ONE, "healthy")
    story.engine(ONE, "unhealthy")
    file = next(iter(story.core.fleet.files.values()))
    story.passes(0.5, ONE)
    story.hear(
        FileReported(**story.identity(ONE), file=FileSeen(file_id=file.id, wanted=file.wanted, phase="verifying"))
    )

    assert [type(fact) for fact in story.passes(0.5, ONE)][:1] == [InstanceScheduled]


def test_an_engine_that_was_never_seen_to_start_and_does_not_answer_fails_in_time() -> None:
    """Its reports were lost: the first that is heard of it is a picture, in which it does not answer."""
    story = Story().runs_on(ONE)
    hangs = EngineSeen(instance_id=InstanceId("i-a-0"), attempt=1, phase="unhealthy", ports=(4000,))
    for _ in range(6):
        story.passes(10.0, ONE)
        story.picture(ONE, [hangs])

    assert InstanceFailed in [type(fact) for fact in story.facts]


def test_a_stop_ends_when_the_worker_of_a_former_attempt_is_removed() -> None:
    story = Story().runs_on(ONE, TWO)
    story.engine(ONE, "healthy")
    story.passes(21.0, TWO)
    assert story.core.fleet.instances[InstanceId("i-a-0")].attempt == 2, "it was moved"
    story.engine(TWO, "healthy", attempt=2)
    story.wish(ModelScaled(model_id=MODEL, name="a", replicas=0))
    story.engine(TWO, "stopped", attempt=2)

    assert InstanceDeleted in [type(fact) for fact in story.wish(WorkerRemovalRequested(worker_id=ONE))]


def test_a_deadline_is_named_once_also_when_two_states_had_the_same() -> None:
    """Scheduled may last 15 s, Stopping is repeated after 15 s; both began at the same moment."""
    instance_id = InstanceId("i-a-0")
    placement = Placement(1, cast("Any", None), ())
    deadlines = Deadlines(Policy())
    for state in (Scheduled(placement), Stopping(placement, "scaled_down")):
        deadlines.watch(instance_id, Instance(instance_id, MODEL, "a-0", 1, 0, state), 100.0)

    assert deadlines.due(115.0) == [instance_id]


def test_a_wish_for_a_file_has_a_number_that_no_former_wish_had() -> None:
    fleet = Fleet()
    wanted = ModelFileWanted(file_id=FileId("f-1"), worker_id=ONE, source=LocalPath(path="/a"))
    evolve(fleet, wanted, 1, AT)
    before = fleet.files[FileId("f-1")].wanted
    evolve(fleet, ModelFileForgotten(file_id=FileId("f-1"), worker_id=ONE), 2, AT)
    evolve(fleet, wanted, 3, AT)

    assert fleet.files[FileId("f-1")].wanted != before


def test_what_is_said_of_a_deleted_model_leaves_no_reasons() -> None:
    tables = Tables()
    tables.project(
        as_entries(
            ModelCreated(model_id=MODEL, spec=spec()),
            ModelDeleted(model_id=MODEL, name="a"),
            ModelPending(model_id=MODEL, generation=1, wanted=1, reasons=(NoWorkers(),)),  # it had not read 2 yet
            ModelEnded(model_id=MODEL),
        )
    )

    assert tables.rows["reasons"] == {}


def as_entries(*facts: Fact) -> list[Entry]:
    found: list[Entry] = []
    for sequence, fact in enumerate(facts, start=1):
        draft = seal_fact(fact, event_id=str(sequence), at=AT, source="/muster/test", cause=Cause())
        found.append(Entry(sequence, cast("Any", None), draft.envelope, fact))
    return found


def test_a_report_of_a_former_boot_is_no_news() -> None:
    """The machine lost power; what its former agent had sent arrives after what the new one says."""
    story = Story().runs_on(ONE)
    story.engine(ONE, "healthy", port=4000, boot_id="first")
    story.seconds += 1.0
    story.engine(ONE, "healthy", port=5000, boot_id="second")

    assert story.engine(ONE, "healthy", port=4000, boot_id="first") == []


def test_a_late_goodbye_does_not_end_what_the_next_agent_of_the_machine_has_adopted() -> None:
    """It says that it took its engines with it; the agent that beats now may have started them again: its picture tells."""
    story = Story().runs_on(ONE)
    story.engine(ONE, "healthy")
    story.decided(story.core.beat(ONE, "agent", story.now, "another"))
    goodbye = WorkerLeaving(**story.identity(ONE), engines_stopped=True)
    stated = [type(fact) for fact in story.hear(goodbye)]

    assert InstanceUnreachable in stated
    assert InstanceFailed not in stated


def test_who_takes_over_judges_by_pictures_that_know_its_assignments() -> None:
    """The picture is late: it was made before the engine was assigned, and arrives after another scheduler stopped it."""
    story = Story().runs_on(ONE)
    before = (1, 2)
    story.engine(ONE, "healthy")
    story.sequence += 1
    story.election = story.sequence
    story.core = Core(story.core.fleet, Policy(), story.now)
    story.wish(ModelScaled(model_id=MODEL, name="a", replicas=0))

    assert story.picture(ONE, read=before) == [], "nobody has seen the engine gone"


def test_a_worker_that_is_removed_while_somebody_takes_over_has_nothing_assigned() -> None:
    world = World(1, machines=1)
    world.calm = True
    (machine,) = world.machines.values()
    world.advance(5.0)
    world.api.create(ModelSpec(name="a", source=LocalPath(path="/models/a.gguf")))
    world.advance(20.0)
    assert world.assigned(machine.id), "it has something to do"
    machine.lose_power()
    world.advance(15.0)
    world.reigns.clear()
    model_id = next(iter(world.ledger.specs))
    world.api.change(model_id, lambda wanted: wanted.model_copy(update={"replicas": 0}), "scale to 0")
    world.api.ask("remove", lambda caller: world.api.writer.remove_worker(machine.id, caller))
    world.advance(5.0)
    assert machine.id in world.ledger.removed

    assert not world.assigned(machine.id)


class LostAndFound:
    """A bus that was away for a moment."""

    def __init__(self) -> None:
        self.reads = 0
        self.reconnected: list[Any] = []

    def on_reconnect(self, callback: Any) -> None:
        self.reconnected.append(callback)

    async def subscribe(self, *_: Any) -> None:
        """Nothing comes: what was published meanwhile is missed."""

    async def request(self, *_: Any, **__: Any) -> Any:
        self.reads += 1
        message = Answer(Assigned(election=1, seq=1, worker_id=ONE).model_dump_json().encode())
        return type("Message", (), {"headers": None, "data": message.data})


async def test_the_assignment_is_read_again_when_the_connection_is_back(tmp_path: Path) -> None:
    bus = LostAndFound()

    async def picture() -> Report:
        raise NotImplementedError

    async def assigned(_document: Assigned) -> None:
        return

    edge = Edge(cast("Bus", bus), ONE, "agent", SystemClock(), tmp_path / "state", picture)
    following = asyncio.create_task(edge._follow_assignment(assigned))  # pyright: ignore[reportPrivateUsage] - one of its tasks
    try:
        await asyncio.sleep(0.05)
        for callback in bus.reconnected:
            callback()
        await asyncio.sleep(0.2)
    finally:
        following.cancel()

    assert bus.reads == 2


def test_an_agent_that_starts_does_not_say_that_engines_are_missing_which_it_is_about_to_start() -> None:
    """The machine boots without its engine and any memory of it, makes its picture, and reads its assignment before the
    picture is sent.
    """
    world = World(1, machines=1)
    world.calm = True
    (machine,) = world.machines.values()
    world.advance(5.0)
    world.api.create(ModelSpec(name="a", source=LocalPath(path="/models/a.gguf")))
    world.advance(20.0)
    assert [engine.serves for engine in machine.engines.values()] == [True]
    machine.lose_power()
    machine.ends.clear()
    machine.reach(up=False)
    machine.boot()
    world.advance(1.0)
    machine.reach(up=True)
    world.advance(30.0)
    stated = [entry.fact.type for entry in world.log.entries]

    assert InstanceFailed.type not in stated

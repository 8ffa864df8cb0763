"""Model files on workers: who is to have which, who asks the hub, what users ask of them, and what takes them away."""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from kernel.log.port import LogState
from schemas.asks import ModelInspection
from schemas.assignment import AssignedFile, Neighbour
from schemas.facts import (
    InstanceFailed,
    InstancePending,
    InstanceScheduled,
    InstanceStarting,
    ModelCreated,
    ModelDeleted,
    ModelFileDeleted,
    ModelFileDeleting,
    ModelFileDeletionRefused,
    ModelFileDeletionRequested,
    ModelFileFailed,
    ModelFileForgotten,
    ModelFileReady,
    ModelFileRequested,
    ModelFileWanted,
    ModelInspected,
    ModelScaled,
    ModelUpdated,
    WorkerRemovalRequested,
)
from schemas.facts.base import Fact
from schemas.facts.file import FileFact
from schemas.ids import FileId, InstanceId, ModelId, WorkerId
from schemas.models import Gpu, Inventory, ModelSpec, ModelWeights, Pinned
from schemas.reasons import (
    DiskError,
    EngineUnhealthy,
    FileInUse,
    HubUnreachable,
    InspectionFailed,
    NotEnoughDisk,
    Reason,
    RepositoryNotFound,
)
from schemas.reports import EngineReported, EngineSeen, FileReported, FileSeen, WorkerLeaving, WorkerObserved
from schemas.sources import HuggingFace, LocalPath, Source, file_id_of
from services.scheduler.adapters.snapshots import dump, parse
from services.scheduler.domain.assignments import assigned_to
from services.scheduler.domain.core import Core, Decision, Now, Question
from services.scheduler.domain.fleet import Fleet, evolve
from services.scheduler.domain.instance import Failed, Pending, Running
from services.scheduler.domain.policy import Policy
from tests.simulation import gangs

START = datetime(2026, 11, 27, tzinfo=UTC)
GIB = 2**30
A, B, C, D = (WorkerId(f"w-{letter}") for letter in "abcd")
M = ModelId("m-a")
FIRST = InstanceId("i-a-0")
HUB = HuggingFace(repo_id="muster/tiny", filename="*Q4*.gguf")
NEWER = HuggingFace(repo_id="muster/tiny-2")
LORA = HuggingFace(repo_id="muster/lora")
DRAFT = HuggingFace(repo_id="muster/draft")
COMMIT, LATER = "c1" * 20, "c2" * 20
POLICY = Policy()
UNREACHABLE = HubUnreachable(host="hub", problem="no route")
NOT_THERE = RepositoryNotFound(repository="muster/tiny")


def weighs(source: Source = HUB, commit: str = COMMIT, *more: Pinned, size: int = GIB) -> ModelInspection:
    pinned = (Pinned(source=source, commit=commit, bytes=size + 1000), *more)
    weights = ModelWeights(format="gguf", weight_bytes=size, files=("m.gguf",), pinned=pinned)
    return ModelInspection(weights=weights)


def refuses(*reasons: Reason) -> ModelInspection:
    return ModelInspection(reasons=reasons)


def spec(**fields: Any) -> ModelSpec:
    given = {"name": "a", "source": HUB, "backend_parameters": ("--ctx-size=1",)} | fields
    return ModelSpec.model_validate(given)


def an_id(worker_id: WorkerId, source: Source = HUB, commit: str | None = COMMIT) -> FileId:
    return file_id_of(source, commit, worker_id)


@dataclass
class Story:
    """Workers that each have room for two instances; a hub that says the same to all of them unless it is told otherwise."""

    hub: dict[WorkerId, ModelInspection] = field(default_factory=dict[WorkerId, ModelInspection])
    hub_says: ModelInspection = field(default_factory=weighs)
    log: list[tuple[Fact, int, datetime]] = field(default_factory=list[tuple[Fact, int, datetime]])
    asked: list[Question] = field(default_factory=list[Question])
    seconds: float = 0.0
    counter: int = 0
    core: Core = field(init=False)
    republished: set[WorkerId] = field(default_factory=set[WorkerId])
    silent: set[WorkerId] = field(default_factory=set[WorkerId])

    def __post_init__(self) -> None:
        self.core = Core(Fleet(), POLICY, self.now)

    @property
    def now(self) -> Now:
        return Now(START + timedelta(seconds=self.seconds), 1000.0 + self.seconds)

    @property
    def fleet(self) -> Fleet:
        return self.core.fleet

    def take(self, decision: Decision) -> list[Fact]:
        self.log += [(fact, len(self.log) + n + 1, self.now.at) for n, fact in enumerate(decision.facts)]
        self.fleet.seq = len(self.log)
        self.republished |= decision.workers
        for worker_id in decision.workers:
            document = assigned_to(self.fleet, worker_id, 1)
            attempts = [(each.instance_id, each.attempt) for each in document.instances]
            self.core.published(worker_id, attempts, 1, document.seq)
        return decision.facts

    def joins(
        self,
        *workers: WorkerId,
        gpus: int = 1,
        vram: int = 4 * GIB,
        disk: int | None = None,
        ram: int = 64 * GIB,
        address: str | None = None,
    ) -> None:
        for worker_id in workers:
            inventory = Inventory(
                os="linux", arch="amd64", cpu_count=4, memory_total=ram, disk_free=disk,
                backends={"llama.cpp": "1", "vLLM": "0.11"},
                gpus=tuple(
                    Gpu(index=index, vendor="nvidia", type="cuda", name="A100", memory_total=vram) for index in range(gpus)
                ),
            )  # fmt: skip
            picture = {"name": worker_id, "address": address or f"10.0.0.{worker_id[-1]}", "inventory": inventory}
            document = assigned_to(self.fleet, worker_id, 1)
            engines = tuple(
                EngineSeen(instance_id=each.instance_id, attempt=each.attempt, phase="healthy", ports=(4000,))
                for each in document.instances
                if each.want == "running"
            )
            more = {"agent_version": "1", "engines": engines, "assigned_election": 1, "assigned_seq": document.seq}
            self.hears(WorkerObserved, worker_id, **picture, **more)
            self.take(self.core.beat(worker_id, "downloader", self.now))

    def hears(self, kind: type[Any], worker_id: WorkerId, **says: Any) -> list[Fact]:
        self.counter += 1
        identity = {"worker_id": worker_id, "boot_id": "b", "counter": self.counter, "observed_at": self.now.at}
        return self.take(self.core.heard(kind.model_validate(identity | says), self.now))

    def wishes(self, fact: Fact) -> list[Fact]:
        self.log.append((fact, len(self.log) + 1, self.now.at))
        evolve(self.fleet, fact, len(self.log), self.now.at)
        return [*self.take(self.core.wished(fact, self.now)), *self.answers()]

    def answers(self) -> list[Fact]:
        """The hub is asked until nobody wants to know anything more just now."""
        facts: list[Fact] = []
        while questions := self.core.questions(self.now):
            self.asked += questions
            for each in questions:
                answer = self.hub.get(each.worker_id, self.hub_says)
                facts += self.take(self.core.inspected(each, answer, self.now))
        return facts

    def passes(self, seconds: float) -> list[Fact]:
        """Whoever is not silent goes on beating."""
        facts: list[Fact] = []
        for _ in range(round(seconds * 2)):
            self.seconds += 0.5
            for worker_id in sorted(self.fleet.workers.keys() - self.silent):
                facts += self.take(self.core.beat(worker_id, "agent", self.now))
                facts += self.take(self.core.beat(worker_id, "downloader", self.now))
            facts += [*self.take(self.core.time_passed(self.now)), *self.answers()]
        return facts

    def seen(self, phase: Any, file_id: FileId, wanted: int | None = None, **more: Any) -> list[Fact]:
        file = self.fleet.files.get(file_id)
        worker_id = file.worker_id if file is not None else A
        number = wanted if wanted is not None else file.wanted if file is not None else 1
        return self.hears(FileReported, worker_id, file=FileSeen(file_id=file_id, wanted=number, phase=phase, **more))

    def ready(
        self, *workers: WorkerId, digest: str | None = "d1", of: tuple[Source, str | None] = (HUB, COMMIT)
    ) -> list[Fact]:
        facts: list[Fact] = []
        for worker_id in workers:
            file_id = an_id(worker_id, *of)
            facts += self.seen("ready", file_id, bytes=GIB, paths=("/c/m.gguf",), model_path="/c/m.gguf", digest=digest)
        return facts

    def runs(self, instance_id: InstanceId = FIRST, phase: Any = "healthy", **more: Any) -> list[Fact]:
        instance = self.fleet.instances[instance_id]
        assert not isinstance(instance.state, Pending)
        placement = instance.state.placement
        assert placement is not None
        engine = EngineSeen(instance_id=instance_id, attempt=placement.attempt, phase=phase, ports=(4000,), **more)
        return self.hears(EngineReported, placement.leader.worker_id, engine=engine)

    def deploys(self, replicas: int = 1, **fields: Any) -> list[Fact]:
        return self.wishes(ModelCreated(model_id=M, spec=spec(replicas=replicas, **fields)))

    def requests(self, *workers: WorkerId, source: Source = HUB, commit: str | None = COMMIT) -> list[Fact]:
        facts: list[Fact] = []
        for worker_id in workers:
            facts += self.wishes(
                ModelFileRequested(
                    file_id=an_id(worker_id, source, commit),
                    worker_id=worker_id,
                    source=source,
                    commit=commit,
                    bytes=GIB,
                )
            )
        return facts

    def deletes(self, worker_id: WorkerId) -> list[Fact]:
        return self.wishes(ModelFileDeletionRequested(file_id=an_id(worker_id), worker_id=worker_id))

    def file(self, worker_id: WorkerId, file_id: FileId | None = None) -> AssignedFile:
        wanted = file_id or an_id(worker_id)
        return next(each for each in assigned_to(self.fleet, worker_id, 1).files if each.file_id == wanted)

    def neighbours(self, worker_id: WorkerId) -> list[tuple[WorkerId, bool]]:
        return [(each.worker_id, each.ready) for each in self.file(worker_id).neighbours]

    def replayed(self) -> Fleet:
        fleet = Fleet()
        for fact, sequence, at in self.log:
            evolve(fleet, fact, sequence, at)
        return fleet

    def take_over(self) -> list[Fact]:
        """Another scheduler folds the log, or reads a snapshot, which is the same."""
        fleet = self.replayed()
        assert fleet == self.fleet
        state = LogState(1, START, 1, len(self.log))
        read = parse(dump(self.fleet, state), state)
        assert read == fleet
        for worker_id in fleet.workers:
            for each in (fleet, read):
                assert each is not None
                each.see(worker_id)
                assert assigned_to(each, worker_id, 1) == assigned_to(fleet, worker_id, 1)
        self.core = Core(fleet, POLICY, self.now)
        return [*self.take(self.core.took_over(self.now)), *self.answers()]


def of(kind: type[Fact], facts: list[Fact]) -> list[Any]:
    return [fact for fact in facts if isinstance(fact, kind)]


def about_files(facts: list[Fact]) -> list[str]:
    return [fact.type for fact in facts if isinstance(fact, FileFact)]


# -- what an instance needs -------------------------------------------------------------------------------------------


def test_the_commit_and_the_bytes_of_a_hubs_files_are_pinned_when_they_are_wanted() -> None:
    story = Story()
    story.joins(A)

    facts = story.deploys()

    assert of(ModelFileWanted, facts) == [
        ModelFileWanted(file_id=an_id(A), worker_id=A, source=HUB, commit=COMMIT, bytes=GIB + 1000)
    ]
    (scheduled,) = of(InstanceScheduled, facts)
    assert scheduled.members[0].file_ids == (an_id(A),)


def test_a_file_that_instances_want_already_is_wanted_once() -> None:
    story = Story()
    story.joins(A, gpus=2)

    facts = story.deploys(replicas=2)

    assert len(of(InstanceScheduled, facts)) == 2
    assert len(of(ModelFileWanted, facts)) == 1
    assert (story.file(A).priority, story.file(A).in_use) == (2, True)


def test_members_of_a_gang_get_the_same_commit() -> None:
    story = Story()
    answer = weighs(NEWER, COMMIT, size=28 * GIB)
    assert answer.weights is not None
    weights = answer.weights.model_copy(update={"format": "safetensors", "config": gangs.CONFIG})
    story.hub_says = ModelInspection(weights=ModelWeights.model_validate(weights.model_dump()))
    story.joins(A, B, vram=24 * GIB)

    facts = story.deploys(source=NEWER, backend="vLLM", backend_parameters=())

    (scheduled,) = of(InstanceScheduled, facts)
    assert {member.worker_id for member in scheduled.members} == {A, B}
    assert [(w.worker_id, w.commit) for w in of(ModelFileWanted, facts)] == [
        (member.worker_id, COMMIT) for member in scheduled.members
    ]
    assert [member.file_ids for member in scheduled.members] == [
        (an_id(member.worker_id, NEWER),) for member in scheduled.members
    ]


def beside() -> ModelInspection:
    return weighs(
        HUB,
        COMMIT,
        Pinned(source=LORA, commit=LATER, bytes=7),
        Pinned(source=DRAFT, commit=LATER, bytes=9),
        Pinned(source=LORA, commit=LATER, bytes=7),
    )


def test_what_is_loaded_beside_a_model_is_fetched_too_and_each_once() -> None:
    story = Story(hub_says=beside())
    story.joins(A)
    loras = [{"lora_name": "x", "source": LORA.model_dump()}, {"lora_name": "y", "source": LORA.model_dump()}]

    facts = story.deploys(
        lora_list=loras, speculative_config={"algorithm": "draft_model", "draft_model": DRAFT.model_dump()}
    )

    assert [(w.source, w.commit, w.bytes) for w in of(ModelFileWanted, facts)] == [
        (HUB, COMMIT, GIB + 1000), (LORA, LATER, 7), (DRAFT, LATER, 9),
    ]  # fmt: skip


def test_an_instance_starts_when_the_last_of_its_files_is_there() -> None:
    story = Story(hub_says=beside())
    story.joins(A)
    story.deploys(
        lora_list=[{"lora_name": "x", "source": LORA.model_dump()}],
        speculative_config={"algorithm": "draft_model", "draft_model": DRAFT.model_dump()},
    )
    story.runs(phase="accepted")

    assert of(InstanceStarting, story.ready(A)) == []
    assert of(InstanceStarting, story.ready(A, of=(DRAFT, LATER))) == []
    assert len(of(InstanceStarting, story.ready(A, of=(LORA, LATER)))) == 1
    assert [each.want for each in assigned_to(story.fleet, A, 1).instances] == ["running"]


def test_a_model_that_lies_on_the_worker_may_have_adapters_of_a_hub() -> None:
    local = LocalPath(path="/m.gguf")
    story = Story(hub_says=weighs(LORA, LATER))
    story.joins(A)

    facts = story.deploys(source=local, lora_list=[{"lora_name": "x", "source": LORA.model_dump()}])

    assert [(w.source, w.commit) for w in of(ModelFileWanted, facts)] == [(local, None), (LORA, LATER)]


def test_one_file_that_fails_ends_the_attempt_and_the_next_one_wants_it_again() -> None:
    story = Story()
    story.joins(A)
    story.deploys()
    story.runs(phase="accepted")

    facts = story.seen("failed", an_id(A), reasons=(UNREACHABLE,))

    assert about_files(facts) == ["ModelFileFailed"]
    assert len(of(InstanceFailed, facts)) == 1
    again = story.passes(2)
    assert [(w.commit, w.bytes) for w in of(ModelFileWanted, again)] == [(COMMIT, GIB + 1000)]
    assert story.fleet.files[an_id(A)].wanted == 2


def test_a_downloader_that_does_not_say_why_files_failed_is_said_not_to() -> None:
    story = Story()
    story.joins(A)
    story.deploys()

    (failed,) = of(ModelFileFailed, story.seen("failed", an_id(A)))

    assert failed.reasons == (InspectionFailed(worker_id=A, problem="it does not say why the files failed"),)


def test_progress_of_files_is_progress_of_who_waits_for_them() -> None:
    story = Story(hub_says=beside())
    story.joins(A)
    story.deploys(lora_list=[{"lora_name": "x", "source": LORA.model_dump()}])
    story.runs(phase="accepted")
    for _ in range(4):
        assert of(InstanceFailed, story.passes(POLICY.download_stall_seconds / 2)) == []
        story.seen("downloading", an_id(A), bytes=5)

    story.passes(POLICY.download_stall_seconds / 2)
    story.ready(A)
    assert of(InstanceFailed, story.passes(POLICY.download_stall_seconds / 2 + 1)) == []
    assert len(of(InstanceFailed, story.passes(POLICY.download_stall_seconds / 2))) == 1


# -- which commit -----------------------------------------------------------------------------------------------------


def test_a_branch_that_moves_on_changes_nothing_for_instances_that_are_added() -> None:
    """Also when the worker that asked has left, and another scheduler decides."""
    story = Story()
    story.joins(A)
    story.deploys()
    story.hub_says = weighs(commit=LATER)
    story.joins(B)
    story.hears(WorkerLeaving, A, engines_stopped=True)
    story.wishes(WorkerRemovalRequested(worker_id=A))
    story.take_over()

    story.passes(3)
    story.wishes(ModelScaled(model_id=M, name="a", replicas=2))

    assert {file.commit for file in story.fleet.files.values()} == {COMMIT}


def test_workers_that_were_told_of_later_commits_do_not_decide_it() -> None:
    story = Story(hub={A: refuses(UNREACHABLE), B: refuses(UNREACHABLE)})
    story.joins(A, B, C, vram=2 * GIB)
    story.deploys()
    assert [each.worker_id for each in story.asked] == [A, B, C]
    story.hub = {A: weighs(commit=LATER), B: weighs(commit="c3" * 20)}
    story.wishes(ModelScaled(model_id=M, name="a", replicas=6))
    story.passes(POLICY.reinspect_seconds + 1)
    inspected = of(ModelInspected, [fact for fact, _, _ in story.log])
    assert [fact.weights.pinned[0].commit for fact in inspected[-2:]] == [LATER, "c3" * 20]

    story.take_over()
    story.wishes(ModelScaled(model_id=M, name="a", replicas=4))

    assert len(story.fleet.files) == 3
    assert {file.commit for file in story.fleet.files.values()} == {COMMIT}


def test_another_source_is_asked_about_and_fetched_beside_the_old_one() -> None:
    story = Story()
    story.joins(A, gpus=2)
    story.deploys()
    story.ready(A)
    story.runs()
    story.hub_says = weighs(NEWER, LATER)

    facts = story.wishes(ModelUpdated(model_id=M, spec=spec(source=NEWER)))

    assert [(w.source, w.commit) for w in of(ModelFileWanted, facts)] == [(NEWER, LATER)]
    assert story.file(A).in_use
    assert story.file(A, an_id(A, NEWER, LATER)).want == "ready"


def test_another_revision_of_the_same_repository_is_another_file() -> None:
    story = Story()
    story.joins(A, gpus=2)
    story.deploys()
    tagged = HUB.model_copy(update={"revision": "v2"})
    story.hub_says = weighs(tagged, LATER)

    facts = story.wishes(ModelUpdated(model_id=M, spec=spec(source=tagged)))

    assert [(w.file_id, w.commit) for w in of(ModelFileWanted, facts)] == [(an_id(A, tagged, LATER), LATER)]


def test_what_was_wanted_before_is_pinned_as_it_was_when_it_is_wanted_again() -> None:
    story = Story()
    story.joins(A, gpus=4)
    story.deploys()
    story.hub_says = weighs(NEWER, LATER)
    story.wishes(ModelUpdated(model_id=M, spec=spec(source=NEWER)))
    story.hub_says = weighs(HUB, LATER)

    story.wishes(ModelUpdated(model_id=M, spec=spec()))

    assert {file.commit for file in story.fleet.files.values() if file.source == HUB} == {COMMIT}


def test_an_answer_that_pins_nothing_is_none() -> None:
    weights = ModelWeights(format="gguf", weight_bytes=GIB, files=("m.gguf",))
    story = Story(hub_says=ModelInspection(weights=weights))
    story.joins(A)

    facts = story.deploys()

    assert of(ModelInspected, facts)[0].reasons[0].code == "inspection_failed"
    assert of(InstanceScheduled, facts) == []


# -- whom the hub is asked through ------------------------------------------------------------------------------------


def test_one_worker_is_asked_about_a_hubs_model_for_all() -> None:
    story = Story()
    story.joins(A, B, C)

    story.deploys(replicas=3)

    assert [each.worker_id for each in story.asked] == [A]
    assert {file.worker_id for file in story.fleet.files.values()} == {A, B, C}


def test_the_next_one_is_asked_only_when_the_last_one_has_answered() -> None:
    story = Story(hub={A: refuses(UNREACHABLE)})
    story.joins(A, B)
    evolve(story.fleet, created := ModelCreated(model_id=M, spec=spec()), 50, story.now.at)
    story.core.wished(created, story.now)

    (first,) = story.core.questions(story.now)
    assert story.core.questions(story.now) == []
    story.core.inspected(first, refuses(UNREACHABLE), story.now)

    assert [each.worker_id for each in story.core.questions(story.now)] == [B]


def test_an_answer_that_never_comes_is_not_waited_for_for_ever() -> None:
    story = Story()
    story.joins(A)
    evolve(story.fleet, created := ModelCreated(model_id=M, spec=spec()), 50, story.now.at)
    story.core.wished(created, story.now)
    assert len(story.core.questions(story.now)) == 1

    story.seconds += POLICY.reinspect_seconds
    assert len(story.core.questions(story.now)) == 1


def test_an_edit_does_not_wait_for_the_answer_about_what_was_wanted_before() -> None:
    story = Story()
    story.joins(A)
    evolve(story.fleet, created := ModelCreated(model_id=M, spec=spec()), 50, story.now.at)
    story.core.wished(created, story.now)
    (stale,) = story.core.questions(story.now)
    evolve(story.fleet, edited := ModelUpdated(model_id=M, spec=spec(source=NEWER)), 51, story.now.at)
    story.core.wished(edited, story.now)

    (question,) = story.core.questions(story.now)
    assert question.about.source == NEWER
    story.core.inspected(stale, weighs(), story.now)
    assert story.core.questions(story.now) == []


def test_what_one_worker_is_told_of_a_repository_holds_for_all() -> None:
    story = Story(hub_says=refuses(NOT_THERE))
    story.joins(A, B, C)

    facts = story.deploys()

    assert [each.worker_id for each in story.asked] == [A]
    told = of(InstancePending, facts)[-1]
    assert [(reason.worker_id, reason.code) for reason in told.reasons] == [
        (worker_id, "repository_not_found") for worker_id in (A, B, C)
    ]


def test_a_repository_that_was_not_there_is_asked_for_again_through_each_worker_in_turn() -> None:
    """One of them may have the token that it takes."""
    story = Story(hub_says=refuses(NOT_THERE))
    story.joins(A, B, C)
    story.deploys()

    story.passes(POLICY.reinspect_seconds * 3 + 3)
    assert [each.worker_id for each in story.asked] == [A, B, C, A]

    story.hub[B] = weighs()
    facts = story.passes(POLICY.reinspect_seconds + 1)
    assert len(of(InstanceScheduled, facts)) == 1


def test_a_worker_that_can_not_reach_the_hub_objects_only_as_long_as_no_other_has_the_files() -> None:
    story = Story(hub={A: refuses(UNREACHABLE)})
    story.joins(A, B, vram=2 * GIB)
    story.deploys(replicas=2)
    pending = [each for each in story.fleet.instances.values() if isinstance(each.state, Pending)]
    assert len(pending) == 1

    facts = story.ready(B)

    (scheduled,) = of(InstanceScheduled, facts)
    assert scheduled.members[0].worker_id == A
    assert story.neighbours(A) == [(B, True)]


def test_when_the_last_copy_is_gone_a_worker_that_can_not_reach_the_hub_objects_again() -> None:
    story = Story(hub={A: refuses(UNREACHABLE)})
    story.joins(A)
    story.joins(B, gpus=0, ram=GIB)
    story.requests(B)
    story.ready(B)
    story.seen("deleted", an_id(B))
    story.hub[B] = weighs()

    facts = story.deploys()

    reasons = [reason.code for reason in of(InstancePending, facts)[-1].reasons if reason.worker_id == A]
    assert reasons == ["hub_unreachable"]
    story.requests(B)
    assert len(of(InstanceScheduled, story.ready(B))) == 1


# -- neighbours -------------------------------------------------------------------------------------------------------


def three(replicas: int = 3) -> Story:
    story = Story()
    story.joins(A, B, C)
    story.deploys(replicas=replicas)
    assert {file.state for file in story.fleet.files.values()} == {"wanted"}
    return story


def test_the_first_that_is_to_have_files_asks_the_hub_and_the_others_ask_it() -> None:
    story = three()

    assert story.neighbours(A) == []
    assert story.neighbours(B) == story.neighbours(C) == [(A, False)]
    assert story.file(B).neighbours == (Neighbour(worker_id=A, file_id=an_id(A), address="10.0.0.a", ready=False),)


def test_once_files_are_ready_somewhere_all_others_get_them_from_there_and_know_their_digest() -> None:
    story = three()
    story.republished.clear()

    story.ready(A, digest="d1")

    assert story.republished >= {A, B, C}
    assert story.neighbours(B) == story.neighbours(C) == [(A, True)]
    assert {story.file(each).digest for each in (A, B, C)} == {"d1"}
    assert story.neighbours(A) == []


def test_each_worker_begins_with_another_neighbour() -> None:
    story = three()
    workers = [WorkerId(f"w-{number}") for number in range(40)]
    story.joins(*workers)
    story.ready(A, B, C)
    story.requests(*workers)

    first = {story.neighbours(each)[0][0] for each in workers}
    assert first == {A, B, C}
    assert all({near for near, _ in story.neighbours(each)} == {A, B, C} for each in workers)


def test_only_a_few_neighbours_are_named() -> None:
    story = Story()
    workers = [WorkerId(f"w-{number}") for number in range(20)]
    story.joins(*workers)
    story.requests(*workers)
    story.ready(*workers[:19])

    assert len(story.neighbours(workers[19])) == 8


def silence(story: Story) -> None:
    story.silent = {A}
    story.passes(POLICY.lease_seconds + 1)


def dead_downloader(story: Story) -> None:
    for _ in range(round(POLICY.lease_seconds * 2) + 2):
        story.seconds += 0.5
        for worker_id in (A, B, C):
            story.take(story.core.beat(worker_id, "agent", story.now))
        for worker_id in (B, C):
            story.take(story.core.beat(worker_id, "downloader", story.now))
        story.take(story.core.time_passed(story.now))


def goodbye(story: Story) -> None:
    story.hears(WorkerLeaving, A, engines_stopped=True)


def failure(story: Story) -> None:
    story.seen("failed", an_id(A), reasons=(UNREACHABLE,))


@pytest.mark.parametrize("loses", [silence, dead_downloader, goodbye, failure])
def test_when_the_one_that_asks_the_hub_is_lost_the_next_one_does(loses: Callable[[Story], None]) -> None:
    story = three()
    story.republished.clear()

    loses(story)

    assert story.republished >= {B, C}
    assert story.neighbours(B) == []
    assert story.neighbours(C) == [(B, False)]


def test_one_that_is_lost_and_comes_back_waits_for_nobody_twice() -> None:
    """It was to have the files first, and is again: the others are told so."""
    story = three()
    silence(story)
    story.republished.clear()
    story.silent.clear()

    story.joins(A)

    assert story.republished >= {A, B, C}
    assert [story.neighbours(each) for each in (A, B, C)] == [[], [(A, False)], [(A, False)]]


def test_an_agent_that_alone_was_silent_is_waited_for_again_when_it_is_back() -> None:
    story = three()
    for _ in range(round(POLICY.lease_seconds * 2) + 2):
        story.seconds += 0.5
        for worker_id in (A, B, C):
            story.take(story.core.beat(worker_id, "downloader", story.now))
        for worker_id in (B, C):
            story.take(story.core.beat(worker_id, "agent", story.now))
        story.take(story.core.time_passed(story.now))
    assert story.neighbours(B) == []
    story.republished.clear()

    story.joins(A)

    assert story.republished >= {A, B, C}
    assert story.neighbours(B) == [(A, False)]


def test_one_that_has_failed_is_the_last_that_asks_the_hub_when_it_tries_again() -> None:
    story = three()
    failure(story)

    story.passes(3)

    assert story.fleet.files[an_id(A)].state == "wanted"
    assert [story.neighbours(each) for each in (A, B, C)] == [[(B, False)], [], [(B, False)]]
    story.take_over()
    assert [story.neighbours(each) for each in (A, B, C)] == [[(B, False)], [], [(B, False)]]


def test_the_seeder_is_removed_with_its_files_and_nobody_is_sent_to_it() -> None:
    story = three()
    story.ready(A)
    story.hears(WorkerLeaving, A, engines_stopped=True)
    story.republished.clear()

    facts = story.wishes(WorkerRemovalRequested(worker_id=A))

    assert about_files(facts) == ["ModelFileForgotten"]
    assert story.republished >= {B, C}
    assert story.neighbours(B) == []
    assert story.file(C).digest is None


def test_whoever_fetches_from_a_worker_hears_of_its_new_address() -> None:
    story = three()
    story.republished.clear()

    story.joins(A, address="10.9.9.9")

    assert story.republished >= {B, C}
    assert story.file(B).neighbours[0].address == "10.9.9.9"


# -- what users ask ---------------------------------------------------------------------------------------------------


def test_files_that_a_user_requests_are_wanted_with_or_without_a_model() -> None:
    story = Story()
    story.joins(A)

    facts = story.requests(A)

    assert facts == [
        ModelFileWanted(
            file_id=an_id(A), worker_id=A, source=HUB, commit=COMMIT, bytes=GIB, request=len(story.log) - 1,
            known_request=len(story.log) - 1,
        )
    ]  # fmt: skip
    assert (story.file(A).want, story.file(A).priority, story.file(A).in_use) == ("ready", 0, False)
    assert story.take_over() == []


def test_what_is_on_its_way_or_there_is_not_wanted_again() -> None:
    story = Story()
    story.joins(A)
    story.requests(A)
    assert story.requests(A) == []
    story.ready(A)
    assert story.requests(A) == []
    assert story.take_over() == []


def test_files_that_failed_are_tried_again_when_a_user_asks() -> None:
    story = Story()
    story.joins(A)
    story.requests(A)
    story.seen("failed", an_id(A), reasons=(UNREACHABLE,))

    (wanted,) = story.requests(A)

    assert isinstance(wanted, ModelFileWanted)
    assert story.fleet.files[an_id(A)].wanted == 2
    assert story.seen("failed", an_id(A), wanted=1, reasons=(UNREACHABLE,)) == []


def test_a_request_that_needed_nothing_is_not_found_open_by_a_later_scheduler() -> None:
    """The files were there; what became of them later is another matter."""
    story = Story()
    story.joins(A)
    story.requests(A)
    story.ready(A)
    story.requests(A)
    story.seen("deleted", an_id(A))
    assert an_id(A) not in story.fleet.files

    assert story.take_over() == []


def test_a_deletion_of_what_was_not_there_takes_nothing_away_later() -> None:
    story = Story()
    story.joins(A)
    story.deletes(A)
    story.deploys()
    story.ready(A)
    story.wishes(ModelDeleted(model_id=M, name="a"))
    story.runs(phase="stopped")

    assert story.take_over() == []
    assert story.file(A).want == "ready"


def test_files_that_nothing_runs_from_are_deleted() -> None:
    story = Story()
    story.joins(A)
    story.requests(A)
    story.ready(A)

    (deleting,) = story.deletes(A)

    assert isinstance(deleting, ModelFileDeleting)
    assert story.file(A).want == "deleted"
    assert story.take_over() == []
    facts = story.seen("deleted", an_id(A))
    assert facts == [ModelFileDeleted(file_id=an_id(A), worker_id=A, cause="requested")]
    assert story.seen("deleted", an_id(A), wanted=2) == []
    assert assigned_to(story.fleet, A, 1).files == ()
    assert story.take_over() == []


def test_asking_twice_to_delete_is_asking_once() -> None:
    story = Story()
    story.joins(A)
    story.requests(A)
    story.ready(A)
    story.deletes(A)

    assert story.deletes(A) == []
    story.seen("deleted", an_id(A))
    story.requests(A)
    story.ready(A)
    assert story.take_over() == []
    assert story.file(A).want == "ready"


def test_a_download_that_is_not_wanted_any_more_is_deleted_too() -> None:
    story = Story()
    story.joins(A)
    story.requests(A)

    assert about_files(story.deletes(A)) == ["ModelFileDeleting"]
    assert story.seen("failed", an_id(A), wanted=1, reasons=(UNREACHABLE,)) == []
    assert story.seen("ready", an_id(A), wanted=1) == []
    assert story.fleet.files[an_id(A)].state == "deleting"


def test_a_deletion_that_fails_says_why_and_can_be_asked_for_again() -> None:
    story = Story()
    story.joins(A)
    story.requests(A)
    story.ready(A)
    story.deletes(A)

    facts = story.seen("failed", an_id(A), reasons=(DiskError(path="/c", problem="read-only"),))

    assert [fact.reasons[0].code for fact in of(ModelFileFailed, facts)] == ["disk_error"]
    assert about_files(story.deletes(A)) == ["ModelFileDeleting"]


def test_files_that_an_instance_runs_from_are_not_deleted() -> None:
    story = Story()
    story.joins(A)
    story.deploys()
    story.ready(A)
    story.runs()

    (refused,) = story.deletes(A)

    assert isinstance(refused, ModelFileDeletionRefused)
    assert refused.reasons == (FileInUse(worker_id=A, instances=("a-0",)),)
    assert story.file(A).want == "ready"
    assert story.take_over() == []


def test_a_request_that_was_refused_is_not_answered_again_when_nothing_runs_any_more() -> None:
    story = Story()
    story.joins(A)
    story.deploys()
    story.ready(A)
    story.runs()
    story.deletes(A)
    story.wishes(ModelDeleted(model_id=M, name="a"))
    story.runs(phase="stopped")

    assert story.take_over() == []
    assert story.file(A).want == "ready"


def test_an_engine_that_failed_and_was_not_seen_gone_may_still_read_its_files() -> None:
    story = Story()
    story.joins(A)
    story.deploys()
    story.ready(A)
    story.runs()
    story.runs(phase="unhealthy", reasons=(EngineUnhealthy(),))
    assert isinstance(story.fleet.instances[FIRST].state, Failed)

    assert about_files(story.deletes(A)) == ["ModelFileDeletionRefused"]
    assert story.file(A).in_use


def test_an_engine_of_a_former_attempt_that_was_not_seen_gone_may_still_read_its_files() -> None:
    story = Story()
    story.joins(A, B)
    story.deploys()
    story.ready(A)
    story.runs()
    story.silent = {A}
    story.passes(POLICY.lease_seconds + POLICY.eviction_seconds + 2)
    (instance,) = story.fleet.instances.values()
    assert [claim.worker_id for claim in story.fleet.claims_of(instance.id)] == [A, B]

    assert about_files(story.deletes(A)) == ["ModelFileDeletionRefused"]


def test_files_that_are_being_deleted_are_wanted_again_when_an_instance_needs_them() -> None:
    story = Story()
    story.joins(A)
    story.requests(A)
    story.ready(A)
    story.deletes(A)

    facts = story.deploys()

    assert len(of(ModelFileWanted, facts)) == 1
    assert (story.file(A).want, story.file(A).wanted) == ("ready", 3)
    assert story.seen("deleted", an_id(A), wanted=2) == []


def test_files_that_are_being_deleted_are_wanted_again_when_a_user_asks() -> None:
    story = Story()
    story.joins(A)
    story.requests(A)
    story.ready(A)
    story.deletes(A)

    assert about_files(story.requests(A)) == ["ModelFileWanted"]
    assert story.file(A).want == "ready"


@pytest.mark.parametrize("died_before_it_answered", ["ready", "deleted"])
def test_who_takes_over_answers_what_was_not_answered(died_before_it_answered: str) -> None:
    story = Story()
    story.joins(A)
    if died_before_it_answered == "ready":
        story.requests(A)
    else:
        story.requests(A)
        story.ready(A)
        story.deletes(A)
    answer = story.log.pop()[0]
    story.core.fleet = story.replayed()

    facts = story.take_over()

    assert facts == [answer]
    assert story.take_over() == []


def test_what_is_requested_of_a_worker_that_is_not_there_begins_when_it_comes() -> None:
    story = Story()
    story.joins(A)
    assert story.requests(B) == []

    story.joins(B)

    assert story.fleet.files[an_id(B)].state == "wanted"
    assert story.take_over() == []


def test_a_worker_that_leaves_takes_what_was_requested_with_it() -> None:
    story = Story()
    story.joins(A, B)
    story.requests(A)
    story.hears(WorkerLeaving, A, engines_stopped=True)

    facts = story.wishes(WorkerRemovalRequested(worker_id=A))

    assert of(ModelFileForgotten, facts)[0].file_id == an_id(A)
    assert story.fleet.files == {}
    story.joins(A)
    assert story.fleet.files == {}
    assert story.take_over() == []
    assert about_files(story.requests(A)) == ["ModelFileWanted"]
    assert story.fleet.files[an_id(A)].wanted == 2, "an old answer fits no new wish"


# -- to make room -----------------------------------------------------------------------------------------------------


def test_files_that_were_removed_to_make_room_are_gone() -> None:
    story = Story()
    story.joins(A)
    story.requests(A)
    story.ready(A)

    facts = story.seen("deleted", an_id(A))

    assert facts == [ModelFileDeleted(file_id=an_id(A), worker_id=A, cause="evicted")]
    assert story.seen("deleted", an_id(A), wanted=1) == []
    assert story.take_over() == []


@pytest.mark.parametrize("phase", ["accepted", "healthy"])
def test_files_that_were_removed_while_an_instance_was_promised_them_are_wanted_again(phase: str) -> None:
    story = Story()
    story.joins(A)
    story.requests(A)
    story.ready(A)
    story.deploys()
    story.runs(phase=phase)

    facts = story.seen("deleted", an_id(A))

    assert about_files(facts) == ["ModelFileWanted"]
    assert story.file(A).wanted == 2
    assert story.seen("deleted", an_id(A), wanted=1) == []
    story.ready(A)
    story.runs()
    assert isinstance(story.fleet.instances[FIRST].state, Running)


def test_who_has_files_no_more_is_nobodys_neighbour() -> None:
    story = three()
    story.ready(A, B)
    story.wishes(ModelScaled(model_id=M, name="a", replicas=0))
    story.runs(phase="stopped")
    story.republished.clear()

    story.seen("deleted", an_id(A))

    assert C in story.republished
    assert story.neighbours(C) == [(B, True)]


def test_files_on_a_worker_are_listed_as_long_as_it_has_them() -> None:
    """What is not in the list is left alone, but nobody would share it."""
    story = three(replicas=1)
    story.ready(A)
    story.wishes(ModelDeleted(model_id=M, name="a"))
    story.runs(phase="stopped")

    assert (story.file(A).want, story.file(A).in_use) == ("ready", False)


# -- room on the disk -------------------------------------------------------------------------------------------------


def test_all_files_that_are_fetched_must_fit_on_the_disk_not_only_weights() -> None:
    story = Story()
    story.joins(A, disk=GIB + 999)

    facts = story.deploys()

    assert of(InstancePending, facts)[-1].reasons == (
        NotEnoughDisk(worker_id=A, needed_bytes=GIB + 1000, free_bytes=GIB + 999),
    )
    story.joins(A, disk=GIB + 1000)
    assert len(story.fleet.files) == 1


def test_files_that_are_there_need_no_room_and_who_waits_is_placed_when_they_are() -> None:
    story = Story()
    story.joins(A, disk=5)
    story.deploys()
    story.requests(A)

    assert len(of(InstanceScheduled, story.ready(A))) == 1


def test_who_waits_is_placed_when_files_come_to_a_worker_and_others_have_them_already() -> None:
    story = Story()
    story.joins(A, disk=5)
    story.joins(B, gpus=0, ram=GIB)
    story.requests(B)
    story.ready(B)
    story.deploys()
    story.requests(A)

    assert len(of(InstanceScheduled, story.ready(A))) == 1


def test_files_that_were_evicted_need_room_again() -> None:
    story = Story()
    story.joins(A, disk=5)
    story.requests(A)
    story.ready(A)
    story.deploys(replicas=0)
    story.seen("deleted", an_id(A))

    facts = story.wishes(ModelScaled(model_id=M, name="a", replicas=1))

    assert [reason.code for reason in of(InstancePending, facts)[-1].reasons] == ["not_enough_disk"]


# -- what a scheduler that died left half done ------------------------------------------------------------------------


@pytest.mark.parametrize("phase", ["accepted", "loading"])
def test_who_takes_over_fails_the_attempt_whose_files_failed(phase: str) -> None:
    story = Story()
    story.joins(A)
    story.deploys()
    story.ready(A)
    story.runs(phase=phase)
    facts = story.seen("failed", an_id(A), reasons=(UNREACHABLE,))
    assert [fact.type for fact in facts][:2] == ["ModelFileFailed", "InstanceFailed"]
    del story.log[-len(facts) + 1 :]
    story.core.fleet = story.replayed()

    taken = story.take_over()

    assert [fact.type for fact in taken][:2] == ["InstanceFailed", "InstanceRestartPlanned"]


def test_a_removal_that_was_cut_off_forgets_the_other_files_too() -> None:
    story = Story()
    story.joins(A, B)
    story.requests(A)
    story.requests(A, source=NEWER)
    story.hears(WorkerLeaving, A, engines_stopped=True)
    facts = story.wishes(WorkerRemovalRequested(worker_id=A))
    assert about_files(facts) == ["ModelFileForgotten", "ModelFileForgotten"]
    del story.log[-len(facts) + 1 :]
    story.core.fleet = story.replayed()

    assert about_files(story.take_over()) == ["ModelFileForgotten"]
    assert story.fleet.files == {}


def test_files_report_ready_twice_and_are_ready_once() -> None:
    story = Story()
    story.joins(A)
    story.requests(A)

    assert of(ModelFileReady, story.ready(A)) != []
    assert story.ready(A) == []
    assert story.seen("queued", an_id(A)) == []

"""Stories of instances on several workers, and of bugs that the simulation found with them. They are gone; the stories stay."""

from collections.abc import Iterable
from typing import Final

from schemas.asks import ModelInspection
from schemas.facts import (
    DeadlinePassed,
    InstanceAttemptEnded,
    InstanceCreated,
    InstanceDownloading,
    InstanceFailed,
    InstanceReachable,
    InstanceRunning,
    InstanceScheduled,
    InstanceStarting,
    InstanceStopping,
    InstanceUnreachable,
    ModelCreated,
    ModelUpdated,
    WorkerDrainRequested,
    WorkerUncordoned,
)
from schemas.facts.base import Fact
from schemas.ids import InstanceId, ModelId, WorkerId
from schemas.models import Gpu, Inventory, ModelSpec, ModelWeights
from schemas.reasons import InspectionFailed
from schemas.reports import EnginePhase, EngineSeen, FilePhase, FileReported, FileSeen, WorkerObserved
from schemas.sources import LocalPath
from services.scheduler.domain.assignments import assigned_to
from services.scheduler.domain.core import Question
from services.scheduler.domain.fleet import question_about
from services.scheduler.domain.instance import Instance, Pending, Running, Scheduled, Unreachable
from tests.simulation.gangs import CONFIG
from tests.simulation.test_found import Story

GIB: Final = 2**30
MODEL: Final = ModelId("m-a")
GANG: Final = InstanceId("i-a-0")
ONE, TWO, THREE = WorkerId("w-1"), WorkerId("w-2"), WorkerId("w-3")
OTHERS: Final = (THREE, WorkerId("w-4"), WorkerId("w-5"))
"""So many that two that fall silent are no reason to brake."""


def spec(path: str = "/two", **fields: object) -> ModelSpec:
    return ModelSpec.model_validate(
        {"name": "a", "source": LocalPath(path=path), "backend": "vLLM", "start_timeout_seconds": 60.0} | fields
    )


SIZES: Final = {"/one": 8 * GIB, "/other": 8 * GIB, "/two": 28 * GIB}
"""On GPUs of 24 GiB: those that fit on one, and one that needs two."""


class GangStory(Story):
    """Workers with one GPU of 24 GiB each."""

    def sees(self, worker_id: WorkerId, *engines: EngineSeen, gpus: int = 1) -> list[Fact]:
        """The agent sends its picture, and has read the newest assignment."""
        has = Inventory(
            os="linux",
            arch="amd64",
            cpu_count=8,
            memory_total=64 * GIB,
            gpus=tuple(
                Gpu(index=index, vendor="nvidia", type="cuda", name="A GPU", memory_total=24 * GIB)
                for index in range(gpus)
            ),
            backends={"vLLM": "0.11"},
        )
        return self.hear(
            WorkerObserved(
                **self.identity(worker_id),
                name=worker_id,
                address=f"at {worker_id}",
                agent_version="1",
                inventory=has,
                engines=engines,
                assigned_election=self.election,
                assigned_seq=self.sequence,
            )
        )

    def answers(self, worker_id: WorkerId, path: str = "/two", *, found: bool = True) -> list[Fact]:
        """A downloader, asked about the model's files."""
        about = question_about(spec(path))
        question = Question(MODEL, worker_id, self.core.fleet.wishes[MODEL].generation, about)
        weights = ModelWeights.model_validate(
            {"format": "safetensors", "weight_bytes": SIZES[path], "files": (path,), "config": CONFIG}
        )
        answer = (
            ModelInspection(weights=weights) if found else ModelInspection(reasons=(InspectionFailed(problem="?"),))
        )
        return self.decided(self.core.inspected(question, answer, self.now))

    def asked(self) -> set[WorkerId]:
        return {question.worker_id for question in self.core.questions(self.now)}

    def wants(self, *workers: WorkerId, path: str = "/two", **fields: object) -> "GangStory":
        """These workers are there, and a model is wanted."""
        for worker_id in workers:
            self.sees(worker_id)
        self.beats(*workers)
        self.wish(ModelCreated(model_id=MODEL, spec=spec(path, **fields)))
        return self

    def places(self, *workers: WorkerId) -> "GangStory":
        self.wants(*workers)
        for worker_id in workers:
            self.answers(worker_id)
        assert isinstance(self.gang.state, Scheduled)
        assert [member.worker_id for member in self.gang.state.placement.members] == [ONE, TWO]
        return self

    def files(self, *workers: WorkerId, phase: FilePhase = "ready") -> list[Fact]:
        found: list[Fact] = []
        for file in list(self.core.fleet.files.values()):
            if file.worker_id in workers:
                seen = FileSeen(file_id=file.id, wanted=file.wanted, phase=phase, paths=(file.source.label,))
                found += self.hear(FileReported(**self.identity(file.worker_id), file=seen))
        return found

    def takes_up(self) -> "GangStory":
        """Files and acceptances of both are there."""
        self.files(ONE, TWO)
        self.engine(ONE, "accepted")
        self.engine(TWO, "accepted")
        return self

    def runs(self) -> "GangStory":
        self.takes_up()
        self.engine(TWO, "healthy", port=5000)
        self.engine(ONE, "healthy", port=4000)
        assert isinstance(self.gang.state, Running)
        return self

    @property
    def gang(self) -> Instance:
        return self.core.fleet.instances[GANG]

    def wanted(self, worker_id: WorkerId) -> list[str]:
        return [each.want for each in assigned_to(self.core.fleet, worker_id, self.election).instances]


def seen(phase: EnginePhase, attempt: int = 1, port: int = 4000) -> EngineSeen:
    return EngineSeen(instance_id=GANG, attempt=attempt, phase=phase, ports=(port,))


def types(facts: Iterable[Fact]) -> list[type[Fact]]:
    return [type(fact) for fact in facts]


# -- it starts ------------------------------------------------------------------------------------------------------------


def test_a_gang_is_taken_up_when_all_its_members_have() -> None:
    story = GangStory().places(ONE, TWO)

    assert story.engine(TWO, "accepted") == []
    assert types(story.engine(ONE, "accepted")) == [InstanceDownloading]


def test_who_did_not_take_it_up_is_named_and_left_and_who_did_may_be_a_member_again() -> None:
    story = GangStory().places(ONE, TWO)
    story.engine(ONE, "accepted")
    for worker_id in OTHERS:
        story.sees(worker_id)
    story.answers(THREE)
    story.sees(ONE, seen("accepted"), gpus=2)  # it has got another GPU
    facts = story.passes(16.0, ONE, TWO, *OTHERS)

    assert [[reason.worker_id for reason in fact.reasons] for fact in facts if isinstance(fact, DeadlinePassed)] == [
        [TWO]
    ]
    (again,) = [fact for fact in facts if isinstance(fact, InstanceScheduled)]
    assert {member.worker_id: member.gpu_indexes for member in again.members} == {ONE: (1,), THREE: (0,)}


def test_a_gang_starts_when_the_files_are_with_all_its_members() -> None:
    story = GangStory().places(ONE, TWO)
    story.engine(ONE, "accepted")
    story.engine(TWO, "accepted")

    assert InstanceStarting not in types(story.files(ONE))
    assert (story.wanted(ONE), story.wanted(TWO)) == (["prepared"], ["prepared"])
    assert InstanceStarting in types(story.files(TWO))
    assert (story.wanted(ONE), story.wanted(TWO)) == (["running"], ["running"])


def test_nobody_starts_without_files_because_a_member_was_lost() -> None:
    story = GangStory().places(ONE, TWO)
    story.engine(ONE, "accepted")
    story.engine(TWO, "accepted")
    story.passes(11.0, ONE)

    assert isinstance(story.gang.state, Unreachable)
    assert story.wanted(ONE) == ["prepared"]


def test_a_gang_runs_where_its_leader_answers() -> None:
    """A follower that is healthy waits for the leader; in a fleet of old it made the gang Running at its own address."""
    story = GangStory().places(ONE, TWO).takes_up()

    assert InstanceRunning not in types(story.engine(TWO, "healthy", port=5000))
    (running,) = [fact for fact in story.engine(ONE, "healthy") if isinstance(fact, InstanceRunning)]
    assert (running.worker_id, running.address, running.port) == (ONE, "at w-1", 4000)
    assert story.engine(TWO, "healthy", port=5000) == []


# -- members are lost and found -------------------------------------------------------------------------------------------


def test_a_gang_is_unreachable_as_long_as_one_of_its_workers_is_not_heard() -> None:
    story = GangStory().places(ONE, TWO).runs()
    assert InstanceUnreachable in types(story.passes(11.0, ONE))

    assert InstanceReachable not in types(story.sees(ONE, seen("healthy"))), "the other one is not heard yet"
    assert InstanceReachable in types(story.sees(TWO, seen("healthy", port=5000)))
    assert isinstance(story.gang.state, Running)


def test_of_a_gang_that_is_lost_piece_by_piece_it_is_said_who_is_not_heard() -> None:
    story = GangStory().places(ONE, TWO).runs()
    story.passes(11.0, TWO)
    story.passes(11.0)
    assert isinstance(story.gang.state, Unreachable)
    assert [reason.worker_id for reason in story.gang.state.reasons] == [ONE, TWO]
    story.sees(ONE, seen("healthy"))

    assert isinstance(story.gang.state, Unreachable)
    assert [reason.worker_id for reason in story.gang.state.reasons] == [TWO]
    assert story.gang.state.running is not None


def test_that_another_member_falls_silent_grants_no_time() -> None:
    story = GangStory().places(ONE, TWO).runs()
    for worker_id in OTHERS:
        story.sees(worker_id)
    story.passes(5.0, ONE, *OTHERS)
    facts = story.passes(17.0, *OTHERS)  # TWO is silent after 10 s, ONE 5 s later

    assert types(facts).count(InstanceUnreachable) == 2
    assert DeadlinePassed in types(facts)


def test_the_first_answer_of_a_leader_is_noted_also_when_another_member_is_not_heard() -> None:
    story = GangStory().places(ONE, TWO).takes_up()
    story.passes(11.0, ONE)
    facts = story.engine(ONE, "healthy")

    assert types(facts)[:2] == [InstanceRunning, InstanceUnreachable]
    assert InstanceReachable in types(story.sees(TWO, seen("healthy", port=5000)))


def test_a_member_that_ends_ends_the_attempt_and_the_memory_of_each_is_free_when_its_engine_is_gone() -> None:
    story = GangStory().places(ONE, TWO).runs()
    story.engine(TWO, "exited")
    assert [claim.worker_id for claim in story.core.fleet.claims_of(GANG)] == [ONE]
    assert story.wanted(ONE) == []

    assert InstanceAttemptEnded in types(story.engine(ONE, "stopped"))
    assert story.core.fleet.claims_of(GANG) == []


def test_a_gang_that_lost_its_leader_ends_when_another_worker_can_take_its_place_with_the_others() -> None:
    """What the others hold would never be free else."""
    story = GangStory().places(ONE, TWO).runs()
    for worker_id in OTHERS:
        story.sees(worker_id)
    story.answers(THREE)
    facts = story.passes(21.0, TWO, *OTHERS)
    (failed,) = [fact for fact in facts if isinstance(fact, InstanceFailed)]
    assert (failed.worker_id, failed.engine_gone, failed.final) == (ONE, False, False)
    facts = [*story.engine(TWO, "stopped"), *story.passes(5.0, TWO, *OTHERS)]

    again = [fact for fact in facts if isinstance(fact, InstanceScheduled)]
    assert [{member.worker_id for member in fact.members} for fact in again] == [{TWO, THREE}]


def test_a_gang_whose_leader_still_answers_is_not_ended_for_a_silent_member() -> None:
    story = GangStory().places(ONE, TWO).runs()
    for worker_id in OTHERS:
        story.sees(worker_id)
    story.answers(THREE)
    facts = story.passes(60.0, ONE, *OTHERS)

    assert DeadlinePassed in types(facts)
    assert InstanceFailed not in types(facts)


# -- who is asked about its files -----------------------------------------------------------------------------------------


def test_a_worker_that_is_too_small_alone_is_asked_before_it_becomes_a_member() -> None:
    story = GangStory().wants(ONE, TWO)
    story.answers(ONE)
    assert isinstance(story.gang.state, Pending)
    assert {reason.code for reason in story.gang.state.reasons if reason.worker_id == TWO} >= {"being_inspected"}

    assert TWO in story.asked()
    assert InstanceScheduled in types(story.answers(TWO))


def test_a_worker_that_is_too_small_alone_is_asked_again_when_it_could_not_answer() -> None:
    story = GangStory().wants(ONE, TWO)
    story.asked()
    story.answers(ONE)
    story.answers(TWO, found=False)
    story.passes(60.0, ONE, TWO)

    assert TWO in story.asked()


def test_a_worker_that_is_full_of_a_models_former_revision_is_asked_about_the_files_of_the_new_one() -> None:
    """Another worker has said what they weigh; without an answer of this one nothing ever makes room there."""
    story = GangStory().wants(ONE, TWO, path="/one")
    story.asked()
    story.answers(ONE, "/one")
    story.answers(TWO, "/one", found=False)
    story.files(ONE)
    story.engine(ONE, "healthy")
    story.wish(WorkerDrainRequested(worker_id=TWO))
    story.wish(ModelUpdated(model_id=MODEL, spec=spec("/other", distributed_inference_across_workers=False)))
    story.asked()
    story.answers(TWO, "/other")
    story.passes(60.0, ONE, TWO)

    assert ONE in story.asked()
    facts = story.answers(ONE, "/other")
    assert [fact.cause for fact in facts if isinstance(fact, InstanceStopping)] == ["replaced"]


# -- drains ---------------------------------------------------------------------------------------------------------------


def test_what_was_made_in_the_stead_of_a_drained_instance_goes_when_the_drain_is_called_off() -> None:
    """It had failed for good, and so nothing else made anybody look."""
    story = GangStory().wants(ONE, TWO, path="/one", restart_on_error=False)
    story.answers(ONE, "/one")
    story.answers(TWO, "/one")
    story.files(ONE, TWO)
    story.engine(ONE, "healthy")
    assert isinstance(story.gang.state, Running)
    facts = story.wish(WorkerDrainRequested(worker_id=ONE))
    assert InstanceCreated in types(facts)
    story.files(TWO)
    exited = EngineSeen(instance_id=InstanceId("i-a-1"), attempt=1, phase="exited", exit_code=1)
    (failed,) = [fact for fact in story.sees(TWO, exited) if isinstance(fact, InstanceFailed)]
    assert failed.final
    stopped = [fact for fact in story.wish(WorkerUncordoned(worker_id=ONE)) if isinstance(fact, InstanceStopping)]

    assert [(fact.instance_id, fact.cause) for fact in stopped] == [(InstanceId("i-a-1"), "scaled_down")]

"""What is replaced, drained or scaled down finishes its requests before its engine is stopped; the idle one goes first."""

import pytest

from schemas.facts import (
    InstanceDeleted,
    InstanceDeletionRequested,
    InstanceDrained,
    InstanceStopping,
    ModelDeleted,
    ModelScaled,
    ModelUpdated,
    WorkerCordoned,
    WorkerDrained,
    WorkerDrainRequested,
    WorkerRemovalRequested,
    WorkerUnreachable,
)
from schemas.facts.base import Fact
from schemas.facts.instance import StopCause
from schemas.ids import InstanceId, WorkerId
from schemas.models import ModelSpec
from schemas.reasons import FinishingRequests
from schemas.reports import EngineReported, EngineSeen, FileReported, FileSeen, RequestsInFlight, WorkerLeaving
from services.scheduler.domain.assignments import assigned_to
from services.scheduler.domain.core import Core
from services.scheduler.domain.fleet import Fleet, evolve
from services.scheduler.domain.policy import Policy
from tests.simulation.test_found import MODEL, ONE, TWO, Story, spec

FIRST, SECOND = InstanceId("i-a-0"), InstanceId("i-a-1")
DRAIN = Policy().drain_seconds
SECONDS_TO_LISTEN = 6.0


class Served(Story):
    """A story with one gateway."""

    def __init__(self, policy: Policy | None = None) -> None:
        super().__init__()
        self.log: list[Fact] = []
        self.core = Core(Fleet(), policy or Policy(), self.now)
        self.in_flight: dict[InstanceId, int] = {}
        self.is_told = True

    def tells(self) -> list[Fact]:
        told = RequestsInFlight(gateway="g", seq=self.sequence, instances=self.in_flight)
        if self.core.requests_are_news(told, self.now.monotonic):
            return self.decided(self.core.requests_told(self.now))
        return []

    def passes(self, seconds: float, *heard: WorkerId) -> list[Fact]:
        before = len(self.facts)
        for _ in range(round(seconds * 2)):
            if self.is_told:
                super().passes(0.5, *heard)
                self.tells()
            else:
                super().passes(0.5, *heard)
        return self.facts[before:]

    def take_over(self) -> list[Fact]:
        """By a scheduler that has folded what was stated, and heard nothing."""
        self.core = Core(self.core.fleet, self.core.policy, self.now)
        return self.decided(self.core.took_over(self.now))

    def scaled(self, replicas: int) -> list[Fact]:
        return self.wish(ModelScaled(model_id=MODEL, name="a", replicas=replicas))

    def wants(self, instance_id: InstanceId = FIRST) -> str | None:
        """What the assignments say of its engine."""
        documents = [assigned_to(self.core.fleet, worker_id, 1) for worker_id in (ONE, TWO)]
        return next((i.want for each in documents for i in each.instances if i.instance_id == instance_id), None)

    def says(self, instance_id: InstanceId, worker_id: WorkerId, phase: str) -> list[Fact]:
        seen = EngineSeen.model_validate({"instance_id": instance_id, "attempt": 1, "phase": phase, "ports": (4000,)})
        return self.hear(EngineReported(**self.identity(worker_id), engine=seen))


def running(policy: Policy | None = None) -> Served:
    """One instance on the first of two workers; whoever decides has listened long enough."""
    story = Served(policy)
    story.runs_on(ONE, TWO)
    for file in list(story.core.fleet.files.values()):
        ready = FileSeen(file_id=file.id, wanted=file.wanted, phase="ready", paths=("/a",))
        story.hear(FileReported(**story.identity(file.worker_id), file=ready))
    story.says(FIRST, ONE, "healthy")
    story.passes(SECONDS_TO_LISTEN, ONE, TWO)
    return story


def two_running() -> Served:
    story = running()
    story.scaled(2)
    for worker_id in (ONE, TWO):
        story.says(SECOND, worker_id, "healthy")
    assert story.core.fleet.counts_of(MODEL)["running"] == 2
    return story


def busy(policy: Policy | None = None) -> Served:
    """… with two requests, and on its way out."""
    story = running(policy)
    story.in_flight = {FIRST: 2}
    story.tells()
    story.scaled(0)
    return story


def drained(facts: list[Fact]) -> list[InstanceDrained]:
    return [fact for fact in facts if isinstance(fact, InstanceDrained)]


def test_an_engine_is_kept_until_its_requests_are_over() -> None:
    story = running()
    story.in_flight = {FIRST: 2}
    story.tells()
    (stopping,) = [fact for fact in story.scaled(0) if isinstance(fact, InstanceStopping)]
    assert (stopping.cause, stopping.drain_seconds) == ("scaled_down", DRAIN)
    assert stopping.reasons == (FinishingRequests(up_to_seconds=DRAIN),)
    assert drained(story.passes(DRAIN / 2, ONE, TWO)) == []
    assert story.wants() == "prepared", "it goes on, and is not started again when it is gone"

    story.in_flight = {}
    assert story.passes(0.5, ONE, TWO) == [InstanceDrained(instance_id=FIRST, requests_left=0)]
    assert story.wants() is None
    assert InstanceDeleted(instance_id=FIRST) in story.says(FIRST, ONE, "stopped")


def test_an_engine_without_requests_goes_with_the_next_thing_that_is_heard() -> None:
    story = running()
    assert drained(story.scaled(0)) == [], "the gateways can't know of it yet"

    assert drained(story.passes(1, ONE, TWO)) == [InstanceDrained(instance_id=FIRST)]


def test_a_gateway_that_knows_all_that_is_in_the_log_does_not_know_what_is_being_appended() -> None:
    """A decision looks at the time too, before its facts have their places in the log."""
    story = running()
    story.sequence += 1
    fact = ModelScaled(model_id=MODEL, name="a", replicas=0)
    evolve(story.core.fleet, fact, story.sequence, story.now.at)
    story.tells()
    decided = story.core.wished(fact, story.now)
    assert InstanceStopping in [type(each) for each in decided.facts]

    assert drained(story.core.time_passed(story.now).facts) == []
    assert story.tells() == []
    story.decided(decided)
    assert drained(story.passes(1, ONE, TWO)) == [InstanceDrained(instance_id=FIRST)]


def test_without_a_gateway_nobody_is_waited_for() -> None:
    story = Served()
    story.is_told = False
    story.runs_on(ONE, TWO)
    story.says(FIRST, ONE, "healthy")
    story.scaled(0)
    assert drained(story.passes(SECONDS_TO_LISTEN, ONE, TWO)) == [InstanceDrained(instance_id=FIRST)]


def test_requests_that_do_not_end_are_not_waited_for_beyond_the_deadline() -> None:
    story = busy()
    assert drained(story.passes(DRAIN - 1, ONE, TWO)) == []

    assert drained(story.passes(1, ONE, TWO)) == [InstanceDrained(instance_id=FIRST, requests_left=2)]
    assert story.wants() is None


@pytest.mark.parametrize("cause", ["model_deleted", "deletion_requested"])
def test_what_a_user_deletes_is_stopped_at_once(cause: StopCause) -> None:
    story = running()
    story.in_flight = {FIRST: 2}
    story.tells()
    deletes = {
        "model_deleted": ModelDeleted(model_id=MODEL, name="a"),
        "deletion_requested": InstanceDeletionRequested(instance_id=FIRST),
    }
    facts = story.wish(deletes[cause])
    assert InstanceStopping(instance_id=FIRST, cause=cause) in facts
    assert story.wants() is None


@pytest.mark.parametrize(
    "deletes",
    [ModelDeleted(model_id=MODEL, name="a"), InstanceDeletionRequested(instance_id=FIRST)],
    ids=["the model", "the instance"],
)
def test_what_is_deleted_while_it_drains_goes_at_once(deletes: Fact) -> None:
    story = busy()

    assert drained(story.wish(deletes)) == [InstanceDrained(instance_id=FIRST, requests_left=2)]
    assert story.wants() is None


def test_what_does_not_run_has_nothing_to_finish() -> None:
    story = Served()
    story.runs_on(ONE, TWO)
    story.says(FIRST, ONE, "loading")
    assert InstanceStopping(instance_id=FIRST, cause="scaled_down") in story.scaled(0)


def test_it_can_be_switched_off() -> None:
    story = running(Policy(drain_seconds=0.0))
    assert InstanceStopping(instance_id=FIRST, cause="scaled_down") in story.scaled(0)
    assert story.wants() is None


def test_who_takes_over_listens_first_and_gives_the_time_once_more() -> None:
    story = busy()
    story.passes(DRAIN - 1, ONE, TWO)
    assert drained(story.take_over()) == []
    assert drained(story.passes(DRAIN - 1, ONE, TWO)) == []
    assert story.wants() == "prepared"

    assert drained(story.passes(1, ONE, TWO)) == [InstanceDrained(instance_id=FIRST, requests_left=2)]


def test_who_takes_over_does_not_take_what_it_has_not_heard_for_quiet() -> None:
    story = busy()
    story.is_told = False
    story.take_over()
    assert drained(story.passes(4, ONE, TWO)) == []

    story.is_told = True
    assert drained(story.passes(DRAIN / 2, ONE, TWO)) == []
    story.in_flight = {}
    assert drained(story.passes(0.5, ONE, TWO)) == [InstanceDrained(instance_id=FIRST)]


def test_who_takes_over_completes_what_a_deletion_began() -> None:
    """The former scheduler died before it said that the instance may go."""
    story = busy()
    fact = ModelDeleted(model_id=MODEL, name="a")
    story.sequence += 1
    evolve(story.core.fleet, fact, story.sequence, story.now.at)

    assert InstanceDrained(instance_id=FIRST) in story.take_over()


def test_an_engine_that_ends_while_it_drains_is_gone() -> None:
    story = busy()
    facts = story.says(FIRST, ONE, "exited")
    assert InstanceDeleted(instance_id=FIRST) in facts
    assert drained(story.passes(DRAIN + 1, ONE, TWO)) == []


def test_an_engine_goes_on_while_its_worker_is_not_heard() -> None:
    """Its agent may be gone, and its streams go on: gateways tell when they are over."""
    story = busy()
    facts = story.passes(15, TWO)
    assert WorkerUnreachable in [type(fact) for fact in facts]
    assert drained(facts) == []

    story.in_flight = {}
    assert drained(story.passes(0.5, TWO)) == [InstanceDrained(instance_id=FIRST)]


def test_a_worker_that_goes_takes_what_drains_with_it() -> None:
    story = busy()
    facts = story.hear(WorkerLeaving(**story.identity(ONE), engines_stopped=True))
    assert InstanceDeleted(instance_id=FIRST) in facts


def test_a_worker_that_is_removed_takes_what_drains_with_it() -> None:
    story = busy()
    story.hear(WorkerLeaving(**story.identity(ONE), engines_stopped=False))
    assert InstanceDeleted(instance_id=FIRST) in story.wish(WorkerRemovalRequested(worker_id=ONE))


def test_a_worker_is_empty_when_the_last_stream_is_over() -> None:
    story = running()
    story.in_flight = {FIRST: 1}
    story.wish(WorkerDrainRequested(worker_id=ONE))
    facts = story.says(SECOND, TWO, "healthy")
    assert [(f.cause, f.drain_seconds) for f in facts if isinstance(f, InstanceStopping)] == [("drained", DRAIN)]
    assert story.passes(10, ONE, TWO) == []

    story.in_flight = {}
    story.passes(0.5, ONE, TWO)
    assert WorkerDrained(worker_id=ONE, drains=1) in story.says(FIRST, ONE, "stopped")


def test_what_is_edited_is_replaced_after_its_requests() -> None:
    story = running()
    story.in_flight = {FIRST: 1}
    edited: ModelSpec = spec().model_copy(update={"env": {"A": "1"}})
    story.wish(ModelUpdated(model_id=MODEL, spec=edited))
    (worker_id,) = {claim.worker_id for claim in story.core.fleet.claims_of(SECOND)}
    facts = story.says(SECOND, worker_id, "healthy")
    assert [(f.cause, f.drain_seconds) for f in facts if isinstance(f, InstanceStopping)] == [("replaced", DRAIN)]


def test_a_picture_from_which_nothing_follows_is_no_input() -> None:
    story = busy()
    story.passes(0.5, ONE, TWO)
    busy_still = RequestsInFlight(gateway="g", seq=story.sequence, instances={FIRST: 1})
    assert not story.core.requests_are_news(busy_still, story.now.monotonic)
    assert story.core.requests_are_news(busy_still.model_copy(update={"instances": {}}), story.now.monotonic)


def test_of_two_that_run_the_one_with_fewer_requests_is_stopped() -> None:
    for idle, other in ((FIRST, SECOND), (SECOND, FIRST)):
        story = two_running()
        story.in_flight = {idle: 1, other: 3}
        story.passes(0.5, ONE, TWO)
        facts = story.scaled(1)
        assert [f.instance_id for f in facts if isinstance(f, InstanceStopping)] == [idle]


def test_fewer_requests_count_more_than_a_bad_place() -> None:
    story = two_running()
    (cordoned,) = {claim.worker_id for claim in story.core.fleet.claims_of(FIRST)}
    story.wish(WorkerCordoned(worker_id=cordoned))
    story.in_flight = {FIRST: 1}
    story.passes(0.5, ONE, TWO)
    assert [f.instance_id for f in story.scaled(1) if isinstance(f, InstanceStopping)] == [SECOND]


def test_what_does_not_run_goes_before_what_is_idle() -> None:
    story = running()
    story.scaled(2)
    assert story.core.fleet.counts_of(MODEL)["running"] == 1
    story.in_flight = {SECOND: 5}
    story.passes(0.5, ONE, TWO)
    assert [f.instance_id for f in story.scaled(1) if isinstance(f, InstanceStopping)] == [SECOND]

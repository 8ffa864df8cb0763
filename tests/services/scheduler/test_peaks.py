"""Which of what agents report of peaks becomes a fact, what is kept of it, and what the next placement claims."""

from datetime import UTC, datetime
from typing import Any

import pytest

from schemas.asks import ModelInspection
from schemas.facts import (
    InstanceAttemptEnded,
    InstanceFailed,
    ModelCreated,
    ModelDeleted,
    ModelPeakMeasured,
    ModelScaled,
)
from schemas.facts.base import Fact
from schemas.ids import InstanceId, ModelId, WorkerId
from schemas.models import Claim, Gpu, Inventory, ModelSpec, ModelWeights
from schemas.reports import EngineReported, EngineSeen, WorkerObserved, has_risen
from schemas.sources import LocalPath
from services.scheduler.domain.core import Core, Now
from services.scheduler.domain.fleet import Fleet, evolve
from services.scheduler.domain.instance import placement_of
from services.scheduler.domain.peaks import Peak, Where, news, with_peak
from services.scheduler.domain.plan import explain
from services.scheduler.domain.policy import Policy

GIB, MIB = 2**30, 2**20
W, OTHER = WorkerId("w-1"), WorkerId("w-2")
M = ModelId("m-a")
FIRST = InstanceId("i-a-0")
NOW = Now(datetime(2026, 11, 26, tzinfo=UTC), 1000.0)
WEIGHTS = ModelWeights(format="gguf", weight_bytes=4 * GIB, files=("/m",))
A100 = "NVIDIA A100"


class Story:
    """A worker with GPUs of 8 GiB each; a model of 4 GiB runs on the first."""

    def __init__(self, *, gpus: int = 1, claims_from_peak: bool = False) -> None:
        self.core = Core(Fleet(), Policy(claims_from_peak=claims_from_peak), NOW)
        self.counters: dict[WorkerId, int] = {}
        self.gpus = gpus
        self.joins(W, gpus)
        self.wishes(ModelCreated(model_id=M, spec=spec()), 100)
        self.core.published(W, [(FIRST, 1)], 1, 100)
        self.tells()

    def joins(self, worker_id: WorkerId, gpus: int) -> None:
        inventory = Inventory(
            os="linux", arch="amd64", cpu_count=4, memory_total=64 * GIB, backends={"llama.cpp": "1"},
            gpus=tuple(
                Gpu(index=index, vendor="nvidia", type="cuda", name=A100, memory_total=8 * GIB) for index in range(gpus)
            ),
        )  # fmt: skip
        picture = {"name": worker_id, "address": "::1", "agent_version": "1", "inventory": inventory, "engines": ()}
        self.core.heard(WorkerObserved.model_validate(self.identity(worker_id) | picture), NOW)
        self.core.beat(worker_id, "downloader", NOW)
        self.answers()

    def identity(self, worker_id: WorkerId) -> dict[str, Any]:
        self.counters[worker_id] = self.counters.get(worker_id, 0) + 1
        counter = self.counters[worker_id]
        return {"worker_id": worker_id, "boot_id": "b", "counter": counter, "observed_at": NOW.at}

    def wishes(self, fact: Fact, seq: int) -> None:
        evolve(self.core.fleet, fact, seq, NOW.at)
        self.core.wished(fact, NOW)
        self.answers()

    def answers(self) -> None:
        for question in self.core.questions(NOW):
            self.core.inspected(question, ModelInspection(weights=WEIGHTS), NOW)

    def report(self, phase: Any = "healthy", *, by: WorkerId = W, attempt: int = 1, **seen: Any) -> EngineReported:
        ports = (4000,) if phase == "healthy" else ()
        engine = EngineSeen(instance_id=FIRST, attempt=attempt, phase=phase, ports=ports, **seen)
        return EngineReported.model_validate(self.identity(by) | {"engine": engine})

    def tells(self, phase: Any = "healthy", **seen: Any) -> list[Fact]:
        return self.core.heard(self.report(phase, **seen), NOW).facts

    @property
    def peaks(self) -> tuple[Peak, ...]:
        return self.core.fleet.models[M].peaks

    @property
    def claims(self) -> list[Claim | None]:
        places = [placement_of(each.state) for each in self.core.fleet.instances_of(M)]
        return [None if place is None else place.members[0].claim for place in places]

    @property
    def claim(self) -> Claim:
        claim = self.claims[0]
        assert claim is not None
        return claim


def spec(**fields: Any) -> ModelSpec:
    given = {"name": "a", "source": LocalPath(path="/a"), "backend_parameters": ("--ctx-size=1",)} | fields
    return ModelSpec.model_validate(given)


def measured(facts: list[Fact]) -> list[tuple[int | None, int | None]]:
    return [(fact.peak_vram, fact.peak_ram) for fact in facts if isinstance(fact, ModelPeakMeasured)]


# -- what is news -----------------------------------------------------------------------------------------------------


def test_the_first_peak_is_stated_with_what_the_attempt_claims() -> None:
    story = Story()
    (fact,) = story.tells(peak_vram={0: 3 * GIB}, peak_ram=GIB)
    assert fact == ModelPeakMeasured(
        model_id=M,
        revision=100,
        gpu=A100,
        gpus=1,
        claimed_vram=story.claim.vram[0],
        claimed_ram=story.claim.ram,
        peak_vram=3 * GIB,
        peak_ram=GIB,
        worker_id=W,
        instance_id=FIRST,
        attempt=1,
    )
    assert story.peaks == (Peak(100, Where(A100, 1), 3 * GIB, GIB),)


def test_only_a_clear_rise_is_news() -> None:
    story = Story()
    story.tells(peak_vram={0: 1000}, peak_ram=1000)
    assert measured(story.tells(peak_vram={0: 1000}, peak_ram=1000)) == []
    assert measured(story.tells(peak_vram={0: 1049}, peak_ram=900)) == []
    assert measured(story.tells(peak_vram={0: 900}, peak_ram=1050)) == [(1000, 1050)]
    assert measured(story.tells(peak_vram={0: 1050}, peak_ram=1060)) == [(1050, 1060)]
    assert story.peaks == (Peak(100, Where(A100, 1), 1050, 1060),)


def test_each_kind_of_memory_may_be_measured_alone() -> None:
    story = Story()
    assert measured(story.tells(peak_ram=1000)) == [(None, 1000)]
    assert measured(story.tells(peak_vram={0: 7})) == [(7, 1000)]
    assert measured(story.tells()) == []
    assert measured(story.tells(peak_vram={0: 0}, peak_ram=0)) == []


@pytest.mark.parametrize("phase", ["accepted", "pulling", "loading"])
def test_what_an_engine_holds_while_it_loads_is_no_peak(phase: str) -> None:
    assert measured(Story().tells(phase, peak_ram=GIB)) == []


@pytest.mark.parametrize("phase", ["exited", "stopped", "unhealthy"])
def test_the_report_of_an_end_may_tell_the_highest(phase: str) -> None:
    story = Story()
    story.tells(peak_ram=1000)
    facts = story.tells(phase, peak_ram=2000)
    assert measured(facts) == [(None, 2000)]
    assert any(isinstance(fact, InstanceFailed) for fact in facts)


def test_an_end_is_heard_also_of_what_is_being_stopped_and_of_what_has_failed() -> None:
    story = Story()
    story.tells("unhealthy")
    facts = story.tells("exited", peak_ram=1000)
    assert [fact.type for fact in facts] == [ModelPeakMeasured.type, InstanceAttemptEnded.type]

    story = Story()
    story.wishes(ModelScaled(model_id=M, name="a", replicas=0), 101)
    assert measured(story.tells("stopped", peak_ram=1000)) == [(None, 1000)]


# -- who may say what -------------------------------------------------------------------------------------------------


def test_a_report_that_comes_twice_or_late_changes_nothing() -> None:
    story = Story()
    early, late = story.report(peak_ram=5000), story.report(peak_ram=1000)
    story.core.heard(late, NOW)
    assert measured(story.core.heard(late, NOW).facts) == []
    assert measured(story.core.heard(early, NOW).facts) == [], "the later one was heard before"
    assert story.peaks[0].ram_bytes == 1000


def test_a_picture_tells_peaks_too() -> None:
    story = Story()
    machine = story.core.fleet.workers[W]
    engine = EngineSeen(instance_id=FIRST, attempt=1, phase="healthy", ports=(4000,), peak_ram=GIB)
    picture = {
        "name": W, "address": "::1", "agent_version": "1", "inventory": machine.inventory, "engines": (engine,),
    }  # fmt: skip
    report = WorkerObserved.model_validate(story.identity(W) | picture)
    assert measured(story.core.heard(report, NOW).facts) == [(None, GIB)]


def test_nobody_measures_on_a_worker_that_does_not_run_the_attempt() -> None:
    story = Story()
    story.joins(OTHER, 1)
    assert measured(story.tells(by=OTHER, peak_ram=GIB)) == []
    assert measured(story.tells(attempt=2, peak_ram=GIB)) == []
    assert story.peaks == ()


def test_an_attempt_that_was_replaced_is_not_measured_any_more() -> None:
    story = Story()
    story.tells("exited")
    story.core.time_passed(Now(NOW.at, NOW.monotonic + 5))
    (instance,) = story.core.fleet.instances_of(M)
    assert instance.attempt == 2
    assert measured(story.tells("exited", peak_ram=GIB)) == []


def test_memory_of_gpus_that_it_does_not_have_is_not_its_own() -> None:
    story = Story(gpus=2)
    (index,) = story.claim.vram
    assert measured(story.tells(peak_vram={1 - index: 7 * GIB})) == []
    assert measured(story.tells(peak_vram={1 - index: 7 * GIB, index: 2 * GIB})) == [(2 * GIB, None)]


def test_nothing_holds_more_than_there_is() -> None:
    assert measured(Story().tells(peak_vram={0: 2**59}, peak_ram=2**59)) == [(8 * GIB, 64 * GIB)]


def test_a_model_that_was_deleted_is_not_measured_any_more() -> None:
    story = Story()
    story.wishes(ModelDeleted(model_id=M, name="a"), 101)
    assert measured(story.tells("stopped", peak_ram=GIB)) == []


# -- what is kept -----------------------------------------------------------------------------------------------------


def a_peak(revision: int, ram: int, gpu: str = "a") -> Peak:
    return Peak(revision, Where(gpu, 1), None, ram)


def test_the_two_newest_revisions_are_kept() -> None:
    known: tuple[Peak, ...] = ()
    for peak in (a_peak(1, 5), a_peak(1, 6, "b"), a_peak(2, 7), a_peak(2, 8), a_peak(3, 9)):
        known = with_peak(known, peak)
    assert known == (a_peak(2, 8), a_peak(3, 9))


def test_what_would_be_forgotten_at_once_is_not_stated() -> None:
    known = (a_peak(2, 8), a_peak(3, 9))
    assert news(known, a_peak(1, 10**9)) is None
    assert with_peak(known, a_peak(1, 10**9)) == known
    assert news(known, a_peak(2, 10)) == a_peak(2, 10)


@pytest.mark.parametrize(
    ("known", "peak", "is_news"),
    [(None, None, False), (None, 0, False), (None, 1, True), (100, None, False), (100, 104, False), (100, 105, True), (100, 1, False)],
)  # fmt: skip
def test_a_rise_of_a_twentieth_is_clear(known: int | None, peak: int | None, is_news: bool) -> None:
    assert has_risen(known, peak) is is_news


# -- what follows -----------------------------------------------------------------------------------------------------


def scaled(story: Story, replicas: int) -> Story:
    story.wishes(ModelScaled(model_id=M, name="a", replicas=replicas), 101)
    return story


@pytest.mark.parametrize("allowed", [False, True])
def test_the_next_instance_claims_what_was_measured_where_the_operator_allows_it(allowed: bool) -> None:
    story = Story(gpus=2, claims_from_peak=allowed)
    before = story.claim
    story.tells(peak_vram=dict.fromkeys(before.vram, 2 * GIB), peak_ram=100 * MIB)
    scaled(story, 2)
    first, second = story.claims
    assert first == before
    assert second is not None
    assert sorted(second.vram.values()) == ([2362232013] if allowed else list(before.vram.values()))
    assert second.ram == (110 * MIB if allowed else before.ram)


@pytest.mark.parametrize("allowed", [False, True])
def test_an_instance_that_waits_is_placed_as_soon_as_it_is_known_to_fit(allowed: bool) -> None:
    story = scaled(Story(claims_from_peak=allowed), 2)
    assert story.claims[1] is None, "by the estimate one fills the GPU"
    story.tells(peak_vram={0: 2 * GIB})
    assert (story.claims[1] is not None) is allowed


def test_the_next_scheduler_may_be_told_otherwise() -> None:
    story = Story(gpus=2)
    story.tells(peak_vram=dict.fromkeys(story.claim.vram, 2 * GIB))
    story.core = Core(story.core.fleet, Policy(claims_from_peak=True), NOW)
    scaled(story, 2)
    second = story.claims[1]
    assert second is not None
    assert list(second.vram.values()) == [2362232013]


# -- what is told -----------------------------------------------------------------------------------------------------


def told(story: Story) -> list[tuple[str, str | None]]:
    answer = explain(story.core.placing, story.core.fleet, M)
    return [(each.text, each.warning) for each in answer.measured]


def test_claim_and_peak_are_told_together() -> None:
    story = Story()
    place, vram, ram = f"1 instance on 1× {A100}", "claims 4.2 GiB on each GPU", "claims 256 MiB of RAM"
    assert told(story) == [(f"{place}: {vram}, not measured; {ram}, not measured", None)]
    story.tells(peak_vram={0: 3 * GIB}, peak_ram=128 * MIB)
    assert told(story) == [
        (f"{place}: {vram}, measured 3.0 GiB at most (71 %); {ram}, measured 128 MiB at most (50 %)", None)
    ]


@pytest.mark.parametrize(
    ("allowed", "advice"),
    [
        (False, "set claim_override, or let claims be taken from what was measured (MUSTER_CLAIMS_FROM_PEAK)"),
        (True, "the next instance claims what was measured"),
    ],
)
def test_who_holds_more_than_he_claims_is_told_what_to_do(allowed: bool, advice: str) -> None:
    story = Story(claims_from_peak=allowed)
    story.tells(peak_vram={0: 5 * GIB}, peak_ram=GIB)
    (_, warning) = told(story)[0]
    assert warning == f"holds more VRAM and RAM than it claims: {advice}"


def test_instances_that_claim_differently_are_told_apart() -> None:
    story = Story(gpus=2, claims_from_peak=True)
    story.tells(peak_vram=dict.fromkeys(story.claim.vram, 2 * GIB))
    scaled(story, 2)
    answer = explain(story.core.placing, story.core.fleet, M)
    assert sorted((each.instances, each.claimed_vram, each.peak_vram) for each in answer.measured) == [
        (1, 2362232013, 2 * GIB),
        (1, story.claim.vram.popitem()[1], 2 * GIB),
    ]


def test_an_instance_that_waits_or_has_failed_is_not_placed() -> None:
    story = scaled(Story(), 2)
    assert [each.instances for each in explain(story.core.placing, story.core.fleet, M).measured] == [1]

    story = Story()
    story.tells("exited")
    assert told(story) == []

"""Ready, slow, hung, given up: in virtual time, against answers and activities as they come."""

from dataclasses import dataclass, field, replace
from itertools import pairwise

import pytest

from schemas.reasons import StartTimeout
from services.agent.domain.about import About
from services.agent.domain.health import (
    PROBE_TIMEOUT_SECONDS,
    SILENT_WORK_SECONDS,
    SLOW_SECONDS,
    TOKENLESS,
    Answer,
    Health,
    IllReport,
    after,
    after_inference,
    at_first,
    ill_report,
    needs_look,
    rest_seconds,
    worked,
)
from services.agent.domain.runtime import Activity
from tests.services.agent.starts import a_launch, a_start

IDLE = Activity(busy_seconds=0, read_bytes=0, log_mark=0)
QUICK = {"well": 0.001, "not_well": 0.001, "refused": 0.001, "late": PROBE_TIMEOUT_SECONDS, "not_asked": 5.0}


@dataclass
class Story:
    """An engine, and the agent that probes it as `watching.py` does."""

    start_timeout_seconds: float = 900.0
    now: float = 1000.0
    busy: float = 0.0
    """Processors that it uses."""
    reads: float = 0.0
    """Bytes a second."""
    writes: bool = False
    activity: Activity | None = IDLE
    health: Health = field(init=False)
    began: float = field(init=False)
    told: list[tuple[float, str]] = field(default_factory=list[tuple[float, str]])
    """When its phase changed, from the beginning of the story."""
    progress: list[float] = field(default_factory=list[float])

    def __post_init__(self) -> None:
        self.health = at_first(self.now, self.start_timeout_seconds, self.activity)
        self.began = self.now

    def goes_on(self, answer: Answer, seconds: float) -> "Story":
        ends = self.now + seconds
        while self.now < ends and not self.health.gave_up:
            began = self.now
            self._lives(QUICK[answer])
            looked = self.activity if needs_look(self.health, answer, self.now) else None
            before, self.health = self.health, after(self.health, answer, looked, self.now, began)
            if self.health.phase != before.phase:
                self.told.append((self.now - self.began, self.health.phase))
            if self.health.progressed:
                self.progress.append(self.now - self.began)
            self._lives(rest_seconds(self.health, answer))
        return self

    def _lives(self, seconds: float) -> None:
        self.now += seconds
        if self.activity is not None:
            self.activity = Activity(
                self.activity.busy_seconds + self.busy * seconds,
                self.activity.read_bytes + int(self.reads * seconds),
                int(self.now * 10) if self.writes else 0,
            )


def a_running(**how: float) -> Story:
    story = Story(**how).goes_on("well", 10)  # pyright: ignore[reportArgumentType] - seconds and processors
    story.told.clear()
    story.began = story.now
    return story


# -- until its first answer -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "progress",
    [{"busy": 1.0}, {"reads": 200e6}, {"writes": True}],
    ids=["it computes", "it reads weights", "it writes"],
)
@pytest.mark.parametrize("answer", ["refused", "not_well", "late"])
def test_an_engine_that_makes_progress_is_given_its_time(progress: dict[str, float], answer: Answer) -> None:
    story = Story(start_timeout_seconds=60, **progress).goes_on(answer, 1200)  # pyright: ignore[reportArgumentType]
    assert (story.health.phase, story.health.gave_up, story.told) == ("loading", False, [])
    assert all(later - sooner < 30 for sooner, later in pairwise([0, *story.progress, 1200])), "the scheduler is told"
    assert story.goes_on("well", 1).told == [(pytest.approx(1200, abs=2), "healthy")]


def test_one_that_shows_none_is_unhealthy_and_given_up_after_its_start_timeout() -> None:
    story = Story(start_timeout_seconds=65).goes_on("refused", 600)
    assert story.told == [(pytest.approx(10, abs=1.5), "unhealthy")]
    assert story.health.gave_up
    assert story.now - story.began == pytest.approx(65, abs=2.5)
    assert ill_report(story.health, ("a", "b")) == IllReport((StartTimeout(after_seconds=65),), ("a", "b"))


def test_its_time_counts_from_its_last_progress() -> None:
    story = Story(start_timeout_seconds=60, writes=True).goes_on("refused", 100)
    story.writes = False
    story.goes_on("refused", 600)
    assert story.now - story.began == pytest.approx(160, abs=15)


def test_progress_after_a_silence_is_loading_again() -> None:
    story = Story().goes_on("refused", 100)
    story.writes = True
    story.goes_on("refused", 100)
    assert [phase for _, phase in story.told] == ["unhealthy", "loading"]


def test_threads_that_spin_are_progress_for_a_while_only() -> None:
    story = Story(start_timeout_seconds=60, busy=1.0).goes_on("refused", 2 * SILENT_WORK_SECONDS)
    assert story.health.gave_up
    assert story.now - story.began == pytest.approx(SILENT_WORK_SECONDS + 60, abs=30)


def test_threads_that_idle_are_no_progress() -> None:
    assert Story(start_timeout_seconds=60, busy=0.02).goes_on("refused", 600).health.gave_up


def test_a_start_timeout_of_a_second_is_one() -> None:
    story = Story(start_timeout_seconds=1).goes_on("refused", 600)
    assert story.now - story.began == pytest.approx(2, abs=1)


# -- after its first answer -------------------------------------------------------------------------------------------


def test_one_that_hangs_is_unhealthy_within_three_seconds_of_its_last_answer() -> None:
    story = a_running().goes_on("late", 30)
    assert story.told == [(pytest.approx(1.6, abs=0.1), "unhealthy")]
    ((seconds, _),) = story.told
    assert 1.0 + seconds <= 3.0, "it may have hung just after it answered, a second before the next probe"
    assert ill_report(story.health, ("x",)) == IllReport((), ("x",))


@pytest.mark.parametrize("answer", ["refused", "not_well"])
def test_one_that_says_no_is_unhealthy_at_its_third_no_although_it_works(answer: Answer) -> None:
    story = a_running(busy=1.0).goes_on(answer, 30)
    ((seconds, phase),) = story.told
    assert (phase, 1.0 + seconds <= 3.0) == ("unhealthy", True)
    assert seconds >= 1.3, "the second no is none yet"


def test_one_no_is_none() -> None:
    story = a_running().goes_on("refused", 0.5).goes_on("well", 10)
    assert (story.told, story.health.misses) == ([], 0)


@pytest.mark.parametrize(
    "how", [{"busy": 0.5}, {"writes": True}, {"reads": 200e6}], ids=["computes", "writes", "reads"]
)
def test_one_that_is_late_and_works_is_slow(how: dict[str, float]) -> None:
    story = a_running(**how).goes_on("late", SLOW_SECONDS - 5)
    assert (story.told, story.health.is_slow) == ([], True)
    assert (story.goes_on("well", 3).told, story.health.is_slow) == ([], False)


def test_one_that_was_slow_and_stops_working_hangs() -> None:
    story = a_running(busy=1.0).goes_on("late", 20)
    story.busy = 0
    story.goes_on("late", 10)
    assert story.told == [(pytest.approx(20, abs=3), "unhealthy")]


def test_nobody_is_slow_for_ever() -> None:
    assert a_running(busy=1.0).goes_on("late", 600).told == [(pytest.approx(SLOW_SECONDS, abs=2), "unhealthy")]


def test_an_agent_that_was_held_up_itself_says_nothing_of_the_engine() -> None:
    story = a_running().goes_on("not_asked", 60)
    assert (story.told, story.health.misses) == ([], 0)


def test_one_that_answers_again_is_healthy_again() -> None:
    story = a_running().goes_on("late", 10).goes_on("well", 2)
    assert [phase for _, phase in story.told] == ["unhealthy", "healthy"]


def test_where_nobody_can_tell_what_it_does_silence_is_death() -> None:
    story = a_running()
    story.activity = None
    assert [phase for _, phase in story.goes_on("late", 10).told] == ["unhealthy"]


# -- one token --------------------------------------------------------------------------------------------------------


def the_phase_after(answers: list[Answer], *, works: bool, makes_tokens: bool = False) -> str:
    health = a_running().health
    for answer in answers:
        health = after_inference(health, answer, works=works, makes_tokens=makes_tokens)
        if health.phase == "healthy":
            health = after(health, "well", None, 2000, 2000)
    return health.phase


def test_a_request_for_one_token_that_hangs_is_death_where_nothing_moves() -> None:
    assert the_phase_after(["late"], works=False) == "unhealthy"


def test_a_queue_is_no_illness() -> None:
    assert the_phase_after(["late"] * 10, works=True, makes_tokens=True) == "healthy"


@pytest.mark.parametrize("answer", ["late", "not_well"])
def test_one_that_works_and_makes_nothing_has_three_tries(answer: Answer) -> None:
    few: list[Answer] = [answer] * (TOKENLESS - 1)
    assert the_phase_after(few, works=True) == "healthy"
    assert the_phase_after([*few, answer], works=True) == "unhealthy"
    assert the_phase_after([*few, "well", *few], works=True) == "healthy"


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        (IDLE, False),
        (replace(IDLE, busy_seconds=0.04), False),
        (replace(IDLE, busy_seconds=0.05), True),
        (replace(IDLE, read_bytes=2**20), True),
        (replace(IDLE, log_mark=1), True),
        (None, False),
    ],
)
def test_what_counts_as_work_within_a_second(now: Activity | None, expected: bool) -> None:
    assert worked(IDLE, now, 1.0) is expected


def test_what_is_known_of_an_engine_survives_its_agent() -> None:
    assigned = a_start(a_launch("vLLM", categories=("embedding",), start_timeout_seconds=30)).assigned
    about = About.of(assigned)
    assert about == About("qwen3-8b", "vLLM", "cuda", 30.0, ("embedding",))
    assert About.told_by(dict(about.as_details()) | {"rank": 0}) == about
    assert About.told_by({"rank": 0}) == About()

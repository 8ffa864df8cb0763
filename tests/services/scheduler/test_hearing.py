"""Who waits to be heard is not silent, and of what nobody was told nobody has to report."""

from dataclasses import replace
from datetime import timedelta

from schemas.facts import InstanceAttemptEnded, InstanceDeleted, ModelDeleted, WorkerUnreachable
from services.scheduler.domain.core import Now
from services.scheduler.domain.fleet import evolve
from tests.services.scheduler.test_unhealthy import NOW, M, Story, W


def later(seconds: float) -> Now:
    return Now(NOW.at + timedelta(seconds=seconds), NOW.monotonic + seconds)


def test_silence_is_judged_by_what_was_read_and_not_by_what_still_waits() -> None:
    story = Story(cordon_unhealthy=False)
    story.sees(None)

    busy = story.core.time_passed(later(30), heard_until=NOW.monotonic + 9)
    assert [fact for fact in busy.facts if isinstance(fact, WorkerUnreachable)] == []

    idle = story.core.time_passed(later(30))
    assert [type(fact) for fact in idle.facts if isinstance(fact, WorkerUnreachable)] == [WorkerUnreachable]


def test_a_beat_that_is_no_news_counts_without_a_decision() -> None:
    story = Story(cordon_unhealthy=False)
    story.sees(None)
    assert story.core.beat_is_news(W, "agent", NOW.monotonic, "b"), "its boot was not heard to beat before"
    story.core.beat(W, "agent", NOW, "b")
    story.core.beat(W, "downloader", NOW, "d")

    assert not story.core.beat_is_news(W, "agent", NOW.monotonic + 25, "b")
    assert not story.core.beat_is_news(W, "downloader", NOW.monotonic + 9, "d")
    decision = story.core.time_passed(later(30))
    assert [fact for fact in decision.facts if isinstance(fact, WorkerUnreachable)] == []
    assert story.core.beat_is_news(W, "downloader", NOW.monotonic + 31, "d"), "it was silent, and is heard again"


def test_what_is_deleted_before_its_worker_was_told_of_it_is_gone_at_once() -> None:
    story = Story(cordon_unhealthy=False)
    story.sees(None)
    story.deploys()
    assert story.gpus == (0,)
    fact = ModelDeleted(model_id=M, name="a")
    evolve(story.core.fleet, fact, 101, NOW.at)

    decision = story.core.wished(fact, replace(NOW))

    assert {InstanceAttemptEnded, InstanceDeleted} <= {type(each) for each in decision.facts}
    assert story.core.fleet.instances_of(M) == []


def test_a_late_report_of_a_boot_of_the_past_is_noticed_at_the_next_beat_of_the_present_one() -> None:
    story = Story(cordon_unhealthy=False)
    story.sees(None)
    boots = story.core.boots
    boots.beat(W, "agent", "b")
    assert not boots.is_spoken_for(W, "agent", "b")

    late = story.picture(None).model_copy(update={"boot_id": "before", "observed_at": NOW.at + timedelta(hours=1)})
    assert boots.is_news(late, "agent"), "its clock was ahead"

    assert boots.is_spoken_for(W, "agent", "b"), "so the present one is asked to tell what is true"
    story.sees(None)
    assert not boots.is_spoken_for(W, "agent", "b")

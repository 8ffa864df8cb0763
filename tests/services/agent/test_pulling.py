"""The rate of a pull and what remains of it, in virtual time."""

from kernel.pace import LEAST_SECONDS, WINDOW_SECONDS
from schemas.reports import PullSeen
from services.agent.domain.pulling import PullRate
from services.agent.domain.runtime import PullProgress

MIB = 2**20
IMAGE = "vllm/vllm-openai:v0.18.0"


def seen_at(*counts: tuple[float, int, int]) -> PullSeen:
    """The last answer after these: seconds, MiB that are here, MiB in all."""
    rate = PullRate(IMAGE)
    answers = [rate.seen(PullProgress(done * MIB, total * MIB), at) for at, done, total in counts]
    return answers[-1]


def told(done: int, total: int, rate: int | None, remaining: float | None) -> PullSeen:
    return PullSeen(
        image=IMAGE,
        bytes=done * MIB,
        total=total * MIB,
        bytes_per_second=None if rate is None else rate * MIB,
        remaining_seconds=remaining,
    )


def test_a_steady_pull_tells_its_rate_and_what_remains() -> None:
    assert seen_at((0, 0, 100), (1, 10, 100), (2, 20, 100)) == told(20, 100, 10, 8)


def test_the_first_moment_of_a_pull_has_no_rate() -> None:
    assert seen_at((100, 5, 100)) == told(5, 100, None, None)
    assert seen_at((100, 5, 100), (100 + LEAST_SECONDS / 2, 50, 100)) == told(50, 100, None, None)
    assert seen_at((100, 0, 100), (100 + LEAST_SECONDS, 50, 100)) == told(50, 100, 100, 0.5)


def test_a_pull_that_becomes_slower_tells_the_rate_of_the_last_seconds() -> None:
    fast = [(float(at), at * 50, 2000) for at in range(21)]
    slow = [(20.0 + at, 1000 + at * 5, 2000) for at in range(1, int(WINDOW_SECONDS) + 1)]

    assert seen_at(*fast, *slow) == told(1050, 2000, 5, 190)


def test_one_count_in_a_long_time_is_compared_with_the_one_before() -> None:
    assert seen_at((0, 0, 100), (1, 10, 100), (61, 70, 100)) == told(70, 100, 1, 30)


def test_where_nothing_comes_nothing_is_promised() -> None:
    assert seen_at((0, 10, 100), (5, 10, 100)) == told(10, 100, 0, None)


def test_a_layer_that_is_begun_again_is_no_negative_rate() -> None:
    assert seen_at((0, 50, 100), (5, 10, 100)) == told(10, 100, 0, None)


def test_an_image_that_is_only_unpacked_needs_no_more_time_of_the_network() -> None:
    assert seen_at((0, 100, 100)) == told(100, 100, None, 0)
    assert seen_at((0, 100, 100), (20, 100, 100)) == told(100, 100, 0, 0)

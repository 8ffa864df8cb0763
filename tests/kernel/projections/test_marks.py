"""How far the projection is: waiting for it, and telling other replicas."""

import asyncio

import orjson
import pytest

from kernel.bus import Bus
from kernel.log.port import Position
from kernel.projections.marks import HighWater, Mark, announce, follow
from schemas.subjects import PROJECTED
from tests.support.stack import Stack


async def test_what_is_projected_already_is_not_waited_for() -> None:
    high_water = HighWater()
    high_water.rise(1, 10)

    assert await high_water.wait_for(10, timeout_seconds=0)
    assert await high_water.wait_for(0, timeout_seconds=0)
    assert high_water.position == Position(1, 10)


async def test_waiting_too_long_is_answered_with_no_and_leaves_others_waiting() -> None:
    high_water = HighWater()
    patient = asyncio.create_task(high_water.wait_for(5, timeout_seconds=30))

    assert await high_water.wait_for(5, timeout_seconds=0.01) is False

    assert not patient.done()
    high_water.rise(1, 5)
    assert await patient is True


async def test_those_who_wait_are_woken_in_the_order_of_what_they_wait_for() -> None:
    high_water = HighWater()
    woken: list[int] = []

    async def wait(sequence: int) -> None:
        assert await high_water.wait_for(sequence, timeout_seconds=30)
        woken.append(sequence)

    tasks = [asyncio.create_task(wait(sequence)) for sequence in (30, 10, 20, 10, 40)]
    await asyncio.sleep(0)
    seen: list[list[int]] = []
    for mark in (9, 10, 29, 35, 100):
        high_water.rise(1, mark)
        await asyncio.wait(tasks, timeout=0.02)
        seen.append(list(woken))
    await asyncio.gather(*tasks)

    assert seen == [[], [10, 10], [10, 10, 20], [10, 10, 20, 30], [10, 10, 20, 30, 40]]


async def test_a_wait_that_is_given_up_does_not_disturb_the_others() -> None:
    high_water = HighWater()
    given_up, other = (asyncio.create_task(high_water.wait_for(5, timeout_seconds=30)) for _ in range(2))
    await asyncio.sleep(0)
    given_up.cancel()
    await asyncio.gather(given_up, return_exceptions=True)

    high_water.rise(1, 5)

    assert await other is True


@pytest.mark.parametrize(
    ("risen", "mark"),
    [
        ([(1, 5), (1, 3)], Mark(1, 5)),
        ([(1, 5), (1, 5), (1, 6)], Mark(1, 6)),
        ([(1, 5), (2, 3)], Mark(2, 3)),  # a restored log: the newer generation counts
        ([(2, 3), (1, 9)], Mark(2, 3)),
    ],
)
def test_a_mark_never_falls(risen: list[tuple[int, int]], mark: Mark) -> None:
    high_water = HighWater()
    for generation, sequence in risen:
        high_water.rise(generation, sequence)

    assert high_water.mark == mark


def test_a_listener_is_told_of_each_rise_and_of_nothing_else() -> None:
    high_water = HighWater()
    listener = high_water.listen()
    told: list[bool] = []
    for sequence in (3, 3, 2, 4):
        listener.clear()
        high_water.rise(1, sequence)
        told.append(listener.is_set())

    assert told == [True, False, False, True]


async def test_the_replica_that_projects_raises_the_marks_of_the_others(shared: Stack, bus: Bus) -> None:
    replica, high_water = await shared.bus("api"), HighWater()
    await follow(replica, high_water)
    await replica.flush()
    waiting = asyncio.create_task(high_water.wait_for(7, timeout_seconds=30))

    await announce(await shared.bus("api"), Mark(1, 7))

    assert await waiting is True
    assert high_water.mark == Mark(1, 7)
    assert not bus.permission_violations


@pytest.mark.parametrize("nonsense", [b"", b"not json", b"[]", b"{}", b'{"generation": 1, "sequence": "x"}'])
async def test_nonsense_on_the_subject_of_marks_is_not_heard(shared: Stack, nonsense: bytes) -> None:
    replica, high_water = await shared.bus("api"), HighWater()
    await follow(replica, high_water)
    await replica.flush()

    await shared.operator.publish(PROJECTED, nonsense)
    await shared.operator.publish(PROJECTED, orjson.dumps({"generation": 1, "sequence": 8}))

    assert await high_water.wait_for(8, timeout_seconds=30) is True
    assert high_water.mark == Mark(1, 8)

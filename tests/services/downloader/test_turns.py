"""Whose turn it is, whoever comes, leaves, or becomes more important meanwhile."""

import asyncio
import random
import threading
from collections.abc import Callable
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.downloader.threads import ended, in_thread
from services.downloader.turns import Turns


async def steps(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


class Crowd:
    """Who has a turn keeps it until it is told to let go."""

    def __init__(self, at_once: int) -> None:
        self.turns = Turns(at_once)
        self.had: list[str] = []
        self.have: set[str] = set()
        self.most = 0
        self._done: dict[str, asyncio.Event] = {}
        self.tasks: dict[str, asyncio.Task[None]] = {}

    def come(self, name: str, priority: Callable[[], int] = lambda: 0) -> None:
        self._done[name] = asyncio.Event()
        self.tasks[name] = asyncio.create_task(self._take(name, priority))

    async def _take(self, name: str, priority: Callable[[], int]) -> None:
        async with self.turns.turn(priority):
            self.had.append(name)
            self.have.add(name)
            self.most = max(self.most, len(self.have))
            try:
                await self._done[name].wait()
            finally:
                self.have.discard(name)

    def let_go(self, name: str) -> None:
        self._done[name].set()


async def test_the_highest_is_next_and_of_equal_ones_who_came_first() -> None:
    crowd = Crowd(1)
    for name, priority in (("first", 0), ("low", 1), ("high", 5), ("also high", 5)):
        crowd.come(name, lambda priority=priority: priority)
        await steps()
    for name in ("first", "high", "also high", "low"):
        assert crowd.have == {name}
        crowd.let_go(name)
        await steps()
    assert crowd.have == set()


async def test_a_priority_counts_as_it_is_when_a_turn_is_free() -> None:
    crowd = Crowd(1)
    priorities = {"first": 0, "one": 2, "other": 1}
    for name in tuple(priorities):
        crowd.come(name, partial(priorities.__getitem__, name))
        await steps()
    priorities["other"] = 3
    crowd.let_go("first")
    await steps()
    assert crowd.have == {"other"}


async def test_who_is_cancelled_in_the_moment_of_its_turn_passes_it_on() -> None:
    crowd = Crowd(1)
    begun, may_end = asyncio.Event(), asyncio.Event()

    async def first() -> None:
        async with crowd.turns.turn(int):
            begun.set()
            await may_end.wait()
        crowd.tasks["cancelled"].cancel()  # it has its turn by now, and has not noticed yet

    holds = asyncio.create_task(first())
    await begun.wait()
    for name in ("cancelled", "next"):
        crowd.come(name)
        await steps()
    may_end.set()
    await holds
    await steps()
    assert crowd.had == ["next"]
    crowd.let_go("next")
    crowd.come("last")
    await steps()
    assert crowd.have == {"last"}


@given(seed=st.integers(0, 2**32), at_once=st.integers(1, 4))
def test_no_turn_is_lost_and_none_is_taken_twice(seed: int, at_once: int) -> None:
    async def run() -> None:
        dice, crowd, count = random.Random(seed), Crowd(at_once), 0
        for _ in range(40):
            match dice.choice(("come", "come", "let go", "cancel", "wait")):
                case "come":
                    crowd.come(f"{count}", partial(int, dice.randint(0, 3)))
                    count += 1
                case "let go" if crowd.have:
                    crowd.let_go(dice.choice(sorted(crowd.have)))
                case "cancel" if crowd.tasks:
                    crowd.tasks[dice.choice(sorted(crowd.tasks))].cancel()
                case _:
                    await steps(dice.randint(1, 3))
        for task in crowd.tasks.values():
            task.cancel()
        await asyncio.gather(*crowd.tasks.values(), return_exceptions=True)
        assert crowd.most <= at_once
        for number in range(at_once + 1):
            crowd.come(f"after {number}")
        await steps()
        assert len(crowd.have) == at_once
        for task in crowd.tasks.values():
            task.cancel()
        await asyncio.gather(*crowd.tasks.values(), return_exceptions=True)

    asyncio.run(run())


async def test_who_is_cancelled_often_still_waits_for_its_thread() -> None:
    begun, may_end, undone = threading.Event(), threading.Event(), list[str]()

    def work() -> str:
        begun.set()
        may_end.wait(10)
        return "done"

    task = asyncio.create_task(in_thread(work, undo=undone.append))
    await asyncio.to_thread(begun.wait, 10)
    for _ in range(3):
        task.cancel()
        await steps()
        assert not task.done()
    may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert undone == ["done"]
    await ended(task)

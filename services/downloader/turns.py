"""Whose turn it is: so many at once, and of those who wait first the one for which most instances wait."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager


class Turns:
    def __init__(self, at_once: int) -> None:
        self._free = at_once
        self._waiting: list[tuple[Callable[[], int], asyncio.Future[None]]] = []

    @asynccontextmanager
    async def turn(self, priority: Callable[[], int]) -> AsyncGenerator[None]:
        """`priority`: asked whenever somebody else has finished; the highest is next, of equal ones who came first."""
        if self._free:
            self._free -= 1
        else:
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            entry = (priority, turn)
            self._waiting.append(entry)
            try:
                await turn
            except asyncio.CancelledError:
                if turn.done() and not turn.cancelled():
                    self._pass_on()
                else:
                    self._waiting.remove(entry)
                raise
        try:
            yield
        finally:
            self._pass_on()

    def _pass_on(self) -> None:
        waiting = [entry for entry in self._waiting if not entry[1].done()]
        if not waiting:
            self._free += 1
            return
        entry = max(waiting, key=lambda each: each[0]())
        self._waiting.remove(entry)
        entry[1].set_result(None)

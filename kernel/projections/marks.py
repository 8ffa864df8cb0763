"""How far the projection is: announced after each commit, waited for by everybody who wants to read their own writes."""

import asyncio
import heapq
import itertools
from dataclasses import dataclass

import orjson
from nats.aio.msg import Msg

from kernel.bus import Bus
from kernel.log.port import Position
from schemas.subjects import PROJECTED


@dataclass(frozen=True, slots=True, order=True)
class Mark:
    """How far the log is projected; one of a later generation is further, whatever its sequence."""

    generation: int
    sequence: int


class HighWater:
    """The newest mark that this process knows of, from its own projector or from another replica's announcement."""

    def __init__(self) -> None:
        self._mark = Mark(0, 0)
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []
        self._order = itertools.count()
        self._listeners: list[asyncio.Event] = []

    @property
    def mark(self) -> Mark:
        return self._mark

    @property
    def position(self) -> Position:
        return Position(self._mark.generation, self._mark.sequence)

    def rise(self, generation: int, sequence: int) -> None:
        mark = Mark(generation, sequence)
        if mark <= self._mark:
            return
        self._mark = mark
        while self._waiting and self._waiting[0][0] <= sequence:
            _, _, future = heapq.heappop(self._waiting)
            if not future.done():
                future.set_result(None)
        for listener in self._listeners:
            listener.set()

    async def wait_for(self, sequence: int, *, timeout_seconds: float) -> bool:
        """True once the projection is at least there, False when that takes too long."""
        if self._mark.sequence >= sequence:
            return True
        future = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (sequence, next(self._order), future))
        try:
            async with asyncio.timeout(timeout_seconds):
                await future
        except TimeoutError:
            return False
        return True

    def listen(self) -> asyncio.Event:
        """An event that is set whenever the mark has risen; the listener clears it."""
        event = asyncio.Event()
        self._listeners.append(event)
        return event


async def announce(bus: Bus, mark: Mark) -> None:
    await bus.publish(PROJECTED, orjson.dumps({"generation": mark.generation, "sequence": mark.sequence}))


async def follow(bus: Bus, high_water: HighWater) -> None:
    """Let the announcements of the projecting replica raise this process' mark."""

    async def heard(message: Msg) -> None:
        body = orjson.loads(message.data)
        high_water.rise(int(body["generation"]), int(body["sequence"]))

    await bus.subscribe(PROJECTED, heard)

"""A plain client of `/v2/events` that notes when each event reached it."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import aiohttp
import orjson

from tests.support.stack import Client


@dataclass(frozen=True, slots=True)
class Seen:
    at: float
    """Seconds of time.perf_counter."""
    sequence: int
    type: str
    body: bytes

    @property
    def envelope(self) -> dict[str, Any]:
        return orjson.loads(self.body)

    @property
    def data(self) -> dict[str, Any]:
        return self.envelope["data"]


Predicate = Callable[[Seen], bool]


class Watcher:
    """`async with Watcher(client) as watcher`: from the newest event on."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._answer: aiohttp.ClientResponse | None = None
        self._reading: asyncio.Task[None] | None = None
        self._expected: list[tuple[Predicate, asyncio.Future[Seen]]] = []
        self.arrived: dict[int, float] = {}
        """Sequence → seconds of time.perf_counter."""

    async def __aenter__(self) -> Self:
        timeout = aiohttp.ClientTimeout(total=None)
        answer = self._answer = await self._client.session.get(f"{self._client.url}/v2/events", timeout=timeout)
        assert answer.status == 200, await answer.text()
        await answer.content.readuntil(b"\n\n")
        self._reading = asyncio.create_task(self._read(answer))
        return self

    async def __aexit__(
        self, _type: type[BaseException] | None, _value: BaseException | None, _trace: TracebackType | None
    ) -> None:
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)
        if self._answer is not None:
            self._answer.close()

    def expect(self, predicate: Predicate) -> "asyncio.Future[Seen]":
        """The first event from now on that satisfies this; ask before you cause it."""
        future: asyncio.Future[Seen] = asyncio.get_running_loop().create_future()
        self._expected.append((predicate, future))
        return future

    def expect_one(self, kind: str) -> "asyncio.Future[Seen]":
        """The next event of this type."""
        return self.expect(lambda seen: seen.type == kind)

    async def caught_up(self, sequence: int) -> None:
        """Returns when this event, and with it every earlier one, has arrived."""
        if max(self.arrived, default=0) < sequence:
            await self.expect(lambda seen: seen.sequence >= sequence)

    async def _read(self, answer: aiohttp.ClientResponse) -> None:
        rest = b""
        async for chunk in answer.content.iter_any():
            at = time.perf_counter()
            *blocks, rest = (rest + chunk).split(b"\n\n")
            for block in blocks:
                if block.startswith(b"id: "):
                    position, kind, body = block.split(b"\n", 2)
                    sequence = int(position.rpartition(b"-")[2])
                    self.arrived[sequence] = at
                    self._tell(Seen(at, sequence, kind.removeprefix(b"event: ").decode(), body.removeprefix(b"data: ")))

    def _tell(self, seen: Seen) -> None:
        for each in list(self._expected):
            predicate, future = each
            if future.done():
                self._expected.remove(each)
            elif predicate(seen):
                self._expected.remove(each)
                future.set_result(seen)

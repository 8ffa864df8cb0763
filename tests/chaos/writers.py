"""People who create, change and delete models without end, retry what failed, and remember every answer.

The models' files are nowhere, so nothing of theirs is ever started: the writes are what is tested.
"""

import asyncio
import itertools
import random
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import aiohttp
import orjson

from services.api.adapters.writer import command_id
from tests.support.stack import KEY

REQUEST_SECONDS: Final = 15.0
NOWHERE: Final = "/nowhere/at-all.gguf"


@dataclass(frozen=True, slots=True)
class Acknowledged:
    id: str
    sequence: int


@dataclass(slots=True)
class Write:
    """One wish, however often it was sent."""

    method: str
    path: str
    body: bytes
    key: str
    types: frozenset[str]
    """Types of the one fact that it comes to."""
    acknowledged: Acknowledged | None = None
    refused: list[str] = field(default_factory=list[str])
    """Request ids that were answered with `nothing was written`, in these words or by a 4xx."""
    sent: int = 0

    @property
    def command(self) -> str:
        return command_id("key/bootstrap", f"{self.method} {self.path}", self.key, self.body).partition(".")[0]


@dataclass(slots=True)
class Writer:
    """One of several; each has its own models, so that none defeats another's write."""

    name: str
    url: Callable[[], str]
    """Asked before each request: replicas come and go."""
    dice: random.Random
    writes: list[Write] = field(default_factory=list[Write])
    last_answer: object = None
    """For people who look into a failure."""
    _numbers: "itertools.count[int]" = field(default_factory=itertools.count)
    _mine: dict[str, str] = field(default_factory=dict[str, str])
    """Names of living models → their ids."""

    async def run(self, stop: asyncio.Event) -> None:
        timeout = aiohttp.ClientTimeout(total=REQUEST_SECONDS)
        headers = {"authorization": f"Bearer {KEY}", "content-type": "application/json"}
        async with aiohttp.ClientSession(timeout=timeout, headers=headers) as session:
            while not stop.is_set():
                await self._one(session, stop)

    @property
    def acknowledged(self) -> int:
        return sum(write.acknowledged is not None for write in self.writes)

    async def _one(self, session: aiohttp.ClientSession, stop: asyncio.Event) -> None:
        number = next(self._numbers)
        what = self.dice.random()
        if not self._mine or (what < 0.4 and len(self._mine) < 10):
            name = f"{self.name}-{number}"
            body = {"name": name, "local_path": NOWHERE}
            write = self._new("POST", "/v2/models", body, {"ModelCreated"}, number)
            await self._until_answered(session, write, stop)
            if write.acknowledged and await self._until_seen(session, write.acknowledged, stop):
                self._mine[name] = write.acknowledged.id
            return
        name = self.dice.choice(sorted(self._mine))
        path = f"/v2/models/{self._mine[name]}"
        if what < 0.7:
            write = self._new("PATCH", path, {"description": f"write {number}"}, {"ModelUpdated"}, number)
        elif what < 0.8:
            write = self._new(
                "PATCH", path, {"replicas": number % 3 + 1, "description": f"{number}"}, {"ModelUpdated"}, number
            )
        else:
            del self._mine[name]
            write = self._new("DELETE", path, None, {"ModelDeleted"}, number)
        await self._until_answered(session, write, stop)

    def _new(self, method: str, path: str, body: object, types: set[str], number: int) -> Write:
        raw = b"" if body is None else orjson.dumps(body)
        write = Write(method, path, raw, f"{self.name}/{number}", frozenset(types))
        self.writes.append(write)
        return write

    async def _until_seen(self, session: aiohttp.ClientSession, made: Acknowledged, stop: asyncio.Event) -> bool:
        """An answer of 202 is durable and not yet projected."""
        while not stop.is_set():
            try:
                async with session.get(f"{self.url()}/v2/models/{made.id}") as answer:
                    if answer.status == 200:
                        return True
            except (aiohttp.ClientError, TimeoutError, OSError):
                pass
            await asyncio.sleep(0.05)
        return False

    async def _until_answered(self, session: aiohttp.ClientSession, write: Write, stop: asyncio.Event) -> None:
        """Given up at the end: nobody knows then whether it was done."""
        while not stop.is_set():
            write.sent += 1
            request_id = f"{self.name}-{write.key.rpartition('/')[2]}-{write.sent}"
            headers = {"idempotency-key": write.key, "x-request-id": request_id}
            try:
                async with session.request(
                    write.method, self.url() + write.path, data=write.body or None, headers=headers
                ) as answer:
                    body: dict[str, Any] = orjson.loads(await answer.read())
            except (aiohttp.ClientError, TimeoutError, OSError, orjson.JSONDecodeError) as error:
                self.last_answer = error
                await asyncio.sleep(0.05)
                continue
            self.last_answer = answer.status, body
            if answer.status in (200, 201, 202):
                write.acknowledged = Acknowledged(body["id"], int(body["seq"].partition("-")[2]))
                return
            assert answer.status != 500, (write, body)
            if answer.status < 500:
                write.refused.append(request_id)
                assert (write.method, answer.status, write.sent > 1) == ("DELETE", 404, True), (
                    write,
                    answer.status,
                    body,
                )
                return
            if "nothing was written" in body["message"]:
                write.refused.append(request_id)
            await asyncio.sleep(0.05)


@asynccontextmanager
async def writing(writers: Sequence[Writer]) -> AsyncGenerator[None]:
    """They write as long as the body lasts. A writer that was told what can't be true ends the body."""
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        for writer in writers:
            tasks.create_task(writer.run(stop), name=writer.name)
        try:
            yield
        finally:
            stop.set()


async def until_acknowledged(writers: Sequence[Writer], more: int, *, seconds: float = 60.0) -> None:
    """Until each of the writers has got this many further answers: the fleet takes writes again."""
    goals = [writer.acknowledged + more for writer in writers]
    for _ in range(int(seconds / 0.02)):
        if all(writer.acknowledged >= goal for writer, goal in zip(writers, goals, strict=True)):
            return
        await asyncio.sleep(0.02)
    waiting = {writer.name: (writer.writes[-1], writer.last_answer) for writer in writers}
    raise AssertionError(f"writes are no longer taken: {waiting}")

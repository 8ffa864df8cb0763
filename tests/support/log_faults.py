"""What goes wrong between a service and the server, made to happen exactly when a test wants it."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Self

from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from kernel.bus import Bus, NoAnswer

Meanwhile = Callable[[], Awaitable[object]]


class FaultyBus(Bus):
    """Another hand on the connection of a healthy bus."""

    def __init__(self, healthy: Bus) -> None:
        super().__init__(healthy.name, healthy.settings)
        self.client = healthy.client

    def is_fact(self, subject: str) -> bool:
        return subject.startswith("muster.facts.")


class LostAcknowledgements(FaultyBus):
    """The server does what it is asked, and its answer is lost; `meanwhile` happens before anybody may look."""

    def __init__(self, healthy: Bus, *, times: int = 1, meanwhile: Meanwhile | None = None) -> None:
        super().__init__(healthy)
        self.lost: list[Msg] = []
        self.times = times
        self._meanwhile = meanwhile

    async def request(
        self, subject: str, payload: bytes, *, timeout_seconds: float, headers: Mapping[str, str] | None = None
    ) -> Msg:
        answer = await super().request(subject, payload, timeout_seconds=timeout_seconds, headers=headers)
        if self.is_fact(subject) and len(self.lost) < self.times:
            self.lost.append(answer)
            if self._meanwhile is not None:
                await self._meanwhile()
            raise NoAnswer(f"no answer on {subject}: dropped by the test")
        return answer


class LostRequests(FaultyBus):
    """The request itself is lost on its way; `meanwhile` happens before it is sent again."""

    def __init__(self, healthy: Bus, *, times: int = 1, meanwhile: Meanwhile | None = None) -> None:
        super().__init__(healthy)
        self.lost = 0
        self.times = times
        self._meanwhile = meanwhile

    async def request(
        self, subject: str, payload: bytes, *, timeout_seconds: float, headers: Mapping[str, str] | None = None
    ) -> Msg:
        if self.is_fact(subject) and self.lost < self.times:
            self.lost += 1
            if self._meanwhile is not None:
                await self._meanwhile()
            raise NoAnswer(f"no answer on {subject}: never sent by the test")
        return await super().request(subject, payload, timeout_seconds=timeout_seconds, headers=headers)


class LateRequests(FaultyBus):
    """A request is on its way for so long that it arrives only when it is sent again, just before that."""

    def __init__(self, healthy: Bus) -> None:
        super().__init__(healthy)
        self._late: tuple[str, bytes, Mapping[str, str] | None] | None = None
        self.arrived = 0

    async def request(
        self, subject: str, payload: bytes, *, timeout_seconds: float, headers: Mapping[str, str] | None = None
    ) -> Msg:
        if not self.is_fact(subject) or self.arrived:
            return await super().request(subject, payload, timeout_seconds=timeout_seconds, headers=headers)
        if self._late is None:
            self._late = (subject, payload, headers)
            raise NoAnswer(f"no answer on {subject}: held back by the test")
        self.arrived += 1
        late_subject, late_payload, late_headers = self._late
        await super().request(late_subject, late_payload, timeout_seconds=timeout_seconds, headers=late_headers)
        return await super().request(subject, payload, timeout_seconds=timeout_seconds, headers=headers)


class NoReads(FaultyBus):
    """Every answer is lost, and nothing can be looked up either."""

    async def request(
        self, subject: str, payload: bytes, *, timeout_seconds: float, headers: Mapping[str, str] | None = None
    ) -> Msg:
        if self.is_fact(subject):
            await super().request(subject, payload, timeout_seconds=timeout_seconds, headers=headers)
        raise NoAnswer(f"no answer on {subject}: dropped by the test")


class LostDeliveries(FaultyBus):
    """Of the events that a tail is sent, those with these numbers (counted from 1) never reach it."""

    def __init__(self, healthy: Bus, *numbers: int) -> None:
        super().__init__(healthy)
        self.lost: list[bytes] = []
        self._numbers = frozenset(numbers)
        self._seen = 0

    async def subscribe(
        self, subject: str, callback: Callable[[Msg], Awaitable[None]], *, queue: str = ""
    ) -> Subscription:
        async def with_gaps(message: Msg) -> None:
            if self.is_fact(message.subject):
                self._seen += 1
                if self._seen in self._numbers:
                    self.lost.append(message.data)
                    return
            await callback(message)

        return await super().subscribe(subject, with_gaps, queue=queue)


class OldServer:
    """Says in its greeting that it is a nats-server of this version, and answers nothing but PING."""

    def __init__(self, version: str) -> None:
        self._version = version
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.StreamWriter] = set()
        self.asked: list[bytes] = []
        """What it was sent beyond the greetings of the protocol."""

    @property
    def url(self) -> str:
        assert self._server is not None
        return f"nats://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for writer in self._connections:
            writer.close()
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections.add(writer)
        greeting = f'INFO {{"server_id":"OLD","version":"{self._version}","max_payload":1048576,"jetstream":true}}\r\n'
        writer.write(greeting.encode())
        while line := await reader.readline():
            if line.startswith(b"PING"):
                writer.write(b"PONG\r\n")
            elif not line.startswith((b"CONNECT", b"PONG")):
                self.asked.append(line)

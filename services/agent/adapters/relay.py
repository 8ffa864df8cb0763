"""Requests that gateways send over the bus, put to the engines of this worker: for workers that can't be dialled.

Reaches the port of an engine that runs here for the attempt that is named, and nothing else.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

import aiohttp
from nats.aio.msg import Msg
from pydantic import ValidationError
from yarl import URL

from kernel.bus import Bus
from kernel.errors import Unavailable
from kernel.flow import StreamBroken
from kernel.relay import Channel, keep_beating
from kernel.settings import BusSettings
from schemas.ids import WorkerId
from schemas.relay import RELAY, Frame, RelayHead, RelayRequest, decode
from schemas.subjects import ask
from services.agent.domain.runtime import EngineId

log = logging.getLogger(__name__)

CONNECT_SECONDS: Final = 2.0
READ_SECONDS: Final = 600.0
OURS: Final = frozenset({"host", "connection", "content-length", "transfer-encoding", "authorization", "upgrade"})
"""Headers that belong to the connection to the engine, whoever sends them."""


@dataclass(frozen=True, slots=True)
class Target:
    origin: str
    """`http://10.0.0.1:40000`"""
    key: str | None = field(default=None, repr=False)


@dataclass(slots=True)
class _Answers:
    """Where the agent's frames go: the reply subject of the gateway's last frame, which the server lets it answer."""

    bus: Bus
    to: str

    async def publish(self, frame: bytes) -> None:
        await self.bus.publish(self.to, frame)


class EngineRelay:
    def __init__(
        self,
        worker_id: WorkerId,
        target_of: Callable[[EngineId], Target | None],
        *,
        most_requests: int,
    ) -> None:
        """`target_of`: where an engine answers that runs here; None: there is no such. `most_requests`: at one time; each may hold
        two windows (`kernel/flow.py`).
        """
        self._worker_id = worker_id
        self._target_of = target_of
        self._most = most_requests
        self._streams: dict[bytes, tuple[Channel, _Answers]] = {}
        self._tasks: asyncio.TaskGroup | None = None
        self._http: aiohttp.ClientSession | None = None
        self._bus: Bus | None = None

    @property
    def held_bytes(self) -> int:
        """Of requests' bodies that engines have not taken yet."""
        return sum(channel.held_bytes for channel, _ in self._streams.values())

    @property
    def streams(self) -> int:
        return len(self._streams)

    async def run(self, settings: BusSettings) -> None:
        """Until cancelled. On a connection of its own: beats and reports never wait behind an answer."""
        self._bus = await _connected(f"agent {self._worker_id} relay", settings)
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=READ_SECONDS)
        connector = aiohttp.TCPConnector(limit=0, force_close=True)
        self._http = aiohttp.ClientSession(timeout=timeout, connector=connector, auto_decompress=False)
        try:
            async with asyncio.TaskGroup() as tasks:
                self._tasks = tasks
                await self._bus.subscribe(ask(self._worker_id, RELAY), self._hear)
                await keep_beating(lambda: [channel for channel, _ in self._streams.values()])
        finally:
            await self._http.close()
            await self._bus.close()

    async def _hear(self, message: Msg) -> None:
        try:
            said = decode(message.data)
        except ValueError as error:
            log.warning("no frame of a relayed request: %s", error)
            return
        if self._bus is None or self._tasks is None:
            return
        known = self._streams.get(said.stream)
        if known is not None:
            channel, answers = known
            answers.to = message.reply or answers.to
            channel.hear(said)
        elif said.kind is Frame.OPEN:
            answers = _Answers(self._bus, message.reply)
            channel = Channel(said.stream, answers.publish)
            channel.hear(said)
            if len(self._streams) >= self._most:
                await channel.leave("too_many_requests", f"{self._most} requests are being relayed already")
                return
            self._streams[said.stream] = channel, answers
            self._tasks.create_task(self._serve(channel, said.content))
        elif said.kind is not Frame.BROKEN and message.reply:
            answers = _Answers(self._bus, message.reply)
            await Channel(said.stream, answers.publish).tell_broken("unknown_stream")

    async def _serve(self, channel: Channel, content: bytes) -> None:
        """Ends when it is over, or at once when the gateway leaves: the connection to the engine ends with it."""
        try:
            answering = asyncio.create_task(self._answer(channel, content))
            leaving = asyncio.create_task(channel.until_broken())
            try:
                await asyncio.wait({answering, leaving}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in (answering, leaving):
                    task.cancel()
                await asyncio.gather(answering, leaving, return_exceptions=True)
        finally:
            self._streams.pop(channel.stream, None)

    async def _answer(self, channel: Channel, content: bytes) -> None:
        with contextlib.suppress(StreamBroken):
            try:
                request = RelayRequest.model_validate_json(content)
                target = self._target_of(EngineId(request.instance_id, request.attempt))
                if target is None:
                    await channel.leave("attempt_not_here")
                else:
                    await self._ask(channel, request, target)
            except ValidationError as error:
                await channel.leave("attempt_not_here", f"the request can't be read: {error.error_count()} errors")
            except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
                await channel.leave("engine_refuses", str(error))
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                await channel.leave("engine_broke", str(error))
            except StreamBroken:
                raise
            except Exception as error:
                log.exception("a request could not be relayed")
                await channel.leave("engine_broke", type(error).__name__)

    async def _ask(self, channel: Channel, request: RelayRequest, target: Target) -> None:
        if self._http is None:
            return
        async with self._http.request(
            request.method,
            URL(target.origin + request.path, encoded=True),
            data=_body(channel, request),
            headers=_headers(request, target),
            allow_redirects=False,
        ) as answer:
            head = RelayHead(
                status=answer.status, headers={name.lower(): text for name, text in answer.headers.items()}
            )
            await channel.say(Frame.HEAD, head.model_dump_json().encode())
            async for part in answer.content.iter_any():
                await channel.send(part)
            await channel.say(Frame.END)


def _headers(request: RelayRequest, target: Target) -> Mapping[str, str]:
    headers = {name: text for name, text in request.headers.items() if name.lower() not in OURS}
    if target.key is not None:
        headers["authorization"] = f"Bearer {target.key}"
    if request.body_bytes:
        headers["content-length"] = str(request.body_bytes)
    return headers


def _body(channel: Channel, request: RelayRequest) -> AsyncIterator[bytes] | None:
    return channel.parts() if request.body_bytes else None


async def _connected(name: str, settings: BusSettings) -> Bus:
    while True:
        try:
            return await Bus.connect(name, settings, timeout_seconds=3)
        except Unavailable as error:
            log.warning("%s", error)
            await asyncio.sleep(1)

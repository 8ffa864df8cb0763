"""Requests to engines that can't be dialled: through the bus to the agent of their worker, and the answer back, part by part."""

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Final

from nats.aio.msg import Msg
from pydantic import ValidationError

from kernel.accounts import inbox_prefix
from kernel.bus import Bus
from kernel.flow import StreamBroken
from kernel.relay import Channel, keep_beating
from schemas.ids import WorkerId
from schemas.relay import RELAY, Frame, RelayHead, RelayRequest, decode
from schemas.subjects import ask

log = logging.getLogger(__name__)

NOBODY_ANSWERS: Final = "503"
"""The server's status when nobody listens on the subject of a question."""
HEAD_SECONDS: Final = 600.0
REPLY_SECONDS: Final = 1.0
"""Between two frames that say where answers go, at least."""


@dataclass(slots=True)
class Relayed:
    """An engine's answer that comes through the bus."""

    status: int
    headers: Mapping[str, str]
    _channel: Channel
    _relay: "Relay"
    _sending: asyncio.Task[None] | None

    def parts(self) -> AsyncIterator[bytes]:
        return self._channel.parts()

    def close(self) -> None:
        self._relay.over(self._channel, self._sending)


class Relay:
    """On a connection of its own, so that facts and counts never wait behind an answer."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._replies = f"{inbox_prefix('api')}.{RELAY}-{uuid.uuid4().hex}"
        self._channels: dict[bytes, Channel] = {}
        self._goodbyes: set[asyncio.Task[None]] = set()

    @property
    def held_bytes(self) -> int:
        """Of answers that clients have not taken yet."""
        return sum(channel.held_bytes for channel in self._channels.values())

    async def start(self) -> None:
        await self._bus.subscribe(f"{self._replies}.*", self._hear)
        await self._bus.flush()

    async def run(self) -> None:
        await keep_beating(lambda: list(self._channels.values()))

    async def ask(self, worker_id: WorkerId, request: RelayRequest, body: bytes) -> Relayed:
        """Raises StreamBroken when it ended before the head of an answer came."""
        stream = uuid.uuid4().bytes
        channel = Channel(
            stream, _Questions(self._bus, ask(worker_id, RELAY), f"{self._replies}.{stream.hex()}").publish
        )
        self._channels[stream] = channel
        sending: asyncio.Task[None] | None = None
        try:
            async with asyncio.timeout(HEAD_SECONDS):
                await channel.say(Frame.OPEN, request.model_dump_json().encode())
                if body:
                    sending = asyncio.create_task(_send(channel, body))
                head = RelayHead.model_validate_json(await channel.head())
        except ValidationError as error:
            self.over(channel, sending)
            raise StreamBroken("engine_broke", "the head of the answer can't be read") from error
        except TimeoutError as error:
            self.over(channel, sending)
            raise StreamBroken("silent", f"no answer for {HEAD_SECONDS:g} s") from error
        except BaseException:
            self.over(channel, sending)
            raise
        return Relayed(head.status, head.headers, channel, self, sending)

    def over(self, channel: Channel, sending: asyncio.Task[None] | None) -> None:
        """Nobody wants more of it: the agent leaves the engine at once, unless that is through."""
        self._channels.pop(channel.stream, None)
        if sending is not None:
            sending.cancel()
        if not channel.is_broken and not channel.is_over:
            goodbye = asyncio.create_task(channel.leave("left"))
            self._goodbyes.add(goodbye)
            goodbye.add_done_callback(self._goodbyes.discard)

    async def _hear(self, message: Msg) -> None:
        if (message.headers or {}).get("Status") == NOBODY_ANSWERS:
            stream = bytes.fromhex(message.subject.rpartition(".")[2])
            if (channel := self._channels.get(stream)) is not None:
                channel.breaks("nobody_answers", "no agent of this worker is on the bus")
            return
        try:
            said = decode(message.data)
        except ValueError as error:
            log.warning("no frame of a relayed answer: %s", error)
            return
        if (channel := self._channels.get(said.stream)) is not None:
            channel.hear(said)


@dataclass(slots=True)
class _Questions:
    """Frames to the agent. What an agent may answer to is forgotten after minutes, and kept by the server for each question: so
    some carry it, and the agent uses the newest.
    """

    _bus: Bus
    _subject: str
    _reply: str
    _said_at: float = float("-inf")

    async def publish(self, frame: bytes) -> None:
        now = time.monotonic()
        is_due = now - self._said_at >= REPLY_SECONDS
        if is_due:
            self._said_at = now
        await self._bus.publish(self._subject, frame, reply=self._reply if is_due else "")


async def _send(channel: Channel, body: bytes) -> None:
    try:
        await channel.send(body)
        await channel.say(Frame.END)
    except StreamBroken:
        return  # whoever waits for the answer is told

"""Following a stream through a pull consumer that keeps nothing on the server.

The position lives with the reader (a checkpoint in Postgres, a folded sequence), so the consumer acknowledges nothing
and is made anew from the last event whenever anything looks odd: a gap in the consumer's own numbers, silence
(heartbeats are missing), a status that says it is gone. Requests are kept outstanding, so an event that is stored is
on its way at once; a batch is whatever has arrived.
"""

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Sequence
from typing import Any, Final

import orjson
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from kernel.bus import Bus, JetStreamError
from kernel.errors import Corrupt, Unavailable
from kernel.log.port import Stored
from schemas.subjects import FACTS

log = logging.getLogger(__name__)

REQUESTED: Final = 2000
EXPIRES_SECONDS: Final = 30
HEARTBEAT_SECONDS: Final = 0.5
SILENCE_SECONDS: Final = 1.5
MOST_IN_A_BATCH: Final = 1000
_NANO: Final = 10**9


class JetStreamTail:
    def __init__(self, bus: Bus, stream: str, filters: tuple[str, ...], *, after: int) -> None:
        self._bus = bus
        self._stream = stream
        self._filters = filters
        self._after = after
        self._reset_consumer()
        self._subscription: Subscription | None = None
        self._name: str | None = None
        self._closed = False
        self.rebuilt = 0
        """How often the consumer was made."""

    def _reset_consumer(self) -> None:
        self._arrived: deque[Msg] = deque()
        self._wake = asyncio.Event()
        self._outstanding = 0
        self._expected = 1
        self._broken: str | None = None

    async def __aiter__(self) -> AsyncIterator[Sequence[Stored]]:
        while not self._closed:
            if self._subscription is None:
                await self._open()
            try:
                async with asyncio.timeout(SILENCE_SECONDS):
                    await self._wake.wait()
            except TimeoutError:
                self._broken = "silence"
            batch = self._take()
            if batch:
                yield batch
            if self._broken is not None:
                log.info("reading %s anew after %d: %s", self._stream, self._after, self._broken)
                await self._drop()
            else:
                await self._ask()

    @property
    def has_more(self) -> bool:
        return any(map(_is_event, self._arrived))

    async def close(self) -> None:
        self._closed = True
        self._wake.set()
        await self._drop()

    def _take(self) -> list[Stored]:
        """All events that have arrived, in order; notes what is wrong with the consumer on the way."""
        self._wake.clear()
        batch: list[Stored] = []
        while self._arrived and len(batch) < MOST_IN_A_BATCH and self._broken is None:
            message = self._arrived.popleft()
            if not _is_event(message):
                self._note_status(message)
                continue
            stream_sequence, consumer_sequence = _sequences(message.reply)
            if consumer_sequence != self._expected:
                self._broken = f"event {self._expected} of the consumer is missing"
                break
            self._expected += 1
            self._outstanding -= 1
            batch.append(Stored(stream_sequence, message.subject, message.data))
            self._after = stream_sequence
        if self._arrived:
            self._wake.set()
        return batch

    def _note_status(self, message: Msg) -> None:
        headers = message.headers or {}
        status = headers.get("Status", "")
        if status == "100":
            return
        if status == "408":
            self._outstanding = max(0, self._outstanding - int(headers.get("Nats-Pending-Messages", self._outstanding)))
            return
        self._broken = f"{status} {headers.get('Description', '')}".strip()

    async def _open(self) -> None:
        """Make the consumer, however long that takes. Raises Corrupt when the stream ends before where we have read to."""
        while not self._closed:
            try:
                info = await self._bus.js_api(f"STREAM.INFO.{self._stream}")
                if info["state"]["last_seq"] < self._after:
                    what_to_do = ": stop all writers and run `muster log restore`" if self._stream == FACTS else ""
                    raise Corrupt(
                        f"{self._stream} ends at {info['state']['last_seq']}, but {self._after} was read from it{what_to_do}"
                    )
                config: dict[str, Any] = {
                    "ack_policy": "none",
                    "deliver_policy": "by_start_sequence",
                    "opt_start_seq": self._after + 1,
                    "filter_subjects": list(self._filters),
                    "inactive_threshold": 30 * _NANO,
                    "mem_storage": True,
                    "num_replicas": 1,
                    "max_waiting": 64,
                }
                answer = await self._bus.js_api(
                    f"CONSUMER.CREATE.{self._stream}", {"stream_name": self._stream, "config": config}
                )
                self._reset_consumer()
                self._name = answer["name"]
                self._subscription = await self._bus.subscribe(self._bus.client.new_inbox(), self._on_message)
                self.rebuilt += 1
                await self._ask()
            except (Unavailable, JetStreamError) as error:
                log.debug("can't read %s yet: %s", self._stream, error)
                await self._drop()
                await asyncio.sleep(0.1)
            else:
                return

    async def _ask(self) -> None:
        """Keep at least half of what may be outstanding requested, unless what has arrived is not yet read."""
        if self._subscription is None or self._outstanding > REQUESTED // 2 or len(self._arrived) > REQUESTED:
            return
        wanted = REQUESTED - self._outstanding
        request = {
            "batch": wanted,
            "expires": EXPIRES_SECONDS * _NANO,
            "idle_heartbeat": int(HEARTBEAT_SECONDS * _NANO),
        }
        try:
            await self._bus.publish(
                f"$JS.API.CONSUMER.MSG.NEXT.{self._stream}.{self._name}",
                orjson.dumps(request),
                reply=self._subscription.subject,
            )
        except Unavailable as error:
            self._broken = str(error)
            return
        self._outstanding += wanted

    async def _on_message(self, message: Msg) -> None:
        self._arrived.append(message)
        self._wake.set()

    async def _drop(self) -> None:
        subscription, self._subscription = self._subscription, None
        name, self._name = self._name, None
        if subscription is not None and not self._bus.client.is_closed:
            try:
                await subscription.unsubscribe()
                if name is not None and self._bus.is_connected:
                    await self._bus.publish(f"$JS.API.CONSUMER.DELETE.{self._stream}.{name}", b"")
            except Exception as error:  # noqa: BLE001 - the server forgets idle consumers by itself
                log.debug("left a consumer behind: %s", error)


def _is_event(message: Msg) -> bool:
    """Not a status of the server."""
    return message.reply.startswith("$JS.ACK.")


def _sequences(reply: str) -> tuple[int, int]:
    """Stream and consumer sequence from `$JS.ACK.…` (9 tokens, or 11 and more with domain and account)."""
    tokens = reply.split(".")
    offset = 0 if len(tokens) == 9 else 2
    return int(tokens[5 + offset]), int(tokens[6 + offset])

"""One connection to NATS with the house rules: reconnects for ever, says so, never spins.

Traps that shape this file: after `max_reconnect_attempts` nats-py closes for ever and only `closed_cb` tells;
permission violations arrive asynchronously while the call just times out; `publish` mutates the headers it is given.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, TypeVar

import nats
import nats.errors
import orjson
from nats.aio.client import Client, Srv
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from kernel.errors import Unavailable
from kernel.settings import BusSettings

log = logging.getLogger(__name__)

T = TypeVar("T")

RECONNECT_SECONDS: Final = 0.25
MINIMUM_SERVER: Final = (2, 12, 0)
MOST_BYTES: Final = 1_000_000
"""Of a message's body: the server takes 1 MiB (`max_payload`), headers included."""


async def keeping_cancellation(awaitable: Awaitable[T]) -> T:
    """Await something of nats-py without losing a cancellation that comes together with the answer.

    It uses `asyncio.wait_for`, which swallows one before Python 3.12 (bpo-37658); a task group cancels its tasks once, so
    a lost cancellation is a stop that never ends.
    """
    task = asyncio.current_task()
    before = task.cancelling() if task else 0
    result = await awaitable
    if task is not None and task.cancelling() > before:
        raise asyncio.CancelledError
    return result


class ServerTooOld(Exception):
    """The server lacks what the log needs; old servers ignore unknown headers silently, so this is never risked."""


class LeanClient(Client):
    """nats-py's own reading of header lines takes 40 % of a projector's time; this gives the same for the same bytes.

    And where a server went away during the handshake, nats-py leaves that connection open when it tries the next one.
    """

    async def _connect_to_server(self, s: Srv) -> None:
        if self._transport is not None:
            self._transport.close()
        await super()._connect_to_server(s)

    @staticmethod
    def _parse_header_lines(raw: bytes) -> dict[str, str]:
        headers: dict[str, str] = {}
        for line in raw.decode("utf-8", "replace").split("\r\n"):
            name, colon, value = line.partition(":")
            name = name.strip()
            if colon and name.isascii() and len(name.split(None, 1)) <= 1:
                headers[name] = value.strip()
        return headers


class Bus:
    """A connection. Made by `Bus.connect`; everything raises Unavailable while the server is away."""

    def __init__(self, name: str, settings: BusSettings) -> None:
        self.name = name
        self.settings = settings
        self.client = LeanClient()
        self.permission_violations: list[str] = []
        self._on_reconnect: list[Callable[[], None]] = []
        self._closing = False
        self._last_error = ""
        self._refusal = ""
        """What a server said that does not take our key. It closes then, and of several tries some see only that."""

    @staticmethod
    async def connect(name: str, settings: BusSettings, *, timeout_seconds: float = 10.0) -> "Bus":
        """Raises Unavailable when no server answers in time."""
        bus = Bus(name, settings)
        options: dict[str, Any] = {
            "servers": list(settings.servers),
            "name": name,
            "max_reconnect_attempts": -1,
            "reconnect_time_wait": RECONNECT_SECONDS,
            "ping_interval": 10,
            "max_outstanding_pings": 2,
            "connect_timeout": 2,
            "drain_timeout": 2,
            "pending_size": 8 * 2**20,
            "error_cb": bus._on_error,
            "disconnected_cb": bus._on_disconnected,
            "reconnected_cb": bus._on_reconnected,
            "closed_cb": bus._on_closed,
        }
        if settings.nkey_seed is not None:
            options["nkeys_seed_str"] = settings.nkey_seed.get_secret_value()
        if settings.inbox_prefix is not None:
            options["inbox_prefix"] = settings.inbox_prefix
        try:
            async with asyncio.timeout(timeout_seconds):
                await keeping_cancellation(bus.client.connect(**options))
        except asyncio.CancelledError:
            bus._closing = True
            await bus.client.close()
            raise
        except (TimeoutError, OSError, nats.errors.Error) as error:
            bus._closing = True
            await bus.client.close()
            why = bus._refusal or str(error) or bus._last_error or "timed out"
            raise Unavailable(f"no NATS server answers at {', '.join(settings.servers)}: {why}") from error
        return bus

    @property
    def is_connected(self) -> bool:
        return self.client.is_connected

    def on_reconnect(self, callback: Callable[[], None]) -> None:
        self._on_reconnect.append(callback)

    def check_version(self) -> None:
        """Raises ServerTooOld."""
        version = self.client.connected_server_version
        if (version.major, version.minor, version.patch) < MINIMUM_SERVER:
            raise ServerTooOld(
                f"nats-server {version.major}.{version.minor}.{version.patch} is too old: Muster needs 2.12 or newer, since older"
                " ones silently ignore guards and atomic batches"
            )

    async def publish(
        self, subject: str, payload: bytes, headers: Mapping[str, str] | None = None, reply: str = ""
    ) -> None:
        """Core NATS: nobody acknowledges."""
        try:
            await keeping_cancellation(
                self.client.publish(subject, payload, reply=reply, headers=dict(headers) if headers else None)
            )
        except (nats.errors.Error, OSError) as error:
            raise Unavailable(f"NATS is away: {error}") from error

    async def request(
        self, subject: str, payload: bytes, *, timeout_seconds: float, headers: Mapping[str, str] | None = None
    ) -> Msg:
        """Raises NoAnswer when it is unknown whether anybody got it, Unavailable when certainly nobody did."""
        if not self.client.is_connected:
            raise Unavailable("NATS is away")
        try:
            return await keeping_cancellation(
                self.client.request(
                    subject, payload, timeout=timeout_seconds, headers=dict(headers) if headers else None
                )
            )
        except nats.errors.NoRespondersError as error:
            raise Unavailable(f"nobody answers on {subject}") from error
        except (nats.errors.Error, TimeoutError, OSError) as error:
            raise NoAnswer(f"no answer on {subject}: {str(error) or 'timed out'}") from error

    async def js_api(
        self, subject: str, body: Mapping[str, Any] | None = None, *, timeout_seconds: float = 5.0
    ) -> dict[str, Any]:
        """A JetStream API request. Raises JetStreamError with the server's code, NoAnswer or Unavailable."""
        message = await self.request(
            f"$JS.API.{subject}", orjson.dumps(body) if body else b"", timeout_seconds=timeout_seconds
        )
        answer: dict[str, Any] = orjson.loads(message.data)
        if error := answer.get("error"):
            raise JetStreamError(error.get("err_code", 0), error.get("code", 0), error.get("description", ""))
        return answer

    async def subscribe(
        self, subject: str, callback: Callable[[Msg], Awaitable[None]], *, queue: str = ""
    ) -> Subscription:
        return await self.client.subscribe(subject, queue=queue, cb=callback, pending_bytes_limit=256 * 2**20)

    async def flush(self) -> None:
        """What was published and subscribed to is known to the server."""
        await keeping_cancellation(self.client.flush(timeout=2))
        # nats-py 2.x writes the PING past what waits to be written (`Client._send_ping`): only a second one comes after it
        await keeping_cancellation(self.client.flush(timeout=2))

    async def close(self) -> None:
        self._closing = True
        if self.client.is_closed:
            return
        try:
            async with asyncio.timeout(2):
                if self.client.is_connected:
                    await self.client.flush(timeout=1)
        except (nats.errors.Error, TimeoutError, OSError) as error:
            log.debug("nothing to flush: %s", error)
        await self.client.close()

    async def _on_error(self, error: Exception) -> None:
        text = self._last_error = str(error)
        if "authorization violation" in text.lower():
            self._refusal = text
        if "permissions violation" in text.lower():
            self.permission_violations.append(text)
            log.error("NATS refused what this service asked for: %s", text)
        elif not self._closing:
            log.warning("NATS: %s", text or type(error).__name__)

    async def _on_disconnected(self) -> None:
        if not self._closing:
            log.warning("the connection to NATS is lost; reconnecting")

    async def _on_reconnected(self) -> None:
        log.info("connected to NATS again")
        for callback in self._on_reconnect:
            callback()

    async def _on_closed(self) -> None:
        if not self._closing:
            log.critical("the connection to NATS was closed for good")


class NoAnswer(Unavailable):
    """Sent, but nothing came back: it may or may not have been done."""


class JetStreamError(Exception):
    def __init__(self, err_code: int, code: int, description: str) -> None:
        super().__init__(f"{description} (JetStream error {err_code})")
        self.err_code = err_code
        self.code = code
        self.description = description

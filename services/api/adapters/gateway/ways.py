"""The two ways to an engine, and which one a request takes: a second one only when nobody could be connected to on the first."""

import asyncio
import contextlib
import io
import logging
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Final, Protocol

import aiohttp

from kernel.flow import StreamBroken
from schemas.relay import RelayRequest
from services.api.adapters.gateway.relay import Relay
from services.api.domain.routing import Endpoint, Routes

log = logging.getLogger(__name__)

CONNECT_SECONDS: Final = 2.0
WRITTEN_AT_ONCE: Final = 64 * 1024
"""Bytes of a body; more are written piece by piece, between which others have their turn."""
NOT_CONNECTED: Final = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError)
"""Certainly nothing was sent."""


class Answer(Protocol):
    """The head has come; the body comes in parts, as it arrives."""

    @property
    def status(self) -> int: ...

    @property
    def headers(self) -> Mapping[str, str]: ...

    def parts(self) -> AsyncIterator[bytes]: ...

    def close(self) -> None:
        """However far it was read."""


class NotReached(Exception):
    """No head of an answer came."""


class WorkerBusy(NotReached):
    """Its agent relays as many requests as it may."""


@dataclass(frozen=True, slots=True)
class Dialled:
    _response: aiohttp.ClientResponse

    @property
    def status(self) -> int:
        return self._response.status

    @property
    def headers(self) -> Mapping[str, str]:
        return self._response.headers

    def parts(self) -> AsyncIterator[bytes]:
        return self._response.content.iter_any()

    def close(self) -> None:
        self._response.close()


class Ways:
    def __init__(self, routes: Routes, relay: Relay) -> None:
        self._reaches = routes.reaches
        self._relay = relay
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=600)
        # A connection for each request: engines close theirs unannounced, and a POST can't be sent twice to find out.
        connector = aiohttp.TCPConnector(limit=0, force_close=True)
        self._http = aiohttp.ClientSession(timeout=timeout, connector=connector, auto_decompress=False)
        self._trying: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        for task in self._trying:
            task.cancel()
        await self._http.close()

    async def post(
        self, endpoint: Endpoint, path: str, body: bytes, headers: Mapping[str, str], key: Mapping[str, str]
    ) -> Answer:
        """`key`: the header that opens a dialled engine; an agent has it anyway. Raises NotReached."""
        if self._reaches.way(endpoint.worker_id) == "relay":
            self._try_direct(endpoint)
            return await self._through_the_bus(endpoint, path, body, headers)
        try:
            data = io.BytesIO(body) if len(body) > WRITTEN_AT_ONCE else body
            return Dialled(await self._http.post(f"{endpoint.url}{path}", data=data, headers={**headers, **key}))
        except NOT_CONNECTED as error:
            if endpoint.worker_id is None or not self._reaches.may_relay(endpoint.worker_id):
                raise NotReached(str(error)) from error
            answer = await self._through_the_bus(endpoint, path, body, headers)
            log.warning("%s can't be dialled (%s): its worker is reached through the bus", endpoint.url, error)
            self._reaches.was_relayed(endpoint.worker_id, time.monotonic())
            return answer
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise NotReached(str(error) or type(error).__name__) from error

    async def _through_the_bus(self, endpoint: Endpoint, path: str, body: bytes, headers: Mapping[str, str]) -> Answer:
        if endpoint.worker_id is None:
            raise NotReached("it is not known which worker it runs on")
        request = RelayRequest(
            instance_id=endpoint.instance_id,
            attempt=endpoint.attempt,
            method="POST",
            path=path,
            headers=dict(headers),
            body_bytes=len(body),
        )
        try:
            return await self._relay.ask(endpoint.worker_id, request, body)
        except StreamBroken as broken:
            text = f"through the bus: {broken.code}: {broken}"
            raise (WorkerBusy if broken.code == "too_many_requests" else NotReached)(text) from broken

    def _try_direct(self, endpoint: Endpoint) -> None:
        """Beside the request, which does not wait for it."""
        if endpoint.worker_id is not None and self._reaches.tries_direct(endpoint.worker_id, time.monotonic()):
            task = asyncio.create_task(self._dial(endpoint))
            self._trying.add(task)
            task.add_done_callback(self._trying.discard)

    async def _dial(self, endpoint: Endpoint) -> None:
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(CONNECT_SECONDS):
                _, writer = await asyncio.open_connection(endpoint.address, endpoint.port)
            writer.close()
            log.info("%s can be dialled again", endpoint.url)
            if endpoint.worker_id is not None:
                self._reaches.forget(endpoint.worker_id)

"""Workers give each other files that they have: over HTTP where one reaches the other, else over the bus.

Who may ask is settled on the bus, where every downloader is known by its key: whoever may have files gets a ticket for them.
What arrives is verified like what a hub sends.
"""

import asyncio
import hmac
import os
import re
import secrets
import socket
import struct
import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import contextmanager, suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final, cast
from urllib.parse import quote, unquote

from kernel.bus import Bus
from kernel.errors import Unavailable
from schemas.asks import MOST_SHARED_BYTES, ReadShared
from schemas.ids import FileId, WorkerId
from schemas.reasons import HubUnreachable
from schemas.subjects import ask
from services.downloader.adapters.http_ranges import Interrupted, Location
from services.downloader.adapters.parts import Part
from services.downloader.domain.answers import Asked, NotFetched
from services.downloader.domain.blocks import Span

TICKET_SECONDS: Final = 3600.0
MOST_CONNECTIONS: Final = 64
"""That are given something at one time."""
MOST_OPEN: Final = 512
"""… and connections altogether: each has a thread."""
IDLE_SECONDS: Final = 60.0
SENT_AT_ONCE: Final = 4 << 20
REACH_SECONDS: Final = 2.0
"""A neighbour in the same network answers within."""
_RANGE: Final = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})")

Open = Callable[[FileId, str], int | None]
"""A descriptor of a file that is here and verified, to be closed by whoever asked; None: there is none."""


class Counter:
    """Where this worker gives files to others. Runs in threads of its own."""

    def __init__(self, open_file: Open, port: int = 0) -> None:
        self._open_file = open_file
        self._tickets: dict[str, tuple[FileId, float]] = {}
        self._newest: dict[FileId, str] = {}
        """Tickets that are given out for a while: as many neighbours as may come, there are few of them."""
        self._lock = threading.Lock()
        self._slots = threading.BoundedSemaphore(MOST_CONNECTIONS)
        counter = self

        class Handler(_Handler):
            counter_of = counter

        self._server = _Server(("0.0.0.0", port), Handler)  # noqa: S104 - for other machines; nothing is given without a ticket
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, name="counter", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def ticket_for(self, file_id: FileId) -> str:
        """It is good for half an hour at least."""
        now = time.monotonic()
        with self._lock:
            self._tickets = {each: known for each, known in self._tickets.items() if known[1] > now}
            newest = self._newest.get(file_id)
            if newest is not None and newest in self._tickets and self._tickets[newest][1] > now + TICKET_SECONDS / 2:
                return newest
            ticket = secrets.token_urlsafe(24)
            self._tickets[ticket] = (file_id, now + TICKET_SECONDS)
            self._newest = {of: each for of, each in self._newest.items() if each in self._tickets}
            self._newest[file_id] = ticket
        return ticket

    def allows(self, ticket: str, file_id: str) -> bool:
        with self._lock:
            known = list(self._tickets.items())
        now = time.monotonic()
        return any(
            hmac.compare_digest(ticket.encode(), each.encode()) and of == file_id and until > now
            for each, (of, until) in known
        )

    def open(self, file_id: FileId, name: str) -> int | None:
        return self._open_file(file_id, name)

    @contextmanager
    def slot(self) -> Any:
        taken = self._slots.acquire(blocking=False)
        try:
            yield taken
        finally:
            if taken:
                self._slots.release()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self, *arguments: Any) -> None:
        self._open = threading.BoundedSemaphore(MOST_OPEN)
        super().__init__(*arguments)

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._open.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:
            self._open.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._open.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Whoever asked has left: nothing that anybody must know."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "muster"
    sys_version = ""
    timeout = IDLE_SECONDS
    counter_of: Counter

    def do_GET(self) -> None:
        with self.counter_of.slot() as is_free:
            if not is_free:
                self._refuse(HTTPStatus.SERVICE_UNAVAILABLE, {"Retry-After": "1"})
                return
            self._give()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - as the base class calls it
        """Nothing: who took what is on the bus."""

    def _give(self) -> None:
        _, _, rest = self.path.partition("/")
        file_id, _, name = rest.partition("?")[0].partition("/")
        ticket = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if not self.counter_of.allows(ticket, file_id):
            self._refuse(HTTPStatus.UNAUTHORIZED)
            return
        descriptor = self.counter_of.open(FileId(file_id), unquote(name))
        if descriptor is None:
            self._refuse(HTTPStatus.NOT_FOUND)
            return
        try:
            size = os.fstat(descriptor).st_size
            asked = _range(self.headers.get("Range"), size)
            if asked is None:
                self._refuse(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, {"Content-Range": f"bytes */{size}"})
                return
            start, end = asked
            self.send_response(HTTPStatus.OK if (start, end) == (0, size) else HTTPStatus.PARTIAL_CONTENT)
            self.send_header("Content-Type", "application/octet-stream")
            self.send_header("Content-Length", str(end - start))
            if (start, end) != (0, size):
                self.send_header("Content-Range", f"bytes {start}-{end - 1}/{size}")
            self.end_headers()
            self.wfile.flush()
            self._send(descriptor, start, end)
        finally:
            os.close(descriptor)

    def _send(self, descriptor: int, start: int, end: int) -> None:
        connection = cast("socket.socket", self.connection)
        with suppress(OSError):
            connection.settimeout(None)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _seconds(IDLE_SECONDS))
            while start < end:
                sent = os.sendfile(connection.fileno(), descriptor, start, min(SENT_AT_ONCE, end - start))
                if sent == 0:
                    break
                start += sent
            connection.settimeout(IDLE_SECONDS)
        if start < end:
            self.close_connection = True

    def _refuse(self, status: HTTPStatus, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", "0")
        self.end_headers()


def _seconds(seconds: float) -> bytes:
    """A `struct timeval` of this machine."""
    return struct.pack("ll", int(seconds), 0)


def _range(header: str | None, size: int) -> tuple[int, int] | None:
    """None: it can't be had. What is no range, or several, is not taken for one (RFC 9110, 14.2): then all of it is given."""
    asked = _RANGE.fullmatch((header or "").strip())
    first, last = asked.groups() if asked is not None else ("", "")
    if not first and not last:
        return 0, size
    if not first:
        start, end = max(size - int(last), 0), size
    elif last and int(last) < int(first):
        return 0, size
    else:
        start, end = int(first), min(int(last) + 1, size) if last else size
    return (start, end) if start < end else None


def location_at(address: str, port: int, file_id: FileId, name: str, ticket: str) -> Location:
    host = f"[{address}]" if ":" in address else address
    return Location(f"http://{host}:{port}/{file_id}/{quote(name)}", {"Authorization": f"Bearer {ticket}"})


def reachable(addresses: tuple[str, ...], port: int | None) -> str | None:
    """The first of these at which somebody listens. Blocks for a short while."""
    for address in addresses if port is not None else ():
        with suppress(OSError), socket.create_connection((address, port or 0), timeout=REACH_SECONDS):
            return address
    return None


class BusLine:
    """Fetches as `Ranges` does, in questions to a neighbour. Used from a thread; `loop` is the bus's."""

    def __init__(
        self,
        bus: Bus,
        loop: asyncio.AbstractEventLoop,
        neighbour: WorkerId,
        file_id: FileId,
        idle_seconds: float,
        spend: Callable[[int], None],
    ) -> None:
        self._bus = bus
        self._loop = loop
        self._neighbour = neighbour
        self._file_id = file_id
        self._idle_seconds = idle_seconds
        self._spend = spend
        self._asking: Future[Any] | None = None
        self._is_interrupted = False
        self.said = ""

    def fetch(self, at: Location, asked: Asked, span: Span, part: Part, stopped: Callable[[], bool]) -> Location:
        """Raises NotFetched, Interrupted; OSError of the disk."""
        while span.left > 0 and not stopped():
            content = self._ask(asked.file.name, span.position, min(span.left, MOST_SHARED_BYTES))
            view, done = memoryview(content), 0
            with part.writing:
                while done < len(view):
                    done += os.pwrite(part.file, view[done:], span.position + done)
            part.filled(span, len(view))
            self._spend(len(view))
        return at

    def close(self) -> None:
        self.interrupt()

    def interrupt(self) -> None:
        self._is_interrupted = True
        if self._asking is not None:
            self._asking.cancel()

    def _ask(self, name: str, offset: int, length: int) -> bytes:
        question = ReadShared(file_id=self._file_id, name=name, offset=offset, length=length)
        self._asking = asyncio.run_coroutine_threadsafe(
            self._bus.request(
                ask(self._neighbour, "share-bytes"),
                question.model_dump_json().encode(),
                timeout_seconds=self._idle_seconds,
            ),
            self._loop,
        )
        if self._is_interrupted:
            self._asking.cancel()
        try:
            content: bytes = self._asking.result(self._idle_seconds + 1).data
        except Unavailable as error:
            self.said = f"{self._neighbour}: {error}"
            raise NotFetched(HubUnreachable(host=self._neighbour, problem=str(error)), "again") from error
        except (FutureTimeout, CancelledError, RuntimeError) as error:
            self._asking.cancel()
            raise Interrupted("no answer over the bus") from error
        if len(content) != length:
            self.said = f"{self._neighbour} has the file no more"
            raise NotFetched(HubUnreachable(host=self._neighbour, problem="it has the file no more"), "final")
        self.said = f"{length} bytes from {self._neighbour} over the bus"
        return content

"""Parts of files over HTTP, straight from a socket into a file. Blocks; each thread has its own connections.

Of a connection that is not encrypted the kernel moves the bytes (splice); they never come into this program. What a token is
for is sent to the host that it is for, and to no other that this one redirects to.
"""

import http.client
import ipaddress
import os
import select
import socket
import ssl
import time
import urllib.parse
import urllib.request
from base64 import b64encode
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from schemas.reasons import HubUnreachable, RedirectNotAllowed
from services.downloader.adapters.parts import Part
from services.downloader.domain.answers import Asked, Head, NotFetched, check, check_redirecting
from services.downloader.domain.blocks import MIB, Span

USER_AGENT: Final = "muster"
MOST_REDIRECTS: Final = 5
CHUNK: Final = MIB
WAKE_BYTES: Final = 256 * 1024
"""So much is to have arrived before we look at it, unless less is left: fewer, larger steps."""
_REDIRECTS: Final = (301, 302, 303, 307, 308)
_F_SETPIPE_SZ: Final = 1031
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}


class Origin(NamedTuple):
    scheme: str
    host: str
    port: int


@dataclass(frozen=True, slots=True)
class Location:
    url: str
    headers: Mapping[str, str] = field(default_factory=dict[str, str], repr=False)
    """For this origin alone: tokens."""


class Interrupted(Exception):
    """The connection broke, or nothing came for too long."""


def origin_of(url: str) -> Origin:
    """Raises ValueError."""
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in _DEFAULT_PORTS or not parts.hostname:
        raise ValueError("it is no address of HTTP")
    return Origin(parts.scheme, parts.hostname, parts.port or _DEFAULT_PORTS[parts.scheme])


class Ranges:
    """The connections of one thread. `idle_seconds`: so long an answer, and each part of it, may take."""

    def __init__(self, idle_seconds: float, spend: Callable[[int], None] | None = None) -> None:
        self._idle_seconds = idle_seconds
        self._spend = spend
        """Told how many bytes came, and may take its time: what limits the rate."""
        self._connections: dict[Origin, http.client.HTTPConnection] = {}
        self._pipe: tuple[int, int] | None = None
        self._buffer: bytearray | None = None
        self.said = ""
        """The last answer, for people."""

    def close(self) -> None:
        for connection in self._connections.values():
            connection.close()
        self._connections.clear()
        self._drop_pipe()

    def interrupt(self) -> None:
        """From another thread: whatever it waits for ends."""
        for connection in list(self._connections.values()):
            with suppress(OSError):
                if (sock := connection.sock) is not None:
                    sock.shutdown(socket.SHUT_RDWR)

    def fetch(self, at: Location, asked: Asked, span: Span, part: Part, stopped: Callable[[], bool]) -> Location:
        """Fill the span. Gives where the bytes came from, which may be asked directly the next time.

        Raises NotFetched, NoRanges, Interrupted; OSError of the disk.
        """
        whole = (asked.start, asked.end) == (0, asked.file.size)
        wanted = {} if whole else {"Range": f"bytes={asked.start}-{asked.end - 1}"}
        connection, response, where = self._open(at, asked, wanted)
        is_clean = False
        try:
            length = check(_head(where, response), asked)
            self._receive(connection, response, span, asked.start + length, part, stopped)
            is_clean = span.position == asked.start + length
        finally:
            response.close()
            if not is_clean:
                self._forget(where)
        return where

    def read(self, at: Location, asked: Asked) -> bytes:
        """A part that is small enough to be held. Raises NotFetched, NoRanges, Interrupted."""
        whole = (asked.start, asked.end) == (0, asked.file.size)
        wanted = {} if whole else {"Range": f"bytes={asked.start}-{asked.end - 1}"}
        _, response, where = self._open(at, asked, wanted)
        is_clean = False
        try:
            length = check(_head(where, response), asked)
            content = response.read(length)
            is_clean = len(content) == length
        except (OSError, http.client.HTTPException) as error:
            raise Interrupted(_problem(error)) from error
        finally:
            response.close()
            if not is_clean:
                self._forget(where)
        if not is_clean:
            raise Interrupted(f"closed after {len(content)} of {length} bytes")
        return content

    # -- asking -------------------------------------------------------------------------------------------------------

    def _open(
        self, at: Location, asked: Asked, headers: Mapping[str, str]
    ) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse, Location]:
        first = at
        for _ in range(MOST_REDIRECTS + 1):
            connection, response = self._ask(at, headers)
            self.said = f"{response.status} {response.reason} from {origin_of(at.url).host}"
            target = response.getheader("location")
            if response.status not in _REDIRECTS or target is None:
                return connection, response, at
            try:
                check_redirecting(_head(at, response), asked)
                with suppress(OSError, http.client.HTTPException):
                    response.read(64 * 1024)
            finally:
                if not response.isclosed():
                    self._forget(at)
                response.close()
            at = self._redirected(at, target, connection)
        host = origin_of(first.url).host
        problem = f"more than {MOST_REDIRECTS} in a row"
        raise NotFetched(RedirectNotAllowed(host=host, to=origin_of(at.url).host, problem=problem), "final")

    def _ask(
        self, at: Location, headers: Mapping[str, str]
    ) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        """A kept connection may have been closed by the other side meanwhile: then a new one is asked."""
        origin = origin_of(at.url)
        kept = self._connections.get(origin)
        if kept is not None:
            try:
                return kept, self._request(kept, origin, at, headers)
            except (OSError, http.client.HTTPException):
                self._forget(at)
        try:
            connection = self._connections[origin] = self._connect(origin)
            return connection, self._request(connection, origin, at, headers)
        except (OSError, http.client.HTTPException) as error:
            self._forget(at)
            self.said = f"{origin.host}: {_problem(error)}"
            raise NotFetched(HubUnreachable(host=origin.host, problem=_problem(error)), "again") from error

    def _request(
        self, connection: http.client.HTTPConnection, origin: Origin, at: Location, headers: Mapping[str, str]
    ) -> http.client.HTTPResponse:
        parts = urllib.parse.urlsplit(at.url)
        target = urllib.parse.urlunsplit(("", "", parts.path or "/", parts.query, ""))
        more: dict[str, str] = {"Accept-Encoding": "identity", "User-Agent": USER_AGENT}
        if origin.scheme == "http" and (proxy := proxy_for(origin)) is not None:
            target = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{target}"
            more |= _proxy_headers(proxy)
        connection.request("GET", target, headers=more | dict(at.headers) | dict(headers))
        return connection.getresponse()

    def _connect(self, origin: Origin) -> http.client.HTTPConnection:
        proxy = proxy_for(origin)
        host, port = origin.host, origin.port
        if proxy is not None:
            through = urllib.parse.urlsplit(proxy)
            if through.scheme not in ("http", "https", "") or not through.hostname:
                raise OSError(f"the proxy {through.scheme}://{through.hostname} is of a kind that is not spoken here")
            host, port = through.hostname, through.port or 80
        if origin.scheme == "https":
            connection = http.client.HTTPSConnection(
                host, port, timeout=self._idle_seconds, context=ssl.create_default_context()
            )
            if proxy is not None:
                connection.set_tunnel(origin.host, origin.port, headers=_proxy_headers(proxy))
        else:
            connection = http.client.HTTPConnection(host, port, timeout=self._idle_seconds)
        connection.connect()
        with suppress(OSError):
            connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection

    def _forget(self, at: Location) -> None:
        connection = self._connections.pop(origin_of(at.url), None)
        if connection is not None:
            connection.close()

    def _redirected(self, at: Location, target: str, connection: http.client.HTTPConnection) -> Location:
        """Raises NotFetched where nobody should send us there."""
        before = origin_of(at.url)
        url = urllib.parse.urljoin(at.url, target)
        try:
            after = origin_of(url)
        except ValueError as error:
            reason = RedirectNotAllowed(host=before.host, to=url[:200], problem=str(error))
            raise NotFetched(reason, "final") from error
        if after == before:
            return Location(url, at.headers)
        problem = None
        if before.scheme == "https" and after.scheme == "http":
            problem = "it would not be encrypted any more"
        elif proxy_for(before) is None and proxy_for(after) is None and connection.sock is not None:
            problem = _leads_inside(connection.sock, after)
        if problem is not None:
            raise NotFetched(RedirectNotAllowed(host=before.host, to=after.host, problem=problem), "final")
        return Location(url)

    # -- receiving ----------------------------------------------------------------------------------------------------

    def _receive(
        self,
        connection: http.client.HTTPConnection,
        response: http.client.HTTPResponse,
        span: Span,
        end: int,
        part: Part,
        stopped: Callable[[], bool],
    ) -> None:
        """`end`: where what is sent ends. Another thread may shorten the span meanwhile."""
        sock = connection.sock
        if response.chunked or response.length is None or sock is None:
            self._read_through(response, span, end, part, stopped)
            return
        try:
            first = response.fp.peek(1)[: end - span.position]
            response.fp.read(len(first))
        except (OSError, ValueError) as error:
            raise Interrupted(_problem(error)) from error
        if not first:
            raise Interrupted("closed before the first byte")
        self._write(part, span, first)
        try:
            if isinstance(sock, ssl.SSLSocket):
                self._decrypt(sock, span, end, part, stopped)
            else:
                self._splice(sock, span, end, part, stopped)
        finally:
            response.length = 0  # it was read beside the response

    def _splice(self, sock: socket.socket, span: Span, end: int, part: Part, stopped: Callable[[], bool]) -> None:
        source, sink = self._open_pipe()
        poller = select.poll()
        poller.register(sock, select.POLLIN)
        wake = 0
        try:
            while (left := min(span.end, end) - span.position) > 0 and not stopped():
                if min(WAKE_BYTES, left) != wake:
                    wake = min(WAKE_BYTES, left)
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, wake)
                if not poller.poll(self._idle_seconds * 1000):
                    raise Interrupted(f"nothing came for {self._idle_seconds:.0f} s")
                try:
                    count = os.splice(sock.fileno(), sink, min(CHUNK, left), flags=os.SPLICE_F_MOVE)
                except BlockingIOError:
                    continue
                except OSError as error:
                    raise Interrupted(_problem(error)) from error
                if count == 0:
                    raise Interrupted(f"closed with {left} bytes to go")
                self._empty_pipe(source, count, span, part)
        finally:
            with suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)

    def _empty_pipe(self, source: int, count: int, span: Span, part: Part) -> None:
        done = 0
        try:
            with part.writing:
                while done < count:
                    done += os.splice(
                        source, part.file, count - done, offset_dst=span.position + done, flags=os.SPLICE_F_MOVE
                    )
        except OSError:
            self._drop_pipe()  # what is left in it belongs nowhere
            raise
        part.filled(span, count)
        if self._spend is not None:
            self._spend(count)

    def _decrypt(self, sock: ssl.SSLSocket, span: Span, end: int, part: Part, stopped: Callable[[], bool]) -> None:
        """One record of TLS has 16 KiB at most: they are gathered before they are written."""
        if self._buffer is None:
            self._buffer = bytearray(CHUNK)
        view = memoryview(self._buffer)
        while (left := min(span.end, end) - span.position) > 0 and not stopped():
            held, most = 0, min(CHUNK, left)
            problem: str | None = None
            while held < most:
                try:
                    count = sock.recv_into(view[held:most])
                except OSError as error:
                    problem = _problem(error)
                    break
                if count == 0:
                    problem = f"closed with {left - held} bytes to go"
                    break
                held += count
            if held:
                self._write(part, span, view[:held])
            if problem is not None:
                raise Interrupted(problem)

    def _read_through(
        self, response: http.client.HTTPResponse, span: Span, end: int, part: Part, stopped: Callable[[], bool]
    ) -> None:
        """What is sent in pieces (chunked), or until the connection closes."""
        if self._buffer is None:
            self._buffer = bytearray(CHUNK)
        view = memoryview(self._buffer)
        while (left := min(span.end, end) - span.position) > 0 and not stopped():
            try:
                count = response.readinto(view[: min(CHUNK, left)])
            except (OSError, ValueError, http.client.HTTPException) as error:
                raise Interrupted(_problem(error)) from error
            if count == 0:
                raise Interrupted(f"closed with {left} bytes to go")
            self._write(part, span, view[:count])

    def _write(self, part: Part, span: Span, content: bytes | memoryview) -> None:
        view, done = memoryview(content), 0
        with part.writing:
            while done < len(view):
                done += os.pwrite(part.file, view[done:], span.position + done)
        part.filled(span, len(view))
        if self._spend is not None:
            self._spend(len(view))

    def _open_pipe(self) -> tuple[int, int]:
        if self._pipe is None:
            self._pipe = os.pipe2(os.O_CLOEXEC)
            with suppress(OSError):
                import fcntl  # noqa: PLC0415 - Linux alone has it

                fcntl.fcntl(self._pipe[1], _F_SETPIPE_SZ, CHUNK)
        return self._pipe

    def _drop_pipe(self) -> None:
        if self._pipe is not None:
            for end in self._pipe:
                os.close(end)
            self._pipe = None


class Rate:
    """So many bytes a second at most, of all connections together."""

    def __init__(self, bytes_per_second: float) -> None:
        self._bytes_per_second = bytes_per_second
        self._free_at = 0.0

    def spend(self, count: int) -> None:
        """Returns when the next bytes may come."""
        now = time.monotonic()
        self._free_at = max(self._free_at, now - 0.1) + count / self._bytes_per_second
        if self._free_at > now:
            time.sleep(min(self._free_at - now, 5.0))


def proxy_for(origin: Origin) -> str | None:
    """By the standard variables (`HTTPS_PROXY`, `NO_PROXY` …)."""
    proxy = urllib.request.getproxies().get(origin.scheme)
    if not proxy or urllib.request.proxy_bypass(f"{origin.host}:{origin.port}"):
        return None
    return proxy if "://" in proxy else f"http://{proxy}"


def _proxy_headers(proxy: str) -> dict[str, str]:
    parts = urllib.parse.urlsplit(proxy)
    if parts.username is None:
        return {}
    login = f"{urllib.parse.unquote(parts.username)}:{urllib.parse.unquote(parts.password or '')}"
    return {"Proxy-Authorization": "Basic " + b64encode(login.encode()).decode()}


def _leads_inside(sock: socket.socket, after: Origin) -> str | None:
    """From a public address to one of ours, or to this machine: what is there is not for others to name."""
    here = ipaddress.ip_address(sock.getpeername()[0].partition("%")[0])
    if not here.is_global:
        return None
    try:
        found = socket.getaddrinfo(after.host, after.port, type=socket.SOCK_STREAM)
    except OSError:
        return None  # it can't be reached, which is told when it is tried
    for *_, address in found:
        if not ipaddress.ip_address(str(address[0]).partition("%")[0]).is_global:
            return f"{address[0]} is not a public address"
    return None


def _head(at: Location, response: http.client.HTTPResponse) -> Head:
    headers = {name.lower(): value for name, value in response.getheaders()}
    return Head(origin_of(at.url).host, response.status, headers)


def _problem(error: BaseException) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not accepted ({error.verify_message})"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__

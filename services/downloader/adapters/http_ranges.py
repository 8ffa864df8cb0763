"""Parts of files over HTTP, straight from a socket into a file. Blocks; each thread has its own connections.

Of a connection that is not encrypted the kernel moves the bytes (splice); they never come into this program. What a token is
for is sent to the host that it is for, and to no other that this one redirects to.
"""

import errno
import http.client
import ipaddress
import os
import queue
import select
import socket
import ssl
import string
import threading
import time
import urllib.parse
import urllib.request
from base64 import b64encode
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, NamedTuple

from schemas.reasons import AnswerIsNoFile, HubUnreachable, RedirectNotAllowed
from services.downloader.adapters.parts import Part
from services.downloader.domain.answers import Asked, Head, NotFetched, check, check_redirecting
from services.downloader.domain.blocks import MIB, Span

USER_AGENT: Final = "muster"
MOST_REDIRECTS: Final = 5
CHUNK: Final = MIB
WAKE_BYTES: Final = 256 * 1024
"""So much is to have arrived before we look at it, unless less is left: fewer, larger steps. It is lost when we are killed:
less of a file with small blocks."""
GATHER_SECONDS: Final = 1.0
"""… or so much time has passed: few bytes are bytes too."""
LOOK_SECONDS: Final = 0.1
"""Between two looks whether a question to DNS is still wanted."""
_REDIRECTS: Final = (301, 302, 303, 307, 308)
_F_SETPIPE_SZ: Final = 1031
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
_Address = tuple[socket.AddressFamily, socket.SocketKind, int, str, tuple[Any, ...]]


class Origin(NamedTuple):
    scheme: str
    host: str
    port: int


@dataclass(frozen=True, slots=True)
class Location:
    url: str
    headers: Mapping[str, str] = field(default_factory=dict[str, str], repr=False)
    """For this origin alone: tokens."""
    sent_by: str | None = None
    """The host with a public address that sends us here: it names no other addresses to us than public ones."""


@dataclass(slots=True, eq=False)
class _Line:
    connection: http.client.HTTPConnection
    sock: socket.socket | None = None
    """What is read from. It outlives the connection while an answer that ends it is read."""
    handle: socket.socket | None = None
    """The same once more, so that another thread can end it: whatever becomes of it meanwhile, this one stays."""
    is_public: bool = False
    """The other side's address."""


class Interrupted(Exception):
    """The connection broke, or nothing came for too long."""


def origin_of(url: str) -> Origin:
    """Raises ValueError."""
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in _DEFAULT_PORTS or not parts.hostname:
        raise ValueError("it is no address of HTTP")
    return Origin(parts.scheme, parts.hostname, parts.port or _DEFAULT_PORTS[parts.scheme])


class Ranges:
    """The connections of one thread. `idle_seconds`: so long an answer, and each part of it, may take. `by_proxies`: as the
    environment says.
    """

    def __init__(
        self, idle_seconds: float, spend: Callable[[int], None] | None = None, *, by_proxies: bool = True
    ) -> None:
        self._idle_seconds = idle_seconds
        self._by_proxies = by_proxies
        self._spend = spend
        """Told how many bytes came, and may take its time: what limits the rate."""
        self._lines: dict[Origin, _Line] = {}
        self._handles: set[socket.socket] = set()
        self._is_interrupted = False
        self._lock = threading.Lock()
        """For the two above."""
        self._pipe: tuple[int, int] | None = None
        self._buffer: bytearray | None = None
        self.said = ""
        """The last answer, for people."""

    def close(self) -> None:
        for line in self._lines.values():
            self._hang_up(line)
        self._lines.clear()
        self._drop_pipe()

    def interrupt(self) -> None:
        """From another thread: whatever it waits for ends, and nothing is begun any more."""
        with self._lock:
            self._is_interrupted = True
            for handle in self._handles:
                with suppress(OSError):
                    handle.shutdown(socket.SHUT_RDWR)

    def fetch(self, at: Location, asked: Asked, span: Span, part: Part, stopped: Callable[[], bool]) -> Location:
        """Fill the span. Gives where the bytes came from, which may be asked directly the next time.

        Raises NotFetched, NoRanges, Interrupted; OSError of the disk.
        """
        line, response, where = self._open(at, asked)
        is_clean = False
        try:
            length = check(_head(where, response), asked)
            self._receive(line, response, span, asked.start + length, part, stopped)
            is_clean = span.position == asked.start + length and _nothing_follows(response, asked, where)
        finally:
            self._finish(where, response, is_clean=is_clean)
        return where

    def read(self, at: Location, asked: Asked) -> bytes:
        """A part that is small enough to be held. Raises NotFetched, NoRanges, Interrupted."""
        _, response, where = self._open(at, asked)
        is_clean = False
        try:
            length = check(_head(where, response), asked)
            content = response.read(length)
            is_clean = len(content) == length and _nothing_follows(response, asked, where)
        except (OSError, http.client.HTTPException) as error:
            raise Interrupted(_problem(error)) from error
        finally:
            self._finish(where, response, is_clean=is_clean)
        if len(content) < length:
            raise Interrupted(f"closed after {len(content)} of {length} bytes")
        return content

    def _finish(self, at: Location, response: http.client.HTTPResponse, *, is_clean: bool) -> None:
        """`is_clean`: of this answer nothing is left on the connection."""
        response.close()
        if not is_clean or response.will_close:
            self._forget(at)

    # -- asking -------------------------------------------------------------------------------------------------------

    def _open(self, at: Location, asked: Asked) -> tuple[_Line, http.client.HTTPResponse, Location]:
        whole = (asked.start, asked.end) == (0, asked.file.size)
        headers = {} if whole else {"Range": f"bytes={asked.start}-{asked.end - 1}"}
        first = at
        for _ in range(MOST_REDIRECTS + 1):
            line, response = self._ask(at, headers)
            self.said = f"{response.status} {response.reason} from {origin_of(at.url).host}"
            target = response.getheader("location")
            if response.status not in _REDIRECTS or target is None:
                return line, response, at
            try:
                check_redirecting(_head(at, response), asked)
                with suppress(OSError, http.client.HTTPException):
                    response.read(64 * 1024)
            finally:
                self._finish(at, response, is_clean=response.isclosed())
            at = self._redirected(at, target, line)
        host = origin_of(first.url).host
        problem = f"more than {MOST_REDIRECTS} in a row"
        raise NotFetched(RedirectNotAllowed(host=host, to=origin_of(at.url).host, problem=problem), "final")

    def _ask(self, at: Location, headers: Mapping[str, str]) -> tuple[_Line, http.client.HTTPResponse]:
        """A kept connection may have been closed by the other side meanwhile: then a new one is asked."""
        origin = origin_of(at.url)
        kept = self._lines.get(origin)
        if kept is not None:
            if at.sent_by is not None and not kept.is_public:
                raise _not_public(at.sent_by, origin.host)
            try:
                return kept, self._request(kept.connection, origin, at, headers)
            except (OSError, http.client.HTTPException):
                self._forget(at)
        try:
            line = self._lines[origin] = self._connect(origin, at.sent_by)
            return line, self._request(line.connection, origin, at, headers)
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
        if origin.scheme == "http" and (proxy := self._proxy_for(origin)) is not None:
            target = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{target}"
            more |= _proxy_headers(proxy)
        connection.request("GET", target, headers=more | dict(at.headers) | dict(headers))
        return connection.getresponse()

    def _connect(self, origin: Origin, sent_by: str | None) -> _Line:
        """Raises OSError, HTTPException, Interrupted; NotFetched where nobody should send us there."""
        proxy = self._proxy_for(origin)
        host, port = origin.host, origin.port
        if proxy is not None:
            host, port = _address_of(proxy)
        if origin.scheme == "https":
            connection = http.client.HTTPSConnection(
                host, port, timeout=self._idle_seconds, context=ssl.create_default_context()
            )
            if proxy is not None:
                connection.set_tunnel(origin.host, origin.port, headers=_proxy_headers(proxy))
        else:
            connection = http.client.HTTPConnection(host, port, timeout=self._idle_seconds)
        connection.auto_open = 0
        line = _Line(connection)
        # what http.client opens a socket with, and what it leaves no other way to replace
        setattr(connection, "_create_connection", partial(self._dial, line, sent_by if proxy is None else None))  # noqa: B010
        try:
            connection.connect()
        except BaseException:
            self._hang_up(line)
            raise
        line.sock = connection.sock
        return line

    def _dial(
        self,
        line: _Line,
        sent_by: str | None,
        address: tuple[str, int],
        seconds: float | None,
        _from: tuple[str, int] | None,
    ) -> socket.socket:
        host, port = address
        problem = OSError("it has no address")
        for family, kind, protocol, _, where in self._resolve(host, port):
            is_public = _is_public(str(where[0]))
            if sent_by is not None and not is_public:
                raise _not_public(sent_by, host)
            sock = socket.socket(family, kind, protocol)
            try:
                sock.settimeout(seconds)
                self._hold(line, sock)
                sock.connect(where)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            except OSError as error:
                problem = error
                sock.close()
                self._let_go(line)
            except BaseException:
                sock.close()
                raise
            else:
                line.is_public = is_public
                return sock
        raise problem

    def _resolve(self, host: str, port: int) -> list[_Address]:
        """A question to DNS can't be interrupted: it is asked in a thread of its own, which is left alone then."""
        answer: queue.SimpleQueue[list[_Address] | Exception] = queue.SimpleQueue()

        def ask() -> None:
            try:
                answer.put(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
            except (OSError, UnicodeError) as error:
                answer.put(error)

        try:
            ipaddress.ip_address(host.partition("%")[0])
        except ValueError:
            threading.Thread(target=ask, name=f"resolve {host}", daemon=True).start()
        else:
            ask()
        ends_at = time.monotonic() + self._idle_seconds
        while not self._is_interrupted and time.monotonic() < ends_at:
            try:
                found = answer.get(timeout=LOOK_SECONDS)
            except queue.Empty:
                continue
            if isinstance(found, UnicodeError):
                raise OSError("it is no name of a host") from found
            if isinstance(found, Exception):
                raise found
            return found
        if self._is_interrupted:
            raise Interrupted("it was not wanted any more")
        raise OSError(f"DNS did not answer for {self._idle_seconds:.0f} s")

    def _hold(self, line: _Line, sock: socket.socket) -> None:
        handle = sock.dup()
        with self._lock:
            if not self._is_interrupted:
                self._handles.add(handle)
                line.handle = handle
                return
        handle.close()
        raise Interrupted("it was not wanted any more")

    def _let_go(self, line: _Line) -> None:
        with self._lock:
            if line.handle is not None:
                self._handles.discard(line.handle)
                line.handle.close()
                line.handle = None

    def _hang_up(self, line: _Line) -> None:
        line.connection.close()
        self._let_go(line)

    def _forget(self, at: Location) -> None:
        line = self._lines.pop(origin_of(at.url), None)
        if line is not None:
            self._hang_up(line)

    def _proxy_for(self, origin: Origin) -> str | None:
        return proxy_for(origin) if self._by_proxies else None

    def _redirected(self, at: Location, target: str, line: _Line) -> Location:
        """Raises NotFetched where nobody should send us there."""
        before = origin_of(at.url)
        url = target
        try:
            url = urllib.parse.urljoin(at.url, urllib.parse.quote(target, safe=string.punctuation, encoding="latin-1"))
            after = origin_of(url)
        except ValueError as error:
            reason = RedirectNotAllowed(host=before.host, to=url[:200], problem=str(error))
            raise NotFetched(reason, "final") from error
        if after == before:
            return Location(url, at.headers, at.sent_by)
        if before.scheme == "https" and after.scheme == "http":
            problem = "it would not be encrypted any more"
            raise NotFetched(RedirectNotAllowed(host=before.host, to=after.host, problem=problem), "final")
        is_sent = at.sent_by is not None or (line.is_public and self._proxy_for(before) is None)
        return Location(url, sent_by=before.host if is_sent and self._proxy_for(after) is None else None)

    # -- receiving ----------------------------------------------------------------------------------------------------

    def _receive(
        self,
        line: _Line,
        response: http.client.HTTPResponse,
        span: Span,
        end: int,
        part: Part,
        stopped: Callable[[], bool],
    ) -> None:
        """`end`: where what is sent ends. Another thread may shorten the span meanwhile."""
        sock = line.sock
        if response.chunked or response.length is None or sock is None:
            self._gather(partial(_read_into, response), span, end, part, stopped)
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
                self._gather(sock.recv_into, span, end, part, stopped)
            else:
                self._splice(sock, span, end, part, stopped)
        finally:
            response.length = 0  # it was read beside the response

    def _splice(self, sock: socket.socket, span: Span, end: int, part: Part, stopped: Callable[[], bool]) -> None:
        source, sink = self._open_pipe()
        poller = select.poll()
        poller.register(sock, select.POLLIN)
        wake, most = 0, min(WAKE_BYTES, 2 * part.block_bytes)
        soon = min(GATHER_SECONDS, self._idle_seconds / 2)
        try:
            while (left := min(span.end, end) - span.position) > 0 and not stopped():
                if min(most, left) != wake:
                    wake = min(most, left)
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, wake)
                if not poller.poll(soon * 1000):
                    wake = 1  # whatever there is
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, wake)
                    if not poller.poll((self._idle_seconds - soon) * 1000):
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
                while done < count and part.can_splice:
                    try:
                        done += os.splice(
                            source, part.file, count - done, offset_dst=span.position + done, flags=os.SPLICE_F_MOVE
                        )
                    except OSError as error:
                        if error.errno != errno.EINVAL:
                            raise
                        part.can_splice = False  # not to every file system
                while done < count:
                    content = memoryview(os.read(source, count - done))
                    while content:
                        written = os.pwrite(part.file, content, span.position + done)
                        content, done = content[written:], done + written
        except OSError:
            self._drop_pipe()  # what is left in it belongs nowhere
            raise
        part.filled(span, count)
        if self._spend is not None:
            self._spend(count)

    def _gather(
        self, receive: Callable[[memoryview], int], span: Span, end: int, part: Part, stopped: Callable[[], bool]
    ) -> None:
        """A record of TLS has 16 KiB at most, and what is sent in pieces may come in small ones: few are not written alone."""
        if self._buffer is None:
            self._buffer = bytearray(CHUNK)
        view = memoryview(self._buffer)
        while (left := min(span.end, end) - span.position) > 0 and not stopped():
            held, most, begun_at = 0, min(CHUNK, left), time.monotonic()
            problem: str | None = None
            while held < most and (held == 0 or time.monotonic() - begun_at < GATHER_SECONDS):
                try:
                    count = receive(view[held:most])
                except (OSError, ValueError, http.client.HTTPException) as error:
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
    """So many bytes a second at most, of all connections together. Threads share it."""

    def __init__(self, bytes_per_second: float) -> None:
        self._bytes_per_second = bytes_per_second
        self._free_at = 0.0
        self._lock = threading.Lock()

    def spend(self, count: int) -> float:
        """So many seconds are to pass before whoever had these bytes takes more."""
        now = time.monotonic()
        with self._lock:
            self._free_at = max(self._free_at, now - 0.1) + count / self._bytes_per_second
            return max(self._free_at - now, 0.0)


def proxy_for(origin: Origin) -> str | None:
    """By the standard variables (`HTTPS_PROXY`, `NO_PROXY` …)."""
    proxy = urllib.request.getproxies().get(origin.scheme)
    if not proxy or urllib.request.proxy_bypass(f"{origin.host}:{origin.port}"):
        return None
    return proxy if "://" in proxy else f"http://{proxy}"


def _address_of(proxy: str) -> tuple[str, int]:
    """Raises OSError."""
    try:
        parts = urllib.parse.urlsplit(proxy)
        port = parts.port or 80
    except ValueError as error:
        raise OSError(f"the proxy's address is none: {error}") from error
    if parts.scheme != "http" or not parts.hostname:
        raise OSError(f"the proxy {parts.scheme}://{parts.hostname} is of a kind that is not spoken here")
    return parts.hostname, port


def _proxy_headers(proxy: str) -> dict[str, str]:
    parts = urllib.parse.urlsplit(proxy)
    if parts.username is None:
        return {}
    login = f"{urllib.parse.unquote(parts.username)}:{urllib.parse.unquote(parts.password or '')}"
    return {"Proxy-Authorization": "Basic " + b64encode(login.encode()).decode()}


def _is_public(address: str) -> bool:
    return ipaddress.ip_address(address.partition("%")[0]).is_global


def _not_public(sent_by: str, host: str) -> NotFetched:
    """From a public address to one of ours, or to this machine: what is there is not for others to name."""
    return NotFetched(RedirectNotAllowed(host=sent_by, to=host, problem="its address is not a public one"), "final")


def _read_into(response: http.client.HTTPResponse, view: memoryview) -> int:
    """As much as there is; `readinto` waits until the view is full."""
    content = response.read1(len(view))
    view[: len(content)] = content
    return len(content)


def _nothing_follows(response: http.client.HTTPResponse, asked: Asked, at: Location) -> bool:
    """False: it isn't known. Raises NotFetched where more is sent than was to come."""
    try:
        more = response.read1(1)
    except (OSError, ValueError, http.client.HTTPException):
        return False
    if more:
        reason = AnswerIsNoFile(path=asked.file.name, host=origin_of(at.url).host, content="more bytes than it has")
        raise NotFetched(reason, "wrong")
    return True


def _head(at: Location, response: http.client.HTTPResponse) -> Head:
    headers = {name.lower(): value for name, value in response.getheaders()}
    return Head(origin_of(at.url).host, response.status, headers)


def _problem(error: BaseException) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not accepted ({error.verify_message})"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__

"""The HTTP of the tests' hub, by hand, because it has to lie about every part of an answer."""

import asyncio
import re
import time
import zlib
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from http import HTTPStatus
from http.cookies import SimpleCookie
from typing import Final
from urllib.parse import parse_qsl, unquote

from tests.support.hub_repository import BLOCK_BYTES, Content, Part

HEAD_BYTES: Final = 1 << 16
SENDFILE_BYTES: Final = 4 << 20
STEPS_A_SECOND: Final = 20


@dataclass(frozen=True)
class Request:
    method: str
    host: str
    target: str
    """Path and query as they were sent."""
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    """By their names in lower case."""
    body: bytes = b""

    @property
    def path(self) -> str:
        return self.target.partition("?")[0]

    @property
    def url(self) -> str:
        return f"http://{self.host}{unquote(self.target)}"

    @cached_property
    def query(self) -> Mapping[str, str]:
        return dict(parse_qsl(self.target.partition("?")[2], keep_blank_values=True))

    @property
    def bearer(self) -> str | None:
        scheme, _, token = self.headers.get("authorization", "").partition(" ")
        return token.strip() if scheme.lower() == "bearer" else None

    @property
    def cookies(self) -> Mapping[str, str]:
        return {name: morsel.value for name, morsel in SimpleCookie(self.headers.get("cookie", "")).items()}


@dataclass
class Link:
    """Where the content delivery network serves a file."""

    content: Content
    etag: str
    file: str
    headers: Mapping[str, str]
    uses_left: int | None = None


@dataclass(frozen=True)
class Answer:
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    content: Content = field(default_factory=Content)
    file: str | None = None
    """Of the repository, which this is about."""
    serves_ranges: bool = False
    link: Link | None = None


class Refused(Exception):
    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.status)
        self.answer = answer


Route = tuple[tuple[str, ...], str, Callable[[Request, Mapping[str, str]], Answer]]
"""Methods, a pattern of the path, and who answers, given the pattern's named groups, unquoted."""


class Speaks(ABC):
    """One hub's protocol."""

    @abstractmethod
    def routes(self) -> Sequence[Route]: ...

    def answer(self, request: Request) -> Answer | None:
        for methods, path, answer in self.routes():
            found = re.fullmatch(path, request.path)
            if found and request.method in methods:
                try:
                    return answer(request, {name: unquote(part or "") for name, part in found.groupdict().items()})
                except Refused as refused:
                    return refused.answer
        return None


@dataclass
class Seen:
    """A line of the hub's log.

    `sent` counts the body's bytes that went out; where the client broke off, those of the last block may be missing.
    """

    method: str
    host: str
    path: str
    """Path and query as they were sent."""
    range: str | None
    has_authorization: bool
    has_cookie: bool
    user_agent: str
    status: int = 0
    sent: int = 0
    ended: bool = False


@dataclass(frozen=True)
class Plan:
    """An answer as it is sent."""

    status: int
    headers: Mapping[str, str]
    content: Content = field(default_factory=Content)
    gzip: bool = False
    delay_seconds: float = 0
    bytes_per_second: int | None = None
    stalls: bool = False
    closes: bool = False


@dataclass(frozen=True)
class Unsatisfiable:
    pass


def asked_range(request: Request, size: int, etag: str | None) -> tuple[int, int] | Unsatisfiable | None:
    """First and last byte; nothing where the whole file is asked for, or in a way that may be ignored (RFC 9110, 14.2)."""
    asked = re.fullmatch(r"bytes=(\d*)-(\d*)", request.headers.get("range", "").strip())
    condition = request.headers.get("if-range")
    if request.method != "GET" or asked is None or (condition is not None and condition.strip() != etag):
        return None
    first, last = asked.groups()
    if first:
        start, stop = int(first), min(int(last) if last else size - 1, size - 1)
        if last and int(last) < start:
            return None
    elif last:
        start, stop = max(size - int(last), 0), size - 1
    else:
        return None
    return (start, stop) if start <= stop else Unsatisfiable()


Handler = Callable[[Request], tuple[Plan, Seen | None]]


async def serve(handler: Handler, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One connection, request after request."""
    writer.transport.set_write_buffer_limits(high=0)
    with suppress(OSError, EOFError, asyncio.LimitOverrunError, asyncio.SendfileNotAvailableError):
        try:
            while True:
                request = await _read(reader)
                plan, seen = handler(request)
                try:
                    await asyncio.sleep(plan.delay_seconds)
                    await _send(reader, writer, request, plan, lambda count, seen=seen: _count(seen, count))
                    if plan.stalls:
                        await reader.read(1)
                finally:
                    if seen is not None:
                        seen.ended = True
                if plan.closes or plan.stalls or request.headers.get("connection", "").lower() == "close":
                    return
        except asyncio.CancelledError:
            writer.transport.abort()  # whoever reads nothing is not waited for
        finally:
            writer.close()


def _count(seen: Seen | None, count: int) -> None:
    if seen is not None:
        seen.sent += count


async def _read(reader: asyncio.StreamReader) -> Request:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    first, *lines = head.rstrip("\r\n").split("\r\n")
    if first.count(" ") != 2:
        raise EOFError(f"no HTTP: {first}")
    method, target, _ = first.split(" ")
    pairs = [line.partition(":") for line in lines]
    headers = {name.strip().lower(): value.strip() for name, _, value in pairs}
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Request(method, headers.get("host", ""), target, headers, body)


async def _send(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    request: Request,
    plan: Plan,
    count: Callable[[int], None],
) -> None:
    lines = [f"HTTP/1.1 {plan.status} {_phrase(plan.status)}"]
    lines += [f"{name}: {' '.join(value.splitlines())}" for name, value in plan.headers.items()]
    writer.write(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1", "replace"))
    await writer.drain()
    if request.method == "HEAD":
        return
    if plan.gzip:
        for block in _gzipped(plan.content):
            writer.write(b"%x\r\n%b\r\n" % (len(block), block))
            await writer.drain()
            count(len(block))
        writer.write(b"0\r\n\r\n")
        await writer.drain()
        return
    pace = _pace(plan.bytes_per_second, reader)
    step = (
        BLOCK_BYTES
        if plan.bytes_per_second is None
        else max(1, min(BLOCK_BYTES, plan.bytes_per_second // STEPS_A_SECOND))
    )
    for part in plan.content.parts:
        if isinstance(part.source, bytes):
            for block in Content((part,)).blocks(step):
                writer.write(block)
                await writer.drain()
                count(len(block))
                await pace(len(block))
        else:
            sendfile_step = SENDFILE_BYTES if plan.bytes_per_second is None else step
            await _send_file(writer, part, sendfile_step, count, pace)


async def _send_file(
    writer: asyncio.StreamWriter,
    part: Part,
    step: int,
    count: Callable[[int], None],
    pace: Callable[[int], Awaitable[None]],
) -> None:
    assert not isinstance(part.source, bytes)
    loop = asyncio.get_running_loop()
    with part.source.open("rb", buffering=0) as file:
        for at in range(part.start, part.stop, step):
            try:
                sent = await loop.sendfile(writer.transport, file, at, min(step, part.stop - at), fallback=False)
            except (OSError, asyncio.SendfileNotAvailableError):  # the other: the client is gone before the first byte
                count(max(file.tell() - at, 0))
                raise
            count(sent)
            await pace(sent)


def _pace(bytes_per_second: int | None, reader: asyncio.StreamReader) -> Callable[[int], Awaitable[None]]:
    """To a client that is gone nothing more is sent, nor counted."""
    begun, due = time.monotonic(), 0.0

    async def pace(sent: int) -> None:
        nonlocal due
        if bytes_per_second is not None:
            due += sent / bytes_per_second
            await asyncio.sleep(begun + due - time.monotonic())
            if reader.at_eof():
                raise EOFError("the client is gone")

    return pace


def _gzipped(content: Content) -> Iterator[bytes]:
    compressor = zlib.compressobj(wbits=zlib.MAX_WBITS | 16)
    for block in content.blocks():
        if compressed := compressor.compress(block):
            yield compressed
    yield compressor.flush()


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Unknown"

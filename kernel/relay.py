"""One end of relayed streams on the bus, alike in gateway and agent: waits for grants, notices an end that is gone.

Core NATS, nothing is stored. Beats tell that the other end is there while nothing else is said.
"""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final

from kernel.errors import Unavailable
from kernel.flow import PART, Flow, StreamBroken
from schemas.relay import BreakCode, Frame, RelayBroken, Said, encode, encode_total

BEAT_SECONDS: Final = 2.0
SILENCE_SECONDS: Final = 10.0
"""Without a word, and the other end is given up."""


class Channel:
    """One end of one stream. `publish` sends a frame to the other end. Everything raises StreamBroken once it is broken."""

    def __init__(self, stream: bytes, publish: Callable[[bytes], Awaitable[None]]) -> None:
        self.stream = stream
        self._publish = publish
        self._flow = Flow()
        self._saying = asyncio.Lock()
        self._parts: deque[bytes] = deque()
        self._body_is_over = False
        self._changed = asyncio.Event()
        self._head: bytes | None = None
        self._broken: StreamBroken | None = None
        self._heard_at = self._said_at = time.monotonic()

    @property
    def is_broken(self) -> bool:
        return self._broken is not None

    @property
    def is_over(self) -> bool:
        """All of the other end's body has come."""
        return self._body_is_over

    @property
    def held_bytes(self) -> int:
        return self._flow.held

    # -- what is said -------------------------------------------------------------------------------------------------

    async def say(self, kind: Frame, content: bytes = b"") -> None:
        async with self._saying:
            self._check()
            size = len(content) if kind is Frame.DATA else 0
            self._said_at = time.monotonic()
            try:
                await self._publish(encode(Said(kind, self.stream, self._flow.says(size), content)))
            except Unavailable as error:
                self.breaks("silent", str(error))
                self._check()

    async def send(self, data: bytes) -> None:
        """A piece of the body, as soon as the other end has room for it."""
        view = memoryview(data)
        while view:
            while not self._flow.room:
                await self._until_changed()
            part = view[: min(PART, self._flow.room)]
            await self.say(Frame.DATA, bytes(part))
            view = view[len(part) :]

    async def leave(self, code: BreakCode, message: str = "") -> None:
        """Break it, and tell the other end."""
        if self._broken is None:
            self.breaks(code, message)
            await self.tell_broken(code, message)

    async def tell_broken(self, code: BreakCode, message: str = "") -> None:
        content = RelayBroken(code=code, message=message[:500]).model_dump_json().encode()
        try:
            await self._publish(encode(Said(Frame.BROKEN, self.stream, 0, content)))
        except Unavailable:
            return  # it will notice the silence

    # -- what is heard ------------------------------------------------------------------------------------------------

    def hear(self, said: Said) -> None:
        """Never waits: one reader that is slow holds up no other's frames."""
        if self._broken is not None:
            return
        self._heard_at = time.monotonic()
        try:
            if said.kind is Frame.BROKEN:
                told = RelayBroken.model_validate_json(said.content)
                raise StreamBroken(told.code, told.message)  # noqa: TRY301 - one place breaks it
            self._flow.hears(said)
        except StreamBroken as broken:
            self._break(broken)
            return
        except ValueError as error:
            self._break(StreamBroken("frames_lost", f"a frame can't be read: {error}"))
            return
        if said.kind is Frame.DATA:
            self._parts.append(said.content)
        elif said.kind is Frame.HEAD:
            self._head = said.content
        elif said.kind is Frame.END:
            self._body_is_over = True
        self._changed.set()

    async def head(self) -> bytes:
        while self._head is None:
            await self._until_changed()
        return self._head

    async def parts(self) -> AsyncIterator[bytes]:
        """The other end's body, as it was cut there. What arrived before it broke is read first."""
        while True:
            while self._parts:
                part = self._parts.popleft()
                yield part
                if (total := self._flow.takes(len(part))) is not None and self._broken is None:
                    await self.say(Frame.GRANT, encode_total(total))
            if self._body_is_over:
                return
            await self._until_changed()

    async def until_broken(self) -> None:
        while self._broken is None:
            self._changed.clear()
            await self._changed.wait()

    # -- the end ------------------------------------------------------------------------------------------------------

    def breaks(self, code: BreakCode, message: str = "") -> None:
        if self._broken is None:
            self._break(StreamBroken(code, message))

    async def beat(self, now: float) -> None:
        """Called again and again, as long as the stream lasts."""
        if now - self._heard_at > SILENCE_SECONDS:
            await self.leave("silent", f"nothing was heard for {SILENCE_SECONDS:g} s")
        elif now - self._said_at >= BEAT_SECONDS and not self._saying.locked():
            await self.say(Frame.BEAT)

    def _break(self, broken: StreamBroken) -> None:
        self._broken = broken
        self._changed.set()

    def _check(self) -> None:
        if self._broken is not None:
            raise StreamBroken(self._broken.code, str(self._broken))

    async def _until_changed(self) -> None:
        self._check()
        self._changed.clear()
        await self._changed.wait()


async def keep_beating(channels: Callable[[], list[Channel]]) -> None:
    """For ever. A loop that was held up itself has heard nobody: it listens first."""
    before = time.monotonic()
    while True:
        await asyncio.sleep(BEAT_SECONDS / 2)
        now = time.monotonic()
        if now - before < SILENCE_SECONDS / 2:
            for channel in channels():
                if not channel.is_broken:
                    try:
                        await channel.beat(now)
                    except StreamBroken:
                        continue  # whoever uses it is told by it
        before = time.monotonic()

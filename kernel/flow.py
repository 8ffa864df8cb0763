"""The law of a relayed stream, for both ends: frames are numbered, and a body's bytes are sent only when they were granted.

Pure. A lost or doubled frame breaks the stream; it is never skipped. What an end can be made to hold is a window, however slow
its reader is.
"""

from dataclasses import dataclass
from typing import Final

from schemas.relay import BreakCode, Frame, Said, decode_total

WINDOW: Final = 512 * 1024
"""Bytes of a body that may be on their way, or wait for their reader."""
PART: Final = 64 * 1024
"""Of a body in one frame, at most: small enough that no request waits for another's."""
GRANT_STEP: Final = WINDOW // 4
"""So much is read before the writer hears of it."""


class StreamBroken(Exception):
    """Nothing more comes of this request, in either direction."""

    def __init__(self, code: BreakCode, message: str = "") -> None:
        super().__init__(message or code)
        self.code: BreakCode = code


@dataclass(slots=True)
class Flow:
    """One end of a stream. Whoever does the I/O asks here what may be said, and tells what was heard."""

    _said: int = 0
    _heard: int = 0
    _sent: int = 0
    _may_send: int = WINDOW
    _arrived: int = 0
    _taken: int = 0
    _granted: int = WINDOW
    _nothing_follows: bool = False

    @property
    def room(self) -> int:
        """Bytes that may be sent now."""
        return self._may_send - self._sent

    @property
    def held(self) -> int:
        """Bytes that have arrived and were not taken."""
        return self._arrived - self._taken

    def says(self, size: int = 0) -> int:
        """The number of the next frame, which holds this much of the body."""
        if size > self.room:
            raise AssertionError(f"{size} bytes are more than the {self.room} that were granted")
        self._sent += size
        self._said += 1
        return self._said - 1

    def hears(self, said: Said) -> None:
        """Raises StreamBroken."""
        if said.number != self._heard:
            raise StreamBroken("frames_lost", f"frame {self._heard} is missing, {said.number} came")
        self._heard += 1
        match said.kind:
            case Frame.DATA:
                self._arrived += len(said.content)
                if self._nothing_follows or self._arrived > self._granted:
                    raise StreamBroken("too_much", "more of a body came than was granted")
            case Frame.END:
                self._nothing_follows = True
            case Frame.GRANT:
                self._may_send = max(self._may_send, decode_total(said.content))
            case _:
                pass

    def takes(self, size: int) -> int | None:
        """The reader has taken this much; what the writer is to be granted, when that is worth a frame."""
        self._taken += size
        total = self._taken + WINDOW
        if self._nothing_follows or total - self._granted < GRANT_STEP:
            return None
        self._granted = total
        return total

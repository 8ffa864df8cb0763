"""A request to an engine, taken over the bus: what gateway and agent say to each other, frame by frame.

The gateway's frames are questions on `muster.ask.<worker>.relay`, the agent's are answers to the last of them. Bodies go in
parts, and either end sends no more of one than the other has granted: `kernel/flow.py`.
"""

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Annotated, Final, Literal

from pydantic import Field

from schemas.ids import InstanceId
from schemas.value import Value

RELAY: Final = "relay"
"""The verb."""

BreakCode = Literal[
    "attempt_not_here",  # the agent runs no such attempt, or it has no port
    "too_many_requests",  # the agent relays as many as it may
    "engine_refuses",  # nothing listens on the engine's port: it has not seen the request
    "engine_broke",  # the engine's connection ended in the middle
    "nobody_answers",  # no agent of this worker is on the bus
    "silent",  # nothing was heard of the other end for too long
    "frames_lost",  # a number is missing: what was said in it is lost
    "too_much",  # more than was granted, or after the end
    "unknown_stream",  # the agent has started anew, or has given it up
    "left",  # the other end wants no more of it
]


class Frame(IntEnum):
    OPEN = 1
    """Gateway: RelayRequest."""
    HEAD = 2
    """Agent: RelayHead."""
    DATA = 3
    """A part of a body."""
    END = 4
    """… and it was the last."""
    GRANT = 5
    """So many bytes of the body, from its beginning, may be sent."""
    BEAT = 6
    """Still here."""
    BROKEN = 7
    """RelayBroken: nothing follows. The one frame that may come out of its turn."""


@dataclass(frozen=True, slots=True)
class Said:
    """A frame as it travels: kind, stream, its number among those of this end, content."""

    kind: Frame
    stream: bytes
    """16 bytes that name the request."""
    number: int
    content: bytes = b""


_HEADER: Final = struct.Struct("!B16sQ")
_TOTAL: Final = struct.Struct("!Q")


def encode(said: Said) -> bytes:
    return _HEADER.pack(said.kind, said.stream, said.number) + said.content


def decode(message: bytes) -> Said:
    """Raises ValueError."""
    if len(message) < _HEADER.size:
        raise ValueError(f"a frame has {_HEADER.size} bytes at least, not {len(message)}")
    kind, stream, number = _HEADER.unpack_from(message)
    return Said(Frame(kind), stream, number, message[_HEADER.size :])


def encode_total(total: int) -> bytes:
    return _TOTAL.pack(total)


def decode_total(content: bytes) -> int:
    """Raises ValueError."""
    if len(content) != _TOTAL.size:
        raise ValueError("not a number of bytes")
    return int(_TOTAL.unpack(content)[0])


Headers = Annotated[dict[str, str], Field(max_length=100)]


class RelayRequest(Value):
    """What the agent is to ask the engine of this attempt. Which port and which key that means is the agent's to know."""

    instance_id: InstanceId
    attempt: int
    method: Literal["GET", "POST"]
    path: Annotated[str, Field(pattern=r"^/[!-~]*$", max_length=4096)]
    """With the query, encoded. It begins with a slash, so it can't name another host."""
    headers: Headers
    body_bytes: Annotated[int, Field(ge=0)]


class RelayHead(Value):
    status: Annotated[int, Field(ge=100, le=999)]
    headers: Headers


class RelayBroken(Value):
    code: BreakCode
    message: str = ""

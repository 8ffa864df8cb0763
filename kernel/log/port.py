"""The event log as the services see it.

One ordered, durable log. An append is all or none; it may be guarded by the last sequence of a subject, and is
refused (`Conflict`) when somebody wrote there first. An acknowledged append is on disk.
"""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Protocol

from schemas.envelope import Envelope

MOST_IN_AN_APPEND: Final = 1000
"""The server takes no more messages in an atomic batch."""


@dataclass(frozen=True, slots=True)
class Guard:
    """The append happens only if the last message on `subject` (wildcards allowed) has this sequence; 0: there is none."""

    subject: str
    sequence: int


@dataclass(frozen=True, slots=True)
class Draft:
    """An event that is not in the log yet."""

    subject: str
    envelope: Envelope
    guard: Guard | None = None


@dataclass(frozen=True, slots=True)
class Stored:
    """An event as it lies in the log; `body` is the envelope's exact bytes."""

    sequence: int
    subject: str
    body: bytes

    @property
    def envelope(self) -> Envelope:
        """Raises pydantic's ValidationError when the body is no envelope."""
        return Envelope.model_validate_json(self.body)


@dataclass(frozen=True, slots=True)
class LogState:
    generation: int
    """Rises when a log was restored: positions of an older generation are told where to resume."""
    created: datetime
    """When the stream was made: another moment means another log."""
    first_sequence: int
    last_sequence: int


@dataclass(frozen=True, slots=True)
class Position:
    """A place in the log as it leaves the process: `<generation>-<sequence>`."""

    generation: int
    sequence: int

    def __str__(self) -> str:
        return f"{self.generation}-{self.sequence}"

    @staticmethod
    def parse(text: str) -> "Position":
        """Raises ValueError."""
        generation, dash, sequence = text.partition("-")
        if not (dash and generation.isascii() and generation.isdigit() and sequence.isascii() and sequence.isdigit()):
            raise ValueError(f"not a position in the log: {text[:60]!r}; one looks like 1-4711")
        if len(text) > 40:
            raise ValueError("not a position in the log: too long")
        return Position(int(generation), int(sequence))


class Tail(Protocol):
    """A reader that follows the log. Batches are whatever is there, in order, without gap or repetition."""

    @property
    def has_more(self) -> bool:
        """The next batch has arrived already."""
        ...

    def __aiter__(self) -> AsyncIterator[Sequence[Stored]]: ...
    async def close(self) -> None: ...


class EventLog(Protocol):
    async def append(self, drafts: Sequence[Draft]) -> tuple[int, ...]:
        """Append all or none; returns the sequences. At most one message of an append may match another's guard.

        Raises Conflict (a guard failed, or an id of several was seen before: nothing was stored) or Unavailable (the log
        is away: nothing is known to be stored, and what was sent is resolved by reading before this is raised whenever
        the log can be read).
        """
        ...

    async def last_sequence_of(self, subject_filter: str) -> int:
        """The sequence of the last event whose subject matches; 0 when there is none."""
        ...

    async def last(self, subject_filter: str) -> Stored | None:
        """The last event whose subject matches."""
        ...

    async def read(self, subject_filter: str, *, after: int = 0, limit: int | None = None) -> list[Stored]:
        """All events that match, in order, as of the moment of asking."""
        ...

    def tail(self, subject_filters: Sequence[str], *, after: int) -> Tail:
        """Follow the events that match from sequence `after` + 1 on."""
        ...

    async def state(self) -> LogState: ...


def subject_matches(subject: str, subject_filter: str) -> bool:
    """NATS wildcards: `*` is one token, `>` is the rest (at least one)."""
    if subject_filter.endswith(".>") and "*" not in subject_filter:
        return len(subject) >= len(subject_filter) and subject.startswith(subject_filter[:-1])
    have, want = subject.split("."), subject_filter.split(".")
    for n, wanted in enumerate(want):
        if wanted == ">":
            return len(have) > n
        if n >= len(have) or wanted not in ("*", have[n]):
            return False
    return len(have) == len(want)

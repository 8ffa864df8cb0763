"""Connections of the simulated processes: to the log, and to the bus. What goes wrong on them is ordered by the world."""

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, Literal

import orjson

from kernel.bus import JetStreamError
from kernel.errors import Unavailable
from kernel.log.jetstream import EXPECTED_SEQUENCE, NO_MESSAGE_FOUND
from kernel.log.memory import MemoryLog, MemoryTail
from kernel.log.port import Draft, LogState, Stored
from schemas.envelope import Envelope
from schemas.facts import read
from schemas.facts.base import Fact
from schemas.ids import WorkerId

WRONG_SEQUENCE: Final = 10071


class Died(BaseException):
    """The process that was just appending is no more; nothing of it may catch this."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One event of the log, taken apart once for all that look at it."""

    sequence: int
    stored: Stored
    envelope: Envelope
    fact: Fact


class WatchedLog(MemoryLog):
    """The log itself; `on_entry` sees every event the moment it is stored."""

    def __init__(self, created: datetime, on_entry: Callable[[Entry], None]) -> None:
        super().__init__(created=created)
        self.entries: list[Entry] = []
        self._on_entry = on_entry

    async def append(self, drafts: Sequence[Draft]) -> tuple[int, ...]:
        before = len(self._events)
        sequences = await super().append(drafts)
        for stored, draft in zip(self._events[before:], drafts, strict=False):
            entry = Entry(stored.sequence, stored, draft.envelope, read(draft.envelope))
            self.entries.append(entry)
            self._on_entry(entry)
        return sequences


Fault = Literal["away", "unanswered", "dies"]
"""Nothing is stored; stored, but nobody hears so; stored, and whoever sent it is dead."""


@dataclass(slots=True)
class Line:
    """One client's connection to the log (`kernel.log.port.EventLog`)."""

    log: WatchedLog
    fault: Fault | None = None
    """Happens once, to the append after `spared` others."""
    spared: int = 0

    async def append(self, drafts: Sequence[Draft]) -> tuple[int, ...]:
        fault: Fault | None = None
        if self.fault is not None:
            if self.spared:
                self.spared -= 1
            else:
                fault, self.fault = self.fault, None
        if fault == "away":
            raise Unavailable("the log is away")
        sequences = await self.log.append(drafts)
        if fault == "unanswered":
            raise Unavailable("no answer, and the log can't be read")
        if fault == "dies":
            raise Died
        return sequences

    async def last_sequence_of(self, subject_filter: str) -> int:
        return await self.log.last_sequence_of(subject_filter)

    async def last(self, subject_filter: str) -> Stored | None:
        return await self.log.last(subject_filter)

    async def read(self, subject_filter: str, *, after: int = 0, limit: int | None = None) -> list[Stored]:
        return await self.log.read(subject_filter, after=after, limit=limit)

    def tail(self, subject_filters: Sequence[str], *, after: int) -> MemoryTail:
        return self.log.tail(subject_filters, after=after)

    async def state(self) -> LogState:
        return await self.log.state()


@dataclass(frozen=True, slots=True)
class Answer:
    """What `Bus.request` returns, as far as it is looked at."""

    data: bytes


@dataclass(slots=True)
class Assignments:
    """The stream ASSIGNED: the newest document of each worker, and who is told of it."""

    documents: dict[WorkerId, tuple[int, bytes]] = field(default_factory=dict[WorkerId, tuple[int, bytes]])
    sequence: int = 0
    on_published: Callable[[WorkerId, bytes], None] = lambda _worker_id, _document: None

    def newest(self, worker_id: WorkerId) -> bytes | None:
        found = self.documents.get(worker_id)
        return found[1] if found else None


@dataclass(slots=True)
class SchedulerBus:
    """As much of `kernel.bus.Bus` as a scheduler's `Board` uses."""

    assignments: Assignments
    fault: Fault | None = None

    async def request(
        self, subject: str, payload: bytes, *, headers: Mapping[str, str], timeout_seconds: float
    ) -> Answer:
        del timeout_seconds
        fault, self.fault = self.fault, None
        if fault == "away":
            raise Unavailable("no answer")
        stream, worker_id = self.assignments, WorkerId(subject.rpartition(".")[2])
        last = stream.documents.get(worker_id, (0, b""))[0]
        if int(headers[EXPECTED_SEQUENCE]) != last:
            return Answer(orjson.dumps({"error": {"err_code": WRONG_SEQUENCE, "description": "wrong last sequence"}}))
        stream.sequence += 1
        stream.documents[worker_id] = (stream.sequence, payload)
        stream.on_published(worker_id, payload)
        if fault == "unanswered":
            raise Unavailable("no answer")
        if fault == "dies":
            raise Died
        return Answer(orjson.dumps({"seq": stream.sequence}))

    async def js_api(self, _subject: str, wanted: dict[str, Any]) -> dict[str, Any]:
        """`STREAM.MSG.GET.ASSIGNED`."""
        worker_id = WorkerId(wanted["last_by_subj"].rpartition(".")[2])
        found = self.assignments.documents.get(worker_id)
        if found is None:
            raise JetStreamError(NO_MESSAGE_FOUND, 404, "no message found")
        return {"message": {"seq": found[0], "data": base64.b64encode(found[1]).decode()}}

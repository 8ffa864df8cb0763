"""From stored events to rows of the event log, hash chain included."""

import hashlib
import struct
from collections.abc import Sequence
from typing import Final

from pydantic import ValidationError

from kernel.log.port import Stored
from kernel.projections.changes import Batch, Happened, Projection
from schemas.envelope import Envelope
from schemas.facts import UnknownType, read
from schemas.ids import NOBODY
from schemas.subjects import FactSubject, parse_fact_subject

GENESIS: Final = bytes(32)
"""The hash before the first event."""


def chain(before: bytes, event: Stored) -> bytes:
    return hashlib.sha256(
        b"".join((before, struct.pack(">Q", event.sequence), event.subject.encode(), b"\0", event.body))
    ).digest()


class Reading:
    """What a batch of events comes to: rows of the event log, and the merged changes of a projection."""

    def __init__(self, events: Sequence[Stored], projection: Projection, before: bytes) -> None:
        self.batch = Batch(projection.tables)
        self.records: list[tuple[object, ...]] = []
        """In the order of `event_log`'s columns."""
        self.hash = before
        self.last_event_id: str | None = None
        for event in events:
            self.hash = chain(self.hash, event)
            self._take(event, projection)

    def _take(self, event: Stored, projection: Projection) -> None:
        problem: str | None = None
        envelope: Envelope | None = None
        try:
            envelope = Envelope.model_validate_json(event.body)
            happened = Happened(read(envelope), event.sequence, envelope.time)
        except UnknownType as unknown:
            problem = f"unknown type: {unknown}"
        except (ValidationError, ValueError) as error:
            problem = f"malformed: {str(error)[:500]}"
        else:
            for change in projection.changes(happened):
                self.batch.add(change)
        try:
            where = parse_fact_subject(event.subject)
        except ValueError as error:
            where = FactSubject("?", "?", NOBODY, "?", "?")
            problem = problem or str(error)
        self.last_event_id = envelope.id if envelope else None
        record: tuple[object, ...] = (
            event.sequence,
            self.last_event_id,
            where.type,
            where.owner,
            where.kind,
            where.id,
            where.worker,
            envelope.time if envelope else None,
            envelope.correlationid if envelope else None,
            envelope.causationid if envelope else None,
            envelope.commandid if envelope else None,
            envelope.actor if envelope else None,
            problem,
            event.subject,
            event.body,
            self.hash,
        )
        if rb"\u0000" in event.body:  # PostgreSQL has no NUL in text
            record = tuple(value.replace("\0", "\ufffd") if isinstance(value, str) else value for value in record)
        self.records.append(record)

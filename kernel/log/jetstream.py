"""The log on NATS JetStream (server ≥ 2.12).

Facts about the server that this relies on, each covered by the contract suite:
- the expected-sequence check runs before the duplicate check, so a retry after a lost acknowledgement is answered with
  10071 (wrong last sequence) although the first try was stored: such an append is resolved by reading;
- an atomic batch (ADR-50) is stored whole or not at all; an event id that was seen before refuses the whole batch (10201);
- control-header names are case-sensitive; an unknown or misspelt one is ignored without an error.
"""

import asyncio
import base64
import logging
import secrets
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final

import orjson

from kernel.bus import Bus, JetStreamError, NoAnswer
from kernel.errors import Conflict, Unavailable
from kernel.log.jetstream_tail import JetStreamTail
from kernel.log.port import MOST_IN_AN_APPEND, Draft, LogState, Stored
from kernel.log.streams import generation_of
from schemas.envelope import CONTENT_TYPE
from schemas.subjects import FACTS

log = logging.getLogger(__name__)

MSG_ID: Final = "Nats-Msg-Id"
EXPECTED_SEQUENCE: Final = "Nats-Expected-Last-Subject-Sequence"
EXPECTED_SUBJECT: Final = "Nats-Expected-Last-Subject-Sequence-Subject"
BATCH_ID: Final = "Nats-Batch-Id"
BATCH_SEQUENCE: Final = "Nats-Batch-Sequence"
BATCH_COMMIT: Final = "Nats-Batch-Commit"

WRONG_LAST_SEQUENCE: Final = frozenset({10071, 10164})
DUPLICATE_IN_BATCH: Final = 10201
NO_MESSAGE_FOUND: Final = 10037

ACKNOWLEDGEMENT_SECONDS: Final = 2.0
RESOLVE_SECONDS: Final = 10.0


class JetStreamLog:
    def __init__(self, bus: Bus, *, acknowledgement_seconds: float = ACKNOWLEDGEMENT_SECONDS) -> None:
        self._bus = bus
        self._acknowledgement_seconds = acknowledgement_seconds
        self._acknowledged = 0

    async def append(self, drafts: Sequence[Draft]) -> tuple[int, ...]:
        if not drafts:
            return ()
        if len(drafts) > MOST_IN_AN_APPEND:
            raise ValueError(f"an append has at most {MOST_IN_AN_APPEND} events, not {len(drafts)}")
        before = self._acknowledged
        unsure = False
        deadline = asyncio.get_running_loop().time() + RESOLVE_SECONDS
        while True:
            try:
                sequences = await self._send(drafts)
            except NoAnswer as lost:
                unsure = True
                log.warning("the acknowledgement of %s was lost; looking whether it was stored", drafts[0].subject)
                if (found := await self._resolve(drafts, before, deadline)) is not None:
                    return found
                if asyncio.get_running_loop().time() > deadline:
                    raise Unavailable(f"the log did not acknowledge {drafts[0].subject}") from lost
                continue
            except Conflict:
                if unsure and (found := await self._resolve(drafts, before, deadline)) is not None:
                    return found
                raise
            self._acknowledged = max(self._acknowledged, sequences[-1])
            return sequences

    async def last_sequence_of(self, subject_filter: str) -> int:
        event = await self.last(subject_filter)
        return event.sequence if event else 0

    async def last(self, subject_filter: str) -> Stored | None:
        return await self._get({"last_by_subj": subject_filter})

    async def read(self, subject_filter: str, *, after: int = 0, limit: int | None = None) -> list[Stored]:
        """One request an event: for an aggregate of some ten events. Long reads go through a tail."""
        found: list[Stored] = []
        while limit is None or len(found) < limit:
            event = await self._next(subject_filter, after)
            if event is None:
                break
            found.append(event)
            after = event.sequence
        return found

    def tail(self, subject_filters: Sequence[str], *, after: int) -> JetStreamTail:
        return JetStreamTail(self._bus, FACTS, tuple(subject_filters), after=after)

    async def state(self) -> LogState:
        info = await self._api(f"STREAM.INFO.{FACTS}")
        return LogState(
            generation=generation_of(info["config"]),
            created=datetime.fromisoformat(info["created"]),
            first_sequence=info["state"]["first_seq"],
            last_sequence=info["state"]["last_seq"],
        )

    async def _send(self, drafts: Sequence[Draft]) -> tuple[int, ...]:
        """Send once. Raises NoAnswer when it may have been stored, Conflict or Unavailable when it was not."""
        batch_id = secrets.token_hex(16)  # of this try: the server refuses what repeats a part of an open batch
        for number, draft in enumerate(drafts[:-1], start=1):
            headers = _headers(draft) | {BATCH_ID: batch_id, BATCH_SEQUENCE: str(number)}
            await self._bus.publish(draft.subject, draft.envelope.to_json(), headers)
        last = drafts[-1]
        headers = _headers(last)
        if len(drafts) > 1:
            headers |= {BATCH_ID: batch_id, BATCH_SEQUENCE: str(len(drafts)), BATCH_COMMIT: "1"}
        message = await self._bus.request(
            last.subject, last.envelope.to_json(), headers=headers, timeout_seconds=self._acknowledgement_seconds
        )
        answer: dict[str, Any] = orjson.loads(message.data)
        if error := answer.get("error"):
            code = error.get("err_code", 0)
            if code in WRONG_LAST_SEQUENCE or code == DUPLICATE_IN_BATCH:
                raise Conflict(error.get("description", "wrong last sequence"))
            raise Unavailable(f"the log refused {last.subject}: {error.get('description')} ({code})")
        final: int = answer["seq"]
        if len(drafts) > 1 and answer.get("count") != len(drafts):
            raise Unavailable("the server stored an atomic batch as single messages: it is too old")
        return tuple(range(final - len(drafts) + 1, final + 1))

    async def _resolve(self, drafts: Sequence[Draft], before: int, deadline: float) -> tuple[int, ...] | None:
        """Was that mine? The sequences when the drafts are in the log, None when the log says they are not."""
        first = drafts[0]
        while True:
            try:
                for event in await self.read(first.subject, after=before):
                    if orjson.loads(event.body).get("id") == first.envelope.id:
                        return tuple(range(event.sequence, event.sequence + len(drafts)))
            except (Unavailable, JetStreamError) as error:
                if asyncio.get_running_loop().time() > deadline:
                    raise Unavailable(f"it is not known whether {first.subject} was stored: {error}") from error
                await asyncio.sleep(0.1)
                continue
            return None

    async def _next(self, subject_filter: str, after: int) -> Stored | None:
        return await self._get({"seq": after + 1, "next_by_subj": subject_filter})

    async def _get(self, which: dict[str, Any]) -> Stored | None:
        """From the stream's leader, so that what was acknowledged is seen."""
        try:
            answer = await self._api(f"STREAM.MSG.GET.{FACTS}", which)
        except JetStreamError as error:
            if error.err_code == NO_MESSAGE_FOUND:
                return None
            raise
        message = answer["message"]
        return Stored(message["seq"], message["subject"], base64.b64decode(message.get("data", "")))

    async def _api(self, subject: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        return await self._bus.js_api(subject, body)


def _headers(draft: Draft) -> dict[str, str]:
    headers = {MSG_ID: draft.envelope.id, "content-type": CONTENT_TYPE}
    if draft.envelope.traceparent:
        headers["traceparent"] = draft.envelope.traceparent
    if draft.guard is not None:
        headers[EXPECTED_SEQUENCE] = str(draft.guard.sequence)
        headers[EXPECTED_SUBJECT] = draft.guard.subject
    return headers

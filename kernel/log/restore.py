"""Bring a log that lost its tail (or everything) back from its second copy in Postgres, at the same sequences.

All writers are stopped meanwhile. Afterwards the log's generation is higher, so that whoever watched the old one is
told where to resume.
"""

import logging
from dataclasses import dataclass
from typing import Final

import asyncpg
import orjson

from kernel.bus import Bus
from kernel.errors import Corrupt, Unavailable
from kernel.log.jetstream import MSG_ID, JetStreamLog
from kernel.log.port import Stored
from kernel.log.streams import raise_generation
from kernel.projections.projector import read_checkpoint, verify_chain
from kernel.projections.tables import SCHEMA
from schemas.envelope import CONTENT_TYPE
from schemas.subjects import ALL_FACTS

log = logging.getLogger(__name__)

EXPECTED_LAST: Final = "Nats-Expected-Last-Sequence"
PAGE: Final = 500


@dataclass(frozen=True, slots=True)
class Restored:
    log_had: int
    """The last sequence of the log before."""
    log_has: int
    events_put_back: int
    generation: int


async def restore(bus: Bus, connection: asyncpg.Connection) -> Restored:
    """Put the missing tail back. Raises Corrupt when the two copies contradict each other; then nothing was written.

    `bus` needs the operator's credentials; no service may run.
    """
    await verify_chain(connection)
    checkpoint = await read_checkpoint(connection)
    event_log = JetStreamLog(bus)
    state = await event_log.state()
    if checkpoint is None:
        raise Unavailable("nothing was ever projected: there is no second copy to restore from")
    if state.last_sequence > checkpoint.sequence:
        raise Corrupt(
            f"the log is longer ({state.last_sequence}) than its second copy ({checkpoint.sequence}): it lost no tail;"
            " start the api, it will project the rest"
        )
    await _check_common_part(event_log, connection, state.first_sequence, state.last_sequence)
    if state.last_sequence == checkpoint.sequence and state.created == checkpoint.stream_created:
        return Restored(state.last_sequence, state.last_sequence, 0, state.generation)
    put_back = 0
    while True:
        rows = await connection.fetch(
            f"SELECT seq, id, subject, body FROM {SCHEMA}.event_log WHERE seq > $1 ORDER BY seq LIMIT $2",  # noqa: S608
            state.last_sequence + put_back,
            PAGE,
        )
        if not rows:
            break
        for row in rows:
            await _put_back(bus, Stored(row["seq"], row["subject"], row["body"]), row["id"])
            put_back += 1
    generation = await raise_generation(bus)
    log.info("put %d events back; the log is now generation %d", put_back, generation)
    return Restored(state.last_sequence, state.last_sequence + put_back, put_back, generation)


async def _check_common_part(event_log: JetStreamLog, connection: asyncpg.Connection, first: int, last: int) -> None:
    """The last event that both have must be the same: each includes all before it in the hash chain."""
    if last == 0 or last < first:
        return
    here = await event_log.read(ALL_FACTS, after=last - 1, limit=1)
    body = await connection.fetchval(f"SELECT body FROM {SCHEMA}.event_log WHERE seq = $1", last)  # noqa: S608
    if not here or here[0].body != body:
        raise Corrupt(f"event {last} of the log is not event {last} of its second copy: they have different histories")


async def _put_back(bus: Bus, event: Stored, event_id: str | None) -> None:
    headers = {EXPECTED_LAST: str(event.sequence - 1), "content-type": CONTENT_TYPE}
    if event_id is not None:
        headers[MSG_ID] = event_id
    answer = orjson.loads((await bus.request(event.subject, event.body, headers=headers, timeout_seconds=5)).data)
    if "error" in answer or answer.get("seq") != event.sequence:
        raise Corrupt(f"event {event.sequence} could not be put back: {answer.get('error', answer)}")

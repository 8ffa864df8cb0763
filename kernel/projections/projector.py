"""The one writer of the read models.

A batch is one transaction: the checkpoint moves by compare-and-set, the events are copied to `event_log`, the rows
change. Whoever holds the advisory lock projects; the others wait for it and follow the announced marks. The lock only
avoids wasted work: a projector that lost it without noticing fails its compare-and-set and changes nothing.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

import asyncpg

from kernel.errors import Corrupt, Unavailable
from kernel.log.port import EventLog, LogState, Stored
from kernel.projections.changes import Projection
from kernel.projections.marks import HighWater, Mark
from kernel.projections.reading import EVENT_LOG_COLUMNS, GENESIS, Reading, chain
from kernel.projections.schemas import create_read_schema, drop_read_schemas_except, point_views_at
from kernel.projections.tables import SCHEMA
from schemas.envelope import Envelope
from schemas.subjects import ALL_FACTS

log = logging.getLogger(__name__)

NAME: Final = "facts"
LOCK: Final = 0x4D555354
"""The advisory lock of the projector: `MUST`."""
MOST_IN_A_TRANSACTION: Final = 1000
SMALL_BATCH: Final = 8
"""Up to so many events are inserted, more are copied: COPY has more round trips."""
REPLAY_PAGE: Final = 2000

UNREACHABLE: Final = (
    OSError,
    TimeoutError,
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,  # what a connection that died between two messages may say
)

Connect = Callable[[], Awaitable[asyncpg.Connection]]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    generation: int
    stream_created: datetime
    sequence: int
    last_event_id: str | None
    hash: bytes
    read_schema: str
    projection_version: int


class LogRegressed(Corrupt):
    """The log is not the one that was projected, or shorter: nothing is written until `muster log restore`."""


class LostTheCheckpoint(Exception):
    """Somebody else moved the checkpoint, or switched the read models: read it again."""


async def read_checkpoint(connection: asyncpg.Connection) -> Checkpoint | None:
    row = await connection.fetchrow(
        "SELECT generation, stream_created, seq, last_event_id, hash, read_schema, projection_version"
        f" FROM {SCHEMA}.checkpoint WHERE name = $1",
        NAME,
    )
    return None if row is None else Checkpoint(*row)


async def check_against_log(checkpoint: Checkpoint, event_log: EventLog, state: LogState) -> None:
    """Is this the log that was projected, and at least as long? Raises LogRegressed."""
    if state.created != checkpoint.stream_created and state.generation <= checkpoint.generation:
        raise LogRegressed(
            f"the log was made at {state.created}, but what is projected came from one made at {checkpoint.stream_created}:"
            " stop all writers and run `muster log restore`"
        )
    if state.last_sequence < checkpoint.sequence:
        raise LogRegressed(
            f"the log ends at {state.last_sequence}, but {checkpoint.sequence} was acknowledged and projected:"
            " stop all writers and run `muster log restore`"
        )
    if checkpoint.sequence and checkpoint.sequence >= state.first_sequence:
        here = await event_log.read(ALL_FACTS, after=checkpoint.sequence - 1, limit=1)
        if not here or here[0].sequence != checkpoint.sequence or _event_id(here[0]) != checkpoint.last_event_id:
            raise LogRegressed(
                f"event {checkpoint.sequence} of the log is not the one that was projected: stop all writers and run"
                " `muster log restore`"
            )


class Projector:
    def __init__(self, event_log: EventLog, projection: Projection, connect: Connect, high_water: HighWater) -> None:
        self._log = event_log
        self._projection = projection
        self._connect = connect
        self._high_water = high_water
        self.on_commit: Callable[[Mark], Awaitable[None]] | None = None
        self.is_projecting = False
        self.failure: str | None = None
        """Why projecting is at rest, for /readyz; None while it works or stands by."""

    async def run(self) -> None:
        """Project for ever. Raises Corrupt when the log went backwards; outages of Postgres are waited out."""
        while True:
            try:
                await self._run_once()
            except (*UNREACHABLE, Unavailable) as error:
                self.failure = f"projection is waiting: {str(error) or type(error).__name__}"
                log.warning("projection interrupted: %s", str(error) or type(error).__name__)
                await asyncio.sleep(0.2)
            except LostTheCheckpoint:
                log.warning("somebody else moved the checkpoint; reading it again")
            finally:
                self.is_projecting = False

    async def _run_once(self) -> None:
        connection = await self._connect()
        try:
            await self._announce_known(connection)
            await connection.execute("SELECT pg_advisory_lock($1)", LOCK, timeout=None)
            checkpoint = await self._start(connection)
            self.is_projecting, self.failure = True, None
            tail = self._log.tail([ALL_FACTS], after=checkpoint.sequence)
            try:
                async for events in tail:
                    for start in range(0, len(events), MOST_IN_A_TRANSACTION):
                        checkpoint = await self._project(
                            connection, checkpoint, events[start : start + MOST_IN_A_TRANSACTION]
                        )
            finally:
                await tail.close()
        finally:
            with contextlib.suppress(Exception):
                connection.terminate()

    async def _announce_known(self, connection: asyncpg.Connection) -> None:
        if (checkpoint := await read_checkpoint(connection)) is not None:
            self._high_water.rise(checkpoint.generation, checkpoint.sequence)

    async def _start(self, connection: asyncpg.Connection) -> Checkpoint:
        """Where to go on; makes the first read models, and new ones when this program's projection is another version."""
        state = await self._log.state()
        checkpoint = await read_checkpoint(connection)
        if checkpoint is None:
            checkpoint = await self._first_checkpoint(connection, state)
        await check_against_log(checkpoint, self._log, state)
        if state.generation != checkpoint.generation:
            checkpoint = await self._adopt_generation(connection, checkpoint, state)
        if checkpoint.projection_version != self._projection.version:
            log.info("projection is now version %d: rebuilding the read models", self._projection.version)
            checkpoint = await rebuild(connection, self._projection)
        self._high_water.rise(checkpoint.generation, checkpoint.sequence)
        return checkpoint

    async def _first_checkpoint(self, connection: asyncpg.Connection, state: LogState) -> Checkpoint:
        checkpoint = Checkpoint(state.generation, state.created, 0, None, GENESIS, "read_1", self._projection.version)
        async with connection.transaction():
            await create_read_schema(connection, checkpoint.read_schema, self._projection.tables)
            await point_views_at(connection, checkpoint.read_schema, self._projection.tables)
            await connection.execute(
                f"INSERT INTO {SCHEMA}.checkpoint VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
                NAME,
                checkpoint.generation,
                checkpoint.stream_created,
                checkpoint.sequence,
                checkpoint.last_event_id,
                checkpoint.hash,
                checkpoint.read_schema,
                checkpoint.projection_version,
            )
        return checkpoint

    async def _adopt_generation(
        self, connection: asyncpg.Connection, checkpoint: Checkpoint, state: LogState
    ) -> Checkpoint:
        await connection.execute(
            f"UPDATE {SCHEMA}.checkpoint SET generation = $2, stream_created = $3 WHERE name = $1",
            NAME,
            state.generation,
            state.created,
        )
        return replace(checkpoint, generation=state.generation, stream_created=state.created)

    async def _project(
        self, connection: asyncpg.Connection, checkpoint: Checkpoint, events: Sequence[Stored]
    ) -> Checkpoint:
        if events[0].sequence <= checkpoint.sequence:
            raise Corrupt(f"event {events[0].sequence} came again after {checkpoint.sequence}")
        reading = Reading(events, self._projection, checkpoint.hash)
        after = replace(
            checkpoint, sequence=events[-1].sequence, last_event_id=reading.last_event_id, hash=reading.hash
        )
        async with connection.transaction():
            await _move(connection, checkpoint, after)
            await _copy_events(connection, reading)
            for statement, rows in reading.batch.statements(checkpoint.read_schema):
                await connection.execute(statement, rows)
        self._high_water.rise(after.generation, after.sequence)
        if self.on_commit is not None:
            try:
                await self.on_commit(Mark(after.generation, after.sequence))
            except Unavailable as error:
                log.debug("could not announce the mark: %s", error)
        return after


async def _move(connection: asyncpg.Connection, before: Checkpoint, after: Checkpoint) -> None:
    done = await connection.execute(
        f"UPDATE {SCHEMA}.checkpoint SET seq = $1, last_event_id = $2, hash = $3"
        " WHERE name = $4 AND seq = $5 AND read_schema = $6 AND generation = $7",
        after.sequence,
        after.last_event_id,
        after.hash,
        NAME,
        before.sequence,
        before.read_schema,
        before.generation,
    )
    if done != "UPDATE 1":
        raise LostTheCheckpoint


async def _copy_events(connection: asyncpg.Connection, reading: Reading) -> None:
    if len(reading.records) <= SMALL_BATCH:
        places = ", ".join(f"${n}" for n in range(1, len(EVENT_LOG_COLUMNS) + 1))
        await connection.executemany(
            f"INSERT INTO {SCHEMA}.event_log ({', '.join(EVENT_LOG_COLUMNS)}) VALUES ({places})",
            reading.records,
        )
    else:
        await connection.copy_records_to_table(
            "event_log", schema_name=SCHEMA, columns=EVENT_LOG_COLUMNS, records=reading.records
        )


async def rebuild(connection: asyncpg.Connection, projection: Projection, *, page: int = REPLAY_PAGE) -> Checkpoint:
    """New read models from event 1, beside the live ones, and then in their place; readers see one or the other.

    The events come from `event_log`, which has every one up to the checkpoint. While this runs the projector goes on;
    only the last page and the switch hold its checkpoint.
    """
    live = await read_checkpoint(connection)
    if live is None:
        raise Unavailable("nothing has been projected yet")
    number = int(live.read_schema.removeprefix("read_")) + 1
    schema = f"read_{number}"
    await create_read_schema(connection, schema, projection.tables)
    done = 0
    while True:
        events = await _logged(connection, done, page)
        if len(events) < page:
            break
        await _replay(connection, events, projection, schema)
        done = events[-1].sequence
    async with connection.transaction():
        await connection.execute(f"SELECT 1 FROM {SCHEMA}.checkpoint WHERE name = $1 FOR UPDATE", NAME)
        while events := await _logged(connection, done, page):
            await _replay(connection, events, projection, schema)
            done = events[-1].sequence
        await point_views_at(connection, schema, projection.tables)
        await connection.execute(
            f"UPDATE {SCHEMA}.checkpoint SET read_schema = $2, projection_version = $3 WHERE name = $1",
            NAME,
            schema,
            projection.version,
        )
    await drop_read_schemas_except(connection, schema)
    rebuilt = await read_checkpoint(connection)
    if rebuilt is None:
        raise Corrupt("the checkpoint vanished during a rebuild")
    return rebuilt


async def _logged(connection: asyncpg.Connection, after: int, limit: int) -> list[Stored]:
    rows = await connection.fetch(
        f"SELECT seq, subject, body FROM {SCHEMA}.event_log WHERE seq > $1 ORDER BY seq LIMIT $2",
        after,
        limit,
    )
    return [Stored(row["seq"], row["subject"], row["body"]) for row in rows]


async def _replay(
    connection: asyncpg.Connection, events: Sequence[Stored], projection: Projection, schema: str
) -> None:
    reading = Reading(events, projection, GENESIS)
    async with connection.transaction():
        for statement, rows in reading.batch.statements(schema):
            await connection.execute(statement, rows)


async def verify_chain(connection: asyncpg.Connection) -> int:
    """Walk the hash chain of `event_log`; returns how many events it has. Raises Corrupt at the first that doesn't fit."""
    before, done, count = GENESIS, 0, 0
    while True:
        rows = await connection.fetch(
            f"SELECT seq, subject, body, hash FROM {SCHEMA}.event_log WHERE seq > $1 ORDER BY seq LIMIT 5000",
            done,
        )
        if not rows:
            return count
        for row in rows:
            before = chain(before, Stored(row["seq"], row["subject"], row["body"]))
            if before != row["hash"]:
                raise Corrupt(f"event {row['seq']} of event_log is not what was written")
        done, count = rows[-1]["seq"], count + len(rows)


def _event_id(event: Stored) -> str | None:
    """As `Reading` notes it: None when the event is no envelope."""
    try:
        return Envelope.model_validate_json(event.body).id
    except ValueError:
        return None

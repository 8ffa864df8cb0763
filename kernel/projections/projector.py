"""The one writer of the read models.

A batch is one statement: the checkpoint moves by compare-and-set, the events are copied to `event_log`, the rows
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
from kernel.projections.functions import CHECKPOINT_MOVED, create_functions
from kernel.projections.marks import HighWater, Mark
from kernel.projections.reading import GENESIS, Reading, chain
from kernel.projections.schemas import create_read_schema, drop_read_schemas_except, point_views_at
from kernel.projections.tables import EVENT_LOG_COLUMNS, SCHEMA
from schemas.envelope import Envelope
from schemas.subjects import ALL_FACTS

log = logging.getLogger(__name__)

NAME: Final = "facts"
LOCK: Final = 0x4D555354
"""The advisory lock of the projector: `MUST`."""
MOST_IN_A_TRANSACTION: Final = 1000
BACKLOG: Final = 200
"""So many events at once are a backlog."""
REPLAY_PAGE: Final = 2000
SENT_SECONDS: Final = 0.001
"""A statement is on its way by then: nothing is sent while this process computes."""
_PLACES: Final = ", ".join(f"${number}" for number in range(1, 8 + len(EVENT_LOG_COLUMNS)))

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


class BrokenChain(Corrupt):
    """Somebody has changed the copy of the log."""

    def __init__(self, sequence: int) -> None:
        super().__init__(f"event {sequence} of event_log is not what was written")


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
        """Told where this projector starts, and every mark that it reaches."""
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
            await self._follow(connection, checkpoint)
        finally:
            with contextlib.suppress(Exception):
                connection.terminate()

    async def _follow(self, connection: asyncpg.Connection, checkpoint: Checkpoint) -> None:
        """Batch after batch, each of all that has arrived; in a backlog the next one is made while PostgreSQL commits."""
        tail = self._log.tail([ALL_FACTS], after=checkpoint.sequence)
        committing: asyncio.Task[None] | None = None
        try:
            async for arrived in tail:
                for start in range(0, len(arrived), MOST_IN_A_TRANSACTION):
                    events = arrived[start : start + MOST_IN_A_TRANSACTION]
                    if events[0].sequence <= checkpoint.sequence:
                        raise Corrupt(f"event {events[0].sequence} came again after {checkpoint.sequence}")
                    reading = Reading(events, self._projection, checkpoint.hash)
                    after = replace(
                        checkpoint, sequence=events[-1].sequence, last_event_id=reading.last_event_id, hash=reading.hash
                    )
                    if committing is not None:
                        await committing
                    committing = asyncio.create_task(self._commit(connection, checkpoint, after, reading))
                    checkpoint = after
                    if len(events) >= BACKLOG and tail.has_more:
                        await asyncio.sleep(SENT_SECONDS)
                    else:
                        await committing
                        committing = None
        finally:
            if committing is not None:
                committing.cancel()
            await tail.close()

    async def _announce_known(self, connection: asyncpg.Connection) -> None:
        if (checkpoint := await read_checkpoint(connection)) is not None:
            self._high_water.rise(checkpoint.generation, checkpoint.sequence)

    async def _start(self, connection: asyncpg.Connection) -> Checkpoint:
        """Where to go on; makes the first read models, and new ones when this program's projection is another version."""
        checkpoint = await read_checkpoint(connection)
        # In this order: else what another one projects meanwhile looks like a loss of the log.
        state = await self._log.state()
        if checkpoint is None:
            checkpoint = await self._first_checkpoint(connection, state)
        await check_against_log(checkpoint, self._log, state)
        if state.generation != checkpoint.generation:
            checkpoint = await self._adopt_generation(connection, checkpoint, state)
        if checkpoint.projection_version != self._projection.version:
            log.info("projection is now version %d: rebuilding the read models", self._projection.version)
            checkpoint = await rebuild(connection, self._projection)
        else:
            try:
                await create_functions(connection, checkpoint.read_schema, self._projection.tables)
            except (
                asyncpg.InvalidSchemaNameError,
                asyncpg.InternalServerError,
            ) as error:  # somebody replaces it just now
                raise LostTheCheckpoint from error
        await self._reached(checkpoint)  # others may know the former generation only
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

    async def _commit(
        self, connection: asyncpg.Connection, before: Checkpoint, after: Checkpoint, reading: Reading
    ) -> None:
        """One statement, one transaction. Raises LostTheCheckpoint."""
        try:
            await connection.execute(
                f'SELECT "{before.read_schema}".project({_PLACES})',
                NAME,
                before.sequence,
                before.generation,
                after.sequence,
                after.last_event_id,
                after.hash,
                reading.batch.to_json(),
                *zip(*reading.records, strict=True),
            )
        except (asyncpg.UndefinedFunctionError, asyncpg.InvalidSchemaNameError) as error:
            raise LostTheCheckpoint from error
        except asyncpg.PostgresError as error:
            if getattr(error, "sqlstate", None) == CHECKPOINT_MOVED:  # asyncpg's classes don't declare it
                raise LostTheCheckpoint from error
            raise
        await self._reached(after)

    async def _reached(self, checkpoint: Checkpoint) -> None:
        self._high_water.rise(checkpoint.generation, checkpoint.sequence)
        if self.on_commit is not None:
            try:
                await self.on_commit(Mark(checkpoint.generation, checkpoint.sequence))
            except Unavailable as error:
                log.debug("could not announce the mark: %s", error)


async def rebuild(connection: asyncpg.Connection, projection: Projection, *, page: int = REPLAY_PAGE) -> Checkpoint:
    """New read models from event 1, beside the live ones, and then in their place; readers see one or the other.

    The events come from `event_log`, which has every one up to the checkpoint. While this runs the projector goes on;
    only the last page and the switch hold its checkpoint. Raises BrokenChain.
    """
    live = await read_checkpoint(connection)
    if live is None:
        raise Unavailable("nothing has been projected yet")
    number = int(live.read_schema.removeprefix("read_")) + 1
    schema = f"read_{number}"
    await create_read_schema(connection, schema, projection.tables)
    replay = _Replay(connection, projection, schema, page)
    await replay.run(to_the_end=False)
    async with connection.transaction():
        await connection.execute(f"SELECT 1 FROM {SCHEMA}.checkpoint WHERE name = $1 FOR UPDATE", NAME)
        await replay.run(to_the_end=True)
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


class _Replay:
    """`event_log` through a projection into a read schema, its hash chain walked on the way."""

    def __init__(self, connection: asyncpg.Connection, projection: Projection, schema: str, page: int) -> None:
        self._connection = connection
        self._projection = projection
        self._schema = schema
        self._page = page
        self._done = 0
        self._hash = GENESIS

    async def run(self, *, to_the_end: bool) -> None:
        """Full pages only, or all there is. While PostgreSQL applies one, the next is read. Raises Corrupt."""
        reading = self._take(await self._fetch(), to_the_end=to_the_end)
        while reading is not None:
            rows = await self._fetch()
            applying = asyncio.create_task(self._apply(reading))
            try:
                await asyncio.sleep(SENT_SECONDS)
                reading = self._take(rows, to_the_end=to_the_end)
            except BaseException:
                applying.cancel()
                await asyncio.gather(applying, return_exceptions=True)  # the connection is free again
                raise
            await applying

    async def _fetch(self) -> list[asyncpg.Record]:
        return await self._connection.fetch(
            f"SELECT seq, subject, body, hash FROM {SCHEMA}.event_log WHERE seq > $1 ORDER BY seq LIMIT $2",
            self._done,
            self._page,
        )

    def _take(self, rows: Sequence[asyncpg.Record], *, to_the_end: bool) -> Reading | None:
        if not rows or (len(rows) < self._page and not to_the_end):
            return None
        events = [Stored(row["seq"], row["subject"], row["body"]) for row in rows]
        reading = Reading(events, self._projection, self._hash)
        for row, record in zip(rows, reading.records, strict=True):
            if row["hash"] != record[-1]:
                raise BrokenChain(row["seq"])
        self._done, self._hash = events[-1].sequence, reading.hash
        return reading

    async def _apply(self, reading: Reading) -> None:
        await self._connection.execute(f'SELECT "{self._schema}".apply($1)', reading.batch.to_json())


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
                raise BrokenChain(row["seq"])
        done, count = rows[-1]["seq"], count + len(rows)


def _event_id(event: Stored) -> str | None:
    """As `Reading` notes it: None when the event is no envelope."""
    try:
        return Envelope.model_validate_json(event.body).id
    except ValueError:
        return None

"""The one writer of the read models, between the real log and the real database."""

import asyncio
import hashlib
import os
import random
import shutil
import signal
import struct
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import asyncpg
import orjson
import pytest
from sqlalchemy import Column, Integer, MetaData, Table, Text

from kernel.bus import Bus
from kernel.errors import Corrupt, Unavailable
from kernel.log import jetstream_tail
from kernel.log.jetstream import JetStreamLog
from kernel.log.port import Draft, LogState, Stored
from kernel.log.streams import provision, raise_generation
from kernel.projections import projector as projector_module
from kernel.projections.changes import Change, Drop, Happened, Patch, Put
from kernel.projections.functions import create_functions
from kernel.projections.marks import HighWater, Mark
from kernel.projections.projector import (
    Checkpoint,
    Connect,
    LogRegressed,
    LostTheCheckpoint,
    Projector,
    read_checkpoint,
    rebuild,
    verify_chain,
)
from kernel.projections.schemas import canonical_rows, drop_read_schemas_except
from kernel.projections.tables import EVENT_LOG_COLUMNS
from schemas.facts import ModelCreated, ModelDeleted, ModelScaled
from schemas.subjects import parse_fact_subject
from services.up.embedded_postgres import EmbeddedPostgres
from tests.support.log_events import AT, a_draft, as_stored, created, scaled
from tests.support.log_projection import (
    TABLES,
    Projecting,
    ToyProjection,
    a_history,
    make_tables,
    rows_in,
    simulate_log,
)
from tests.support.stack import Stack


async def check(sql: asyncpg.Connection, drafts: Sequence[Draft]) -> None:
    """Every event is in `event_log` once with its chain, and the rows are what the events come to."""
    stored = as_stored(drafts)
    checkpoint = await checkpoint_of(sql)
    records = await sql.fetch("SELECT * FROM muster.event_log ORDER BY seq")
    assert [tuple(record[name] for name in EVENT_LOG_COLUMNS) for record in records] == list(expected_records(stored))
    assert checkpoint.sequence == len(stored)
    assert checkpoint.hash == (records[-1]["hash"] if records else bytes(32))
    assert await verify_chain(sql) == len(stored)
    assert await rows_in(sql, checkpoint.read_schema, TABLES) == simulate_log(stored, ToyProjection())


async def checkpoint_of(sql: asyncpg.Connection) -> Checkpoint:
    checkpoint = await read_checkpoint(sql)
    assert checkpoint is not None
    return checkpoint


def expected_records(stored: Iterable[Stored]) -> Iterable[tuple[object, ...]]:
    """Rows of `event_log` for well-formed events, written down here a second time."""
    before = bytes(32)
    for event in stored:
        before = hashlib.sha256(
            before + struct.pack(">Q", event.sequence) + event.subject.encode() + b"\0" + event.body
        ).digest()
        body: dict[str, Any] = orjson.loads(event.body)
        where = parse_fact_subject(event.subject)
        worker = where.worker if where.worker != "-" else None
        yield (
            *(event.sequence, body["id"], body["type"], where.owner, where.kind, where.id, worker, AT),
            *(body["correlationid"], body.get("causationid"), body.get("commandid"), body["actor"], None),
            *(event.subject, event.body, before),
        )


# -- events become rows -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 7, 1000])
async def test_events_become_rows_and_a_copy_with_a_hash_chain_whatever_the_size_of_a_transaction(
    log: JetStreamLog, connect: Connect, sql: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr(projector_module, "MOST_IN_A_TRANSACTION", size)
    drafts = a_history(120)
    await log.append(drafts[:80])
    async with Projecting(log, connect) as projecting:
        await projecting.until(80)
        for draft in drafts[80:90]:
            await log.append([draft])
        await log.append(drafts[90:])
        await projecting.until(120)

    await check(sql, drafts)


async def test_readers_see_the_live_rows_through_views(
    log: JetStreamLog, connect: Connect, sql: asyncpg.Connection
) -> None:
    await log.append([a_draft(created("a", replicas=3)), a_draft(scaled("a", 5))])
    async with Projecting(log, connect) as projecting:
        await projecting.until(2)

        assert await sql.fetch("SELECT id, replicas, seq FROM muster.models") == [("a", 5, 2)]
        assert await sql.fetch("SELECT * FROM muster.reasons") == []


async def test_an_empty_log_gives_empty_tables_and_no_mark_to_wait_for(
    log: JetStreamLog, connect: Connect, sql: asyncpg.Connection
) -> None:
    async with Projecting(log, connect) as projecting:
        async with asyncio.timeout(30):
            while projecting.high_water.mark != Mark(1, 0):  # noqa: ASYNC110 - a mark of zero wakes nobody
                await asyncio.sleep(0.01)
        await check(sql, [])


async def test_a_changed_copy_breaks_the_chain(log: JetStreamLog, connect: Connect, sql: asyncpg.Connection) -> None:
    await log.append(a_history(20))
    async with Projecting(log, connect) as projecting:
        await projecting.until(20)
    await sql.execute("UPDATE muster.event_log SET body = body || ' '::bytea WHERE seq = 13")

    with pytest.raises(Corrupt, match="event 13 of event_log is not what was written"):
        await verify_chain(sql)


async def test_a_changed_copy_is_not_rebuilt_from(log: JetStreamLog, connect: Connect, sql: asyncpg.Connection) -> None:
    await log.append(a_history(20))
    async with Projecting(log, connect) as projecting:
        await projecting.until(20)
    rows = await canonical_rows(sql, "read_1", TABLES)
    await sql.execute("UPDATE muster.event_log SET body = body || ' '::bytea WHERE seq = 13")

    for page in (5, 1000):
        with pytest.raises(Corrupt, match="event 13 of event_log is not what was written"):
            await rebuild(sql, ToyProjection(), page=page)

    assert (await checkpoint_of(sql)).read_schema == "read_1"
    assert await canonical_rows(sql, "read_1", TABLES) == rows


class Slow(asyncpg.Connection):
    """Commits take their time; the commits of these numbers fail."""

    fails: tuple[int, ...] = ()
    commits = 0

    async def execute(self, query: str, *args: object, timeout: float | None = None) -> str:  # noqa: ASYNC109 - asyncpg's own
        if ".project(" not in query:
            return await super().execute(query, *args, timeout=timeout)
        Slow.commits += 1
        number = Slow.commits
        await asyncio.sleep(0.01)
        if number in self.fails:
            raise asyncpg.ConnectionDoesNotExistError("connection was closed in the middle of operation")
        return await super().execute(query, *args, timeout=timeout)


@pytest.mark.parametrize("fails", [(), (1,), (3, 5), (8,)], ids=repr)
async def test_in_a_backlog_the_next_batch_is_made_meanwhile_and_none_is_lost_or_doubled(
    log: JetStreamLog,
    database: dict[str, Any],
    sql: asyncpg.Connection,
    monkeypatch: pytest.MonkeyPatch,
    fails: tuple[int, ...],
) -> None:
    monkeypatch.setattr(projector_module, "BACKLOG", 1)
    monkeypatch.setattr(jetstream_tail, "MOST_IN_A_BATCH", 10)
    monkeypatch.setattr(Slow, "commits", 0)
    made_during_a_commit: list[bool] = []
    committing = 0
    reading = projector_module.Reading

    class Watched(reading):
        def __init__(self, *args: Any) -> None:
            made_during_a_commit.append(committing > 0)
            super().__init__(*args)

    class Counting(Slow):
        async def execute(self, query: str, *args: object, timeout: float | None = None) -> str:  # noqa: ASYNC109 - asyncpg's own
            nonlocal committing
            committing += ".project(" in query
            try:
                return await super().execute(query, *args, timeout=timeout)
            finally:
                committing -= ".project(" in query

    async def connect() -> asyncpg.Connection:
        return await asyncpg.connect(**database, connection_class=Counting)

    monkeypatch.setattr(projector_module, "Reading", Watched)
    monkeypatch.setattr(Slow, "fails", fails)
    await log.append(drafts := a_history(80))
    async with Projecting(log, connect) as projecting:
        await projecting.until(80)

    assert any(made_during_a_commit), "nothing overlapped: this shows nothing"
    await check(sql, drafts)


async def test_the_start_and_each_commit_are_announced_and_an_announcement_that_fails_stops_nothing(
    log: JetStreamLog, connect: Connect, sql: asyncpg.Connection
) -> None:
    announced: asyncio.Queue[tuple[Mark, object]] = asyncio.Queue()

    async def announce(mark: Mark) -> None:
        announced.put_nowait((mark, await sql.fetchval("SELECT seq FROM muster.checkpoint")))
        raise Unavailable("NATS is away")

    drafts = a_history(3)
    async with Projecting(log, connect) as projecting:
        projecting.projector.on_commit = announce
        for number in range(len(drafts) + 1):
            async with asyncio.timeout(30):
                assert await announced.get() == (Mark(1, number), number)
            await log.append(drafts[number : number + 1])

    assert announced.empty()
    await check(sql, drafts)


# -- interruptions ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [1, 2])
async def test_restarts_at_any_point_lose_and_double_nothing(
    log: JetStreamLog, connect: Connect, sql: asyncpg.Connection, seed: int
) -> None:
    dice = random.Random(seed)
    drafts = a_history(160, seed=seed)
    appended = 0
    while appended < len(drafts):
        more = drafts[appended : appended + dice.randrange(5, 40)]
        async with Projecting(log, connect) as projecting:
            await log.append(more)
            await projecting.until(appended + dice.randrange(len(more) + 1))
        appended += len(more)
    async with Projecting(log, connect) as projecting:
        await projecting.until(len(drafts))

    await check(sql, drafts)


async def test_of_two_projectors_one_works_and_the_other_takes_over(
    log: JetStreamLog, connect: Connect, sql: asyncpg.Connection
) -> None:
    drafts = a_history(60)
    await log.append(drafts[:20])
    async with Projecting(log, connect) as working:
        await working.until(20)
        async with Projecting(log, connect) as standby:
            await log.append(drafts[20:40])
            await working.until(40)
            assert (working.projector.is_projecting, standby.projector.is_projecting) == (True, False)
            await working.__aexit__()
            await log.append(drafts[40:])
            await standby.until(60)
            assert (working.projector.is_projecting, standby.projector.is_projecting) == (False, True)

    await check(sql, drafts)


class NoLock(asyncpg.Connection):
    """Believes that it holds the projector's lock."""

    async def execute(self, query: str, *args: object, timeout: float | None = None) -> str:  # noqa: ASYNC109 - asyncpg's own
        if "pg_advisory_lock" in query:
            return "SELECT 1"
        return await super().execute(query, *args, timeout=timeout)


async def test_two_projectors_that_both_believe_to_hold_the_lock_change_nothing_twice(
    log: JetStreamLog, database: dict[str, Any], sql: asyncpg.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    async def without_lock() -> asyncpg.Connection:
        return await asyncpg.connect(**database, connection_class=NoLock)

    drafts = a_history(150)
    async with Projecting(log, without_lock) as one, Projecting(log, without_lock) as two:
        async with asyncio.timeout(30):
            while not (one.projector.is_projecting and two.projector.is_projecting):  # noqa: ASYNC110 - nobody is told
                await asyncio.sleep(0.01)
        for start in range(0, len(drafts), 5):
            await log.append(drafts[start : start + 5])
        await one.until(len(drafts))
        await two.until(len(drafts))

    assert "somebody else moved the checkpoint" in caplog.text  # else they never met
    await check(sql, drafts)


async def test_what_another_one_projects_while_a_projector_starts_is_not_taken_for_a_loss_of_the_log(
    bus: Bus, log: JetStreamLog, database: dict[str, Any], sql: asyncpg.Connection
) -> None:
    async def without_lock() -> asyncpg.Connection:
        return await asyncpg.connect(**database, connection_class=NoLock)

    class Overtaken(JetStreamLog):
        """Just after it said how long it is, more is appended and projected."""

        async def state(self) -> LogState:
            found = await super().state()
            if found.last_sequence == 30:
                await log.append(drafts[30:])
                await other.until(60)
            return found

    drafts = a_history(60)
    await log.append(drafts[:30])
    async with Projecting(log, without_lock) as other:
        await other.until(30)
        async with Projecting(Overtaken(bus), without_lock) as late:
            await late.until(60)

    await check(sql, drafts)


async def test_kills_of_postgres_lose_and_double_nothing(
    log: JetStreamLog, directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    drafts = a_history(300)
    async with EmbeddedPostgres(directory / "killed") as postgres:

        async def connect() -> asyncpg.Connection:
            return await asyncpg.connect(**postgres.dsn_parts)

        first = await connect()
        await make_tables(first)
        await first.close()

        async def append() -> None:
            for start in range(0, len(drafts), 3):
                await log.append(drafts[start : start + 3])
                await asyncio.sleep(0)

        async with Projecting(log, connect) as projecting:
            appending = asyncio.create_task(append())
            for projected in (60, 150):
                await projecting.until(projected)
                os.kill(postgres.pid, signal.SIGKILL)
                await postgres.exited
                await postgres.stop()
                await postgres.start()
            await appending
            await projecting.until(len(drafts), seconds=60)
            assert projecting.projector.failure is None

        assert "projection interrupted" in caplog.text
        sql = await connect()
        await check(sql, drafts)
        await sql.close()


class Breaking(asyncpg.Connection):
    """Breaks at its third query, as connections do whose server was killed."""

    breaks_with: BaseException
    _queries = 0

    async def execute(self, query: str, *args: object, timeout: float | None = None) -> str:  # noqa: ASYNC109 - asyncpg's own
        self._queries += 1
        if self._queries == 3:
            raise self.breaks_with
        return await super().execute(query, *args, timeout=timeout)


@pytest.mark.parametrize(
    "breaks_with",
    [
        asyncpg.ConnectionDoesNotExistError("connection was closed in the middle of operation"),
        asyncpg.InterfaceError("connection is closed"),
        asyncpg.InternalClientError("cannot switch to state 15; another operation (2) is in progress"),
        asyncpg.CannotConnectNowError("the database system is starting up"),
        ConnectionResetError(),
        TimeoutError(),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_a_connection_that_breaks_in_any_way_is_replaced(
    log: JetStreamLog, database: dict[str, Any], sql: asyncpg.Connection, breaks_with: BaseException
) -> None:
    classes: list[type[asyncpg.Connection]] = [
        asyncpg.Connection,
        type("Broken", (Breaking,), {"breaks_with": breaks_with}),
    ]

    async def connect() -> asyncpg.Connection:
        return await asyncpg.connect(**database, connection_class=classes.pop() if len(classes) > 1 else classes[0])

    await log.append(drafts := a_history(20))
    async with Projecting(log, connect) as projecting:
        await projecting.until(20)

    assert len(classes) == 1
    await check(sql, drafts)


async def test_what_waits_for_postgres_says_so(log: JetStreamLog) -> None:
    async def nobody() -> asyncpg.Connection:
        raise ConnectionRefusedError

    async with Projecting(log, nobody) as projecting:
        async with asyncio.timeout(30):
            while projecting.projector.failure is None:  # noqa: ASYNC110 - for /readyz, which asks
                await asyncio.sleep(0.01)

        assert projecting.projector.failure == "projection is waiting: ConnectionRefusedError"
        assert not projecting.projector.is_projecting


# -- a log that is not the one that was projected -----------------------------------------------------------------------

Now = Callable[[Stack, list[Draft]], Awaitable[object]]


async def nothing_more(_stack: Stack, _drafts: list[Draft]) -> None:
    """The log ends where its backup ended."""


async def as_many_others(stack: Stack, _drafts: list[Draft]) -> None:
    await JetStreamLog(await stack.bus("operator")).append(a_history(3, seed=7))


async def more_others(stack: Stack, _drafts: list[Draft]) -> None:
    await JetStreamLog(await stack.bus("operator")).append(a_history(9, seed=7))


async def another_log(stack: Stack, drafts: list[Draft]) -> None:
    bus = await stack.bus("operator")
    await bus.js_api("STREAM.DELETE.FACTS")
    await provision(bus)
    await JetStreamLog(bus).append(drafts)


REGRESSIONS: Final[dict[str, tuple[Now, str]]] = {
    "shorter": (nothing_more, "the log ends at 3, but 6 was acknowledged and projected"),
    "other events": (as_many_others, "event 6 of the log is not the one that was projected"),
    "other and more events": (more_others, "event 6 of the log is not the one that was projected"),
    "another log with the same events": (another_log, "the log was made at"),
}


@pytest.mark.parametrize(("now", "sentence"), REGRESSIONS.values(), ids=REGRESSIONS.keys())
async def test_a_log_that_went_backwards_is_refused_and_nothing_is_written(
    own: Stack, connect: Connect, sql: asyncpg.Connection, now: Now, sentence: str
) -> None:
    drafts = a_history(6)
    store, backup = own.directory / "store", own.directory / "backup"
    await JetStreamLog(own.operator).append(drafts[:3])
    await own.nats.stop()
    shutil.copytree(store, backup)
    await own.nats.start()
    log = JetStreamLog(await own.bus("operator"))
    await log.append(drafts[3:])
    async with Projecting(log, connect) as projecting:
        await projecting.until(6)
    await own.nats.stop()
    shutil.rmtree(store)
    backup.rename(store)
    await own.nats.start()
    await now(own, drafts)

    async with Projecting(JetStreamLog(await own.bus("operator")), connect) as projecting:
        failure = await projecting.failure()

    assert isinstance(failure, LogRegressed)
    assert sentence in str(failure)
    await check(sql, drafts)


async def test_a_restored_log_of_a_new_generation_is_taken_up_where_the_old_one_ended(
    bus: Bus, log: JetStreamLog, connect: Connect, sql: asyncpg.Connection
) -> None:
    drafts = a_history(8)
    await log.append(drafts[:6])
    async with Projecting(log, connect) as projecting:
        await projecting.until(6)
    await bus.js_api("STREAM.DELETE.FACTS")
    await provision(bus)
    await log.append(drafts[:6])
    await raise_generation(bus)

    async with Projecting(log, connect) as projecting:
        await log.append(drafts[6:])
        await projecting.until(8)
        assert projecting.high_water.mark == Mark(2, 8)

    state, checkpoint = await log.state(), await checkpoint_of(sql)
    assert (checkpoint.generation, checkpoint.stream_created) == (2, state.created)
    await check(sql, drafts)


# -- rebuilding ---------------------------------------------------------------------------------------------------------


async def test_a_rebuild_beside_the_live_rows_gives_the_same_bytes_while_events_go_on_arriving(
    log: JetStreamLog, connect: Connect, sql: asyncpg.Connection
) -> None:
    drafts = a_history(600)
    await log.append(drafts[:200])
    reads: list[object] = []

    async def append() -> None:
        for start in range(200, len(drafts), 4):
            await log.append(drafts[start : start + 4])

    async def keep_reading() -> None:
        reader = await connect()
        try:
            while True:
                reads.append(await reader.fetchval("SELECT count(*) FROM muster.models"))
        finally:
            reader.terminate()

    async with Projecting(log, connect) as projecting:
        await projecting.until(200)
        tasks = [asyncio.create_task(append()), asyncio.create_task(keep_reading())]
        schemas = ["read_1"]
        while not tasks[0].done():
            schemas.append((await rebuild(sql, ToyProjection(), page=30)).read_schema)
        await projecting.until(len(drafts))
        tasks[1].cancel()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        live = await canonical_rows(sql, schemas[-1], TABLES)
        afresh = (await rebuild(sql, ToyProjection())).read_schema

    assert outcomes[0] is None
    assert isinstance(outcomes[1], asyncio.CancelledError)
    assert len(schemas) > 2, "no rebuild ended while events were arriving: this test shows nothing"
    assert schemas == [f"read_{n}" for n in range(1, len(schemas) + 1)]
    assert len(reads) > 2
    assert await canonical_rows(sql, afresh, TABLES) == live
    left = await sql.fetch("SELECT nspname FROM pg_namespace WHERE nspname ~ '^read_[0-9]+$'")
    assert left == [(afresh,)]
    await check(sql, drafts)


class RebuiltMeanwhile(JetStreamLog):
    """Somebody else puts new read models in the place of the old ones, while a projector starts on those."""

    rebuilds = 0

    async def state(self) -> LogState:
        if not self.rebuilds:
            self.rebuilds = 1
            connection = await self.connect()
            await rebuild(connection, ToyProjection())
            await connection.close()
        return await super().state()

    def __init__(self, bus: Bus, connect: Connect) -> None:
        super().__init__(bus)
        self.connect = connect


async def test_a_projector_whose_read_models_were_replaced_while_it_started_starts_again_on_the_new_ones(
    bus: Bus, log: JetStreamLog, connect: Connect, sql: asyncpg.Connection
) -> None:
    drafts = a_history(20)
    await log.append(drafts)
    async with Projecting(log, connect) as projecting:
        await projecting.until(20)
    starting = Projector(RebuiltMeanwhile(bus, connect), ToyProjection(), connect, HighWater())
    with pytest.raises(LostTheCheckpoint):
        await starting._start(sql)  # pyright: ignore[reportPrivateUsage] - `run` begins again at once

    assert (await starting._start(sql)).read_schema == "read_2"  # pyright: ignore[reportPrivateUsage] - see above


@asynccontextmanager
async def making_functions(connect: Connect, schema: str) -> AsyncGenerator[Callable[[], Awaitable[None]]]:
    """Another projector is in the middle of making its functions there; what is given waits for us, and then commits."""
    connection, watching = await connect(), await connect()
    transaction = connection.transaction()
    await transaction.start()
    await create_functions(connection, schema, TABLES)

    async def goes_on() -> None:
        waits = "SELECT count(*) FROM pg_locks WHERE NOT granted"
        async with asyncio.timeout(30):
            while not await watching.fetchval(waits):  # noqa: ASYNC110 - nobody tells when somebody waits for a lock
                await asyncio.sleep(0.01)
        await transaction.commit()

    try:
        yield goes_on
    finally:
        await connection.close()
        await watching.close()


async def test_two_that_make_their_functions_at_once_do_so_one_after_the_other(
    log: JetStreamLog, connect: Connect, sql: asyncpg.Connection
) -> None:
    await log.append(a_history(1))
    async with Projecting(log, connect) as projecting:
        await projecting.until(1)
    projector = Projector(log, ToyProjection(), connect, HighWater())
    async with making_functions(connect, "read_1") as goes_on:
        starting = asyncio.create_task(projector._start(sql))  # pyright: ignore[reportPrivateUsage] - one step of `run`
        await goes_on()
        with pytest.raises(LostTheCheckpoint):
            await starting

    assert (await projector._start(sql)).read_schema == "read_1"  # pyright: ignore[reportPrivateUsage] - see above


async def test_read_models_in_which_somebody_makes_functions_are_dropped_all_the_same(
    log: JetStreamLog, connect: Connect, sql: asyncpg.Connection
) -> None:
    await log.append(a_history(1))
    async with Projecting(log, connect) as projecting:
        await projecting.until(1)
    async with making_functions(connect, "read_1") as goes_on:
        dropping = asyncio.create_task(drop_read_schemas_except(sql, "read_2"))
        await goes_on()
        await dropping

    assert await sql.fetch("SELECT nspname FROM pg_namespace WHERE nspname ~ '^read_[0-9]+$'") == []


class SecondVersion(ToyProjection):
    """Other rows from the same facts, in another table."""

    version = 2
    tables: tuple[Table, ...] = (
        Table("models", MetaData(), Column("id", Text, primary_key=True), Column("twice", Integer, nullable=False)),
    )

    def changes(self, happened: Happened) -> Iterable[Change]:
        match happened.fact:
            case ModelCreated(model_id=model, spec=spec):
                return (Put("models", {"id": model, "twice": 2 * spec.replicas}),)
            case ModelScaled(model_id=model, replicas=replicas):
                return (Patch("models", (model,), {"twice": 2 * replicas}),)
            case ModelDeleted(model_id=model):
                return (Drop("models", (model,)),)
            case _:
                return ()


async def test_a_projection_of_another_version_is_rebuilt_when_it_starts(
    log: JetStreamLog, connect: Connect, sql: asyncpg.Connection
) -> None:
    drafts = a_history(90)
    await log.append(drafts[:60])
    async with Projecting(log, connect) as projecting:
        await projecting.until(60)
    await log.append(drafts[60:])

    async with Projecting(log, connect, SecondVersion()) as projecting:
        await projecting.until(90)

    checkpoint = await checkpoint_of(sql)
    assert (checkpoint.projection_version, checkpoint.read_schema) == (2, "read_2")
    rows = await rows_in(sql, "read_2", SecondVersion.tables)
    assert rows == simulate_log(as_stored(drafts), SecondVersion())
    assert {row["id"] for row in await sql.fetch("SELECT id, twice FROM muster.models")} == {
        k[0] for k in rows["models"]
    }
    assert await verify_chain(sql) == 90


async def test_the_same_version_is_not_rebuilt_when_it_starts(
    log: JetStreamLog, connect: Connect, sql: asyncpg.Connection
) -> None:
    await log.append(a_history(5))
    for _ in range(2):
        async with Projecting(log, connect) as projecting:
            await projecting.until(5)

    assert (await checkpoint_of(sql)).read_schema == "read_1"


# -- bad events ---------------------------------------------------------------------------------------------------------

GOOD: Final = a_draft(scaled("a", 1)).envelope
SUBJECT: Final = scaled("a", 1).subject


def bent(**fields: object) -> bytes:
    return orjson.dumps(GOOD.model_dump(mode="json") | {"id": "bent"} | fields)


BAD: Final[dict[str, tuple[str, bytes, str | None, str]]] = {
    "empty": (SUBJECT, b"", None, "malformed: "),
    "no JSON": (SUBJECT, b"not json", None, "malformed: "),
    "no UTF-8": (SUBJECT, b"\xff\xfe", None, "malformed: "),
    "no object": (SUBJECT, b"[]", None, "malformed: "),
    "an object with an id and nothing else": (SUBJECT, b'{"id": "bent"}', None, "malformed: "),
    "an id that is no text": (SUBJECT, bent(id=5), None, "malformed: "),
    "no time": (SUBJECT, bent(time="yesterday"), None, "malformed: "),
    "data that the type forbids": (SUBJECT, bent(data={"model_id": "a", "replicas": -1}), "bent", "malformed: "),
    "data that is no JSON": (SUBJECT, bent().replace(b'"replicas":1', b'"replicas":NaN'), "bent", "malformed: "),
    "an unknown type": (
        SUBJECT.replace("ModelScaled", "ModelPraised"),
        bent(type="ModelPraised", dataschema="muster:ModelPraised:v1"),
        "bent",
        "unknown type: ModelPraised v1 is unknown here",
    ),
    "a newer version of a known type": (
        SUBJECT,
        bent(dataschema="muster:ModelScaled:v99"),
        "bent",
        "unknown type: ModelScaled v99 is unknown here",
    ),
    "not the subject of a fact": ("muster.facts.odd", bent(type="X"), "bent", "unknown type: X v1 is unknown here"),
}


@pytest.mark.parametrize(("subject", "body", "event_id", "problem"), BAD.values(), ids=BAD.keys())
async def test_an_event_that_can_not_be_read_is_kept_with_its_problem_and_stops_nothing(
    bus: Bus,
    log: JetStreamLog,
    connect: Connect,
    sql: asyncpg.Connection,
    subject: str,
    body: bytes,
    event_id: str | None,
    problem: str,
) -> None:
    before, after = a_draft(created("a", replicas=1)), a_draft(scaled("a", 2))
    await log.append([before])
    async with Projecting(log, connect) as projecting:
        await bus.request(subject, body, timeout_seconds=5)
        await projecting.until(2)
    async with Projecting(log, connect) as projecting:  # it may also be the last one before a restart
        await log.append([after])
        await projecting.until(3)

    bad, *others = await sql.fetch(
        "SELECT seq, id, subject, body, problem FROM muster.event_log ORDER BY problem NULLS LAST, seq"
    )
    assert tuple(bad)[:4] == (2, event_id, subject, body)
    assert bad["problem"].startswith(problem)
    assert [tuple(row) for row in others] == [
        (1, before.envelope.id, before.subject, before.envelope.to_json(), None),
        (3, after.envelope.id, after.subject, after.envelope.to_json(), None),
    ]
    assert await verify_chain(sql) == 3
    assert await sql.fetch("SELECT id, replicas, seq FROM muster.models") == [("a", 2, 3)]


async def test_texts_that_postgres_can_not_hold_stop_nothing(
    bus: Bus, log: JetStreamLog, connect: Connect, sql: asyncpg.Connection
) -> None:
    """It has no NUL in text. The event itself is kept as it came."""
    draft = a_draft(created("a", description="a\0b"))
    odd = bent(type="Odd\0", correlationid="c\0", actor="\0")
    await log.append([draft])
    await bus.request(SUBJECT, odd, timeout_seconds=5)
    async with Projecting(log, connect) as projecting:
        await projecting.until(2)

    assert await sql.fetchval("SELECT spec ->> 'description' FROM muster.models") == "a\N{REPLACEMENT CHARACTER}b"
    found = await sql.fetch("SELECT correlation_id, actor, problem, body FROM muster.event_log ORDER BY seq")
    assert [tuple(row) for row in found] == [
        (draft.envelope.id, "test", None, draft.envelope.to_json()),
        (
            "c\N{REPLACEMENT CHARACTER}",
            "\N{REPLACEMENT CHARACTER}",
            "unknown type: Odd\N{REPLACEMENT CHARACTER} v1 is unknown here",
            odd,
        ),
    ]
    assert await verify_chain(sql) == 2

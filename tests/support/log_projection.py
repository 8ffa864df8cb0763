"""A small projection over real facts, and what it must come to, computed without SQL."""

import asyncio
import random
from collections.abc import Iterable, Sequence
from typing import Any, Final, Self

import asyncpg
import orjson
from sqlalchemy import BigInteger, Column, Integer, MetaData, Table, Text
from sqlalchemy.dialects import postgresql
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.schema import CreateIndex, CreateTable

from kernel.log.port import Draft, EventLog, Stored
from kernel.projections.changes import Change, Drop, Happened, Key, Patch, Projection, Put, PutChildren, Row
from kernel.projections.marks import HighWater
from kernel.projections.projector import Connect, Projector
from kernel.projections.schemas import canonical_rows
from kernel.projections.tables import SCHEMA, metadata
from schemas.facts import ModelCreated, ModelDeleted, ModelPending, ModelScaled, read
from schemas.reasons import NoWorkers, WeightsUnknown
from tests.support.log_events import a_draft, created, deleted, pending, scaled, worker_ready

_toy: Final = MetaData()
models: Final = Table(
    "models",
    _toy,
    Column("id", Text, primary_key=True),
    Column("replicas", Integer, nullable=False),
    Column("state", Text, nullable=True),
    Column("spec", JSONB, nullable=False),
    Column("seq", BigInteger, nullable=False),
)
reasons: Final = Table(
    "reasons",
    _toy,
    Column("model_id", Text, primary_key=True),
    Column("position", Integer, primary_key=True, autoincrement=False),
    Column("code", Text, nullable=False),
    Column("at", Text, nullable=False),
)
TABLES: Final = (models, reasons)

Rows = dict[str, dict[Key, Row]]


class ToyProjection:
    """Models, how many of each, and why one is pending."""

    version = 1
    tables: tuple[Table, ...] = TABLES

    def changes(self, happened: Happened) -> Iterable[Change]:
        match happened.fact:
            case ModelCreated(model_id=model, spec=spec):
                row = {"replicas": spec.replicas, "state": None, "spec": spec.model_dump(mode="json")}
                return (Put("models", {"id": model, "seq": happened.sequence} | row),)
            case ModelScaled(model_id=model, replicas=replicas):
                return (Patch("models", (model,), {"replicas": replicas, "seq": happened.sequence}),)
            case ModelPending(model_id=model, reasons=why):
                rows = tuple(
                    {"model_id": model, "position": n, "code": reason.code, "at": happened.at.isoformat()}
                    for n, reason in enumerate(why)
                )
                return (Patch("models", (model,), {"state": "pending"}), PutChildren("reasons", (model,), rows))
            case ModelDeleted(model_id=model):
                return (Drop("models", (model,)), PutChildren("reasons", (model,), ()))
            case _:
                return ()


def a_history(count: int, *, seed: int = 0, models: int = 6) -> list[Draft]:
    """Facts as they might have come, the same for the same seed but for their ids."""
    dice = random.Random(seed)
    drafts: list[Draft] = []
    for _ in range(count):
        model = f"m-{dice.randrange(models)}"
        fact = dice.choice(
            [
                created(model, replicas=dice.randrange(5)),
                scaled(model, dice.randrange(100)),
                scaled(model, dice.randrange(100)),
                pending(model, *[NoWorkers(), WeightsUnknown(path="/x"), NoWorkers()][: dice.randrange(4)]),
                deleted(model),
                worker_ready("w-1"),
            ]
        )
        drafts.append(a_draft(fact))
    return drafts


def keys_of(table: Table) -> tuple[str, ...]:
    return tuple(column.name for column in table.primary_key.columns)


def simulate(changes: Iterable[Change], tables: Sequence[Table]) -> Rows:
    """One change after the other, on dictionaries."""
    rows: Rows = {table.name: {} for table in tables}
    keys = {table.name: keys_of(table) for table in tables}
    for change in changes:
        of = rows[change.table]
        match change:
            case Put(table, row):
                of[tuple(row[key] for key in keys[table])] = row
            case Patch(key=key, columns=columns):
                if key in of:
                    of[key] = of[key] | columns
            case Drop(key=key):
                of.pop(key, None)
            case PutChildren(table, parent, children):
                for key in [key for key in of if key[: len(parent)] == parent]:
                    del of[key]
                of |= {tuple(row[key] for key in keys[table]): row for row in children}
    return rows


def simulate_log(events: Iterable[Stored], projection: Projection) -> Rows:
    """What well-formed events come to."""
    changes: list[Change] = []
    for event in events:
        envelope = event.envelope
        changes.extend(projection.changes(Happened(read(envelope), event.sequence, envelope.time)))
    return simulate(changes, projection.tables)


async def rows_in(connection: asyncpg.Connection, schema: str, tables: Sequence[Table]) -> Rows:
    """What Postgres has, in the shape of the simulation."""
    found: Rows = {}
    for table, rows in zip(tables, (await canonical_rows(connection, schema, tables)).values(), strict=True):
        parsed: list[dict[str, Any]] = [orjson.loads(row) for row in rows]
        found[table.name] = {tuple(row[key] for key in keys_of(table)): row for row in parsed}
    return found


async def make_tables(connection: asyncpg.Connection) -> None:
    """A database as before the first start of anything: the tables that outlive projections, empty."""
    schemas = await connection.fetch("SELECT nspname FROM pg_namespace WHERE nspname ~ '^(read_.*|muster)$'")
    for row in schemas:
        await connection.execute(f'DROP SCHEMA "{row["nspname"]}" CASCADE')
    await connection.execute(f"CREATE SCHEMA {SCHEMA}")
    for table in metadata.sorted_tables:
        for statement in (CreateTable(table), *(CreateIndex(index) for index in table.indexes)):
            await connection.execute(str(statement.compile(dialect=postgresql.dialect())))


class Projecting:
    """`async with`: a projector that runs in a task of its own."""

    def __init__(self, log: EventLog, connect: Connect, projection: Projection | None = None) -> None:
        self.high_water = HighWater()
        self.projector = Projector(log, projection or ToyProjection(), connect, self.high_water)
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self.projector.run())
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def until(self, sequence: int, *, seconds: float = 30.0) -> None:
        """Returns when so much is projected. Raises what ended the projector."""
        assert self._task is not None
        waiting = asyncio.create_task(self.high_water.wait_for(sequence, timeout_seconds=seconds))
        await asyncio.wait({self._task, waiting}, return_when=asyncio.FIRST_COMPLETED)
        if self._task.done():
            waiting.cancel()
            self._task.result()
        assert await waiting, f"{sequence} was not projected within {seconds} s: {self.projector.failure}"

    async def failure(self, *, seconds: float = 30.0) -> BaseException | None:
        """What ended the projector."""
        assert self._task is not None
        await asyncio.wait({self._task}, timeout=seconds)
        return self._task.exception()

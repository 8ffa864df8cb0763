"""Many changes as few statements leave the same rows as one after the other."""

from collections.abc import AsyncIterator, Sequence
from typing import Any, Final

import asyncpg
import orjson
import pytest_asyncio
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sqlalchemy import Column, Integer, MetaData, Table, Text
from sqlalchemy.dialects.postgresql import JSONB

from kernel.projections.changes import Batch, Change, Drop, Patch, Put, PutChildren
from kernel.projections.projector import Connect
from kernel.projections.schemas import canonical_rows, create_read_schema
from tests.support.log_projection import rows_in, simulate

SIZES: Final = (1, 7, 1000)

_metadata: Final = MetaData()
things: Final = Table(
    "things",
    _metadata,
    Column("id", Text, primary_key=True),
    Column("number", Integer, nullable=True),
    Column("text", Text, nullable=True),
    Column("document", JSONB, nullable=True),
)
parts: Final = Table(
    "parts",
    _metadata,
    Column("thing", Text, primary_key=True),
    Column("position", Integer, primary_key=True, autoincrement=False),
    Column("value", Integer, nullable=True),
)
marks: Final = Table("marks", _metadata, Column("id", Text, primary_key=True))
TABLES: Final = (things, parts, marks)

NAMES = st.sampled_from("abc")
POSITIONS = st.integers(0, 3)
TEXTS = st.one_of(st.none(), st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=5))
DOCUMENTS = st.one_of(
    st.dictionaries(st.sampled_from("xy"), st.integers(0, 9), max_size=2), st.lists(TEXTS, max_size=2)
)
COLUMNS: dict[str, st.SearchStrategy[Any]] = {
    "number": st.one_of(st.none(), st.integers(-5, 5)),
    "text": TEXTS,
    "document": DOCUMENTS,
}


@st.composite
def some_columns(draw: st.DrawFn) -> dict[str, Any]:
    return {name: draw(COLUMNS[name]) for name in draw(st.sets(st.sampled_from(sorted(COLUMNS)), min_size=1))}


def part(thing: str, position: int, value: int) -> dict[str, Any]:
    return {"thing": thing, "position": position, "value": value}


@st.composite
def children(draw: st.DrawFn) -> PutChildren:
    thing = draw(NAMES)
    rows = tuple(part(thing, position, draw(POSITIONS)) for position in draw(st.sets(POSITIONS)))
    return PutChildren("parts", (thing,), rows)


def put_thing(name: str, columns: dict[str, Any]) -> Change:
    return Put("things", {"id": name} | columns)


def patch_thing(name: str, columns: dict[str, Any]) -> Change:
    return Patch("things", (name,), columns)


def drop_thing(name: str) -> Change:
    return Drop("things", (name,))


def put_part(thing: str, position: int, value: int) -> Change:
    return Put("parts", part(thing, position, value))


def patch_part(thing: str, position: int, value: int) -> Change:
    return Patch("parts", (thing, position), {"value": value})


def drop_part(thing: str, position: int) -> Change:
    return Drop("parts", (thing, position))


def put_mark(name: str) -> Change:
    return Put("marks", {"id": name})


def drop_mark(name: str) -> Change:
    return Drop("marks", (name,))


CHANGES: st.SearchStrategy[Change] = st.one_of(
    st.builds(put_thing, NAMES, st.fixed_dictionaries(COLUMNS)),
    st.builds(patch_thing, NAMES, some_columns()),
    st.builds(drop_thing, NAMES),
    st.builds(put_part, NAMES, POSITIONS, POSITIONS),
    st.builds(patch_part, NAMES, POSITIONS, POSITIONS),
    st.builds(drop_part, NAMES, POSITIONS),
    children(),
    st.builds(put_mark, NAMES),
    st.builds(drop_mark, NAMES),
)


async def apply(connection: asyncpg.Connection, schema: str, changes: Sequence[Change], size: int) -> None:
    for start in range(0, len(changes), size):
        batch = Batch(TABLES)
        for change in changes[start : start + size]:
            batch.add(change)
        await connection.execute(f'SELECT "{schema}".apply($1)', batch.to_json())


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def schemas(connect: Connect) -> AsyncIterator[asyncpg.Connection]:
    """A schema for each size of batch."""
    connection = await connect()
    for size in SIZES:
        await create_read_schema(connection, f"read_by_{size}", TABLES)
    yield connection
    for size in SIZES:
        await connection.execute(f"DROP SCHEMA read_by_{size} CASCADE")
    await connection.close()


@settings(max_examples=150, deadline=None)
@given(changes=st.lists(CHANGES, max_size=30))
@example(changes=[Put("parts", part("a", 0, 1)), PutChildren("parts", ("a",), ())])
@example(changes=[Patch("parts", ("a", 0), {"value": 1}), PutChildren("parts", ("a",), (part("a", 0, 2),))])
@example(changes=[Drop("parts", ("a", 0)), PutChildren("parts", ("a",), (part("a", 0, 2),))])
@example(changes=[PutChildren("parts", ("a",), (part("a", 0, 2),)), Drop("parts", ("a", 0))])
@example(changes=[Drop("things", ("a",)), Patch("things", ("a",), {"number": 1})])
async def test_batches_of_any_size_leave_the_same_rows(schemas: asyncpg.Connection, changes: list[Change]) -> None:
    transaction = schemas.transaction()
    await transaction.start()
    try:
        for size in SIZES:
            await apply(schemas, f"read_by_{size}", changes, size)
        one, seven, all_at_once = [await canonical_rows(schemas, f"read_by_{size}", TABLES) for size in SIZES]
        assert one == seven == all_at_once
        assert await rows_in(schemas, "read_by_1", TABLES) == simulate(changes, TABLES)
    finally:
        await transaction.rollback()


def test_what_many_facts_do_to_a_row_is_one_step() -> None:
    batch = Batch(TABLES)
    batch.add(Put("things", {"id": "a", "number": 1, "text": "x", "document": []}))
    for number in range(100):
        batch.add(Patch("things", ("a",), {"number": number}))
        batch.add(PutChildren("parts", ("a",), (part("a", 0, number),)))

    assert orjson.loads(batch.to_json()) == {
        "things": {"puts": [{"id": "a", "number": 99, "text": "x", "document": []}]},
        "parts": {"parents1": [{"thing": "a"}], "children": [part("a", 0, 99)]},
    }


async def test_rows_hold_what_json_can_say_and_postgres_can_not(schemas: asyncpg.Connection) -> None:
    """PostgreSQL has no NUL in text. A row that could not be written would stop the projection for ever."""
    row = {"id": "a", "number": 1, "text": "\0nul \\u0000 \\\0", "document": {"k\0": ["\0\0", "\\"]}}
    transaction = schemas.transaction()
    await transaction.start()
    try:
        await apply(schemas, "read_by_1", [Put("things", row), Patch("things", ("a",), {"number": 2})], 1)
        found = await rows_in(schemas, "read_by_1", TABLES)
    finally:
        await transaction.rollback()

    expected = {
        "text": "\N{REPLACEMENT CHARACTER}nul \\u0000 \\\N{REPLACEMENT CHARACTER}",
        "document": {"k\N{REPLACEMENT CHARACTER}": ["\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}", "\\"]},
    }
    assert found["things"] == {("a",): {"id": "a", "number": 2} | expected}

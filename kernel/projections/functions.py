"""What PostgreSQL does with a batch in one round trip: two functions in each read schema, made from the tables.

`apply(changes)` changes the rows; `project(…)` also moves the checkpoint by compare-and-set and copies the events to
`event_log`, all of it in one transaction. They are made anew whenever a projector starts, so they are never older than
the program that calls them.
"""

from collections.abc import Iterable, Iterator
from typing import Final

import asyncpg
from sqlalchemy import Table
from sqlalchemy.dialects import postgresql

from kernel.projections.tables import EVENT_LOG_COLUMNS, SCHEMA, event_log

CHECKPOINT_MOVED: Final = "MU001"
"""SQLSTATE of `project` when the checkpoint is not where its caller left it."""

_ARRAYS: Final = [f"{column.type.compile(dialect=postgresql.dialect())}[]" for column in event_log.columns]
_BY_INDEX: Final = "SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off"
"""The plans are kept: one that was made while a table was nearly empty must still be good when it is large."""


async def create_functions(connection: asyncpg.Connection, schema: str, tables: Iterable[Table]) -> None:
    """`schema` and the names of tables and columns are ours, never input."""
    blocks = "\n".join(block for table in tables for block in _blocks(schema, table))
    await connection.execute(
        f'CREATE OR REPLACE FUNCTION "{schema}".apply(changes jsonb) RETURNS void LANGUAGE plpgsql {_BY_INDEX} AS $apply$\n'
        f"DECLARE here jsonb;\nBEGIN\n{blocks}\nEND $apply$"
    )
    arrays = ", ".join(f"${number}" for number in range(8, 8 + len(_ARRAYS)))
    await connection.execute(
        f'CREATE OR REPLACE FUNCTION "{schema}".project(text, bigint, integer, bigint, text, bytea, jsonb,'
        f" {', '.join(_ARRAYS)}) RETURNS void LANGUAGE plpgsql AS $project$\n"
        "BEGIN\n"
        f"UPDATE {SCHEMA}.checkpoint SET seq = $4, last_event_id = $5, hash = $6"
        f" WHERE name = $1 AND seq = $2 AND generation = $3 AND read_schema = '{schema}';\n"
        f"IF NOT FOUND THEN RAISE EXCEPTION 'the checkpoint was moved' USING ERRCODE = '{CHECKPOINT_MOVED}'; END IF;\n"
        f"INSERT INTO {SCHEMA}.event_log ({', '.join(EVENT_LOG_COLUMNS)}) SELECT * FROM unnest({arrays});\n"
        f'PERFORM "{schema}".apply($7);\n'
        "END $project$"
    )


def _blocks(schema: str, table: Table) -> Iterator[str]:
    """One for each step of `Batch.to_json`, in its order."""
    target = f'"{schema}"."{table.name}"'
    keys = [column.name for column in table.primary_key.columns]
    others = [column.name for column in table.columns if column.name not in keys]

    def step(name: str, statement: str) -> str:
        return f"IF here ? '{name}' THEN {statement.replace('…', f'''here -> '{name}' ''')}; END IF;"

    def equal(columns: Iterable[str], other: str) -> str:
        return " AND ".join(f't."{column}" = {other}."{column}"' for column in columns)

    def listed(columns: Iterable[str], prefix: str = "") -> str:
        return ", ".join(f'{prefix}"{column}"' for column in columns)

    rows = f"jsonb_populate_recordset(null::{target}, …)"
    yield f"here := changes -> '{table.name}';\nIF here IS NOT NULL THEN"
    for length in range(1, len(keys)):
        yield step(f"parents{length}", f"DELETE FROM {target} t USING {rows} x WHERE {equal(keys[:length], 'x')}")
    yield step("children", f"INSERT INTO {target} SELECT * FROM {rows}")
    yield step("drops", f"DELETE FROM {target} t USING {rows} x WHERE {equal(keys, 'x')}")
    on_conflict = f"UPDATE SET ({listed(others)}) = ROW({listed(others, 'excluded.')})" if others else "NOTHING"
    yield step("puts", f"INSERT INTO {target} SELECT * FROM {rows} ON CONFLICT ({listed(keys)}) DO {on_conflict}")
    if others:
        yield step(
            "patches",
            f"UPDATE {target} t SET ({listed(others)}) = (SELECT {listed(others, 'r.')} FROM jsonb_populate_record(t, patch) r)"
            f" FROM jsonb_array_elements(…) patch, LATERAL jsonb_populate_record(null::{target}, patch) x"
            f" WHERE {equal(keys, 'x')}",
        )
    yield "END IF;"

"""The read models' own schemas: `read_<n>`, made from the projection's tables, never migrated, replaced as a whole.

Readers use the views in schema `muster`, which point at the live one; a switch is one transaction.
"""

import asyncio
from collections.abc import Iterable, Sequence
from typing import Final

import asyncpg
from sqlalchemy import MetaData, Table
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import CreateIndex, CreateTable

from kernel.projections.functions import create_functions
from kernel.projections.tables import SCHEMA

DROP_ATTEMPTS: Final = 20


async def create_read_schema(connection: asyncpg.Connection, schema: str, tables: Sequence[Table]) -> None:
    await connection.execute(f'DROP SCHEMA IF EXISTS "{schema}" CASCADE; CREATE SCHEMA "{schema}"')
    into = MetaData(schema=schema)
    for table in tables:
        copy = table.to_metadata(into, schema=schema)
        statements = [
            CreateTable(copy),
            *(CreateIndex(index) for index in sorted(copy.indexes, key=lambda i: str(i.name))),
        ]
        for statement in statements:
            await connection.execute(str(statement.compile(dialect=postgresql.dialect())))
    await create_functions(connection, schema, tables)


async def point_views_at(connection: asyncpg.Connection, schema: str, tables: Iterable[Table]) -> None:
    """Inside the caller's transaction."""
    for table in tables:
        await connection.execute(
            f'DROP VIEW IF EXISTS {SCHEMA}."{table.name}";'
            f' CREATE VIEW {SCHEMA}."{table.name}" AS SELECT * FROM "{schema}"."{table.name}"'
        )


async def drop_read_schemas_except(connection: asyncpg.Connection, live: str) -> None:
    rows = await connection.fetch(
        "SELECT nspname FROM pg_namespace WHERE nspname ~ '^read_[0-9]+$' AND nspname <> $1", live
    )
    for row in rows:
        for attempt in range(1, DROP_ATTEMPTS + 1):
            try:
                await connection.execute(f'DROP SCHEMA IF EXISTS "{row["nspname"]}" CASCADE')
                break
            except asyncpg.InternalServerError:  # "tuple concurrently updated": a projector makes its functions there
                if attempt == DROP_ATTEMPTS:
                    raise
                await asyncio.sleep(0.05)


async def canonical_rows(connection: asyncpg.Connection, schema: str, tables: Iterable[Table]) -> dict[str, list[str]]:
    """Every row of every read model as text, in key order: equal states give equal bytes."""
    rows: dict[str, list[str]] = {}
    for table in tables:
        keys = ", ".join(f'"{column.name}"' for column in table.primary_key.columns)
        found = await connection.fetch(
            f'SELECT to_jsonb(t)::text AS row FROM "{schema}"."{table.name}" t ORDER BY {keys}'
        )
        rows[table.name] = [row["row"] for row in found]
    return rows

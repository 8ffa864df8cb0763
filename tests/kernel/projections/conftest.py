from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest
import pytest_asyncio
from sqlalchemy import make_url

from kernel.projections.projector import Connect
from tests.support.log_projection import make_tables
from tests.support.stack import Bench


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def database(bench: Bench) -> dict[str, Any]:
    """Arguments of asyncpg.connect for a database that the tests of this directory share."""
    return bench.postgres.dsn_parts | {"database": make_url(await bench.new_database()).database}


@pytest.fixture(scope="session")
def connect(database: dict[str, Any]) -> Connect:
    async def new_connection() -> asyncpg.Connection:
        return await asyncpg.connect(**database)

    return new_connection


@pytest_asyncio.fixture(loop_scope="session")
async def sql(connect: Connect) -> AsyncIterator[asyncpg.Connection]:
    """A connection to that database, empty as before the first start."""
    connection = await connect()
    await make_tables(connection)
    yield connection
    await connection.close()

from collections.abc import AsyncIterator

import pytest_asyncio

from services.up.embedded_postgres import EmbeddedPostgres
from tests.support.stack import Stack


@pytest_asyncio.fixture(loop_scope="session")
async def postgres(stack: Stack) -> AsyncIterator[EmbeddedPostgres]:
    """A PostgreSQL of this test's own, to be stopped or killed."""
    async with EmbeddedPostgres(stack.directory / "pg") as server:
        stack.database_url = server.url
        yield server

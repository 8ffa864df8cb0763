import itertools
import os
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest
import pytest_asyncio

from services.up.embedded_postgres import BINARIES_VARIABLE, EmbeddedPostgres
from tests.support.stack import Bench, Stack

NewStack = Callable[..., AbstractAsyncContextManager[Stack]]


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def bench() -> AsyncIterator[Bench]:
    """One PostgreSQL for all tests; starting it is what takes long."""
    with tempfile.TemporaryDirectory(prefix="muster-") as name:
        directory = Path(name)
        async with EmbeddedPostgres(directory / "postgres") as postgres:
            yield Bench(directory, postgres)


@pytest_asyncio.fixture(loop_scope="session")
async def database_url(bench: Bench) -> str:
    return await bench.new_database()


_numbers = itertools.count()


@pytest_asyncio.fixture(loop_scope="session")
async def stack(bench: Bench, database_url: str) -> AsyncIterator[Stack]:
    """Two workers' keys, nothing started yet but the servers."""
    async with Stack(bench.directory / f"stack-{next(_numbers)}", database_url, workers=2) as made:
        yield made


@pytest.fixture(autouse=True)
def _no_foreign_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings of whoever runs the tests don't reach them, but for the PostgreSQL on which they are to run."""
    for name in [name for name in os.environ if name.startswith("MUSTER_") and name != BINARIES_VARIABLE]:
        monkeypatch.delenv(name)

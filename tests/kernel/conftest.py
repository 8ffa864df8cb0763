import asyncio
import itertools
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio

from kernel.bus import Bus, JetStreamError
from kernel.log.jetstream import JetStreamLog
from kernel.log.streams import STREAMS, provision
from tests.support.stack import Stack

NO_DATABASE = "postgresql+asyncpg://nobody@/nothing?host=/nowhere"

_numbers = itertools.count()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def directory() -> AsyncIterator[Path]:
    with tempfile.TemporaryDirectory(prefix="muster-kernel-") as name:
        yield Path(name)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def shared(directory: Path) -> AsyncIterator[Stack]:
    """One nats-server for all tests that leave it running as it is."""
    async with Stack(directory / "shared", NO_DATABASE, workers=2, simulator=True) as stack:
        yield stack


@pytest_asyncio.fixture(loop_scope="session")
async def own(directory: Path) -> AsyncIterator[Stack]:
    """A nats-server that the test may kill."""
    async with Stack(directory / f"own-{next(_numbers)}", NO_DATABASE, workers=1) as stack:
        yield stack


STORE_NOT_CREATED = 10049
"""JSStreamCreateErrF, in nats-server's list of errors."""


async def empty_streams(stack: Stack) -> None:
    there = (await stack.operator.js_api("STREAM.NAMES")).get("streams") or []
    for name in STREAMS.keys() & set(there):
        await stack.operator.js_api(f"STREAM.DELETE.{name}")
    for _ in range(100):
        try:
            return await provision(stack.operator)
        except JetStreamError as error:  # a busy server has not removed the files of the old ones yet
            if error.err_code != STORE_NOT_CREATED:
                raise
            await asyncio.sleep(0.1)
    return await provision(stack.operator)


@pytest_asyncio.fixture(loop_scope="session")
async def bus(shared: Stack) -> Bus:
    """The shared server with empty streams; this connection may do everything."""
    await empty_streams(shared)
    return shared.operator


@pytest_asyncio.fixture(loop_scope="session")
async def log(bus: Bus) -> JetStreamLog:
    """An empty log on the real server."""
    return JetStreamLog(bus)

"""PostgreSQL: connections, the version check, migrations of what outlives the read models."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import asyncpg
from sqlalchemy import Connection, make_url, text
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from kernel.errors import Unavailable
from kernel.projections.tables import SCHEMA
from kernel.settings import BadSettings

log = logging.getLogger(__name__)

OLDEST_SERVER: Final = 150000
NEWEST_MIGRATION: Final = "0001"
MIGRATIONS: Final = Path(__file__).parent.parent / "migrations"
UNREACHABLE: Final = (
    OSError,
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.CannotConnectNowError,
    TimeoutError,
)


def make_engine(url: str) -> AsyncEngine:
    """Raises BadSettings."""
    try:
        make_url(url)
    except ArgumentError as error:
        raise BadSettings(
            "MUSTER_DATABASE_URL is wrong: it looks like postgresql+asyncpg://user@host/database"
        ) from error
    return create_async_engine(
        url,
        pool_size=8,
        max_overflow=8,
        pool_timeout=5,
        pool_pre_ping=False,
        pool_reset_on_return="rollback",
        connect_args={"timeout": 3, "command_timeout": 30, "server_settings": {"application_name": "muster-api"}},
    )


def raw_connect(url: str) -> Callable[[], Awaitable[asyncpg.Connection]]:
    """Connections for the projector, which speaks asyncpg without a layer between."""
    parts = make_url(url)
    arguments: dict[str, Any] = {
        "host": parts.query.get("host") or parts.host,
        "port": parts.port or 5432,
        "user": parts.username,
        "password": parts.password,
        "database": parts.database,
        "timeout": 3,
        "server_settings": {"application_name": "muster-projector"},
    }

    async def connect() -> asyncpg.Connection:
        return await asyncpg.connect(**arguments)

    return connect


async def prepare(engine: AsyncEngine) -> None:
    """Check the server and bring the tables up to date. Raises Unavailable while it is away, BadSettings when too old."""
    try:
        async with engine.begin() as connection:
            number = (await connection.execute(text("SHOW server_version_num"))).scalar_one()
            if int(number) < OLDEST_SERVER:
                raise BadSettings(f"PostgreSQL {int(number) // 10000} is too old: Muster needs 15 or newer")
            if await _migrated_to(connection) != NEWEST_MIGRATION:
                await connection.run_sync(_upgrade)
    except (DBAPIError, *UNREACHABLE) as error:
        raise Unavailable(
            f"PostgreSQL is away: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
        ) from error


async def _migrated_to(connection: Any) -> str | None:
    exists = await connection.execute(text(f"SELECT to_regclass('{SCHEMA}.alembic_version') IS NOT NULL"))
    if not exists.scalar_one():
        return None
    return (await connection.execute(text(f"SELECT version_num FROM {SCHEMA}.alembic_version"))).scalar_one_or_none()


def _upgrade(connection: Connection) -> None:
    from alembic import command  # noqa: PLC0415 - a third of a second, only when there is something to do
    from alembic.config import Config  # noqa: PLC0415 - the same

    connection.execute(text("SELECT pg_advisory_xact_lock(hashtext('muster migrations'))"))
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


async def wait_until_prepared(engine: AsyncEngine) -> None:
    said = False
    while True:
        try:
            await prepare(engine)
        except Unavailable as error:
            if not said:
                log.warning("waiting for PostgreSQL: %s", error)
                said = True
            await asyncio.sleep(0.25)
        else:
            return

"""`muster migrate` on a bare nats-server and an empty database."""

import asyncio
import os
from asyncio.subprocess import PIPE

from kernel.log.streams import verify
from tests.services.cli.conftest import MUSTER, Done
from tests.support.stack import Bench, Stack

UP_TO_DATE = Done(0, "The streams FACTS, ASSIGNED, REPORTS and the database are up to date.\n", "")


async def migrate(**settings: str) -> Done:
    environment = {**os.environ, **{f"MUSTER_{name.upper()}": value for name, value in settings.items()}}
    process = await asyncio.create_subprocess_exec(MUSTER, "migrate", env=environment, stdout=PIPE, stderr=PIPE)
    said, trouble = await process.communicate()
    assert process.returncode is not None
    return Done(process.returncode, said.decode(), trouble.decode())


async def test_migrate_makes_streams_and_tables_and_a_second_time_changes_nothing(bench: Bench) -> None:
    stack = Stack(bench.directory / "migrate", await bench.new_database())
    await stack.nats.start()
    try:
        operator = {"nats_servers": stack.nats.url, "nats_nkey_seed": stack.seeds["operator"]}
        away = await migrate(**operator, database_url="postgresql+asyncpg://muster@127.0.0.1:1/muster")
        assert (away.code, away.said) == (1, "")
        assert away.trouble.startswith("muster: PostgreSQL is away: ")
        assert await migrate(**operator, database_url=stack.database_url) == UP_TO_DATE
        await verify(await stack.bus("api"))
        connection = await stack.sql()
        assert await connection.fetchval("SELECT version_num FROM muster.alembic_version") == "0001"
        await connection.close()
        assert await migrate(**operator, database_url=stack.database_url) == UP_TO_DATE
    finally:
        await stack.__aexit__(None, None, None)


async def test_a_setting_that_is_wrong_is_named() -> None:
    assert await migrate(nats_nkey_seed_file="/nowhere/operator.seed") == Done(
        2, "", "muster: MUSTER_NATS_NKEY_SEED_FILE=/nowhere/operator.seed can't be read: No such file or directory\n"
    )

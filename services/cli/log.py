"""`muster log`: check the log against its second copy, put a lost tail back, make the read models anew."""

import os
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from services.cli.failed import CORRUPT, USAGE, Failed
from services.cli.options import DataDirectory

if TYPE_CHECKING:
    import asyncpg

    from kernel.bus import Bus


class Action(StrEnum):
    VERIFY = "verify"
    RESTORE = "restore"
    REBUILD = "rebuild"


def log(
    action: Annotated[
        Action,
        typer.Argument(
            help="verify: are the log and its copy in PostgreSQL whole and the same? restore: put back what the log lost, from"
            " the copy; all services are stopped. rebuild: make the read models anew from event 1."
        ),
    ],
    data_dir: DataDirectory = None,
) -> None:
    """Verify or restore the event log, or rebuild what is read.

    Of the data directory (`muster down` first), or, where others run the servers, of MUSTER_NATS_SERVERS
    and MUSTER_DATABASE_URL with the operator's MUSTER_NATS_NKEY_SEED.
    """
    import asyncio  # noqa: PLC0415 - not for `muster --help`

    from kernel.bus import JetStreamError  # noqa: PLC0415 - not for `muster --help`
    from kernel.errors import Corrupt, Unavailable  # noqa: PLC0415 - not for `muster --help`
    from kernel.settings import BadSettings  # noqa: PLC0415 - not for `muster --help`
    from services.up.child import ServerFailed  # noqa: PLC0415 - not for `muster --help`

    try:
        there = _on_given_servers(action) if "MUSTER_NATS_SERVERS" in os.environ else _on_data_dir(action, data_dir)
        print(asyncio.run(there))
    except BadSettings as error:
        raise Failed(str(error), exit_code=USAGE) from error
    except ServerFailed as error:
        raise Failed(error.sentence, exit_code=USAGE) from error
    except Corrupt as error:
        raise Failed(str(error), exit_code=CORRUPT) from error
    except (Unavailable, JetStreamError) as error:
        raise Failed(str(error)) from error


async def _on_data_dir(action: Action, data_dir: str | None) -> str:
    from services.up.data_dir import DataDir  # noqa: PLC0415 - not for `muster --help`
    from services.up.everything import Everything  # noqa: PLC0415 - not for `muster --help`
    from services.up.settings import UpSettings  # noqa: PLC0415 - not for `muster --help`

    settings = UpSettings.from_environment(data_dir=data_dir)
    if not settings.data_dir.is_dir():
        raise Failed(f"there is no data directory {settings.data_dir}", exit_code=USAGE)
    directory = DataDir.open(settings.data_dir)
    try:
        everything = Everything(settings, directory)
        async with everything.servers_only() as bus:
            return await _do(action, bus, everything.postgres.url)
    finally:
        directory.close()


async def _on_given_servers(action: Action) -> str:
    from kernel.bus import Bus  # noqa: PLC0415 - not for `muster --help`
    from services.api.settings import ApiSettings  # noqa: PLC0415 - not for `muster --help`

    settings = ApiSettings.from_environment()
    bus = await Bus.connect("muster log", settings.bus())
    try:
        return await _do(action, bus, settings.database_url)
    finally:
        await bus.close()


async def _do(action: Action, bus: "Bus", database_url: str) -> str:
    from services.api.adapters.database import raw_connect  # noqa: PLC0415 - not for `muster --help`

    connection = await raw_connect(database_url)()
    try:
        match action:
            case Action.VERIFY:
                return await _verify(bus, connection)
            case Action.RESTORE:
                return await _restore(bus, connection)
            case Action.REBUILD:
                return await _rebuild(connection)
    finally:
        await connection.close()


async def _verify(bus: "Bus", connection: "asyncpg.Connection") -> str:
    from kernel.log.jetstream import JetStreamLog  # noqa: PLC0415 - not for `muster --help`
    from kernel.projections.projector import (  # noqa: PLC0415 - not for `muster --help`
        check_against_log,
        read_checkpoint,
        verify_chain,
    )

    events = await verify_chain(connection)
    checkpoint = await read_checkpoint(connection)
    if checkpoint is None:
        return "Nothing has been projected yet."
    event_log = JetStreamLog(bus)
    state = await event_log.state()
    await check_against_log(checkpoint, event_log, state)
    ahead = state.last_sequence - checkpoint.sequence
    more = f"; {ahead} more in the log are not projected yet" if ahead else ""
    return f"{events} events, whole and the same in the log and in PostgreSQL{more}."


async def _restore(bus: "Bus", connection: "asyncpg.Connection") -> str:
    from kernel.log.restore import restore  # noqa: PLC0415 - not for `muster --help`

    done = await restore(bus, connection)
    if not done.events_put_back:
        return f"The log has all of its {done.log_has} events; nothing was changed."
    return (
        f"{done.events_put_back} events were put back: the log had {done.log_had} and has {done.log_has}."
        f" It is generation {done.generation} now, and watchers of the former one are told where to resume."
    )


async def _rebuild(connection: "asyncpg.Connection") -> str:
    from kernel.projections.projector import rebuild  # noqa: PLC0415 - not for `muster --help`
    from services.api.projections.fleet import FleetProjection  # noqa: PLC0415 - not for `muster --help`

    rebuilt = await rebuild(connection, FleetProjection())
    return f"The read models were made anew from {rebuilt.sequence} events ({rebuilt.read_schema})."

"""`muster migrate`: make the streams and the tables, or bring them up to date, where others run NATS and PostgreSQL."""

from typing import TYPE_CHECKING, Annotated

import typer

from services.cli.failed import USAGE, Failed

if TYPE_CHECKING:
    from services.api.settings import ApiSettings


def migrate(
    wait: Annotated[float, typer.Option(help="Seconds to wait for servers that are still starting.", min=0)] = 0,
) -> None:
    """Make or update the log's streams and the tables.

    On the servers that MUSTER_NATS_SERVERS and MUSTER_DATABASE_URL name.
    MUSTER_NATS_NKEY_SEED (or MUSTER_NATS_NKEY_SEED_FILE) is the operator's: no service may change streams.
    """
    import asyncio  # noqa: PLC0415 - not for `muster --help`

    from kernel.bus import JetStreamError, ServerTooOld  # noqa: PLC0415 - not for `muster --help`
    from kernel.errors import Unavailable  # noqa: PLC0415 - not for `muster --help`
    from kernel.log.streams import STREAMS, Drift  # noqa: PLC0415 - not for `muster --help`
    from kernel.settings import BadSettings  # noqa: PLC0415 - not for `muster --help`
    from services.api.settings import ApiSettings  # noqa: PLC0415 - not for `muster --help`

    try:
        settings = ApiSettings.from_environment()
        asyncio.run(_until_done(settings, wait))
    except (BadSettings, ServerTooOld, Drift) as error:
        raise Failed(str(error), exit_code=USAGE) from error
    except JetStreamError as error:
        raise Failed(f"NATS refused: {error}; is MUSTER_NATS_NKEY_SEED the operator's?") from error
    except Unavailable as error:
        raise Failed(str(error)) from error
    print(f"The streams {', '.join(STREAMS)} and the database are up to date.")


async def _until_done(settings: "ApiSettings", seconds: float) -> None:
    """Raises Unavailable when the servers are not there in time."""
    import asyncio  # noqa: PLC0415 - was imported meanwhile

    from kernel.errors import Unavailable  # noqa: PLC0415 - the same

    loop = asyncio.get_running_loop()
    ends = loop.time() + seconds
    while True:
        try:
            return await _migrate(settings)
        except Unavailable:
            if loop.time() >= ends:
                raise
        await asyncio.sleep(0.5)


async def _migrate(settings: "ApiSettings") -> None:
    from kernel.bus import Bus  # noqa: PLC0415 - not for `muster --help`
    from kernel.log.streams import provision  # noqa: PLC0415 - not for `muster --help`
    from services.api.adapters.database import make_engine, prepare  # noqa: PLC0415 - not for `muster --help`

    bus = await Bus.connect("muster migrate", settings.bus())
    try:
        await provision(bus)
    finally:
        await bus.close()
    engine = make_engine(settings.database_url)
    try:
        await prepare(engine)
    finally:
        await engine.dispose()

"""`muster init`: keys and configuration of services that run apart, each in a container of its own, say."""

from pathlib import Path
from typing import Annotated

import typer

from services.cli.failed import USAGE, Failed

DATABASE = "postgresql+asyncpg://muster:{password}@postgres:5432/muster"


def init(
    directory: Annotated[str, typer.Argument(help="Where they go; what is there stays as it is.")],
    worker: Annotated[
        list[str] | None, typer.Option(help="A further machine, which gets keys of its own; may be repeated.")
    ] = None,
    database: Annotated[str, typer.Option(help="Where the api finds PostgreSQL; {password} is put in.")] = DATABASE,
    nats_store: Annotated[str, typer.Option(help="Where nats-server keeps the log.")] = "/data",
    nats_listen: Annotated[str, typer.Option(help="Where it listens.")] = "0.0.0.0:4222",
    user: Annotated[int | None, typer.Option(help="The number of the user as whom the services run.")] = None,
) -> None:
    """Make the keys of all services and the NATS server's configuration.

    core/, nats/, postgres/ and worker/ are for the machine of the core, workers/NAME for each further machine: copy it there.
    After a new worker, tell nats-server to read its configuration again (SIGHUP).
    """
    from kernel.settings import BadSettings  # noqa: PLC0415 - not for `muster --help`
    from services.up.apart import Where, make_keys  # noqa: PLC0415 - the same

    where = Where(database=database, nats_store=Path(nats_store), nats_listen=nats_listen, user=user)
    try:
        names = make_keys(Path(directory), where, tuple(worker or ()))
    except BadSettings as error:
        raise Failed(str(error), exit_code=USAGE) from error
    except OSError as error:
        raise Failed(f"{error.filename or directory} can't be written: {error.strerror}") from error
    further = f", and of {', '.join(names)}" if names else ""
    print(f"The keys of the core and of its worker{further} are in {directory}.")

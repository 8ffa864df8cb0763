"""`muster simulate`: a fleet for people without one."""

import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from services.cli.failed import USAGE, Failed
from services.cli.options import DataDirectory

if TYPE_CHECKING:
    from services.simulator.settings import SimulatorSettings


def simulate(
    file: Annotated[str, typer.Argument(help="A JSON file that describes the workers.", metavar="FLEET.json")],
    data_dir: DataDirectory = None,
    nats_servers: Annotated[
        str | None,
        typer.Option(
            "--nats",
            help="Addresses of the NATS servers [MUSTER_NATS_SERVERS, else that of the Muster on the data directory].",
        ),
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(help="Where the gateway reaches the engines [MUSTER_SIMULATOR_ADDRESS, else loopback]."),
    ] = None,
) -> None:
    """Join workers that are not there, with engines that pretend. Ctrl-C takes them away again.

    The Muster must have been started with `muster up --simulator`; elsewhere MUSTER_SIMULATOR_NKEY_SEED_FILE names the key.
    """
    import uvloop  # noqa: PLC0415 - not for `muster --help`

    from kernel.bus import Bus  # noqa: PLC0415 - the same
    from kernel.errors import Unavailable, first_cause  # noqa: PLC0415 - the same
    from kernel.process import run_until_stopped  # noqa: PLC0415 - the same
    from kernel.settings import BadSettings  # noqa: PLC0415 - the same
    from kernel.telemetry import set_up_logging  # noqa: PLC0415 - the same
    from services.simulator.process import SimulatorProcess  # noqa: PLC0415 - the same

    async def run(settings: "SimulatorSettings") -> None:
        simulator = SimulatorProcess(settings, say=_say)
        logging.disable()  # what goes wrong here is said in one sentence
        await (await Bus.connect("muster simulate", settings.line(), timeout_seconds=5)).close()
        logging.disable(logging.NOTSET)
        _say(f"{simulator.size} workers join; Ctrl-C takes them away again")
        await run_until_stopped(simulator, settings)
        _say("they have left")

    try:
        settings = _settings(file, data_dir, nats_servers, address)
        set_up_logging("simulator", settings)
        uvloop.run(run(settings))
    except BadSettings as error:
        raise Failed(str(error), exit_code=USAGE) from error
    except Exception as error:
        cause = first_cause(error)
        if isinstance(cause, OSError):  # nobody reads any more what we say
            raise cause from error
        if not isinstance(cause, Unavailable):
            raise
        raise Failed(_why_not(str(cause))) from error


def _settings(file: str, data_dir: str | None, nats_servers: str | None, address: str | None) -> "SimulatorSettings":
    """By options, else the environment, else what `muster up --simulator` leaves in its data directory."""
    from services.simulator.settings import SimulatorSettings  # noqa: PLC0415 - see simulate
    from services.up.data_dir import nats_address, seed_file  # noqa: PLC0415 - the same

    path = Path(data_dir or os.environ.get("MUSTER_DATA_DIR") or ".muster")
    environment = {"MUSTER_LOG_FORMAT": "text", "MUSTER_LOG_LEVEL": "WARNING", **os.environ}
    given: dict[str, object] = {"fleet": file, "nats_servers": nats_servers, "simulator_address": address}
    if nats_servers is None and "MUSTER_NATS_SERVERS" not in environment:
        given["nats_servers"] = nats_address(path)
        if given["nats_servers"] is None:
            raise Failed(
                f"no Muster runs on {path}: start `muster up --simulator`, or name one with --nats", exit_code=USAGE
            )
    if not environment.keys() & {"MUSTER_SIMULATOR_NKEY_SEED", "MUSTER_SIMULATOR_NKEY_SEED_FILE"}:
        environment["MUSTER_SIMULATOR_NKEY_SEED_FILE"] = str(key := seed_file(path, "simulator"))
        if not key.exists():
            raise Failed(
                f"there is no key for a simulator ({key}): `muster up --simulator` makes it, or set"
                " MUSTER_SIMULATOR_NKEY_SEED_FILE",
                exit_code=USAGE,
            )
    return SimulatorSettings.from_environment(environment, **given)


def _why_not(problem: str) -> str:
    if "authorization violation" in problem.lower():
        return f"this Muster takes no simulator, or not this key; `muster up --simulator` takes its own ({problem})"
    return problem


def _say(sentence: str) -> None:
    sys.stdout.write(f"{sentence}\n")
    sys.stdout.flush()

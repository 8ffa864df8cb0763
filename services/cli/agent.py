"""`muster agent doctor`: what an agent would find on this machine."""

import os
import sys
from enum import StrEnum
from typing import Annotated

import typer


class Action(StrEnum):
    DOCTOR = "doctor"


def agent(
    action: Annotated[
        Action, typer.Argument(help="doctor: what is there for an agent, what is missing, and what to install.")
    ],
    as_json: Annotated[bool, typer.Option("--json", help="The findings as JSON.")] = False,
) -> None:
    """Look at this machine as an agent would; MUSTER_… of the environment are an agent's settings.

    Exit code 0: all is well. 1: something that is here can't be used. 2: an agent does not work here.
    """
    del action  # there is one
    from services.agent import doctor  # noqa: PLC0415 - half a second

    code = doctor.main(["--json"] if as_json else [])
    sys.stdout.flush()
    os._exit(code)  # a look that hangs in a driver is not waited for

"""`muster`: names the commands, and imports the module of the one that is asked for: nobody waits for the others."""

import errno
import os
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Final

import typer

from schemas.masking import masked
from services.cli.failed import USAGE, Failed

MODULES: Final[Mapping[str, str]] = {
    "up": "up",
    "down": "up",
    "demo": "demo",
    "deploy": "models",
    "ps": "fleet",
    "explain": "models",
    "plan": "models",
    "backends": "backends",
    "files": "files",
    "label": "workers",
    "cordon": "workers",
    "uncordon": "workers",
    "drain": "workers",
    "retry": "models",
    "delete": "models",
    "workers": "fleet",
    "logs": "instances",
    "timeline": "instances",
    "events": "events",
    "simulate": "simulate",
    "version": "fleet",
    "init": "init",
    "migrate": "migrate",
    "log": "log",
    "agent": "agent",
}
"""Command → the module of this package that has a function of that name."""


def main(arguments: Sequence[str] | None = None) -> None:
    arguments = sys.argv[1:] if arguments is None else arguments
    _have_streams()
    try:
        _check_text(arguments)
        try:
            make_app(arguments)(arguments, prog_name="muster")
        finally:
            sys.stdout.flush()
    except Failed as failed:
        sys.stderr.write(masked(f"muster: {failed}\n"))
        sys.exit(failed.exit_code)
    except BrokenPipeError:  # the reader of our output has seen enough
        _forget_output()
        sys.exit(1)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        sys.stderr.write(f"muster: nothing more can be written: {error.strerror}\n")
        _forget_output()
        sys.exit(1)


def _have_streams() -> None:
    """Python has none where the caller closed them (`>&-`)."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: PTH123, SIM115 - as long as the process


def _check_text(arguments: Sequence[str]) -> None:
    """Python keeps bytes that are no text as surrogates, which can be sent nowhere. Raises Failed."""
    for argument in arguments:
        if not argument.isascii() and any("\ud800" <= character <= "\udfff" for character in argument):
            raise Failed(f"{argument!a} is no text in the encoding of this terminal", exit_code=USAGE)


def _forget_output() -> None:
    """What was not written yet: the interpreter would complain when it flushes."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def make_app(arguments: Sequence[str]) -> typer.Typer:
    app = typer.Typer(
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(muster)
    asked = arguments[0] if arguments else ""
    for name in [asked] if asked in MODULES else MODULES:
        app.command(name)(getattr(import_module(f"services.cli.{MODULES[name]}"), name))
    return app


def muster() -> None:
    """Gathers the GPUs of many machines into one fleet and keeps LLM inference engines running on them."""


if __name__ == "__main__":
    main()

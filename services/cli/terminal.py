"""Where output goes: as wide as the terminal, or, into a pipe, a line a row."""

import json
import os
import sys
from datetime import datetime
from functools import cache
from typing import Any, Final

from rich.console import Console, RenderableType
from rich.text import Text

UNBOUNDED: Final = 10_000
"""Columns when nobody looks: rows stay whole for grep."""


def local_time() -> datetime:
    return datetime.now().astimezone()


def show(part: RenderableType) -> None:
    console = _console()
    with console.capture() as shown:
        console.print(part)
    for line in shown.get().splitlines():  # rich fills cells up with spaces, the last one too
        print(line.rstrip())


def show_line(line: Text) -> None:
    """At once, and for the terminal to wrap."""
    _console().print(line, soft_wrap=True)
    sys.stdout.flush()


def show_json(document: Any) -> None:
    print(json.dumps(document, ensure_ascii=False, indent=2 if sys.stdout.isatty() else None))


@cache
def _console() -> Console:
    """NO_COLOR, TERM and COLUMNS are rich's to obey."""
    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else UNBOUNDED
    return Console(width=width, highlight=False, markup=False, emoji=False)

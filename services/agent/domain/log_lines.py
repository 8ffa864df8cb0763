"""What of an engine's output is shown to people."""

import re
from typing import Final

from kernel.redaction import redacted

_LINE_CHARACTERS: Final = 2_000
_NOT_TEXT: Final = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|[\x00-\x08\x0b-\x1f\x7f]")
"""Colours and control characters: a database can't store all of them."""


def last_lines(text: str, lines: int) -> tuple[str, ...]:
    """Oldest first."""
    if not text or lines <= 0:
        return ()
    return shown("\n".join(text.removesuffix("\n").split("\n")[-lines:]))


def shown(text: str) -> tuple[str, ...]:
    """Its lines. A line is what a terminal would show of it at last: progress bars write it over and over."""
    if not text:
        return ()
    return tuple(_shown(line) for line in text.removesuffix("\n").split("\n"))


def _shown(line: str) -> str:
    last = line.rstrip("\r").rpartition("\r")[2]
    return redacted(_NOT_TEXT.sub("", last)[:_LINE_CHARACTERS])

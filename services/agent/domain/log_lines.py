"""What of an engine's output is shown to people."""

import re
from typing import Final

from schemas.masking import masked

_LINE_CHARACTERS: Final = 2_000
_NOT_TEXT: Final = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|[\x00-\x08\x0b-\x1f\x7f]")
"""Colours and control characters: a database can't store all of them."""


def last_lines(text: str, lines: int) -> tuple[str, ...]:
    """Oldest first. A line is what a terminal would show of it at last: progress bars write it over and over."""
    if not text or lines <= 0:
        return ()
    shown = (line.rstrip("\r").rpartition("\r")[2] for line in text.removesuffix("\n").split("\n")[-lines:])
    return tuple(masked(_NOT_TEXT.sub("", line))[:_LINE_CHARACTERS] for line in shown)

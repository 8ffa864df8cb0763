"""Numbers as tools print them. What is no number, or none that can be true, is None."""

import math
import re
from typing import Any, Final

MIB: Final = 2**20
_NUMBER: Final = re.compile(r"[-+]?[0-9]{1,18}(?:\.[0-9]{1,18})?")
_LIMIT: Final = 2**53
"""Beyond it a number is garbage, and JSON readers elsewhere would round it."""


def number(value: Any) -> float | None:
    """The first number in a text (`57W / 350W` → 57), or the value itself."""
    if isinstance(value, str):
        found = _NUMBER.search(value)
        value = float(found[0]) if found else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) < _LIMIT and math.isfinite(value) else None


def whole(value: Any) -> int | None:
    """A number that counts something: not negative."""
    found = number(value)
    return int(found) if found is not None and found >= 0 else None


def mib(value: Any) -> int | None:
    """MiB → bytes. Tools that write MB mean MiB too (`65536 MB` of a card with 64 GiB)."""
    found = number(value)
    return int(found * MIB) if found is not None and 0 <= found < _LIMIT / MIB else None


def used_and_total(value: str) -> tuple[int | None, int | None]:
    """`826/65536 MiB`, `2MiB / 98304MiB`, `662MiB(16384MiB)` → both in bytes."""
    found = _NUMBER.findall(value)
    return (mib(found[0]), mib(found[1])) if len(found) >= 2 else (None, None)


def word(value: Any) -> str | None:
    """A text that says something: tools write N/A for nothing."""
    if not isinstance(value, str) or value.strip().strip("[]").upper() in (
        "",
        "N/A",
        "NA",
        "NONE",
        "UNKNOWN",
        "-",
        "/",
    ):
        return None
    return value.strip()

"""What must not be shown, wherever it turns up: passwords in addresses, keys of engines. One place for lines, reports and logs."""

import re
from typing import Final

ENGINE_KEY: Final = "mek_"
"""How a key of an engine begins (`kernel/engine_keys.py`)."""
MASK: Final = "***"
_SECRET: Final = re.compile(
    r"(?P<scheme>\b[A-Za-z][A-Za-z0-9+.-]{0,30}://)[^\s/?#\"'<>\\@]*(?:@[^\s/?#\"'<>\\@]*)*@"
    rf"|\b{ENGINE_KEY}[A-Za-z0-9_-]{{20,}}"
)
"""RFC 3986: the user's part of an address goes to the last `@` before a slash; a password that was not encoded may hold more."""


def masked(text: str) -> str:
    """`http://user:p%40ss@proxy:3128` → `http://***@proxy:3128`. Text of any kind, JSON too, which stays JSON."""
    if "@" not in text and ENGINE_KEY not in text:
        return text
    return _SECRET.sub(lambda found: (found["scheme"] or "") + (f"{MASK}@" if found["scheme"] else MASK), text)

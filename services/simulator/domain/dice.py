"""Chance that can be repeated: the same words give the same draw, on any machine and after any restart."""

import hashlib

Span = tuple[float, float]
"""Lowest and highest."""


def draw(*words: object) -> float:
    """At least 0, less than 1."""
    digest = hashlib.sha256("\0".join(map(str, words)).encode()).digest()
    return int.from_bytes(digest[:6]) / 2**48


def within(span: Span, *words: object) -> float:
    low, high = span
    return low + (high - low) * draw(*words)

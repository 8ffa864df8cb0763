"""Secrets that a program might print, taken out of what is shown, sent and kept (DESIGN: what must hold, 8).

The last net, not the first: nothing of ours writes a secret into a log. Libraries and engines do, in addresses (`schemas/masking.py`)
and in their own arguments.
"""

import re
from collections.abc import Sequence
from typing import Final

from schemas.masking import MASK, masked

_SHORTEST: Final = 6
"""A secret of fewer characters would mask half of every sentence."""
_PATTERNS: Final = (
    re.compile(r"(?i)(\b(?:bearer|basic) )[\w.~+/=-]{8,}"),
    re.compile(r"\b(hf_|sk-|ms-|gpustack_|github_pat_)[A-Za-z0-9_-]{16,}"),
    re.compile(r"\b(S[ACNOUX])[A-Z2-7]{56}\b"),  # NKey seeds
    re.compile(
        r"(?i)((?:api[-_]?key|(?:hf|access|auth|hub)[-_]token|passw(?:or)?d|secret(?:[-_](?:access[-_])?key)?)"
        r"[\"']?(?:\s*[:=]\s*|\s+(?=\S*\d))[\[(\"']*)[^\s\"',)\]]{6,}"
    ),
)


def redacted(text: str, secrets: Sequence[str] = ()) -> str:
    """`secrets`: those that are known, word for word."""
    for secret in secrets:
        if len(secret) >= _SHORTEST:
            text = text.replace(secret, MASK)
    text = masked(text)
    for pattern in _PATTERNS:
        text = pattern.sub(rf"\1{MASK}", text)
    return text

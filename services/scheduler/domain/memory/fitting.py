"""How long a context may be: the longest whose KV cache still fits beside everything else."""

from typing import Final

from services.scheduler.domain.memory.architecture import Architecture
from services.scheduler.domain.memory.kv_cache import sequence_bytes

BLOCK_TOKENS: Final = 16
"""Engines give out their caches in blocks of so many tokens (vLLM's default, and the smallest of the others')."""
MOST_TOKENS: Final = 2**40
"""Where the cache does not grow (every layer has a window, or none has a cache)."""


def fitting_tokens(
    room_bytes: int, architecture: Architecture, element_bytes: float, tensor: int = 1, pipeline: int = 1
) -> int | None:
    """Of one sequence, whose cache may take `room_bytes` on each GPU; whole blocks, `MOST_TOKENS` at most, 0: not one
    block fits. None when the model does not tell its dimensions.

    The cache grows with the tokens, so the answer is found by halving.
    """
    fits, too_many = 0, MOST_TOKENS // BLOCK_TOKENS + 1
    while too_many - fits > 1:
        blocks = (fits + too_many) // 2
        needed = sequence_bytes(architecture, blocks * BLOCK_TOKENS, element_bytes, tensor=tensor, pipeline=pipeline)
        if needed is None:
            return None
        if needed <= room_bytes:
            fits = blocks
        else:
            too_many = blocks
    return fits * BLOCK_TOKENS

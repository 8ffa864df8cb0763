"""What vLLM needs of a machine's RAM where it runs on processors: weights, and a KV cache of a size that it is told.

Each rank (tensor × pipeline × data) is a process that holds `VLLM_CPU_KVCACHE_SPACE` GiB beside its part of the weights (vLLM's
documentation of its CPU backend). 4 GiB is what that is when nobody says; here it is at least one sequence of the context.
Measured: a rank that holds next to nothing takes 0.7 GiB (vLLM 0.32 on x86-64).
"""

import math
from collections.abc import Mapping
from typing import Final

GIB: Final = 2**30
CACHE_SPACE: Final = "VLLM_CPU_KVCACHE_SPACE"
USUAL_CACHE_GIB: Final = 4
MOST_CACHE_GIB: Final = 2**20
RANK_BYTES: Final = GIB


def cache_gib(env: Mapping[str, str], sequence: int | None) -> int:
    """Of each rank. `env`: the model's, which wins; `sequence`: bytes of one sequence; None: not known."""
    theirs = env.get(CACHE_SPACE, "")
    if theirs.isascii() and theirs.isdecimal() and 0 < int(theirs) <= MOST_CACHE_GIB:
        return int(theirs)
    return max(USUAL_CACHE_GIB, math.ceil((sequence or 0) / GIB))


def ram_bytes(needed: int, cache: int, ranks: int, replicas: int = 1) -> int:
    """`needed`: bytes of one replica's weights and what is beside them; `cache`: GiB of each rank."""
    return needed * replicas + ranks * cache * GIB + (ranks - 1) * RANK_BYTES

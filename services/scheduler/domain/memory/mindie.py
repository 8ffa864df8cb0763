"""MindIE's estimate of what a model takes, as the field publishes it (facts of 2026-08).

3 GiB that are reserved, the weights, the KV cache of one sequence, and buffers for computing:
batch × block × layers × heads × head size numbers. In RAM: 512 MiB and the part of the KV cache that may be swapped there.
"""

from typing import Final

from services.scheduler.domain.memory.architecture import Architecture
from services.scheduler.domain.memory.kv_cache import sequence_bytes

RESERVED_BYTES: Final = 3 * 2**30
RAM_BYTES: Final = 512 * 2**20
DEFAULT_CONTEXT: Final = 8192
"""Of a model whose own context is longer, when the user names none."""
DEFAULT_BATCH: Final = 200
"""`maxBatchSize` of its configuration file."""
BLOCK_TOKENS: Final = 128
"""`cacheBlockSize` of its configuration file."""


def estimated_bytes(
    weight_bytes: int,
    architecture: Architecture,
    *,
    tokens: int = DEFAULT_CONTEXT,
    element_bytes: float = 2,
    batch: int = DEFAULT_BATCH,
    block_tokens: int = BLOCK_TOKENS,
) -> int | None:
    """Over all NPUs together. None when the model does not tell its dimensions."""
    cache = sequence_bytes(architecture, tokens, element_bytes)
    layers, heads, head_size = architecture.layers, architecture.attention_heads, architecture.head_size
    if cache is None or layers is None or heads is None or head_size is None:
        return None
    compute = int(batch * block_tokens * layers * heads * head_size * element_bytes)
    return RESERVED_BYTES + weight_bytes + cache + compute


def ram_bytes(cpu_mem_size_gib: float = 0) -> int:
    """`cpu_mem_size_gib`: its parameter `--cpu-mem-size`."""
    return RAM_BYTES + int(cpu_mem_size_gib * 2**30)

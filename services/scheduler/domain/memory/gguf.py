"""What llama.cpp takes for a GGUF model: weights, KV cache, working buffers.

KV cache: keys and values of every layer for every position, f16 (llama.cpp's default cache type), so
2 × layers × KV heads × head size × context × 2 bytes.
"""

from typing import Final

from schemas.models import ModelSpec, ModelWeights
from schemas.parameters import find

OVERHEAD_BYTES: Final = 256 * 2**20
"""Compute buffers and the server itself."""
DEFAULT_CONTEXT: Final = 8192
"""Used when the model's own context is longer and the user names none."""
KV_BYTES_EACH: Final = 2
CONTEXT_FLAGS: Final = ("--ctx-size", "-c")
GPU_LAYER_FLAGS: Final = ("--n-gpu-layers", "--gpu-layers", "-ngl")


def context_of(spec: ModelSpec, weights: ModelWeights) -> int:
    """Tokens of context the engine is started with: the user's, else the model's, at most 8192."""
    given = find(spec.backend_parameters, CONTEXT_FLAGS)
    if given is not None and given.isdigit() and int(given) > 0:
        return int(given)
    return min(weights.context_length or DEFAULT_CONTEXT, DEFAULT_CONTEXT)


def needed_bytes(weights: ModelWeights, context: int) -> int:
    cache = 2 * (weights.layers or 0) * (weights.kv_heads or 0) * (weights.head_size or 0) * context * KV_BYTES_EACH
    return weights.weight_bytes + cache + OVERHEAD_BYTES

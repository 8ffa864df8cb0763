"""What llama.cpp takes for a GGUF model: weights, KV cache, working buffers.

The KV cache holds keys and values of every layer for every position (`kv_cache.py`), f16 unless a cache type is given; a
layer with a window holds the window of each of `SLOTS` conversations and one batch, in steps of 256
(`src/llama-kv-cache-iswa.cpp`), a recurrent one the state of each (`src/llama-memory-recurrent.cpp`).
Layers go to GPUs whole; what does not repeat (embeddings, output) stands once, on the last GPU or in RAM with the rest.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from schemas.models import ModelWeights
from services.scheduler.domain.memory.architecture import Architecture
from services.scheduler.domain.memory.kv_cache import sequence_bytes

OVERHEAD_BYTES: Final = 256 * 2**20
"""Compute buffers and the server itself; on each GPU, and in RAM."""
DEFAULT_CONTEXT: Final = 8192
"""Used when the model's own context is longer and the user names none."""
CACHE_BYTES: Final = 2.0
SLOTS: Final = 4
"""Conversations at once (`--parallel`), which share the context; the server's own choice."""
BATCH_TOKENS: Final = 512
"""`--ubatch-size`, its default."""


@dataclass(frozen=True, slots=True)
class Layered:
    """A model as llama.cpp spreads it."""

    layers: int
    layer_bytes: int
    """One repeating layer with its part of the KV cache."""
    rest_bytes: int
    """What stands once."""

    @property
    def all_bytes(self) -> int:
        return self.layers * self.layer_bytes + self.rest_bytes


def layered(weights: ModelWeights, architecture: Architecture, context: int, cache_bytes: float | None) -> Layered:
    """A file that tells no layers is one layer: all of it fits, or nothing."""
    extra = weights.lora_bytes + weights.draft_bytes
    cache = _cache_bytes(architecture, context, cache_bytes or CACHE_BYTES)
    layers = architecture.layers or 0
    if not layers:
        return Layered(1, weights.weight_bytes + cache, extra)
    repeating = weights.layer_bytes
    if repeating is None:
        repeating = weights.weight_bytes * layers // (layers + 1)
    return Layered(layers, -(-(repeating + cache) // layers), weights.weight_bytes - repeating + extra)


def _cache_bytes(architecture: Architecture, context: int, element_bytes: float) -> int:
    if architecture.window is not None:
        cells = min(context, architecture.window * SLOTS + BATCH_TOKENS)
        architecture = replace(architecture, window=cells + -cells % 256)
    architecture = replace(architecture, fixed_bytes=architecture.fixed_bytes * SLOTS)
    return sequence_bytes(architecture, context, element_bytes) or 0


@dataclass(frozen=True, slots=True)
class Offload:
    """Where the parts of a model stand."""

    layers: tuple[int, ...]
    """On each GPU."""
    is_full: bool
    """What stands once is on a GPU too: nothing but buffers is in RAM."""
    gpu_bytes: tuple[int, ...]
    """On each GPU, `OVERHEAD_BYTES` included where anything stands; 0 elsewhere."""
    ram_bytes: int

    @property
    def gpu_layers(self) -> int:
        """As llama.cpp counts in `--n-gpu-layers`: what stands once is one more."""
        return sum(self.layers) + self.is_full


def offload(layered: Layered, free_bytes: Sequence[int]) -> Offload:
    """Greedy, GPU after GPU in the order given: each takes as many whole layers as fit beside its overhead; what stands
    once comes behind the last layer, on that GPU or a later one, when all layers are on GPUs. What fits nowhere is in RAM.

    llama.cpp itself shares layers out in proportion to free memory; given `layers` as `--tensor-split`, it does this.
    It keeps the input embeddings in RAM always: counted with the rest, they leave the GPU a little more room.
    """
    left = layered.layers
    layers = [0] * len(free_bytes)
    used = [0] * len(free_bytes)
    for gpu, free in enumerate(free_bytes):
        room = free - OVERHEAD_BYTES
        if room < 0:
            continue
        layers[gpu] = min(left, room // layered.layer_bytes) if layered.layer_bytes else left
        left -= layers[gpu]
        if layers[gpu]:
            used[gpu] = layers[gpu] * layered.layer_bytes + OVERHEAD_BYTES
    is_full = False
    if not left:
        last = max((gpu for gpu, count in enumerate(layers) if count), default=0)
        for gpu in range(last, len(free_bytes)):
            beside = used[gpu] or OVERHEAD_BYTES
            if beside + layered.rest_bytes <= free_bytes[gpu]:
                used[gpu] = beside + layered.rest_bytes
                is_full = True
                break
    ram = OVERHEAD_BYTES + left * layered.layer_bytes + (0 if is_full else layered.rest_bytes)
    return Offload(tuple(layers), is_full=is_full, gpu_bytes=tuple(used), ram_bytes=ram)


def layers_that_fit(layered: Layered, free_bytes_of_each_gpu: Sequence[int]) -> int:
    """Repeating layers, of `layered.layers`, that stand on GPUs."""
    return sum(offload(layered, free_bytes_of_each_gpu).layers)

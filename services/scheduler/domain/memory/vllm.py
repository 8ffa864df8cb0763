"""What vLLM needs at least of each GPU: to start at all, and as the share that a `packed` model takes.

vLLM takes `--gpu-memory-utilization` of a GPU's whole memory; what is left of that after weights, activations, whatever is
not torch's, and (unless `--enforce-eager`; from 0.21 on) captured CUDA graphs, is its KV cache, and it refuses to start
when one sequence of `--max-model-len` does not fit there (`vllm/v1/worker/gpu_worker.py`, `determine_available_memory`;
`vllm/v1/core/kv_cache_utils.py`). So the least is their sum. Weights and cache are counted; the rest is measured by vLLM
when it starts and can only be assumed before. Assumed here, to lie above what its published logs show for 0.5B to 8B:

- activations: for each token of a batch, 4 × hidden size and 3 × intermediate size numbers of two bytes, the latter shared
  by tensor parallelism; and for each sequence a row of logits and one of probabilities, float32;
- beside torch: 512 MiB, and as much again for communication between GPUs;
- graphs: 1 GiB.

Not counted: what is lost where layers of different kinds share a pool of blocks (a few per cent), a draft model's cache.
"""

from typing import Final

from services.scheduler.domain.memory.architecture import Architecture
from services.scheduler.domain.memory.kv_cache import sequence_bytes

GIB: Final = 2**30
BESIDE_TORCH_BYTES: Final = GIB // 2
COMMUNICATION_BYTES: Final = GIB // 2
GRAPHS_BYTES: Final = GIB


def batch_defaults(memory_total: int) -> tuple[int, int]:
    """`--max-num-batched-tokens` and `--max-num-seqs` when nobody gives them (`EngineArgs.get_batch_defaults`).

    vLLM makes an exception of the A100, which takes less than is said here.
    """
    return (8192, 1024) if memory_total >= 70 * GIB else (2048, 256)


def needed_bytes(
    weight_bytes: int,
    architecture: Architecture,
    *,
    tokens: int,
    memory_total: int,
    element_bytes: float = 2,
    tensor: int = 1,
    pipeline: int = 1,
    eager: bool = False,
    batched_tokens: int | None = None,
    sequences: int | None = None,
) -> int | None:
    """On each GPU. `weight_bytes`: of everything that is loaded. None when the model does not tell its dimensions."""
    default_batch, default_sequences = batch_defaults(memory_total)
    batch = batched_tokens or default_batch
    cache = sequence_bytes(architecture, tokens, element_bytes, tensor=tensor, pipeline=pipeline, batch_tokens=batch)
    activations = _activation_bytes(architecture, batch, sequences or default_sequences, tensor)
    if cache is None or activations is None:
        return None
    beside = BESIDE_TORCH_BYTES + (COMMUNICATION_BYTES if tensor * pipeline > 1 else 0)
    weights = -(-weight_bytes // (tensor * pipeline))
    return weights + cache + activations + beside + (0 if eager else GRAPHS_BYTES)


def packed_fraction(needed: int, memory_total: int) -> float | None:
    """The smallest `--gpu-memory-utilization`, in hundredths, that holds so much; None when no share of this GPU does."""
    if not 0 < needed <= memory_total:
        return None
    return -(-100 * needed // memory_total) / 100


def _activation_bytes(architecture: Architecture, batch: int, sequences: int, tensor: int) -> int | None:
    hidden, intermediate = architecture.hidden_size, architecture.intermediate_size
    if hidden is None or intermediate is None:
        return None
    forward = batch * 2 * (4 * hidden + 3 * -(-intermediate // tensor))
    return forward + sequences * 8 * (architecture.vocabulary_size or 0)

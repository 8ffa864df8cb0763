"""SGLang's own choice of `--mem-fraction-static`: what is left of a GPU beside activations and captured graphs.

As its server arguments document it (`python/sglang/srt/server_args.py`, `_handle_gpu_memory_settings`; facts of 2026-08).
Sizes in MiB there: 512 for metadata, 1.5 for each token of a prefill chunk (2048 at least), 2 for each sequence of the
largest captured batch, 1024 for every 8 GPUs; with attention in data parallel 3 more for each sequence and rank (4.5 when
the batch is above 300); at least 10 GiB on GPUs above 60 GiB; then what drafting takes, and a quarter for each token of
piecewise graphs.
"""

from typing import Final

from services.scheduler.domain.memory.architecture import Architecture

MIB: Final = 2**20
GIB: Final = 2**30
FALLBACK: Final = 0.88
SPECULATION_BYTES: Final = {"draft_model": 6 * GIB, "eagle3": 2 * GIB, "mtp": 2 * GIB}


def chunk_and_batch(memory_total: int, tensor: int, *, ascend: bool = False) -> tuple[int, int]:
    """Tokens of a prefill chunk, and sequences of the largest captured batch, by the GPU's size."""
    many = tensor >= 4
    gib = memory_total / GIB
    if gib < 20:
        return 2048, 8
    if ascend and gib < 32:
        return 32768, 64 if many else 16
    if gib < 35:
        return 2048, 80 if many else 24
    if gib < 60:
        return 4096, 160 if many else 32
    if ascend and gib < 64:
        return 32768, 128 if many else 64
    if gib < 160:
        return 8192, 512 if many else 256
    return 16384, 512


def mem_fraction_static(
    memory_total: int,
    *,
    tensor: int = 1,
    pipeline: int = 1,
    data: int = 1,
    dp_attention: bool = False,
    ascend: bool = False,
    speculation: str | None = None,
    chunked_prefill: int | None = None,
    largest_batch: int | None = None,
    piecewise_tokens: int | None = None,
    architecture: Architecture | None = None,
) -> float:
    """The share of a GPU for weights and KV cache; 0.88 where the formula gives none.

    `chunked_prefill`, `largest_batch`, `piecewise_tokens`: `--chunked-prefill-size`, `--cuda-graph-max-bs` and
    `--piecewise-cuda-graph-max-tokens`, where the user gives them. `speculation`: as in `Speculation.algorithm`.
    """
    chunk, batch = chunk_and_batch(memory_total, tensor, ascend=ascend)
    chunk = max(chunked_prefill or chunk, 2048)
    batch = largest_batch or batch
    reserved = 512 + 1.5 * chunk + 2 * batch + 1024 * tensor * pipeline / 8
    if dp_attention:
        reserved += (4.5 if batch > 300 else 3) * batch * data
    reserved *= MIB
    if memory_total > 60 * GIB:
        reserved = max(reserved, 10 * GIB)
    reserved += SPECULATION_BYTES.get(speculation or "", 0)
    reserved += (piecewise_tokens or 0) // 4 * MIB
    fraction = (round((memory_total - reserved) / memory_total, 3) if memory_total > reserved else 0.0) or FALLBACK
    if architecture is not None and architecture.is_multimodal:
        fraction = round(fraction * 0.95 * _vision_factor(architecture), 3)
    return fraction


def _vision_factor(architecture: Architecture) -> float:
    """By the vision encoder's size (layers × hidden size²) as a multiple of ViT-L/14's: a tenth less for each more of it.

    SGLang takes 24 layers where a configuration calls their number `depth`; we take that number.
    """
    size = (architecture.vision_layers or 24) * (architecture.vision_hidden_size or 1024) ** 2
    return min(max(1 - 0.1 * (size / (24 * 1024**2) - 1), 0.8), 1.05)

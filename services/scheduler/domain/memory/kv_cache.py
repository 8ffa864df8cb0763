"""The KV cache: what the attention of one sequence keeps for each token.

Each layer keeps keys and values of every KV head: 2 × KV heads × head size numbers a token (MHA: as many KV heads as
heads; GQA: fewer; MQA: one). Multi-head latent attention keeps one latent vector and one rotary key, which every rank of
tensor parallelism holds whole (DeepSeek-V2, arXiv:2405.04434). Tensor parallelism shares KV heads out, but each rank has
at least one; pipeline parallelism shares out layers, those of each kind evenly.

Three things keep something else, and `sequence_bytes` knows them:
- layers with a sliding window or chunked attention hold the last `window` tokens at most (Mistral, arXiv:2310.06825;
  Gemma 2, arXiv:2408.00118; vLLM's `SlidingWindowSpec` and `ChunkedLocalAttentionSpec` free what lies behind);
- recurrent layers (Mamba, gated delta net) hold a state whose size doesn't depend on the length;
- cross-attention holds keys and values of what the encoder saw (Whisper: 1500 frames, arXiv:2212.04356).
"""

from dataclasses import replace

from services.scheduler.domain.memory.architecture import Architecture


def bytes_per_token(
    architecture: Architecture, element_bytes: float, *, tensor: int = 1, pipeline: int = 1
) -> int | None:
    """On one GPU, of a token that every layer still holds. None when the model does not tell its dimensions."""
    layers = architecture.attention_layers
    if layers is None:
        return None
    if layers == 0:
        return 0
    windowed, full = _elements(architecture, tensor), _full_elements(architecture, tensor)
    if windowed is None or full is None:
        return None
    if windowed == full:
        return int(-(-layers // pipeline) * full * element_bytes)
    near = min(architecture.windowed_layers, layers)
    return int((-(-(layers - near) // pipeline) * full + -(-near // pipeline) * windowed) * element_bytes)


def sequence_bytes(
    architecture: Architecture,
    tokens: int,
    element_bytes: float,
    *,
    tensor: int = 1,
    pipeline: int = 1,
    batch_tokens: int = 0,
) -> int | None:
    """On one GPU, of a sequence of so many tokens. None when the model does not tell its dimensions.

    `batch_tokens`: that a window must hold beside itself while they are computed (vLLM: all of a prefill's chunk).
    """
    layers = architecture.attention_layers
    if layers is None:
        return None
    fixed = -(-architecture.fixed_bytes // (tensor * pipeline))
    if layers == 0:
        return fixed
    layer, full = _elements(architecture, tensor), _full_elements(architecture, tensor)
    if layer is None or full is None:
        return None
    windowed, window = min(architecture.windowed_layers, layers), architecture.window
    if window is None:
        windowed = 0
    everything = -(-(layers - windowed) // pipeline) * tokens * full
    near = -(-windowed // pipeline) * min(tokens, (window or 0) + batch_tokens) * layer
    return int((everything + near) * element_bytes) + fixed


def _full_elements(architecture: Architecture, tensor: int) -> int | None:
    """As `_elements`, of a layer that sees everything."""
    if architecture.full_kv_heads is None and architecture.full_head_size is None:
        return _elements(architecture, tensor)
    heads = architecture.full_kv_heads or architecture.kv_heads
    size = architecture.full_head_size or architecture.head_size
    return _elements(replace(architecture, kv_heads=heads, head_size=size, value_size=None), tensor)


def _elements(architecture: Architecture, tensor: int) -> int | None:
    """Numbers that one layer keeps of one token on one rank."""
    if architecture.latent_size is not None:
        return architecture.latent_size
    if architecture.kv_heads is None or architecture.head_size is None:
        return None
    values = architecture.value_size or architecture.head_size
    return max(-(-architecture.kv_heads // tensor), 1) * (architecture.head_size + values)

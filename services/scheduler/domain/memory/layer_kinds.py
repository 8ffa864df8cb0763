"""Which layers keep keys and values of every token, which of a window only, and which keep something else.

What a sequence keeps in a recurrent layer is shaped as vLLM shapes it (`vllm/model_executor/layers/mamba/mamba_utils.py`):
the last inputs of a convolution, in the model's type, and a state, counted as float32. Cross-attention keeps keys and
values of what the encoder made: 1500 frames in Whisper (arXiv:2212.04356), the patches of four tiles in Llama 3.2 Vision.

Chunked attention (Llama 4) is counted as a window of one chunk, as newer versions of vLLM hold it; older ones hold all.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, cast

from services.scheduler.domain.memory.config_fields import (
    MOST_CONTEXT,
    MOST_HEAD_SIZE,
    MOST_HEADS,
    MOST_LATENT,
    MOST_LAYERS,
    MOST_WIDTH,
    count,
    listed,
    nested,
    text,
)

Kind = Literal["full", "windowed", "recurrent", "crossing", "nothing"]

_STATE_BYTES: Final = 4
MOST_FIXED_BYTES: Final = 2**40
_MOST_PIXELS: Final = 2**16

_ENCODERS: Final = frozenset({
    "bert", "roberta", "xlm-roberta", "xlm-roberta-flash", "camembert", "distilbert", "electra", "albert", "mpnet",
    "deberta", "deberta-v2", "nomic_bert", "modernbert", "new", "gte", "jina_bert", "eurobert", "clip", "siglip",
})  # fmt: skip
"""`model_type`s that read a text all at once: nothing is kept between tokens."""
_RECURRENT: Final = frozenset({"mamba", "mamba2", "falcon_mamba", "rwkv", "rwkv5", "rwkv6", "rwkv7"})
_BOTH_IN_ONE: Final = frozenset({"falcon_h1", "zamba2"})
"""Their layers with attention keep a state too."""

_NAMES: Final[Mapping[str, Kind]] = {
    "full_attention": "full", "attention": "full", "hybrid": "full",
    "sliding_attention": "windowed", "chunked_attention": "windowed", "local_attention": "windowed",
    "linear_attention": "recurrent", "mamba": "recurrent", "mamba2": "recurrent", "recurrent": "recurrent",
    "conv": "recurrent", "moe": "nothing", "mlp": "nothing",
}  # fmt: skip
"""Of `layer_types` and `layers_block_type`."""
_LETTERS: Final[Mapping[str, Kind]] = {"*": "full", "M": "recurrent", "-": "nothing", "E": "nothing"}
"""Of Nemotron-H's `hybrid_override_pattern`."""

_FULL_EVERY: Final[Mapping[str, int]] = {
    "gemma2": 2, "gemma3": 6, "gemma3_text": 6, "gemma3n": 5, "gemma3n_text": 5, "cohere2": 4, "gpt_oss": 2,
    "llama4": 4, "llama4_text": 4, "exaone4": 4,
}  # fmt: skip
"""One layer in so many sees everything, where the configuration doesn't say; as the classes of `transformers` have it."""


@dataclass(frozen=True, slots=True)
class LayerKinds:
    attention: int | None
    """Layers with a KV cache; None when not even the number of layers is told."""
    windowed: int = 0
    """Of those, the ones that hold the last `window` tokens only."""
    window: int | None = None
    fixed_bytes: int = 0
    """What a sequence keeps whatever its length, over all layers."""


def layer_kinds(fields: Mapping[str, Any], layers: int | None, token_elements: int, element_bytes: int) -> LayerKinds:
    """`token_elements`: numbers that a layer keeps of one token."""
    model_type = text(fields, "model_type") or ""
    if layers is None or model_type in _ENCODERS:
        return LayerKinds(None if layers is None else 0)
    window = count(fields, "sliding_window", "sliding_window_size", "attention_chunk_size", most=MOST_CONTEXT)
    if fields.get("use_sliding_window") is False:
        window = None
    kinds = _each_layer(fields, model_type, layers, window)
    shared = count(fields, "num_kv_shared_layers", most=layers - 1) if layers > 1 else None
    if shared:  # the last layers read the cache of an earlier one (Gemma 3n)
        kinds = kinds[:-shared]
    windowed = kinds.count("windowed")
    attention = kinds.count("full") + windowed
    recurrent = layers if model_type in _BOTH_IN_ONE else kinds.count("recurrent")
    seen = token_elements * element_bytes
    fixed = recurrent * _state_bytes(fields, element_bytes) + kinds.count("crossing") * _patches(fields) * seen
    if fields.get("is_encoder_decoder") is True:
        fixed += layers * (count(fields, "max_source_positions", most=MOST_CONTEXT) or 0) * seen
    return LayerKinds(
        attention,
        windowed=windowed if window else 0,
        window=window if windowed else None,
        fixed_bytes=fixed if fixed <= MOST_FIXED_BYTES else 0,
    )


def _each_layer(fields: Mapping[str, Any], model_type: str, layers: int, window: int | None) -> list[Kind]:
    told = _told(fields, layers)
    if told is not None:
        rest: list[Kind] = ["full"] * (layers - len(told))
        return told[:layers] + rest
    if model_type in _RECURRENT:
        return ["recurrent"] * layers
    if crossing := listed(fields, "cross_attention_layers"):
        return ["crossing" if layer in crossing else "full" for layer in range(layers)]
    if window is None:
        return ["full"] * layers
    if rotary := listed(fields, "no_rope_layers"):  # Llama 4: those without rotary positions see everything
        return ["full" if layer < len(rotary) and rotary[layer] == 0 else "windowed" for layer in range(layers)]
    if pattern := text(fields, "sliding_window_pattern"):  # EXAONE 4: local and global, as letters
        return ["full" if pattern[layer % len(pattern)] == "G" else "windowed" for layer in range(layers)]
    every = count(fields, "sliding_window_pattern", "_sliding_window_pattern", "layer_switch", most=MOST_LAYERS)
    if every := every or _FULL_EVERY.get(model_type):
        return ["windowed" if (layer + 1) % every else "full" for layer in range(layers)]
    if fields.get("use_sliding_window") is True:  # Qwen 2: the first `max_window_layers` see everything
        first = count(fields, "max_window_layers", most=MOST_LAYERS) or 0
        return ["full" if layer < first else "windowed" for layer in range(layers)]
    return ["windowed"] * layers


def _told(fields: Mapping[str, Any], layers: int) -> list[Kind] | None:
    """The kinds of hybrids and of newer configurations, which say them one by one."""
    if names := listed(fields, "layer_types", "layers_block_type"):
        return [_NAMES.get(name, "full") if isinstance(name, str) else "full" for name in names]
    if blocks := listed(fields, "block_configs"):
        return [_of_block(block) for block in blocks]
    if without := listed(fields, "block_without_attention"):  # … as a downloader tells it
        return ["nothing" if each is True else "full" for each in without]
    if pattern := text(fields, "hybrid_override_pattern"):
        return [_LETTERS.get(letter, "nothing") for letter in pattern]
    if numbers := listed(fields, "attn_type_list"):  # MiniMax
        return ["full" if number == 1 else "recurrent" for number in numbers]
    if from_one := listed(nested(fields, "linear_attn_config"), "full_attn_layers"):  # Kimi Linear
        return ["full" if layer + 1 in from_one else "recurrent" for layer in range(layers)]
    if indexes := listed(fields, "attn_layer_indices", "full_attn_idxs"):  # Bamba, LFM2
        return ["full" if layer in indexes else "recurrent" for layer in range(layers)]
    if period := count(fields, "attn_layer_period", most=MOST_LAYERS):  # Jamba
        offset = count(fields, "attn_layer_offset", most=MOST_LAYERS) or 0
        return ["full" if layer % period == offset else "recurrent" for layer in range(layers)]
    if interval := count(fields, "full_attention_interval", most=MOST_LAYERS):  # Qwen3-Next
        return ["recurrent" if (layer + 1) % interval else "full" for layer in range(layers)]
    return None


def _of_block(block: object) -> Kind:
    """Of Nemotron-NAS: attention may be left out, or be a matrix. What can't be read has attention."""
    attention = nested(cast("dict[str, Any]", block), "attention") if isinstance(block, dict) else {}
    return "nothing" if attention.get("no_op") is True or attention.get("replace_with_linear") is True else "full"


def _state_bytes(fields: Mapping[str, Any], element_bytes: int) -> int:
    """Of one recurrent layer; 0 when its shape is not told."""

    def heads(*names: str) -> int:
        return count(fields, *names, most=MOST_HEADS) or 0

    def size(*names: str) -> int:
        return count(fields, *names, most=MOST_WIDTH) or 0

    kernel = size("linear_conv_kernel_dim", "conv_kernel", "mamba_d_conv", "conv_kernel_size", "d_conv") or 1
    hidden = size("hidden_size", "d_model")
    state = size("ssm_state_size", "mamba_d_state", "state_size")
    kda = nested(fields, "linear_attn_config")
    if values := heads("linear_num_value_heads"):  # gated delta net
        key_size, value_size = size("linear_key_head_dim"), size("linear_value_head_dim")
        inputs = 2 * heads("linear_num_key_heads") * key_size + values * value_size
        state_elements = values * value_size * key_size
    elif values := count(kda, "num_heads", most=MOST_HEADS):  # Kimi delta attention
        key_size = count(kda, "head_dim", most=MOST_HEAD_SIZE) or 0
        kernel = count(kda, "short_conv_kernel_size", most=MOST_LATENT) or 1
        inputs, state_elements = 3 * values * key_size, values * key_size * key_size
    elif values := heads("mamba_num_heads", "mamba_n_heads", "n_mamba_heads"):  # Mamba 2
        inner = values * (size("mamba_head_dim", "mamba_d_head") or size("mamba_expand") * hidden // values)
        inputs = inner + 2 * heads("n_groups", "mamba_n_groups", "mamba_ngroups") * state
        state_elements = inner * state
    elif state:  # Mamba
        inner = size("mamba_expand", "expand") * hidden or size("intermediate_size")
        inputs, state_elements = inner, inner * state
    elif length := size("conv_L_cache"):  # LFM2's short convolutions
        kernel, inputs, state_elements = length, hidden, 0
    elif listed(fields, "attn_type_list"):  # lightning attention
        head_size = size("head_dim") or hidden // max(heads("num_attention_heads"), 1)
        inputs, state_elements = 0, heads("num_attention_heads") * head_size * head_size
    else:
        inputs, state_elements = 0, 0
    return inputs * (kernel - 1) * element_bytes + state_elements * _STATE_BYTES


def _patches(fields: Mapping[str, Any]) -> int:
    """Tokens that an image makes at most, for layers that look at it crosswise."""
    vision = nested(fields, "vision_config")
    image, patch = (count(vision, name, most=_MOST_PIXELS) or 0 for name in ("image_size", "patch_size"))
    return (count(vision, "max_num_tiles", most=MOST_LAYERS) or 1) * ((image // patch) ** 2 + 1) if patch else 0

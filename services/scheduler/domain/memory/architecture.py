"""What a model is, in our words: from its config.json, or from a GGUF header's numbers.

Field names are those of the `transformers` configurations, older ones included; nested ones (`text_config` …) are how
multimodal models are written. Unknown architectures give what can be read, and None for the rest.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, cast

from schemas.models import Category, ModelWeights
from services.scheduler.domain.memory.config_fields import (
    MOST_CONTEXT,
    MOST_HEAD_SIZE,
    MOST_HEADS,
    MOST_LATENT,
    MOST_LAYERS,
    MOST_VOCABULARY,
    MOST_WIDTH,
    count,
    language_part,
    listed,
    nested,
    text,
)
from services.scheduler.domain.memory.layer_kinds import MOST_FIXED_BYTES, layer_kinds

_VISION: Final = ("vision_config", "vision_tower_config", "visual", "vision_encoder", "vit_config")
_DTYPE_BYTES: Final[Mapping[str, int]] = {"float32": 4, "float": 4, "bfloat16": 2, "float16": 2, "half": 2}

_WORDS: Final[tuple[tuple[Category, tuple[str, ...]], ...]] = (
    ("text_to_speech", ("tts", "texttospeech", "kokoro", "cosyvoice", "vits", "bark", "speecht5", "chatterbox")),
    (
        "speech_to_text",
        ("whisper", "speechseq2seq", "forctc", "asr", "sensevoice", "paraformer", "parakeet", "moonshine"),
    ),
    ("reranker", ("forsequenceclassification", "reranker", "forrewardmodel")),
    ("image", ("pipeline", "transformer2dmodel", "unet2d")),
    ("llm", ("forcausallm", "forconditionalgeneration", "lmheadmodel", "chatmodel", "chatglm", "minicpmv")),
    ("embedding", ("formaskedlm", "embedding")),
)
"""What an architecture's name contains, in lower case; the first row that has a word of it decides."""


@dataclass(frozen=True, slots=True)
class Architecture:
    name: str | None = None
    category: Category = "unknown"
    layers: int | None = None
    attention_layers: int | None = None
    """Layers with a KV cache: fewer than all in hybrids, none in encoders."""
    windowed_layers: int = 0
    """Of the attention layers, those that hold the last `window` tokens only."""
    window: int | None = None
    fixed_bytes: int = 0
    """What a sequence keeps whatever its length, over all layers: states of recurrent layers, what cross-attention sees."""
    hidden_size: int | None = None
    intermediate_size: int | None = None
    attention_heads: int | None = None
    kv_heads: int | None = None
    head_size: int | None = None
    value_size: int | None = None
    """Of a head's values, where it is not that of its keys."""
    full_kv_heads: int | None = None
    full_head_size: int | None = None
    """Of the layers that see everything, where those with a window have others (Gemma 4)."""
    latent_size: int | None = None
    """Of multi-head latent attention: numbers that one token keeps in a layer (latent and rotary part together)."""
    vocabulary_size: int | None = None
    vision_heads: int | None = None
    vision_layers: int | None = None
    vision_hidden_size: int | None = None
    context_length: int | None = None
    element_bytes: int = 2
    """Of a number in the KV cache, when the cache has the model's own type."""
    quantization: str | None = None

    @property
    def is_multimodal(self) -> bool:
        return self.vision_heads is not None or self.vision_hidden_size is not None


def architecture_of(weights: ModelWeights) -> Architecture:
    told: Category = weights.categories[0] if weights.categories else "unknown"
    if not weights.config:
        return _of_header(weights, told)
    config = weights.config
    fields = language_part(config)
    names = listed(config, "architectures")
    name = names[0] if names and isinstance(names[0], str) else text(config, "_class_name") or weights.architecture
    layers = count(fields, "decoder_layers", "num_hidden_layers", "n_layer", "num_layers", "n_layers", most=MOST_LAYERS)
    heads = _heads(fields)
    hidden = count(fields, "hidden_size", "n_embd", "n_embed", "d_model", "dim", most=MOST_WIDTH)
    kv_heads = _kv_heads(fields, heads)
    head_size, value_size = _head_sizes(fields, hidden, heads)
    latent = _latent_size(fields)
    element_bytes = _DTYPE_BYTES.get(text(fields, "torch_dtype", "dtype") or "", 2)
    elements = (kv_heads or 0) * ((head_size or 0) + (value_size or head_size or 0))
    kinds = layer_kinds(fields, layers, latent or elements, element_bytes)
    full_heads = count(fields, "num_global_key_value_heads", most=MOST_HEADS)
    full_size = count(fields, "global_head_dim", most=MOST_HEAD_SIZE)
    vision = nested(config, *_VISION) or nested(nested(config, "thinker_config"), *_VISION)
    return Architecture(
        name=name,
        category=category_of(name or text(config, "model_type"), told),
        layers=layers,
        attention_layers=kinds.attention,
        windowed_layers=kinds.windowed,
        window=kinds.window,
        fixed_bytes=kinds.fixed_bytes,
        hidden_size=hidden,
        intermediate_size=count(
            fields, "intermediate_size", "ffn_hidden_size", "n_inner", "decoder_ffn_dim", most=2 * MOST_WIDTH
        )
        or (4 * hidden if hidden else None),
        attention_heads=heads,
        kv_heads=kv_heads,
        head_size=head_size,
        value_size=value_size,
        full_kv_heads=full_heads if full_heads != kv_heads else None,
        full_head_size=full_size if full_size != head_size else None,
        latent_size=latent,
        vocabulary_size=count(fields, "padded_vocab_size", "vocab_size", most=MOST_VOCABULARY),
        vision_heads=count(vision, "num_attention_heads", "num_heads", "attention_heads", most=MOST_HEADS),
        vision_layers=count(vision, "num_hidden_layers", "depth", "layers", most=MOST_LAYERS),
        vision_hidden_size=count(vision, "hidden_size", "embed_dim", "width", most=MOST_WIDTH),
        context_length=_context_length(fields) or weights.context_length,
        element_bytes=element_bytes,
        quantization=_quantization(fields),
    )


def category_of(name: str | None, told: Category = "unknown") -> Category:
    """By the architecture's name, where the author has not said."""
    if told != "unknown" or name is None:
        return told
    lower = name.lower()
    for category, words in _WORDS:
        if any(word in lower for word in words):
            return category
    return "embedding" if name.endswith("Model") else "unknown"


def _of_header(weights: ModelWeights, told: Category) -> Architecture:
    layers = _bounded(weights.layers, MOST_LAYERS)
    attention = layers if weights.attention_layers is None else _bounded(weights.attention_layers, MOST_LAYERS, least=0)
    return Architecture(
        name=weights.architecture,
        category=category_of(weights.architecture, told),
        layers=layers,
        attention_layers=attention,
        windowed_layers=_bounded(weights.windowed_layers, MOST_LAYERS) or 0,
        window=_bounded(weights.window, MOST_CONTEXT),
        fixed_bytes=_bounded(weights.state_bytes, MOST_FIXED_BYTES) or 0,
        hidden_size=_bounded(weights.hidden_size, MOST_WIDTH),
        attention_heads=_bounded(weights.attention_heads, MOST_HEADS),
        kv_heads=_bounded(weights.kv_heads, MOST_HEADS),
        head_size=_bounded(weights.head_size, MOST_HEAD_SIZE),
        value_size=_bounded(weights.value_size, MOST_HEAD_SIZE),
        vocabulary_size=_bounded(weights.vocabulary_size, MOST_VOCABULARY),
        context_length=weights.context_length,
    )


def _bounded(number: int | None, most: int, *, least: int = 1) -> int | None:
    return number if number is not None and least <= number <= most else None


def _heads(fields: Mapping[str, Any]) -> int | None:
    names = ("decoder_attention_heads", "num_attention_heads", "n_head", "num_heads", "n_heads")
    return count(fields, *names, most=MOST_HEADS)


def _kv_heads(fields: Mapping[str, Any], heads: int | None) -> int | None:
    """As vLLM reads them (`ModelConfig.get_total_num_kv_heads`): Falcon and ChatGLM tell multi-query attention apart."""
    if fields.get("multi_query") is True and fields.get("new_decoder_architecture") is not True:
        return 1
    if fields.get("multi_query_attention") is True:
        return count(fields, "multi_query_group_num", most=MOST_HEADS) or 1
    told_groups = listed(fields, "block_heads_in_group") or map(_group_size, listed(fields, "block_configs"))
    groups = [size for size in told_groups if isinstance(size, int) and 0 < size <= MOST_HEADS]
    if heads and groups:
        return -(-heads // min(groups))
    names = ("num_key_value_heads", "num_kv_heads", "n_head_kv", "num_query_groups")
    told = count(fields, *names, most=MOST_HEADS) or count(nested(fields, "attn_config"), "kv_n_heads", most=MOST_HEADS)
    return told or heads


def _group_size(block: object) -> int | None:
    """Heads that share a KV head in a block of Nemotron-NAS; None where it has no attention."""
    attention = nested(cast("dict[str, Any]", block), "attention") if isinstance(block, dict) else {}
    return count(attention, "n_heads_in_group", most=MOST_HEADS)


def _head_sizes(fields: Mapping[str, Any], hidden: int | None, heads: int | None) -> tuple[int | None, int | None]:
    """Of keys and, where it differs, of values. Latent attention makes a key of two parts."""
    plain, rotary = (count(fields, name, most=MOST_HEAD_SIZE) for name in ("qk_nope_head_dim", "qk_rope_head_dim"))
    if plain and rotary:
        keys: int | None = plain + rotary
    else:
        keys = count(fields, "head_dim", "attention_head_dim", "kv_channels", "head_size", "d_kv", most=MOST_HEAD_SIZE)
        if keys is None and hidden and heads:
            keys = _bounded(hidden // heads, MOST_HEAD_SIZE)
    if _is_expanded(fields):
        return keys, None  # values are filled up to the size of keys
    values = count(fields, "v_head_dim", most=MOST_HEAD_SIZE)
    return keys, values if values != keys else None


def _is_expanded(fields: Mapping[str, Any]) -> bool:
    """VLLM caches MiniCPM3's keys and values of every head, not the latent vector (`ModelConfig.is_deepseek_mla`).

    SGLang keeps the latent vector: for it this is counted from above.
    """
    return text(fields, "model_type") == "minicpm3"


def _latent_size(fields: Mapping[str, Any]) -> int | None:
    """DeepSeek-V2's cache; that of V3.2 keeps a key of its indexer beside it (counted in full, it is smaller)."""
    if _is_expanded(fields):
        return None
    rank = count(fields, "kv_lora_rank", most=MOST_LATENT)
    if rank is None:
        return None
    parts = (count(fields, name, most=MOST_HEAD_SIZE) or 0 for name in ("qk_rope_head_dim", "index_head_dim"))
    return rank + sum(parts)


def _context_length(fields: Mapping[str, Any]) -> int | None:
    """As vLLM derives it (`_get_and_verify_max_len`): some ways of stretching positions are not in the number told."""
    names = (
        "max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "seq_length", "max_sequence_length",
        "max_target_positions", "model_max_length",
    )  # fmt: skip
    told = count(fields, *names, most=MOST_CONTEXT)
    if told is None:
        return None
    model_type = text(fields, "model_type") or ""
    if model_type.startswith(("roberta", "xlm-roberta", "camembert")):  # their positions begin behind the padding's
        padding = fields.get("pad_token_id")
        behind = padding + 1 if isinstance(padding, int) and 0 <= padding < told - 1 else 0
        return told - behind
    scaling = nested(fields, "rope_scaling", "rope_parameters")
    kind, factor = text(scaling, "rope_type", "type"), scaling.get("factor")
    if not isinstance(factor, int | float) or not 1 <= factor <= MOST_CONTEXT:
        return told
    if kind == "yarn":
        told = count(scaling, "original_max_position_embeddings", most=MOST_CONTEXT) or told
    elif kind not in ("linear", "dynamic") or "gemma3" in model_type:
        return told
    stretched = int(told * factor)
    return stretched if stretched <= MOST_CONTEXT else None


def _quantization(fields: Mapping[str, Any]) -> str | None:
    found = nested(fields, "quantization_config", "compression_config")
    return text(found, "quant_method", "quant_algo", "format")

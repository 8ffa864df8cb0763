"""Reading a config.json that anybody may have written: whatever is not a believable number is not there.

The bounds are far above every published model, and keep each product of them below what a size may be (`Bytes`).
"""

from collections.abc import Mapping
from typing import Any, Final, cast

MOST_LAYERS: Final = 1024
MOST_HEADS: Final = 1024
MOST_HEAD_SIZE: Final = 1024
MOST_LATENT: Final = 8192
MOST_WIDTH: Final = 2**18
MOST_VOCABULARY: Final = 2**24
MOST_CONTEXT: Final = 2**24

_TEXT: Final = ("text_config", "llm_config", "language_config", "thinker_config", "talker_config")
"""Where models that also see or hear keep what concerns their language part."""
_MOST_NESTED: Final = 4

_DEFAULTS: Final[Mapping[str, Mapping[str, Any]]] = {
    "llama": {
        "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
        "num_attention_heads": 32, "max_position_embeddings": 2048,
    },
    "mistral": {
        "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 131072,
    },
    "gemma3_text": {
        "vocab_size": 262208, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26,
        "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "max_position_embeddings": 131072,
    },
}  # fmt: skip
"""Of `transformers`' configuration classes (`LlamaConfig`, `MistralConfig`, `Gemma3TextConfig`): a nested configuration is
published without what equals them."""


def count(fields: Mapping[str, Any], *names: str, most: int) -> int | None:
    """The first of these fields that is a number from 1 to `most`; of a list with one for each layer, the largest."""
    for name in names:
        value = fields.get(name)
        found = _largest(cast("list[object]", value)) if isinstance(value, list) else value
        if isinstance(found, int) and not isinstance(found, bool) and 0 < found <= most:
            return found
    return None


def text(fields: Mapping[str, Any], *names: str) -> str | None:
    """The first of these fields that is a text."""
    for name in names:
        value = fields.get(name)
        if isinstance(value, str) and value:
            return value
    return None


def nested(fields: Mapping[str, Any], *names: str) -> Mapping[str, Any]:
    """The first of these fields that is an object; empty when none is."""
    for name in names:
        value = fields.get(name)
        if isinstance(value, dict) and value:
            return cast("dict[str, Any]", value)
    return {}


def listed(fields: Mapping[str, Any], *names: str) -> list[object]:
    """The first of these fields that is a list; empty when none is."""
    for name in names:
        value = fields.get(name)
        if isinstance(value, list) and value:
            return cast("list[object]", value)
    return []


def language_part(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Of a model that also sees or hears, its language model's fields over those of the whole."""
    fields = dict(config)
    inner = nested(config, *_TEXT)
    for _ in range(_MOST_NESTED):
        if not inner:
            break
        fields |= {**_DEFAULTS.get(text(inner, "model_type") or "", {}), **inner}
        inner = nested(inner, *_TEXT)
    return fields


def _largest(values: list[object]) -> int | None:
    return max((value for value in values if isinstance(value, int) and not isinstance(value, bool)), default=None)

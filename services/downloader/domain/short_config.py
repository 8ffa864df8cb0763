"""What of a config.json is answered: the numbers that say how much memory the model takes, and the few words beside them.

The answer becomes a fact that is kept for ever and read by everybody, and anybody may have written the file. So texts
are answered only where a word is expected and only when they look like one, which no path, address or token does that
matters; what is long, deep, not finite or huge is left out, nothing is refused.
"""

import json
import re
from typing import Final, cast

from pydantic import JsonValue

from services.downloader.domain.safetensors import read_object

MAX_BYTES: Final = 16 * 2**10
"""Of the answer, as JSON."""
MAX_DEPTH: Final = 4
MAX_FIELDS: Final = 256
"""Of one object; `id2label` of a classifier has more."""
MAX_ITEMS: Final = 512
"""Of one list: with one item for each layer they are short."""
MAX_TEXT: Final = 512
MAX_NUMBER: Final = 2**53

_WORDS: Final = frozenset({
    "architectures", "model_type", "torch_dtype", "dtype", "auto_map", "layer_types", "layers_block_type",
    "hybrid_override_pattern", "sliding_window_pattern", "rope_type", "type", "position_embedding_type",
    "quant_method", "quant_algo", "kv_cache_quant_algo", "format", "fmt", "mamba_ssm_dtype", "mamba_d_head",
    "_class_name",
})  # fmt: skip
"""Fields whose texts, and those of what is in them, are answered."""
_WORD: Final = re.compile(r"[A-Za-z0-9_.*/+-]+")
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}")
_TOKEN: Final = re.compile(r"(hf|api|sk|pk|ms|gh[a-z]|glpat|nvapi|xox[a-z]|akia)[_-]?[A-Za-z0-9_-]{16,}", re.IGNORECASE)
"""What access tokens of hubs and clouds look like."""


class _Left(Exception):
    """This value is left out."""


def short_config(document: bytes) -> dict[str, JsonValue]:
    """The same bytes give the same answer. Raises `InvalidSafetensors` when they are not a JSON object."""
    config = _without_long_blocks(read_object(document, "it"))
    for items in (MAX_ITEMS, MAX_ITEMS // 8, 0):
        answer = _object(config, MAX_DEPTH, items, texts=False)
        if _size(answer) <= MAX_BYTES:
            return answer
    return _largest_first(_object(config, 1, 0, texts=False))


def _without_long_blocks(config: dict[str, object]) -> dict[str, object]:
    """Nemotron-NAS describes every layer at length. Two lists with one item for each say what memory asks of it."""
    blocks = config.get("block_configs")
    if not isinstance(blocks, list):
        return config
    found = [_attention_of(block) for block in cast("list[object]", blocks)]
    without = [each.get("no_op") is True or each.get("replace_with_linear") is True for each in found]
    groups = [each.get("n_heads_in_group") for each in found]
    return {name: value for name, value in config.items() if name != "block_configs"} | {
        "block_without_attention": without,
        "block_heads_in_group": groups,
    }


def _attention_of(block: object) -> dict[str, object]:
    attention = cast("dict[str, object]", block).get("attention") if isinstance(block, dict) else None
    return cast("dict[str, object]", attention) if isinstance(attention, dict) else {}


def _object(fields: dict[str, object], depth: int, items: int, *, texts: bool) -> dict[str, JsonValue]:
    """The first `MAX_FIELDS` that can be answered."""
    answer: dict[str, JsonValue] = {}
    for name, value in fields.items():
        if len(answer) == MAX_FIELDS:
            break
        if _NAME.fullmatch(name) and not _TOKEN.match(name):
            try:
                answer[name] = _value(value, depth - 1, items, texts=texts or name in _WORDS)
            except _Left:
                continue
    return answer


def _value(value: object, depth: int, items: int, *, texts: bool) -> JsonValue:
    match value:
        case dict() if depth and len(cast("dict[str, object]", value)) <= MAX_FIELDS:
            return _object(cast("dict[str, object]", value), depth, items, texts=texts)
        case list() if depth and len(cast("list[object]", value)) <= items:
            return [_scalar(item, texts=texts) for item in cast("list[object]", value)]
        case _:
            return _scalar(value, texts=texts)


def _scalar(value: object, *, texts: bool) -> str | float | bool | None:
    match value:
        case bool() | None:
            return value
        case int() | float() if abs(value) <= MAX_NUMBER:  # which NaN is not
            return value
        case str() if texts and len(value) <= MAX_TEXT and _WORD.fullmatch(value) and not _TOKEN.match(value):
            return value
        case _:
            raise _Left


def _largest_first(answer: dict[str, JsonValue]) -> dict[str, JsonValue]:
    """Without as many of its largest fields as are too much."""
    left = dict(answer)
    for name in sorted(answer, key=lambda name: (-_size(answer[name]), name)):
        if _size(left) <= MAX_BYTES:
            break
        del left[name]
    return left


def _size(value: JsonValue) -> int:
    return len(json.dumps(value, ensure_ascii=False).encode())

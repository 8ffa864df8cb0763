"""What the files of a safetensors directory say: the header of each `*.safetensors`, the index of the shards, config.json.

Source: https://huggingface.co/docs/safetensors, "Format"; where that is silent, the reference reader's `validate`
(https://github.com/huggingface/safetensors/blob/main/safetensors/src/tensor.rs).

As with GGUF, a number in a file is a claim, and whatever can't be true raises `InvalidSafetensors`.
"""

import json
import re
from collections import ChainMap
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import BinaryIO, Final, cast

from schemas.models import Category

MAX_HEADER_BYTES: Final = 100_000_000
"""The format's own limit."""
MAX_CONFIG_BYTES: Final = 10_000_000
MAX_INDEX_BYTES: Final = 100_000_000
MAX_TENSORS: Final = 250_000
"""In one file. Without it, 100 MB of `{}` would become gigabytes of objects."""
_MAX_CHARACTERS: Final = {b"{": MAX_TENSORS, b"[": 4 * MAX_TENSORS, b",": 16 * MAX_TENSORS}
"""A tensor has one object, two arrays and some commas; its name may have more of each."""
MAX_SHARDS: Final = 10_000
MAX_FILE_BYTES: Final = 2**60
MAX_COUNT: Final = 2**53

INDEX_NAME: Final = "model.safetensors.index.json"
CONFIG_NAME: Final = "config.json"
EMBEDS_NAME: Final = "modules.json"
"""Of the sentence-transformers library: the model beside it is used for its embeddings, whatever its own kind."""
PIPELINE_NAME: Final = "model_index.json"
"""Of the diffusers library: a pipeline, each part of which has a directory of its own."""
PART_INDEX_NAMES: Final = ("diffusion_pytorch_model.safetensors.index.json", INDEX_NAME)
ADAPTER_CONFIG_NAME: Final = "adapter_config.json"
ADAPTER_NAME: Final = "adapter_model.safetensors"
MAX_PARTS: Final = 64

_LENGTH_BYTES: Final = 8
_DTYPE_BITS: Final[Mapping[str, int]] = {
    "BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "U32": 32, "I32": 32, "U64": 64, "I64": 64,
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "F16": 16, "BF16": 16, "F32": 32, "F64": 64, "C64": 64,
}  # fmt: skip
_SHARD: Final = re.compile(r"(.+)-[0-9]{5}-of-([0-9]{5})\.safetensors", re.DOTALL)

_GENERATES: Final = ("ForCausalLM", "LMHeadModel")
_EMBEDS: Final = ("BertModel", "RobertaModel", "MPNetModel", "DebertaModel", "GteModel")
"""Endings of `architectures`: an encoder without a head is used for its embeddings."""


class InvalidSafetensors(Exception):
    """A header, an index or a config.json that isn't one, or can't be true."""

    def __init__(self, problem: str) -> None:
        super().__init__(problem)
        self.problem = problem


@dataclass(frozen=True, slots=True)
class SafetensorsHeader:
    tensor_count: int
    required_bytes: int
    """Exact: the format allows neither holes between the tensors nor anything behind them."""


@dataclass(frozen=True, slots=True)
class ModelConfig:
    architecture: str | None
    context_length: int | None
    layers: int | None
    kv_heads: int | None
    """The largest of all layers, where they differ."""
    head_size: int | None

    @property
    def category(self) -> Category:
        if self.architecture is None:
            return "unknown"
        if self.architecture.endswith(_GENERATES):
            return "llm"
        return "embedding" if self.architecture.endswith(_EMBEDS) else "unknown"


def read_safetensors_header(file: BinaryIO) -> SafetensorsHeader:
    """`file` stands at its beginning and is left somewhere in or behind the header. Raises `InvalidSafetensors`."""
    prefix = file.read(_LENGTH_BYTES)
    if len(prefix) < _LENGTH_BYTES:
        raise InvalidSafetensors(f"it ends inside its header, after {len(prefix)} bytes")
    length = int.from_bytes(prefix, "little")
    if length > MAX_HEADER_BYTES:
        raise InvalidSafetensors(f"it claims a header of {length} bytes")
    header = file.read(length)
    if len(header) < length:
        raise InvalidSafetensors(f"it ends inside its header, after {_LENGTH_BYTES + len(header)} bytes")
    if not header.startswith(b"{"):
        raise InvalidSafetensors("its header is not a JSON object")
    if any(header.count(character) > limit for character, limit in _MAX_CHARACTERS.items()):
        raise InvalidSafetensors(f"it claims more than {MAX_TENSORS} tensors")
    tensors = read_object(header, "its header")
    tensors.pop("__metadata__", None)
    extents = sorted(_extent(name, tensor) for name, tensor in tensors.items())
    end = 0
    for begin, following in extents:
        if begin != end:
            raise InvalidSafetensors(f"its tensors overlap or leave a hole at byte {end} of the data")
        end = following
    return SafetensorsHeader(tensor_count=len(extents), required_bytes=_LENGTH_BYTES + length + end)


def read_index(document: bytes) -> tuple[str, ...]:
    """Names of the files that make up the model, from `model.safetensors.index.json`. Raises `InvalidSafetensors`."""
    weight_map = read_object(document, "it").get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise InvalidSafetensors("it has no weight_map")
    names: set[str] = set()
    for name in cast("dict[str, object]", weight_map).values():
        if not isinstance(name, str) or not _is_plain(name):
            raise InvalidSafetensors("its weight_map names something that is not a file beside it")
        names.add(name)
    if len(names) > MAX_SHARDS:
        raise InvalidSafetensors(f"its weight_map names {len(names)} files")
    return tuple(sorted(names))


def shard_names(present: Collection[str]) -> tuple[str, ...]:
    """Without an index: the files that are there, and the shards that must be because one of their number is.

    Raises `InvalidSafetensors` for a number of shards that can't be.
    """
    names = set(present)
    for match in filter(None, map(_SHARD.fullmatch, present)):
        names.update(f"{match[1]}-{shard:05}-of-{match[2]}.safetensors" for shard in range(1, int(match[2]) + 1))
        if len(names) > MAX_SHARDS:
            raise InvalidSafetensors(f"{_short(match[0])} claims to be one of {match[2]} shards")
    return tuple(sorted(names))


def plain_weights(present: Collection[str]) -> tuple[str, ...]:
    """Of a pipeline's part, the files that are loaded when no variant (`….fp16.safetensors`) is asked for; if there are
    only variants, all of them.
    """
    plain = tuple(sorted(name for name in present if "." not in name.removesuffix(".safetensors")))
    return plain or tuple(sorted(present))


def read_pipeline(document: bytes) -> tuple[str, tuple[str, ...]]:
    """The class of a pipeline and the names of its parts, from `model_index.json`. Raises `InvalidSafetensors`."""
    index = read_object(document, "it")
    name = index.get("_class_name")
    if not isinstance(name, str) or not _is_plain(name):
        raise InvalidSafetensors("_class_name is not a name")
    parts: list[str] = []
    for part, what in index.items():
        match what:
            case [str(), str()] if _is_plain(part):
                parts.append(part)
            case [str(), str()]:
                raise InvalidSafetensors(f"its part {_short(part)} is not a directory beside it")
            case _:
                continue  # an option, or a part that was left out
    if len(parts) > MAX_PARTS:
        raise InvalidSafetensors(f"it names {len(parts)} parts")
    return name, tuple(sorted(parts))


def check_adapter(document: bytes) -> None:
    """Raises `InvalidSafetensors` when this adapter_config.json is not that of a LoRA adapter."""
    kind = read_object(document, "it").get("peft_type")
    if kind not in (None, "LORA"):
        raise InvalidSafetensors(f"it is a {_short(str(kind))} adapter, not LoRA")


def read_config(document: bytes) -> ModelConfig:
    """Numbers that a config doesn't tell are None. Raises `InvalidSafetensors` for those that can't be true."""
    config = read_object(document, "it")
    text_config = config.get("text_config")  # a model that also sees or hears keeps its language part's numbers there
    numbers = ChainMap(config, cast("dict[str, object]", text_config) if isinstance(text_config, dict) else {})
    match config.get("architectures"):
        case None | []:
            architecture = None
        case [str(architecture), *_] if _is_plain(architecture):
            pass
        case _:
            raise InvalidSafetensors("architectures is not a list of names")
    heads, hidden_size = _count(numbers, "num_attention_heads"), _count(numbers, "hidden_size")
    kv_heads, head_size = _count(numbers, "num_key_value_heads"), _count(numbers, "head_dim")
    if head_size is None and heads and hidden_size is not None:
        head_size = hidden_size // heads
    return ModelConfig(
        architecture=architecture,
        context_length=_count(numbers, "max_position_embeddings"),
        layers=_count(numbers, "num_hidden_layers"),
        kv_heads=heads if kv_heads is None else kv_heads,
        head_size=head_size,
    )


def needs_remote_code(document: bytes) -> bool:
    """Whether this config.json names Python files of its repository that an engine would have to run (`auto_map`).

    What is no JSON object names none. What is too large to be looked at may name some.
    """
    if len(document) > MAX_CONFIG_BYTES:
        return True
    try:
        return bool(read_object(document, "it").get("auto_map"))
    except InvalidSafetensors:
        return False


def read_object(document: bytes, what: str) -> dict[str, object]:
    """`what` the problem calls the document by. Raises `InvalidSafetensors`."""
    try:
        parsed: object = json.loads(document.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise InvalidSafetensors(f"{what} is not JSON") from error
    if not isinstance(parsed, dict):
        raise InvalidSafetensors(f"{what} is not a JSON object")
    return cast("dict[str, object]", parsed)


def _extent(name: str, tensor: object) -> tuple[int, int]:
    match tensor:
        case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [int(begin), int(end)]}:
            pass
        case _:
            raise InvalidSafetensors(f"the tensor {_short(name)} lacks its dtype, shape or offsets")
    if not 0 <= begin <= end <= MAX_FILE_BYTES:
        raise InvalidSafetensors(f"the tensor {_short(name)} claims the bytes {begin} to {end}")
    bits = _DTYPE_BITS.get(dtype)
    for dimension in shape:
        if not isinstance(dimension, int) or not 0 <= dimension <= MAX_FILE_BYTES:
            raise InvalidSafetensors(f"the tensor {_short(name)} has an impossible shape")
        bits = None if bits is None else min(bits * dimension, 64 * MAX_FILE_BYTES)
    if bits is not None and bits != 8 * (end - begin):
        raise InvalidSafetensors(f"the tensor {_short(name)} has another size than its dtype and shape say")
    return begin, end


def _count(numbers: Mapping[str, object], key: str) -> int | None:
    value = numbers.get(key)
    if value is None:
        return None
    values = cast("list[object]", value) if isinstance(value, list) else [value]
    largest = 0
    for number in values:
        if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number <= MAX_COUNT:
            raise InvalidSafetensors(f"{key} is not a count")
        largest = max(largest, number)
    return largest


def _is_plain(name: str) -> bool:
    return 0 < len(name) <= 255 and name.isprintable() and "/" not in name and name not in {".", ".."}


def _short(name: str) -> str:
    return ascii(name if len(name) <= 80 else f"{name[:80]}…")

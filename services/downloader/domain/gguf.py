"""The header of a GGUF file, version 2 or 3, little endian: what the model is, and how many bytes its file must have.

Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md; where that is silent, llama.cpp's own reader
(https://github.com/ggml-org/llama.cpp/blob/master/ggml/src/gguf.cpp).

A number in the file is a claim. Nothing is allocated, repeated or skipped on the word of one: at most
`MAX_HEADER_BYTES` are read, and whatever can't be true raises `InvalidGguf`.
"""

import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import BinaryIO, Final

from schemas.models import Category

MAGIC: Final = b"GGUF"
VERSIONS: Final = (2, 3)
DEFAULT_ALIGNMENT: Final = 32

MAX_HEADER_BYTES: Final = 64 * 2**20
"""Vocabularies of 256k tokens with their merges take about 15 MiB."""
MAX_ELEMENTS: Final = 2_000_000
"""Strings and arrays in arrays, in the whole file: each costs us a step. The largest vocabularies have half as many."""
MAX_METADATA_KEYS: Final = 10_000
MAX_KEY_BYTES: Final = 2**16 - 1
"""The specification's own limit."""
MAX_TENSORS: Final = 100_000
MAX_TENSOR_NAME_BYTES: Final = 256
"""The specification says 64; there are writers that don't keep to it."""
MAX_DIMENSIONS: Final = 4
MAX_SHARDS: Final = 10_000
MAX_ALIGNMENT: Final = 2**20
MAX_ARRAY_DEPTH: Final = 4
MAX_FILE_BYTES: Final = 2**60
MAX_COUNT: Final = 2**53
_MAX_KEPT_STRING_BYTES: Final = 256
_MAX_KEPT_ARRAY_LENGTH: Final = 4096
"""Longer values (vocabularies, chat templates) are read over; an array of one number per block is short."""

BLOCKS: Final[Mapping[int, tuple[int, int]]] = {
    0: (1, 4),  # F32
    1: (1, 2),  # F16
    2: (32, 18),  # Q4_0
    3: (32, 20),  # Q4_1
    6: (32, 22),  # Q5_0
    7: (32, 24),  # Q5_1
    8: (32, 34),  # Q8_0
    9: (32, 36),  # Q8_1
    10: (256, 84),  # Q2_K
    11: (256, 110),  # Q3_K
    12: (256, 144),  # Q4_K
    13: (256, 176),  # Q5_K
    14: (256, 210),  # Q6_K
    15: (256, 292),  # Q8_K
    16: (256, 66),  # IQ2_XXS
    17: (256, 74),  # IQ2_XS
    18: (256, 98),  # IQ3_XXS
    19: (256, 50),  # IQ1_S
    20: (32, 18),  # IQ4_NL
    21: (256, 110),  # IQ3_S
    22: (256, 82),  # IQ2_S
    23: (256, 136),  # IQ4_XS
    24: (1, 1),  # I8
    25: (1, 2),  # I16
    26: (1, 4),  # I32
    27: (1, 8),  # I64
    28: (1, 8),  # F64
    29: (256, 56),  # IQ1_M
    30: (1, 2),  # BF16
    34: (256, 54),  # TQ1_0
    35: (256, 66),  # TQ2_0
    39: (32, 17),  # MXFP4
    40: (64, 36),  # NVFP4
    41: (128, 18),  # Q1_0
    42: (64, 18),  # Q2_0
}
"""ggml type → elements of a block, bytes of a block. A test compares them with the engine's own."""

_UNSIGNED: Final = {0: 1, 2: 2, 4: 4, 10: 8}
_SIGNED: Final = {1: 1, 3: 2, 5: 4, 11: 8}
_FIXED: Final = {**_UNSIGNED, **_SIGNED, 6: 4, 7: 1, 12: 8}
"""Value type → bytes; the last three are float32, bool and float64, which nobody here asks for."""
_BOOL: Final = 7
_STRING: Final = 8
_ARRAY: Final = 9

_BLOCK: Final = re.compile(r"blk\.[0-9]+\.")
_SHARD: Final = re.compile(r"(.+)-([0-9]{5})-of-([0-9]{5})\.gguf", re.DOTALL)
_ARCHITECTURE: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
_SIDECARS: Final = ("mmproj-", "mtp-")
"""Prefixes of files that are loaded beside a model and are none; from the specification's naming convention."""

_ENCODERS: Final = frozenset({
    "bert", "modern-bert", "nomic-bert", "nomic-bert-moe", "neo-bert", "jina-bert-v2", "jina-bert-v3", "eurobert",
    "gemma-embedding", "llama-embed", "t5encoder",
})  # fmt: skip
_DECODERS: Final = frozenset({
    "llama", "llama4", "deci", "falcon", "falcon-h1", "baichuan", "grok", "gpt2", "gptj", "gptneox", "mpt",
    "starcoder", "starcoder2", "refact", "bloom", "stablelm", "qwen", "qwen2", "qwen2moe", "qwen2vl", "qwen3",
    "qwen3moe", "qwen3next", "qwen3vl", "qwen3vlmoe", "qwen35", "qwen35moe", "phi2", "phi3", "phimoe", "plamo",
    "plamo2", "plamo3", "codeshell", "orion", "internlm2", "minicpm", "minicpm3", "gemma", "gemma2", "gemma3",
    "gemma3n", "gemma4", "rwkv6", "rwkv6qwen2", "rwkv7", "arwkv7", "mamba", "mamba2", "jamba", "xverse",
    "command-r", "cohere2", "dbrx", "olmo", "olmo2", "olmoe", "openelm", "arctic", "deepseek", "deepseek2",
    "deepseek2-ocr", "chatglm", "glm4", "glm4moe", "glm-dsa", "bitnet", "jais", "jais2", "nemotron", "nemotron_h",
    "nemotron_h_moe", "exaone", "exaone4", "exaone-moe", "granite", "granitemoe", "granitehybrid", "chameleon",
    "plm", "bailingmoe", "bailingmoe2", "dots1", "arcee", "afmoe", "ernie4_5", "ernie4_5-moe", "hunyuan-moe",
    "hunyuan-dense", "hunyuan_vl", "smollm3", "gpt-oss", "lfm2", "lfm2moe", "dream", "smallthinker", "llada",
    "llada-moe", "seed_oss", "grovemoe", "apertus", "minimax-m2", "cogvlm", "rnd1", "pangu-embedded", "mistral3",
    "mistral4", "paddleocr", "mimo2", "step35", "maincoder", "kimi-linear",
})  # fmt: skip
"""Values of `general.architecture`; source: MODEL_ARCH_NAMES in llama.cpp's gguf-py/gguf/constants.py."""

_UNCACHED: Final = frozenset(
    {"mamba", "mamba2", "rwkv6", "rwkv6qwen2", "rwkv7", "arwkv7", "dream", "llada", "llada-moe"}
)
"""Besides encoders, those whose layers keep no keys and values; source: `create_memory` in llama.cpp's llama-model.cpp."""
_FULL_EVERY: Final[Mapping[str, int]] = {
    "gemma2": 2, "gemma3": 6, "gemma3n": 5, "cohere2": 4, "gpt-oss": 2, "llama4": 4, "exaone4": 4,
}  # fmt: skip
"""One layer in so many sees everything and the others a window, where the file doesn't say; `set_swa_pattern` there."""
_ATTENTION_EVERY: Final[Mapping[str, int]] = {"qwen3next": 4, "qwen35": 4, "qwen35moe": 4}
"""One layer in so many is not recurrent, where the file doesn't say."""

_POOLED: Final[Mapping[int, Category]] = {1: "embedding", 2: "embedding", 3: "embedding", 4: "reranker"}
"""llama.cpp's `llama_pooling_type`: mean, CLS, last token, rank. 0 is none."""


class InvalidGguf(Exception):
    """The bytes are not a GGUF header, or one that can't be true."""

    def __init__(self, problem: str) -> None:
        super().__init__(problem)
        self.problem = problem


class NotFirst(InvalidGguf):
    """The name of a later shard: the first one stands for the model."""

    def __init__(self, number: int, count: int, first: str) -> None:
        super().__init__(f"it is shard {number} of {count}; give the first, {first}")
        self.first = first


@dataclass(frozen=True, slots=True)
class GgufHeader:
    version: int
    architecture: str | None
    """None in later shards, whose metadata is only their place among the others."""
    context_length: int | None
    block_count: int | None
    head_count_kv: int | None
    """The largest of all blocks, where they differ."""
    head_size: int | None
    """Elements of one key."""
    value_size: int | None
    """Elements of one value; None: as many."""
    head_count: int | None
    embedding_length: int | None
    vocabulary_size: int | None
    """Rows of the token embeddings; None where another shard has them."""
    attention_blocks: int | None
    """Blocks that keep keys and values; None: all."""
    windowed_blocks: int
    """Of those, the ones that look back a `window` of tokens only."""
    window: int | None
    state_bytes: int | None
    """What a sequence keeps in all recurrent blocks; None: there are none."""
    block_bytes: int | None
    """Of the tensors `blk.<n>.*` in this file; None when one has a ggml type of unknown size."""
    is_adapter: bool
    """A LoRA adapter, to be loaded beside a model."""
    pooling_type: int | None
    file_type: int | None
    split_no: int
    """From 0."""
    split_count: int
    """1: not split."""
    tensor_count: int
    required_bytes: int
    """A shorter file is truncated. A longer one is not wrong: writers pad the last tensor."""
    required_bytes_exact: bool
    """False when a tensor has a ggml type of unknown size: then more bytes may be needed than we know."""

    @property
    def category(self) -> Category:
        if self.pooling_type in _POOLED:
            return _POOLED[self.pooling_type]
        if self.architecture in _ENCODERS:
            return "embedding"
        return "llm" if self.architecture in _DECODERS else "unknown"


def read_gguf_header(file: BinaryIO) -> GgufHeader:
    """`file` stands at its beginning and is left somewhere in or behind the header. Raises `InvalidGguf`."""
    cursor = _Cursor(file)
    if cursor.take(len(MAGIC)) != MAGIC:
        raise InvalidGguf("it does not begin with GGUF")
    version = cursor.unsigned(4)
    if version & 0xFFFF == 0:
        raise InvalidGguf("it is big endian")
    if version not in VERSIONS:
        raise InvalidGguf(f"version {version} of the format is not supported")
    tensor_count, key_count = cursor.unsigned(8), cursor.unsigned(8)
    if tensor_count > MAX_TENSORS:
        raise InvalidGguf(f"it claims {tensor_count} tensors")
    if key_count > MAX_METADATA_KEYS:
        raise InvalidGguf(f"it claims {key_count} metadata keys")
    metadata = _Metadata(_read_metadata(cursor, key_count))
    tensors = _read_tensors(cursor, tensor_count)
    architecture = metadata.text("general.architecture")
    if architecture is not None and not _ARCHITECTURE.fullmatch(architecture):
        raise InvalidGguf("general.architecture is not a name")
    heads = metadata.count(f"{architecture}.attention.head_count")
    embedding_length = metadata.count(f"{architecture}.embedding_length")
    kv_heads = metadata.count(f"{architecture}.attention.head_count_kv")
    key_length = metadata.count(f"{architecture}.attention.key_length")
    if key_length is None and heads and embedding_length is not None:
        key_length = embedding_length // heads
    block_count = metadata.count(f"{architecture}.block_count")
    window = metadata.count(f"{architecture}.attention.sliding_window") or None
    attention_blocks = _attention_blocks(architecture, block_count, metadata)
    blocks = [tensor for tensor in tensors if _BLOCK.match(tensor.name)]
    return GgufHeader(
        version=version,
        architecture=architecture,
        context_length=metadata.count(f"{architecture}.context_length"),
        block_count=block_count,
        head_count_kv=heads if kv_heads is None else kv_heads,
        head_size=key_length,
        value_size=metadata.count(f"{architecture}.attention.value_length"),
        head_count=heads,
        embedding_length=embedding_length,
        vocabulary_size=next((tensor.rows for tensor in tensors if tensor.name == "token_embd.weight"), None),
        attention_blocks=attention_blocks,
        windowed_blocks=_windowed_blocks(architecture, block_count, metadata) if window else 0,
        window=window,
        state_bytes=_state_bytes(architecture, block_count, attention_blocks, metadata),
        block_bytes=sum(tensor.size_bytes for tensor in blocks)
        if all(tensor.ggml_type in BLOCKS for tensor in blocks)
        else None,
        is_adapter=metadata.values.get("general.type") == "adapter",
        pooling_type=metadata.count(f"{architecture}.pooling_type"),
        file_type=metadata.count("general.file_type"),
        split_no=metadata.count("split.no") or 0,
        split_count=metadata.count("split.count") or 1,  # llama-gguf-split --merge leaves a 0
        tensor_count=tensor_count,
        required_bytes=_required_bytes(cursor.position, metadata.count("general.alignment"), tensors),
        required_bytes_exact=all(tensor.ggml_type in BLOCKS for tensor in tensors),
    )


def _attention_blocks(architecture: str | None, block_count: int | None, metadata: "_Metadata") -> int | None:
    if architecture in _ENCODERS or architecture in _UNCACHED:
        return 0
    per_block = metadata.values.get(f"{architecture}.attention.head_count_kv")
    if isinstance(per_block, tuple) and block_count and len(per_block) == block_count:
        return sum(1 for heads in per_block if heads)
    every = metadata.count(f"{architecture}.full_attention_interval") or _ATTENTION_EVERY.get(architecture or "")
    return block_count // every if every and block_count else None


def _windowed_blocks(architecture: str | None, block_count: int | None, metadata: "_Metadata") -> int:
    """The pattern is one truth for each block, or a period whose last block sees everything."""
    pattern = metadata.values.get(f"{architecture}.attention.sliding_window_pattern")
    if isinstance(pattern, tuple):
        return sum(1 for windowed in pattern if windowed)
    every = pattern if isinstance(pattern, int) and pattern > 0 else _FULL_EVERY.get(architecture or "")
    return block_count - block_count // every if every and block_count else 0


def _state_bytes(
    architecture: str | None, block_count: int | None, attention_blocks: int | None, metadata: "_Metadata"
) -> int | None:
    """Last inputs of the convolution, and the state, in float32; `n_embd_r` and `n_embd_s` in llama.cpp's llama-hparams.cpp.

    Where attention is not told apart, every block has both (Falcon-H1).
    """
    names = ("conv_kernel", "inner_size", "state_size", "group_count")
    kernel, inner, state, groups = (metadata.count(f"{architecture}.ssm.{name}") or 0 for name in names)
    if not inner or not state or not block_count:
        return None
    elements = max(kernel - 1, 0) * (inner + 2 * groups * state) + state * inner
    size = (block_count - (attention_blocks or 0)) * elements * 4
    return size if size <= MAX_FILE_BYTES else None


def is_sidecar(file_name: str) -> bool:
    return file_name.startswith(_SIDECARS)


def first_shard(file_name: str) -> str:
    """The name of the file that stands for the whole model; of a file that is no shard, its own."""
    match = _SHARD.fullmatch(file_name)
    return f"{match[1]}-00001-of-{match[3]}.gguf" if match else file_name


def shard_names(file_name: str) -> tuple[str, ...]:
    """All files of the model that begins with this one. Raises `InvalidGguf` for the name of a later shard."""
    match = _SHARD.fullmatch(file_name)
    if match is None:
        return (file_name,)
    prefix, number, count = match[1], int(match[2]), int(match[3])
    if not 1 <= number <= count <= MAX_SHARDS:
        raise InvalidGguf(f"there is no shard {number} of {count}")
    if number > 1:
        raise NotFirst(number, count, first_shard(file_name))
    return tuple(f"{prefix}-{shard:05}-of-{count:05}.gguf" for shard in range(1, count + 1))


def check_shard(header: GgufHeader, number: int, count: int) -> None:
    """`number` (from 1) and `count` are what the name says. Raises `InvalidGguf` when the header says otherwise."""
    if (header.split_no + 1, header.split_count) != (number, count):
        raise InvalidGguf(
            f"its header says shard {header.split_no + 1} of {header.split_count}, its name {number} of {count}"
        )
    if number == 1 and header.architecture is None:
        raise InvalidGguf("it names no architecture")


_BLOCK_BYTES: Final = 2**18
_LENGTH: Final = struct.Struct("<Q").unpack_from


class _Cursor:
    """Reads forward, never beyond `MAX_HEADER_BYTES` and never more than `MAX_ELEMENTS`.

    A header holds some hundred thousand strings: the file is read in blocks, and what is skipped is not copied.
    """

    __slots__ = ("_at", "_block", "_elements_left", "_file", "_position")

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._elements_left = MAX_ELEMENTS
        self._block = b""
        self._at = 0
        self._position = 0
        """Where the block begins."""

    @property
    def position(self) -> int:
        return self._position + self._at

    def take(self, size: int) -> bytes:
        end = self._at + size
        if end > len(self._block):
            self._fill(size)
            end = size
        taken = self._block[self._at : end]
        self._at = end
        return taken

    def skip_strings(self, count: int) -> None:
        """Each is its length in eight bytes, and so many bytes."""
        block, at = self._block, self._at
        for _ in range(count):
            end = at + 8
            if end <= len(block):
                end += _LENGTH(block, at)[0]
            if end > len(block):
                self._at = at
                self.take(self.unsigned(8))
                block, end = self._block, self._at
            at = end
        self._at = at

    def _fill(self, size: int) -> None:
        """Make a block of what is left, `size` bytes at least."""
        if size > MAX_HEADER_BYTES - self.position:
            raise InvalidGguf(f"its header claims to be larger than {MAX_HEADER_BYTES} bytes")
        left = self._block[self._at :]
        self._position += self._at
        most = MAX_HEADER_BYTES - self._position - len(left)
        self._block, self._at = left + self._file.read(min(max(size - len(left), _BLOCK_BYTES), most)), 0
        if len(self._block) < size:
            raise InvalidGguf(f"it ends inside its header, after {self._position + len(self._block)} bytes")

    def unsigned(self, size: int) -> int:
        return int.from_bytes(self.take(size), "little")

    def spend(self, elements: int) -> None:
        self._elements_left -= elements
        if self._elements_left < 0:
            raise InvalidGguf(f"its metadata claim more than {MAX_ELEMENTS} strings")

    def name(self, what: str, limit: int) -> str:
        length = self.unsigned(8)
        if length > limit:
            raise InvalidGguf(f"{what} has {length} bytes")
        return self.take(length).decode("utf-8", "backslashreplace")


_Value = int | str | tuple[int, ...] | None
"""None: a value that was read over."""


def _read_metadata(cursor: _Cursor, key_count: int) -> dict[str, _Value]:
    metadata: dict[str, _Value] = {}
    for _ in range(key_count):
        key = cursor.name("the name of a metadata key", MAX_KEY_BYTES)
        if key in metadata:
            raise InvalidGguf(f"the metadata key {_short(key)} is there twice")
        metadata[key] = _read_value(cursor, cursor.unsigned(4), MAX_ARRAY_DEPTH)
    return metadata


def _read_value(cursor: _Cursor, value_type: int, depth: int) -> _Value:
    if value_type in _FIXED:
        return _integer(cursor.take(_FIXED[value_type]), value_type)
    if value_type == _STRING:
        text = cursor.take(cursor.unsigned(8))
        return text.decode("utf-8", "backslashreplace") if len(text) <= _MAX_KEPT_STRING_BYTES else None
    if value_type != _ARRAY:
        raise InvalidGguf(f"a metadata value has the unknown type {value_type}")
    if depth == 0:
        raise InvalidGguf(f"metadata arrays are nested more than {MAX_ARRAY_DEPTH} deep")
    return _read_array(cursor, cursor.unsigned(4), cursor.unsigned(8), depth)


def _read_array(cursor: _Cursor, element_type: int, length: int, depth: int) -> tuple[int, ...] | None:
    if element_type not in _FIXED:
        cursor.spend(length)
        if element_type == _STRING:
            cursor.skip_strings(length)
            return None
        for _ in range(length):
            _read_value(cursor, element_type, depth - 1)
        return None
    size = _FIXED[element_type]
    elements = cursor.take(length * size)
    if element_type == _BOOL and length <= _MAX_KEPT_ARRAY_LENGTH:
        return tuple(elements)
    if length > _MAX_KEPT_ARRAY_LENGTH:
        return None
    parts = (_integer(elements[at : at + size], element_type) for at in range(0, len(elements), size))
    return tuple(part for part in parts if part is not None)


def _integer(raw: bytes, value_type: int) -> int | None:
    if value_type in _UNSIGNED or value_type in _SIGNED:
        return int.from_bytes(raw, "little", signed=value_type in _SIGNED)
    return None


@dataclass(frozen=True, slots=True)
class _Metadata:
    values: Mapping[str, _Value]

    def text(self, key: str) -> str | None:
        if key not in self.values:
            return None
        value = self.values[key]
        if not isinstance(value, str):
            raise InvalidGguf(f"{key} is not a short string")
        return value

    def count(self, key: str) -> int | None:
        """Of an array with one number per block, the largest."""
        if key not in self.values:
            return None
        value = self.values[key]
        largest = max(value, default=0) if isinstance(value, tuple) else value
        if not isinstance(largest, int) or not 0 <= largest <= MAX_COUNT:
            raise InvalidGguf(f"{_short(key)} is not a count")
        return largest


@dataclass(frozen=True, slots=True)
class _Tensor:
    name: str
    rows: int | None
    """None: it has one dimension."""
    ggml_type: int
    offset: int
    """From the beginning of the tensor data, as in the file."""
    size_bytes: int
    """0 for a ggml type of unknown size."""


def _read_tensors(cursor: _Cursor, tensor_count: int) -> list[_Tensor]:
    names: set[str] = set()
    tensors: list[_Tensor] = []
    for _ in range(tensor_count):
        name = cursor.name("the name of a tensor", MAX_TENSOR_NAME_BYTES)
        if name in names:
            raise InvalidGguf(f"the tensor {_short(name)} is there twice")
        names.add(name)
        dimension_count = cursor.unsigned(4)
        if dimension_count > MAX_DIMENSIONS:
            raise InvalidGguf(f"the tensor {_short(name)} claims {dimension_count} dimensions")
        dimensions = [cursor.unsigned(8) for _ in range(dimension_count)]
        ggml_type = cursor.unsigned(4)
        size_bytes = _size_bytes(name, dimensions, ggml_type)
        rows = dimensions[1] if dimension_count > 1 else None
        offset = cursor.unsigned(8)
        tensors.append(_Tensor(name=name, rows=rows, ggml_type=ggml_type, offset=offset, size_bytes=size_bytes))
    return tensors


def _size_bytes(name: str, dimensions: list[int], ggml_type: int) -> int:
    elements = 1
    for dimension in dimensions:
        elements *= dimension
    block_elements, block_bytes = BLOCKS.get(ggml_type, (1, 0))
    if (dimensions[0] if dimensions else 1) % block_elements:
        raise InvalidGguf(f"a row of the tensor {_short(name)} is not a whole number of blocks")
    size_bytes = elements // block_elements * block_bytes
    if max(elements, size_bytes) > MAX_FILE_BYTES:
        raise InvalidGguf(f"the tensor {_short(name)} claims {elements} elements")
    return size_bytes


def _required_bytes(header_end: int, alignment: int | None, tensors: list[_Tensor]) -> int:
    alignment = DEFAULT_ALIGNMENT if alignment is None else alignment
    if not 1 <= alignment <= MAX_ALIGNMENT:
        raise InvalidGguf(f"the alignment is {alignment}")
    if not tensors:
        return header_end
    in_order = sorted(tensors, key=lambda tensor: (tensor.offset, tensor.size_bytes))
    if any(tensor.offset % alignment for tensor in in_order):
        raise InvalidGguf("a tensor is not aligned")
    if any(left.offset + left.size_bytes > right.offset for left, right in pairwise(in_order)):
        raise InvalidGguf("two tensors overlap")
    last = in_order[-1]
    required = header_end + -header_end % alignment + last.offset + last.size_bytes
    if required > MAX_FILE_BYTES:
        raise InvalidGguf(f"it claims to have {required} bytes")
    return required


def _short(name: str) -> str:
    return repr(name if len(name) <= 80 else f"{name[:80]}…")

"""Model files that a test writes itself, true or lying."""

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

MODELS = Path(__file__).parents[3] / "examples" / "models"
WHOLE = MODELS / "tinychat-f16.gguf"
FIRST_OF_TWO = MODELS / "tinychat-f16-00001-of-00002.gguf"
SECOND_OF_TWO = MODELS / "tinychat-f16-00002-of-00002.gguf"
TINYCHAT = MODELS / "tinychat"

U32, F32, BOOL, STRING, ARRAY, U64 = 4, 6, 7, 8, 9, 10
F16 = 1


@dataclass(frozen=True)
class Typed:
    """A metadata value as it lies in the file."""

    type: int
    raw: bytes


@dataclass(frozen=True)
class Tensor:
    name: str = "blk.0.attn_q.weight"
    dimensions: tuple[int, ...] = (32, 8)
    type: int = F16
    offset: int = 0


def a_string(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def u32(number: int) -> Typed:
    return Typed(U32, struct.pack("<I", number))


def u64(number: int) -> Typed:
    return Typed(U64, struct.pack("<Q", number))


def text(value: str) -> Typed:
    return Typed(STRING, a_string(value))


def array(*elements: Typed, type: int = U32, length: int | None = None) -> Typed:  # noqa: A002 - the format's word
    count = len(elements) if length is None else length
    return Typed(ARRAY, struct.pack("<IQ", type, count) + b"".join(element.raw for element in elements))


A_LLAMA: Mapping[str, Typed] = {
    "general.architecture": text("llama"),
    "llama.context_length": u32(2048),
    "llama.block_count": u32(3),
    "llama.embedding_length": u32(128),
    "llama.attention.head_count": u32(4),
}


def a_gguf(
    metadata: Mapping[str, Typed] | Sequence[tuple[str, Typed]] = A_LLAMA,
    tensors: Sequence[Tensor] = (Tensor(),),
    *,
    version: int = 3,
    key_count: int | None = None,
    tensor_count: int | None = None,
    alignment: int = 32,
    data_bytes: int = 512,
) -> bytes:
    pairs = list(metadata.items()) if isinstance(metadata, Mapping) else list(metadata)
    header = b"GGUF" + struct.pack(
        "<IQQ",
        version,
        len(tensors) if tensor_count is None else tensor_count,
        len(pairs) if key_count is None else key_count,
    )
    header += b"".join(a_string(key) + struct.pack("<I", value.type) + value.raw for key, value in pairs)
    for tensor in tensors:
        header += a_string(tensor.name) + struct.pack("<I", len(tensor.dimensions))
        header += struct.pack(f"<{len(tensor.dimensions)}Q", *tensor.dimensions)
        header += struct.pack("<IQ", tensor.type, tensor.offset)
    return header + bytes(-len(header) % alignment) + bytes(data_bytes)


def a_shard(number: int, count: int, metadata: Mapping[str, Typed] | None = None) -> bytes:
    place = {"split.no": u32(number - 1), "split.count": u32(count)}
    return a_gguf({**(A_LLAMA if metadata is None else metadata), **place})


def a_tensor(begin: int, end: int, dtype: str = "BF16", shape: Sequence[object] | None = None) -> dict[str, object]:
    return {"dtype": dtype, "shape": [(end - begin) // 2] if shape is None else shape, "data_offsets": [begin, end]}


def a_safetensors(header: object = None, *, data_bytes: int = 64) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header or {"w": a_tensor(0, 64)}).encode()
    return struct.pack("<Q", len(raw)) + raw + bytes(data_bytes)


A_CONFIG: Mapping[str, object] = {
    "architectures": ["LlamaForCausalLM"],
    "max_position_embeddings": 4096,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_size": 128,
}


def write(directory: Path, files: Mapping[str, bytes | object]) -> Path:
    """Anything that is not bytes is written as JSON."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (directory / name).write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return directory

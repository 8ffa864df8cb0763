import ctypes
import io
import struct
from dataclasses import replace
from pathlib import Path

import pytest
import xllamacpp
from hypothesis import example, given, settings
from hypothesis import strategies as st

from services.downloader.domain import gguf
from services.downloader.domain.gguf import (
    BLOCKS,
    GgufHeader,
    InvalidGguf,
    check_shard,
    first_shard,
    is_sidecar,
    read_gguf_header,
    shard_names,
)
from tests.services.downloader.files import (
    A_LLAMA,
    ARRAY,
    BOOL,
    F32,
    FIRST_OF_TWO,
    MODELS,
    SECOND_OF_TWO,
    STRING,
    WHOLE,
    Tensor,
    Typed,
    a_gguf,
    array,
    text,
    u32,
    u64,
)

TINYCHAT_HEADER = GgufHeader(
    version=3,
    architecture="llama",
    context_length=4096,
    block_count=4,
    head_count_kv=2,
    head_size=32,
    value_size=32,
    head_count=4,
    embedding_length=128,
    vocabulary_size=1024,
    attention_blocks=None,
    windowed_blocks=0,
    window=None,
    state_bytes=None,
    block_bytes=4 * (196_608 * 2 + 2 * 128 * 4),  # matrices in f16, two norms in f32
    is_adapter=False,
    pooling_type=None,
    file_type=1,
    split_no=0,
    split_count=1,
    tensor_count=38,
    required_bytes=WHOLE.stat().st_size,
    required_bytes_exact=True,
)


def header_of(content: bytes) -> GgufHeader:
    return read_gguf_header(io.BytesIO(content))


def problem_of(content: bytes) -> str:
    with pytest.raises(InvalidGguf) as caught:
        header_of(content)
    return caught.value.problem


# What a header says


def test_a_header_says_what_the_model_is_and_how_long_its_file_must_be() -> None:
    with WHOLE.open("rb") as file:
        assert read_gguf_header(file) == TINYCHAT_HEADER


@pytest.mark.parametrize("name", ["tinychat-q8_0.gguf", FIRST_OF_TWO.name, SECOND_OF_TWO.name])
def test_a_complete_file_is_exactly_as_long_as_its_header_requires(name: str) -> None:
    path = MODELS / name
    with path.open("rb") as file:
        assert read_gguf_header(file).required_bytes == path.stat().st_size


def test_the_first_shard_says_what_the_model_is_and_later_shards_only_their_place() -> None:
    with FIRST_OF_TWO.open("rb") as first, SECOND_OF_TWO.open("rb") as second:
        headers = read_gguf_header(first), read_gguf_header(second)
    assert [(header.architecture, header.block_count, header.split_no, header.split_count) for header in headers] == [
        ("llama", 4, 0, 2),
        (None, None, 1, 2),
    ]


def test_version_2_is_read_like_version_3() -> None:
    assert replace(header_of(a_gguf(version=2)), version=3) == header_of(a_gguf())


def test_without_a_key_length_the_head_size_is_the_embedding_length_over_the_heads() -> None:
    assert header_of(a_gguf()).head_size == 32
    assert header_of(a_gguf({**A_LLAMA, "llama.attention.key_length": u32(100)})).head_size == 100


def test_without_kv_heads_every_head_has_its_own() -> None:
    assert header_of(a_gguf()).head_count_kv == 4
    assert header_of(a_gguf({**A_LLAMA, "llama.attention.head_count_kv": u32(1)})).head_count_kv == 1


def test_of_kv_heads_that_differ_between_blocks_the_largest_counts() -> None:
    per_block = array(u32(1), u32(8), u32(0))
    assert header_of(a_gguf({**A_LLAMA, "llama.attention.head_count_kv": per_block})).head_count_kv == 8


def test_keys_may_come_in_any_order() -> None:
    backwards = {key: A_LLAMA[key] for key in reversed(list(A_LLAMA))}
    assert header_of(a_gguf(backwards)) == header_of(a_gguf())


def test_values_of_every_type_are_read_over() -> None:
    numbers = {
        f"x.{type_}": Typed(type_, bytes(size)) for type_, size in zip(range(8), (1, 1, 2, 2, 4, 4, 4, 1), strict=True)
    }
    wide = {f"x.{type_}": Typed(type_, bytes(8)) for type_ in (10, 11, 12)}
    arrays = {
        "x.strings": array(text("a"), text("ü"), type=STRING),
        "x.floats": array(Typed(F32, bytes(4)), type=F32),
        "x.bools": array(Typed(BOOL, b"\1"), type=BOOL),
        "x.empty": array(),
        "x.nested": array(array(u32(1)), array(text("a"), type=STRING), type=ARRAY),
        "x.long": array(*[u32(1)] * 10_000),
        "x.text": text("x" * 10_000),
    }
    header = header_of(a_gguf({**numbers, **wide, **arrays, **A_LLAMA}))
    assert (header.architecture, header.context_length) == ("llama", 2048)


def test_numbers_may_have_any_width() -> None:
    assert header_of(a_gguf({**A_LLAMA, "llama.context_length": u64(70_000)})).context_length == 70_000
    assert header_of(a_gguf({**A_LLAMA, "llama.context_length": Typed(3, b"\x00\x10")})).context_length == 4096


def test_a_merged_file_whose_split_count_was_left_at_0_is_not_split() -> None:
    assert header_of(a_gguf({**A_LLAMA, "split.count": u32(0)})).split_count == 1


def test_of_the_tensors_the_blocks_are_weighed_by_themselves() -> None:
    tensors = [
        Tensor("token_embd.weight", (64, 100)),
        Tensor("blk.0.attn_q.weight", (64, 8), offset=12_800),
        Tensor("blk.12.attn_q.weight", (64, 8), offset=13_824),
        Tensor("output_blk.0.weight", (64, 8), offset=14_848),
    ]
    header = header_of(a_gguf(tensors=tensors))
    assert (header.block_bytes, header.vocabulary_size) == (2 * 64 * 8 * 2, 100)


def test_blocks_of_an_unknown_type_weigh_nobody_knows_what() -> None:
    assert header_of(a_gguf(tensors=[Tensor("blk.0.a", type=999), Tensor("output", offset=512)])).block_bytes is None
    assert header_of(a_gguf(tensors=[Tensor("blk.0.a"), Tensor("output", type=999, offset=512)])).block_bytes == 512


def test_embeddings_of_one_dimension_have_no_vocabulary() -> None:
    assert header_of(a_gguf(tensors=[Tensor("token_embd.weight", (64,))])).vocabulary_size is None


def per_block(kind: str, **keys: Typed) -> dict[str, Typed]:
    named = {f"{kind}.{key.replace('__', '.')}": value for key, value in keys.items()}
    return {"general.architecture": text(kind), f"{kind}.block_count": u32(12), **named}


def bools(*truths: bool) -> Typed:
    return array(*[Typed(BOOL, bytes([truth])) for truth in truths], type=BOOL)


@pytest.mark.parametrize(
    ("metadata", "attention_blocks"),
    [
        (per_block("llama"), None),
        (per_block("granitehybrid", attention__head_count_kv=array(*[u32(0)] * 10, u32(8), u32(8))), 2),
        (per_block("openelm", attention__head_count_kv=array(u32(0), u32(8))), None),
        (per_block("qwen35", full_attention_interval=u32(6)), 2),
        (per_block("qwen3next"), 3),
        (per_block("bert"), 0),
        (per_block("mamba"), 0),
    ],
)
def test_hybrids_and_encoders_keep_keys_and_values_in_few_blocks_or_none(
    metadata: dict[str, Typed], attention_blocks: int | None
) -> None:
    assert header_of(a_gguf(metadata)).attention_blocks == attention_blocks


WINDOW = {"attention__sliding_window": u32(1024)}


@pytest.mark.parametrize(
    ("metadata", "windowed_blocks", "window"),
    [
        (per_block("llama"), 0, None),
        (per_block("gemma3"), 0, None),
        (per_block("gemma3", **WINDOW), 10, 1024),
        (per_block("gemma3", **WINDOW, attention__sliding_window_pattern=u32(4)), 9, 1024),
        (per_block("mimo2", **WINDOW, attention__sliding_window_pattern=bools(*[True, True, False] * 4)), 8, 1024),
        (per_block("gemma2", **WINDOW), 6, 1024),
        (per_block("phi3", **WINDOW), 0, 1024),
        (per_block("gemma3", attention__sliding_window=u32(0)), 0, None),
    ],
)
def test_a_window_is_that_of_some_blocks(metadata: dict[str, Typed], windowed_blocks: int, window: int | None) -> None:
    header = header_of(a_gguf(metadata))
    assert (header.windowed_blocks, header.window) == (windowed_blocks, window)


SSM = {
    "ssm__conv_kernel": u32(4),
    "ssm__inner_size": u32(4096),
    "ssm__state_size": u32(128),
    "ssm__group_count": u32(16),
}
STATE = (3 * (4096 + 2 * 16 * 128) + 128 * 4096) * 4


@pytest.mark.parametrize(
    ("metadata", "state_bytes"),
    [
        (per_block("llama"), None),
        (per_block("qwen3next", **SSM), 9 * STATE),
        (per_block("mamba2", **SSM), 12 * STATE),
        (per_block("falcon-h1", **SSM), 12 * STATE),
        (per_block("rwkv7"), None),
    ],
)
def test_recurrent_blocks_keep_a_state(metadata: dict[str, Typed], state_bytes: int | None) -> None:
    assert header_of(a_gguf(metadata)).state_bytes == state_bytes


def test_a_state_that_cannot_be_is_not_there() -> None:
    huge = {name: u64(2**53) for name in SSM}
    assert header_of(a_gguf(per_block("mamba", **huge))).state_bytes is None


def test_an_adapter_says_that_it_is_one() -> None:
    assert header_of(a_gguf({**A_LLAMA, "general.type": text("adapter")})).is_adapter
    assert not header_of(a_gguf({**A_LLAMA, "general.type": text("model")})).is_adapter


# How long the file must be


def test_the_required_bytes_are_the_aligned_header_and_the_tensor_that_ends_last() -> None:
    tensors = [Tensor("b", offset=512), Tensor("a", (64, 3), 8, offset=1024), Tensor("c")]
    content = a_gguf(tensors=tensors, data_bytes=0)
    assert header_of(content).required_bytes == len(content) + 1024 + 64 // 32 * 34 * 3


def test_the_alignment_is_what_the_file_says() -> None:
    content = a_gguf({**A_LLAMA, "general.alignment": u32(4096)}, alignment=4096)
    assert len(content) == 4096 + 512
    assert header_of(content).required_bytes == 4096 + 512


def test_a_file_without_tensors_is_complete_with_its_header() -> None:
    content = a_gguf(tensors=(), alignment=1, data_bytes=0)
    assert header_of(content).required_bytes == len(content)


def test_a_tensor_of_unknown_type_makes_the_required_bytes_a_lower_bound() -> None:
    content = a_gguf(tensors=[Tensor("a"), Tensor("b", type=999, offset=512)], data_bytes=0)
    header = header_of(content)
    assert (header.required_bytes, header.required_bytes_exact) == (len(content) + 512, False)


def test_tensors_have_the_sizes_that_the_engine_gives_them() -> None:
    engine = ctypes.CDLL(str(next(Path(xllamacpp.__file__).parent.glob("xllamacpp*.so"))))
    engine.ggml_blck_size.restype = ctypes.c_int64
    engine.ggml_type_size.restype = ctypes.c_size_t
    sizes = {type_: (engine.ggml_blck_size(type_), engine.ggml_type_size(type_)) for type_ in range(43)}
    assert {type_: size for type_, size in sizes.items() if size != (0, 0)} == BLOCKS


# What a model is for


@pytest.mark.parametrize(
    ("architecture", "pooling_type", "category"),
    [
        ("llama", None, "llm"),
        ("qwen3", 0, "llm"),
        ("qwen3", 3, "embedding"),
        ("qwen3", 4, "reranker"),
        ("nomic-bert", None, "embedding"),
        ("bert", 2, "embedding"),
        ("bert", 4, "reranker"),
        ("clip", None, "unknown"),
        ("never-heard-of", None, "unknown"),
    ],
)
def test_the_category_follows_the_pooling_and_then_the_architecture(
    architecture: str, pooling_type: int | None, category: str
) -> None:
    metadata = {"general.architecture": text(architecture)}
    if pooling_type is not None:
        metadata[f"{architecture}.pooling_type"] = u32(pooling_type)
    assert header_of(a_gguf(metadata)).category == category


# Names


def test_the_first_shard_names_them_all() -> None:
    assert shard_names("m.Q4-00001-of-00003.gguf") == (
        "m.Q4-00001-of-00003.gguf",
        "m.Q4-00002-of-00003.gguf",
        "m.Q4-00003-of-00003.gguf",
    )
    assert shard_names("m-1-of-3.gguf") == ("m-1-of-3.gguf",)


def test_a_later_shard_is_answered_with_the_name_of_the_first() -> None:
    with pytest.raises(InvalidGguf, match=r"it is shard 2 of 3; give the first, m-00001-of-00003\.gguf"):
        shard_names("m-00002-of-00003.gguf")


@pytest.mark.parametrize("name", ["m-00000-of-00003.gguf", "m-00004-of-00003.gguf", "m-00001-of-99999.gguf"])
def test_a_shard_that_cannot_be_is_refused(name: str) -> None:
    with pytest.raises(InvalidGguf, match="there is no shard"):
        shard_names(name)


def test_every_shard_stands_for_the_first() -> None:
    assert first_shard("m-00002-of-00003.gguf") == "m-00001-of-00003.gguf"
    assert first_shard("m.gguf") == "m.gguf"


def test_projectors_and_draft_heads_are_no_models_of_their_own() -> None:
    assert [is_sidecar(name) for name in ("mmproj-m-f16.gguf", "mtp-m.gguf", "m.gguf")] == [True, True, False]


def test_a_shard_whose_name_and_header_disagree_is_refused() -> None:
    first = header_of(a_gguf({**A_LLAMA, "split.no": u32(0), "split.count": u32(2)}))
    check_shard(first, 1, 2)
    with pytest.raises(InvalidGguf, match="its header says shard 1 of 2, its name 1 of 1"):
        check_shard(first, 1, 1)


def test_a_model_without_an_architecture_is_refused() -> None:
    with pytest.raises(InvalidGguf, match="it names no architecture"):
        check_shard(header_of(a_gguf({})), 1, 1)


# Lies

HUGE = 2**60


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "it ends inside its header, after 0 bytes"),
        (b"GG", "it ends inside its header, after 2 bytes"),
        (b"PK\3\4" + bytes(100), "it does not begin with GGUF"),
        (b"GGUF" + struct.pack(">I", 3) + bytes(100), "it is big endian"),
        (a_gguf(version=1), "version 1 of the format is not supported"),
        (a_gguf(version=4), "version 4 of the format is not supported"),
        (a_gguf(key_count=10**6), "it claims 1000000 metadata keys"),
        (a_gguf(tensor_count=10**6), "it claims 1000000 tensors"),
        (a_gguf([("a", u32(1)), ("a", u32(1))]), "the metadata key 'a' is there twice"),
        (a_gguf([("k" * 99, u32(1)), ("k" * 99, u32(1))]), f"the metadata key '{'k' * 80}…' is there twice"),
        (a_gguf([("k" * 70_000, u32(1))]), "the name of a metadata key has 70000 bytes"),
        (a_gguf({"a": Typed(STRING, struct.pack("<Q", HUGE))}), "its header claims to be larger than 67108864 bytes"),
        (a_gguf({"a": array(length=HUGE)}), "its header claims to be larger than 67108864 bytes"),
        (a_gguf({"a": array(type=STRING, length=HUGE)}), "its metadata claim more than 2000000 strings"),
        (a_gguf({"a": array(type=ARRAY, length=HUGE)}), "its metadata claim more than 2000000 strings"),
        (a_gguf({"a": Typed(13, b"")}), "a metadata value has the unknown type 13"),
        (a_gguf({"a": array(type=77, length=1)}), "a metadata value has the unknown type 77"),
        (a_gguf({**A_LLAMA, "llama.context_length": u64(2**63)}), "'llama.context_length' is not a count"),
        (a_gguf({**A_LLAMA, "llama.context_length": text("long")}), "'llama.context_length' is not a count"),
        (a_gguf({**A_LLAMA, "llama.context_length": Typed(5, b"\xff" * 4)}), "'llama.context_length' is not a count"),
        (a_gguf({**A_LLAMA, "llama.context_length": Typed(F32, bytes(4))}), "'llama.context_length' is not a count"),
        (a_gguf({"general.architecture": u32(1)}), "general.architecture is not a short string"),
        (a_gguf({"general.architecture": text("a" * 300)}), "general.architecture is not a short string"),
        (a_gguf({"general.architecture": text("\0")}), "general.architecture is not a name"),
        (a_gguf({**A_LLAMA, "general.alignment": u32(0)}), "the alignment is 0"),
        (a_gguf({**A_LLAMA, "general.alignment": u32(2**31)}), "the alignment is 2147483648"),
        (a_gguf(tensors=[Tensor("t", (2**63, 2**63))]), f"the tensor 't' claims {2**126} elements"),
        (a_gguf(tensors=[Tensor("t", (1,) * 5)]), "the tensor 't' claims 5 dimensions"),
        (a_gguf(tensors=[Tensor("t" * 300)]), "the name of a tensor has 300 bytes"),
        (a_gguf(tensors=[Tensor("t"), Tensor("t", offset=512)]), "the tensor 't' is there twice"),
        (a_gguf(tensors=[Tensor("t", (33,), 8)]), "a row of the tensor 't' is not a whole number of blocks"),
        (a_gguf(tensors=[Tensor("t", offset=8)]), "a tensor is not aligned"),
        (a_gguf(tensors=[Tensor("t"), Tensor("u", offset=256)]), "two tensors overlap"),
        (
            a_gguf(tensors=[Tensor("t", offset=2**63)]),
            f"it claims to have {len(a_gguf(tensors=[Tensor('t')])) + 2**63} bytes",
        ),
    ],
    ids=lambda value: value[:60] if isinstance(value, str) else "",
)
def test_a_header_that_cannot_be_true_is_refused_with_its_problem(content: bytes, problem: str) -> None:
    assert problem_of(content) == problem


def test_arrays_nested_without_end_are_refused() -> None:
    deep = array(length=0)
    for _ in range(5_000):
        deep = array(deep, type=ARRAY)
    assert problem_of(a_gguf({"a": deep})) == "metadata arrays are nested more than 4 deep"


def test_no_more_than_the_limit_is_ever_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf, "MAX_HEADER_BYTES", 1000)
    file = io.BytesIO(a_gguf({"a": array(*[text("x")] * 1000, type=STRING)}))
    with pytest.raises(InvalidGguf, match="its header claims to be larger than 1000 bytes"):
        read_gguf_header(file)
    assert file.tell() <= 1000


# Whatever the bytes are

REAL = WHOLE.read_bytes()
REAL_HEADER_BYTES = REAL.index(b"output_norm.weight") + 64
"""Up to one of the last tensor infos."""


def outcome(content: bytes) -> GgufHeader | str:
    try:
        return header_of(content)
    except InvalidGguf as invalid:
        return invalid.problem


def accepted(content: bytes) -> bool:
    header = outcome(content)
    return isinstance(header, GgufHeader) and header.required_bytes <= len(content)


@settings(max_examples=400, deadline=None)
@given(st.integers(0, len(REAL) - 1) | st.integers(0, REAL_HEADER_BYTES + 4096))
@example(len(REAL) - 1)
@example(REAL_HEADER_BYTES)
def test_a_truncated_file_is_never_accepted(length: int) -> None:
    assert not accepted(REAL[:length])


def test_a_small_file_is_accepted_whole_and_at_no_shorter_length() -> None:
    content = a_gguf()
    assert [length for length in range(len(content) + 1) if accepted(content[:length])] == [len(content)]


SEEDS = (
    a_gguf(),
    a_gguf(
        {"a": array(array(text("b"), type=STRING), type=ARRAY), **A_LLAMA, "general.alignment": u32(64)}, alignment=64
    ),
    FIRST_OF_TWO.read_bytes()[: 2**16],
)


@settings(max_examples=600, deadline=None)
@given(
    st.sampled_from(SEEDS),
    st.lists(
        st.tuples(
            st.integers(0, 2000) | st.integers(0, 2**16), st.integers(0, 255) | st.binary(min_size=4, max_size=8)
        ),
        min_size=1,
        max_size=5,
    ),
)
def test_whatever_bytes_are_changed_the_header_is_read_or_refused(
    seed: bytes, changes: list[tuple[int, int | bytes]]
) -> None:
    content = bytearray(seed)
    for position, change in changes:
        at = position % len(content)
        patch = bytes([change]) if isinstance(change, int) else change
        content[at : at + len(patch)] = patch
    header = outcome(bytes(content))
    if isinstance(header, GgufHeader):
        assert 0 < header.required_bytes <= gguf.MAX_FILE_BYTES
    else:
        assert 0 < len(header) < 500


@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=400), st.integers(0, 3), st.integers(0, 3))
def test_any_bytes_behind_the_counts_are_read_or_refused(tail: bytes, tensor_count: int, key_count: int) -> None:
    accepted(b"GGUF" + struct.pack("<IQQ", 3, tensor_count, key_count) + tail)

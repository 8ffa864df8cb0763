import io
import json
import struct
from collections.abc import Callable
from typing import TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.downloader.domain import safetensors
from services.downloader.domain.safetensors import (
    InvalidSafetensors,
    ModelConfig,
    SafetensorsHeader,
    needs_remote_code,
    read_config,
    read_index,
    read_safetensors_header,
    shard_names,
)
from tests.services.downloader.files import A_CONFIG, TINYCHAT, a_safetensors, a_tensor

T = TypeVar("T")


def header_of(content: bytes) -> SafetensorsHeader:
    return read_safetensors_header(io.BytesIO(content))


def outcome(read: Callable[[bytes], T], content: bytes) -> T | str:
    try:
        return read(content)
    except InvalidSafetensors as invalid:
        return invalid.problem


# The header


def test_a_header_says_exactly_how_long_its_file_must_be() -> None:
    path = TINYCHAT / "model.safetensors"
    with path.open("rb") as file:
        assert read_safetensors_header(file) == SafetensorsHeader(tensor_count=38, required_bytes=path.stat().st_size)


def test_tensors_may_be_listed_in_any_order() -> None:
    content = a_safetensors({"b": a_tensor(64, 128), "a": a_tensor(0, 64), "__metadata__": {"format": "pt"}})
    assert header_of(content) == SafetensorsHeader(tensor_count=2, required_bytes=len(content) + 64)


@pytest.mark.parametrize(
    ("dtype", "shape"),
    [("F4", [16, 8]), ("F6_E2M3", [8, 2, 5]), ("F8_E8M0", [64]), ("F32", [16]), ("C64", [8]), ("NEW", [3])],
)
def test_a_tensor_has_the_size_that_its_dtype_and_shape_say(dtype: str, shape: list[int]) -> None:
    end = 60 if dtype == "F6_E2M3" else 64
    content = a_safetensors({"w": a_tensor(0, end, dtype, shape)}, data_bytes=end)
    assert header_of(content).required_bytes == len(content)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "it ends inside its header, after 0 bytes"),
        (a_safetensors()[:20], "it ends inside its header, after 20 bytes"),
        (struct.pack("<Q", 2**60), f"it claims a header of {2**60} bytes"),
        (struct.pack("<Q", 100_000_001) + b"{", "it claims a header of 100000001 bytes"),
        (a_safetensors(b"[]"), "its header is not a JSON object"),
        (a_safetensors(b"   {}"), "its header is not a JSON object"),
        (a_safetensors(b"{"), "its header is not JSON"),
        (a_safetensors(b'{"\xff": 1}'), "its header is not JSON"),
        (a_safetensors(b'{"a":' + b"[" * 100_000), "its header is not JSON"),
        (a_safetensors(b'{"a":' + b"1" * 100_000 + b"}"), "its header is not JSON"),
        (a_safetensors(b"{" * 250_001), "it claims more than 250000 tensors"),
        (a_safetensors(b'{"a":[' + b"[]," * 1_000_001), "it claims more than 250000 tensors"),
        (a_safetensors(b'{"a":[' + b"1," * 4_000_001), "it claims more than 250000 tensors"),
        (a_safetensors({"w": 1}), "the tensor 'w' lacks its dtype, shape or offsets"),
        (a_safetensors({"w": {"dtype": "F32", "shape": [1]}}), "the tensor 'w' lacks its dtype, shape or offsets"),
        (a_safetensors({"w": a_tensor(0, 64, shape=["many"])}), "the tensor 'w' has an impossible shape"),
        (a_safetensors({"w": a_tensor(0, 64, shape=[-32])}), "the tensor 'w' has an impossible shape"),
        (a_safetensors({"w": a_tensor(0, 64, "F32")}), "the tensor 'w' has another size than its dtype and shape say"),
        (
            a_safetensors({"w": a_tensor(0, 64, "F32", [2**60] * 1000)}),
            "the tensor 'w' has another size than its dtype and shape say",
        ),
        (a_safetensors({"w": a_tensor(64, 0)}), "the tensor 'w' claims the bytes 64 to 0"),
        (a_safetensors({"w": a_tensor(0, 2**63)}), f"the tensor 'w' claims the bytes 0 to {2**63}"),
        (a_safetensors({"w": a_tensor(2, 64)}), "its tensors overlap or leave a hole at byte 0 of the data"),
        (
            a_safetensors({"v": a_tensor(0, 64), "w": a_tensor(62, 64)}),
            "its tensors overlap or leave a hole at byte 64 of the data",
        ),
        (a_safetensors({"w" * 1000: 1}), f"the tensor '{'w' * 80}\\u2026' lacks its dtype, shape or offsets"),
    ],
    ids=lambda value: value[:60] if isinstance(value, str) else "",
)
def test_a_header_that_cannot_be_true_is_refused_with_its_problem(content: bytes, problem: str) -> None:
    with pytest.raises(InvalidSafetensors) as caught:
        header_of(content)
    assert caught.value.problem == problem


def test_a_small_file_is_accepted_whole_and_at_no_other_length() -> None:
    content = a_safetensors()

    def fits(length: int) -> bool:
        header = outcome(header_of, content[:length])
        return isinstance(header, SafetensorsHeader) and header.required_bytes == length

    assert [length for length in range(len(content) + 1) if fits(length)] == [len(content)]


REAL = (TINYCHAT / "model.safetensors").read_bytes()[: 2**13]


@settings(max_examples=400, deadline=None)
@given(
    st.sampled_from((REAL, a_safetensors())),
    st.lists(st.tuples(st.integers(0, 2**13), st.binary(min_size=1, max_size=4)), min_size=1, max_size=4),
)
def test_whatever_bytes_are_changed_the_header_is_read_or_refused(
    seed: bytes, changes: list[tuple[int, bytes]]
) -> None:
    content = bytearray(seed)
    for position, patch in changes:
        at = position % len(content)
        content[at : at + len(patch)] = patch
    header = outcome(header_of, bytes(content))
    if isinstance(header, SafetensorsHeader):
        assert 8 < header.required_bytes <= 8 + safetensors.MAX_HEADER_BYTES + safetensors.MAX_FILE_BYTES
    else:
        assert 0 < len(header) < 1000


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4),
    max_leaves=12,
)
FIELDS = st.sampled_from([*A_CONFIG, "text_config", "head_dim", "weight_map", "dtype", "shape", "data_offsets", "w"])


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(FIELDS, json_values | st.dictionaries(FIELDS, json_values, max_size=4), max_size=8))
def test_whatever_the_json_says_it_is_read_or_refused(document: dict[str, object]) -> None:
    raw = json.dumps(document).encode()
    for result in (outcome(read_config, raw), outcome(read_index, raw), outcome(header_of, a_safetensors(raw))):
        assert not isinstance(result, str) or 0 < len(result) < 1000


# config.json


def config_of(**changes: object) -> ModelConfig:
    return read_config(json.dumps({**A_CONFIG, **changes}).encode())


@pytest.mark.parametrize(
    ("document", "needs"),
    [
        (json.dumps({**A_CONFIG, "auto_map": {"AutoConfig": "configuration_x.XConfig"}}).encode(), True),
        (b'{"auto_map": "x.X"}', True),
        (json.dumps(A_CONFIG).encode(), False),
        (b'{"auto_map": {}}', False),
        (b'{"auto_map": null}', False),
        (b'["auto_map"]', False),
        (b"{", False),
        (b"\xff", False),
        (b"[" * 100_000, False),
        (b" " * (safetensors.MAX_CONFIG_BYTES + 1), True),
    ],
)
def test_a_config_that_names_code_of_its_repository_is_known_by_it(document: bytes, *, needs: bool) -> None:
    assert needs_remote_code(document) is needs


def test_a_config_says_what_the_model_is() -> None:
    assert read_config((TINYCHAT / "config.json").read_bytes()) == ModelConfig(
        architecture="LlamaForCausalLM", context_length=4096, layers=4, kv_heads=2, head_size=32
    )


def test_without_a_head_dim_the_head_size_is_the_hidden_size_over_the_heads() -> None:
    assert config_of().head_size == 32
    assert config_of(head_dim=100).head_size == 100


def test_without_kv_heads_every_head_has_its_own() -> None:
    assert config_of(num_key_value_heads=None).kv_heads == 4


def test_of_kv_heads_that_differ_between_layers_the_largest_counts() -> None:
    assert config_of(num_key_value_heads=[1, 3, 2]).kv_heads == 3


def test_a_model_that_also_sees_has_the_numbers_of_its_language_part() -> None:
    document = {"architectures": ["SomeForConditionalGeneration"], "text_config": {**A_CONFIG, "num_hidden_layers": 9}}
    assert read_config(json.dumps(document).encode()).layers == 9


def test_what_a_config_does_not_tell_is_unknown() -> None:
    assert read_config(b"{}") == ModelConfig(
        architecture=None, context_length=None, layers=None, kv_heads=None, head_size=None
    )
    assert config_of(num_attention_heads=0, num_key_value_heads=None).head_size is None


def test_numbers_that_json_has_not_but_configs_do_are_read_over() -> None:
    assert read_config(b'{"time_step_limit": [0.0, Infinity], "num_hidden_layers": 2}').layers == 2


@pytest.mark.parametrize(
    ("architecture", "category"),
    [
        ("LlamaForCausalLM", "llm"),
        ("GPT2LMHeadModel", "llm"),
        ("BertModel", "embedding"),
        ("XLMRobertaModel", "embedding"),
        ("WhisperForConditionalGeneration", "unknown"),
        ("XLMRobertaForSequenceClassification", "unknown"),
        (None, "unknown"),
    ],
)
def test_the_category_follows_the_ending_of_the_architecture(architecture: str | None, category: str) -> None:
    assert config_of(architectures=architecture and [architecture]).category == category


@pytest.mark.parametrize(
    ("document", "problem"),
    [
        (b"", "it is not JSON"),
        (b"\x00\xff", "it is not JSON"),
        (b"[" * 100_000, "it is not JSON"),
        (b"[]", "it is not a JSON object"),
        (b'{"num_hidden_layers": "many"}', "num_hidden_layers is not a count"),
        (b'{"num_hidden_layers": -1}', "num_hidden_layers is not a count"),
        (b'{"num_hidden_layers": true}', "num_hidden_layers is not a count"),
        (b'{"num_hidden_layers": NaN}', "num_hidden_layers is not a count"),
        (b'{"hidden_size": 9007199254740993}', "hidden_size is not a count"),
        (b'{"num_key_value_heads": [1, "x"]}', "num_key_value_heads is not a count"),
        (b'{"architectures": [{}]}', "architectures is not a list of names"),
        (b'{"architectures": "Llama"}', "architectures is not a list of names"),
        (b'{"architectures": ["\\ud800"]}', "architectures is not a list of names"),
    ],
)
def test_a_config_that_cannot_be_true_is_refused_with_its_problem(document: bytes, problem: str) -> None:
    with pytest.raises(InvalidSafetensors) as caught:
        read_config(document)
    assert caught.value.problem == problem


# The index, and names


def test_the_index_names_the_files_of_the_model() -> None:
    index = {"metadata": {}, "weight_map": {"b": "2.safetensors", "a": "1.safetensors", "c": "2.safetensors"}}
    assert read_index(json.dumps(index).encode()) == ("1.safetensors", "2.safetensors")


@pytest.mark.parametrize(
    ("index", "problem"),
    [
        ({}, "it has no weight_map"),
        ({"weight_map": {}}, "it has no weight_map"),
        ({"weight_map": ["a"]}, "it has no weight_map"),
        ({"weight_map": {"a": 1}}, "its weight_map names something that is not a file beside it"),
        ({"weight_map": {"a": "../x"}}, "its weight_map names something that is not a file beside it"),
        ({"weight_map": {"a": "/etc/passwd"}}, "its weight_map names something that is not a file beside it"),
        ({"weight_map": {"a": ".."}}, "its weight_map names something that is not a file beside it"),
        ({"weight_map": {"a": "a\0b"}}, "its weight_map names something that is not a file beside it"),
        ({"weight_map": {"a": "\ud800"}}, "its weight_map names something that is not a file beside it"),
        ({"weight_map": {"a": "a" * 300}}, "its weight_map names something that is not a file beside it"),
        ({"weight_map": {str(n): str(n) for n in range(10_001)}}, "its weight_map names 10001 files"),
    ],
)
def test_an_index_that_cannot_be_true_is_refused_with_its_problem(index: object, problem: str) -> None:
    with pytest.raises(InvalidSafetensors) as caught:
        read_index(json.dumps(index).encode())
    assert caught.value.problem == problem


def test_without_an_index_one_shard_asks_for_the_others() -> None:
    assert shard_names(["m-00002-of-00003.safetensors", "extra.safetensors"]) == (
        "extra.safetensors",
        "m-00001-of-00003.safetensors",
        "m-00002-of-00003.safetensors",
        "m-00003-of-00003.safetensors",
    )


def test_a_number_of_shards_that_cannot_be_is_refused() -> None:
    with pytest.raises(InvalidSafetensors, match="claims to be one of 99999 shards"):
        shard_names(["m-00001-of-99999.safetensors"])

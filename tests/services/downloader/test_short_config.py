import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import JsonValue

from schemas.models import ModelWeights
from services.downloader.domain.safetensors import InvalidSafetensors
from services.downloader.domain.short_config import MAX_BYTES, MAX_DEPTH, short_config
from services.scheduler.domain.memory.architecture import architecture_of
from tests.services.downloader.files import A_CONFIG, TINYCHAT
from tests.services.scheduler.memory.published import PUBLISHED, Published


def answer_to(config: Any) -> dict[str, JsonValue]:
    return short_config(json.dumps(config).encode())


@pytest.mark.parametrize("published", PUBLISHED.values(), ids=PUBLISHED)
def test_of_a_published_config_nothing_that_memory_needs_is_lost(published: Published) -> None:
    weights = ModelWeights(format="safetensors", weight_bytes=1, config=answer_to(published.config))
    assert architecture_of(weights) == published.is_


def test_what_is_long_or_deep_is_left_out() -> None:
    config: dict[str, Any] = {
        "few": list(range(512)),
        "many": list(range(513)),
        "objects": [{"a": 1}],
        "lists": [[1]],
        "labels": {str(number): number for number in range(1000)},
        "labelled": {f"l{number}": number for number in range(257)},
        "1": {"2": 1},
        "one": {"two": {"three": {"four": 4, "list": [], "more": {"five": 5}}}},
    }
    assert answer_to(config) == {
        "few": list(range(512)),
        "one": {"two": {"three": {"four": 4}}},
    }


def test_only_words_are_answered_and_only_where_they_are_expected() -> None:
    config = {
        "architectures": ["LlamaForCausalLM"],
        "auto_map": {"AutoModel": "modeling_x.X", "path": "../of a home"},
        "_name_or_path": "/home/somebody/models/secret",
        "description": "LlamaForCausalLM",
        "hf_token": "hf_abcdefghijklmnopqrstuvwxyz",
        "model_type": "hf_abcdefghijklmnopqrstuvwxyz0123",
        "hf_abcdefghijklmnopqrstuvwxyz0123": 1,
        "layer_types": ["full_attention", "https://user:password@host/"],
        "dtype": "bfloat16",
        "quant_method": "x" * 513,
        "torch_dtype": "\ud800",
        "text_config": {"password": "x", "model_type": "llama"},
        "bos_token_id": 1,
    }
    assert answer_to(config) == {
        "architectures": ["LlamaForCausalLM"],
        "auto_map": {"AutoModel": "modeling_x.X"},
        "dtype": "bfloat16",
        "text_config": {"model_type": "llama"},
        "bos_token_id": 1,
    }


def test_numbers_that_are_none_are_left_out() -> None:
    raw = b'{"a": NaN, "b": Infinity, "c": -Infinity, "d": 1e308, "e": 9007199254740993, "f": -4, "g": 1e-05, "h": [1, NaN]}'
    assert short_config(raw) == {"f": -4, "g": 1e-05}


@pytest.mark.parametrize("document", [b"", b"[]", b"null", b"{", b"\xff", b"[" * 100_000, b'{"a":' * 100_000])
def test_what_is_no_json_object_is_refused(document: bytes) -> None:
    with pytest.raises(InvalidSafetensors):
        short_config(document)


def test_where_too_much_is_left_lists_go_first_and_then_the_largest_fields() -> None:
    layers = ["full_attention"] * 512
    lists = {f"part{number}": {"layer_types": layers} for number in range(8)}
    assert answer_to({**A_CONFIG, **lists}) == {**A_CONFIG, **{name: {} for name in lists}}
    texts = {"hybrid_override_pattern": "M" * 500, "type": "x" * 400}
    wide = {f"field_{number:050}": 123_456_789 for number in range(250)}
    answer = answer_to({**texts, **wide})
    assert "hybrid_override_pattern" not in answer
    assert len(json.dumps(answer)) > MAX_BYTES - 600


def depth_of(value: JsonValue) -> int:
    match value:
        case dict():
            return 1 + max(map(depth_of, value.values()), default=0)
        case list():
            return 1 + max(map(depth_of, value), default=0)
        case _:
            return 0


numbers = st.integers() | st.floats() | st.booleans() | st.none()
values = st.recursive(
    numbers | st.text(max_size=20) | st.sampled_from(["llama", "é" * 500, "a" * 500]),
    lambda inner: (
        st.lists(inner, max_size=6) | st.dictionaries(st.text(max_size=9) | st.just("type"), inner, max_size=6)
    ),
    max_leaves=40,
)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.sampled_from([*A_CONFIG, "text_config", "layer_types"]) | st.text(max_size=9), values))
@example({"x": {"x": {"x": {"x": {"x": 1}}}}})
@example({f"x{a}": {f"y{b}": {f"z{c}": 1.5 for c in range(20)} for b in range(20)} for a in range(20)})
def test_whatever_it_says_the_answer_is_small_and_survives_the_wire(config: dict[str, Any]) -> None:
    answer = answer_to(config)
    assert depth_of(answer) <= MAX_DEPTH
    assert len(json.dumps(answer, ensure_ascii=False).encode()) <= MAX_BYTES
    weights = ModelWeights(format="safetensors", weight_bytes=1, config=answer)
    assert ModelWeights.model_validate_json(weights.model_dump_json()) == weights
    assert answer_to(config) == answer
    assert answer_to(answer) == answer


def test_the_order_is_that_of_the_file() -> None:
    raw = (TINYCHAT / "config.json").read_bytes()
    assert [*short_config(raw)] == [name for name in json.loads(raw) if name in short_config(raw)]

"""What MindIE, vLLM and SGLang take, and what the published rule claims for the rest."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.models import Category, ModelWeights
from services.scheduler.domain.memory import mindie, sglang, vllm
from services.scheduler.domain.memory.architecture import Architecture, architecture_of
from services.scheduler.domain.memory.claims import claimed_bytes
from tests.services.scheduler.memory.published import PUBLISHED

MIB = 2**20
GIB = 2**30


def the(name: str) -> Architecture:
    return architecture_of(ModelWeights(format="safetensors", weight_bytes=1, config=dict(PUBLISHED[name].config)))


# The published rule


@pytest.mark.parametrize(
    ("category", "claim"),
    [
        ("llm", 12 * GIB + 1_200_000 + 2 * GIB + 240_000),
        ("unknown", 12 * GIB + 1_200_000 + 2 * GIB + 240_000),
        ("embedding", 12 * GIB + GIB // 2 + 240_000),
        ("reranker", 12 * GIB + GIB // 2 + 240_000),
        ("speech_to_text", 12 * GIB + GIB // 2 + 240_000),
        ("text_to_speech", 30 * GIB + GIB // 2 + 240_000),
        ("image", 10 * GIB + 1_000_000 + 240_000),
    ],
)
def test_a_claim_is_a_factor_and_a_constant(category: Category, claim: int) -> None:
    weights = ModelWeights(format="safetensors", weight_bytes=10 * GIB, lora_bytes=1_000_000, draft_bytes=200_000)
    assert claimed_bytes(weights, category) == claim


# MindIE


def test_mindie_takes_weights_cache_buffers_and_three_gibibytes() -> None:
    cache = 8192 * 57344
    compute = 200 * 128 * 28 * 28 * 128 * 2
    assert mindie.estimated_bytes(15 * GIB, the("Qwen2.5-7B")) == 3 * GIB + 15 * GIB + cache + compute


@pytest.mark.parametrize(
    ("name", "cache"),
    [
        ("gpt2", 12 * 2 * 12 * 64),  # MHA
        ("Qwen3-8B", 36 * 2 * 8 * 128),  # GQA
        ("falcon-7b", 32 * 2 * 64),  # MQA
        ("DeepSeek-V3", 61 * 576),  # MLA
    ],
)
def test_the_cache_is_that_of_the_kind_of_attention(name: str, cache: int) -> None:
    architecture = the(name)
    one, two = (mindie.estimated_bytes(0, architecture, tokens=tokens, element_bytes=2) for tokens in (1000, 2000))
    assert (two or 0) - (one or 0) == 1000 * cache * 2


def test_a_model_that_tells_too_little_has_no_estimate() -> None:
    assert mindie.estimated_bytes(GIB, Architecture(layers=2, attention_layers=0)) is None
    assert vllm.needed_bytes(GIB, Architecture(attention_layers=0), tokens=1, memory_total=GIB) is None
    assert vllm.needed_bytes(GIB, the("Qwen3-8B"), tokens=1, memory_total=GIB) is not None


def test_in_ram_mindie_takes_what_may_be_swapped_there() -> None:
    assert (mindie.ram_bytes(), mindie.ram_bytes(2.5)) == (512 * MIB, 512 * MIB + 2560 * MIB)


# vLLM

FORWARD = 2048 * 2 * (4 * 4096 + 3 * 12288) + 256 * 8 * 151936


def test_vllm_needs_weights_a_sequence_and_room_to_compute() -> None:
    needed = vllm.needed_bytes(15 * GIB, the("Qwen3-8B"), tokens=8192, memory_total=24 * GIB)
    assert needed == 15 * GIB + 8192 * 147456 + FORWARD + GIB // 2 + GIB


def test_without_graphs_it_needs_less() -> None:
    eager = vllm.needed_bytes(15 * GIB, the("Qwen3-8B"), tokens=8192, memory_total=24 * GIB, eager=True)
    assert eager == 15 * GIB + 8192 * 147456 + FORWARD + GIB // 2


def test_a_large_gpu_computes_larger_batches() -> None:
    needed = vllm.needed_bytes(0, the("Qwen3-8B"), tokens=0, memory_total=80 * GIB, eager=True)
    assert needed == 8192 * 2 * (4 * 4096 + 3 * 12288) + 1024 * 8 * 151936 + GIB // 2
    told = vllm.needed_bytes(
        0, the("Qwen3-8B"), tokens=0, memory_total=80 * GIB, eager=True, batched_tokens=2048, sequences=256
    )
    assert told == FORWARD + GIB // 2


def test_several_gpus_share_all_but_the_rest() -> None:
    needed = vllm.needed_bytes(16 * GIB, the("Qwen3-8B"), tokens=8192, memory_total=24 * GIB, tensor=4, eager=True)
    assert needed == 4 * GIB + 8192 * 36864 + 2048 * 2 * (4 * 4096 + 3 * 3072) + 256 * 8 * 151936 + GIB
    halves = vllm.needed_bytes(16 * GIB, the("Qwen3-8B"), tokens=8192, memory_total=24 * GIB, pipeline=2, eager=True)
    assert halves == 8 * GIB + 8192 * 73728 + FORWARD + GIB


def test_a_window_takes_a_batch_beside_itself() -> None:
    mistral = the("Mistral-7B-v0.1")
    short, long = (vllm.needed_bytes(0, mistral, tokens=tokens, memory_total=24 * GIB) for tokens in (4096, 32768))
    assert (long or 0) - (short or 0) == 2048 * 131072


@pytest.mark.parametrize(
    ("needed", "total", "fraction"),
    [
        (8 * GIB, 80 * GIB, 0.1),
        (8 * GIB + 1, 80 * GIB, 0.11),
        (1, 80 * GIB, 0.01),
        (80 * GIB, 80 * GIB, 1.0),
        (80 * GIB + 1, 80 * GIB, None),
        (GIB, 0, None),
    ],
)
def test_a_packed_model_takes_the_smallest_share_that_holds_it(needed: int, total: int, fraction: float | None) -> None:
    assert vllm.packed_fraction(needed, total) == fraction


@given(st.integers(1, 2**40), st.integers(1, 2**40))
def test_the_share_of_a_packed_model_holds_it_and_no_hundredth_less_does(needed: int, total: int) -> None:
    fraction = vllm.packed_fraction(needed, total)
    if fraction is None:
        assert needed > total
    else:
        hundredths = round(fraction * 100)
        assert (hundredths - 1) * total < needed * 100 <= hundredths * total


# SGLang


@pytest.mark.parametrize(
    ("gib", "tensor", "ascend", "expected"),
    [
        (16, 1, False, (2048, 8)), (16, 4, False, (2048, 8)), (24, 1, False, (2048, 24)), (24, 4, False, (2048, 80)),
        (40, 1, False, (4096, 32)), (40, 8, False, (4096, 160)), (64, 1, False, (8192, 256)),
        (80, 1, False, (8192, 256)), (80, 4, False, (8192, 512)), (141, 1, False, (8192, 256)),
        (141, 8, False, (8192, 512)), (192, 1, False, (16384, 512)), (192, 8, False, (16384, 512)),
        (24, 1, True, (32768, 16)), (24, 4, True, (32768, 64)), (32, 1, True, (2048, 24)),
        (61, 1, True, (32768, 64)), (61, 8, True, (32768, 128)), (64, 1, True, (8192, 256)),
    ],
)  # fmt: skip
def test_chunk_and_batch_follow_the_size_of_the_gpu(
    gib: int, tensor: int, ascend: bool, expected: tuple[int, int]
) -> None:
    assert sglang.chunk_and_batch(gib * GIB, tensor, ascend=ascend) == expected


@pytest.mark.parametrize(
    ("gib", "of_one", "of_four", "of_eight"),
    [  # of gib × 1024 MiB is left what 512 + 1.5 × chunk + 2 × batch + 128 × tensor leave; that sum is at the end
        (16, 0.772, 0.749, 0.718),  # 3728, 4112, 4624
        (24, 0.847, 0.827, 0.806),  # 3760, 4256, 4768
        (40, 0.833, 0.817, 0.805),  # 6848, 7488, 8000
        (48, 0.861, 0.848, 0.837),  # 6848, 7488, 8000
        (64, 0.795, 0.781, 0.773),  # 13440, 14336, 14848
        (80, 0.836, 0.825, 0.819),  # 13440, 14336, 14848
        (96, 0.863, 0.854, 0.849),  # 13440, 14336, 14848
        (141, 0.907, 0.901, 0.897),  # 13440, 14336, 14848
        (192, 0.867, 0.865, 0.862),  # 26240, 26624, 27136
    ],
)
def test_the_fraction_leaves_what_activations_and_graphs_take(
    gib: int, of_one: float, of_four: float, of_eight: float
) -> None:
    fractions = [sglang.mem_fraction_static(gib * GIB, tensor=tensor) for tensor in (1, 4, 8)]
    assert fractions == [of_one, of_four, of_eight]


def test_what_the_user_gives_replaces_what_follows_from_the_size() -> None:
    assert sglang.mem_fraction_static(24 * GIB, chunked_prefill=8192) == 0.472  # 12 976 of 24 576
    assert sglang.mem_fraction_static(24 * GIB, largest_batch=160) == 0.836  # 4 032
    assert sglang.mem_fraction_static(24 * GIB, chunked_prefill=512) == sglang.mem_fraction_static(24 * GIB)


def test_a_large_gpu_leaves_ten_gibibytes_at_least() -> None:
    assert sglang.mem_fraction_static(80 * GIB, chunked_prefill=2048, largest_batch=8) == 0.875
    assert sglang.mem_fraction_static(60 * GIB, chunked_prefill=2048, largest_batch=8) == 0.939


def test_pipeline_stages_count_like_tensor_ranks() -> None:
    assert sglang.mem_fraction_static(40 * GIB, pipeline=8) == 0.811  # 6 848 + 7 × 128 of 40 960


@pytest.mark.parametrize(
    ("speculation", "fraction"),
    [(None, 0.836), ("ngram", 0.836), ("eagle3", 0.811), ("mtp", 0.811), ("draft_model", 0.761)],
)
def test_drafting_takes_its_part(speculation: str | None, fraction: float) -> None:
    assert sglang.mem_fraction_static(80 * GIB, speculation=speculation) == fraction


def test_attention_in_data_parallel_pads_the_captured_batches() -> None:
    assert sglang.mem_fraction_static(80 * GIB, data=8, dp_attention=True) == 0.761  # + 3 × 256 × 8
    assert sglang.mem_fraction_static(80 * GIB, tensor=8, data=8, dp_attention=True) == 0.594  # + 4.5 × 512 × 8
    assert sglang.mem_fraction_static(80 * GIB, data=8) == 0.836


def test_piecewise_graphs_take_a_quarter_mebibyte_for_each_token() -> None:
    assert sglang.mem_fraction_static(80 * GIB, piecewise_tokens=8192) == 0.811


@pytest.mark.parametrize(
    ("layers", "hidden", "fraction"),
    [
        (24, 1024, 0.794),  # ViT-L/14: 0.836 × 0.95
        (27, 1152, 0.761),  # SigLIP: × 0.9576
        (45, 3200, 0.635),  # InternViT-6B: × 0.8
        (12, 768, 0.834),  # ViT-B: × 1.05
        (None, None, 0.794),
    ],
)
def test_a_model_that_sees_leaves_more_the_larger_its_encoder(
    layers: int | None, hidden: int | None, fraction: float
) -> None:
    sees = Architecture(vision_heads=16, vision_layers=layers, vision_hidden_size=hidden)
    assert sglang.mem_fraction_static(80 * GIB, architecture=sees) == fraction
    assert sglang.mem_fraction_static(80 * GIB, architecture=Architecture()) == 0.836


@pytest.mark.parametrize("total", [0, 2 * GIB])
def test_where_the_formula_leaves_nothing_there_is_a_fallback(total: int) -> None:
    assert sglang.mem_fraction_static(total) == 0.88


@given(
    st.integers(0, 2**42),
    st.integers(1, 64),
    st.integers(1, 16),
    st.integers(1, 64),
    st.booleans(),
    st.none() | st.integers(1, 10**6),
    st.sampled_from((None, "eagle3", "draft_model")),
)
def test_the_fraction_is_always_a_fraction(
    total: int, tensor: int, pipeline: int, data: int, dp: bool, chunk: int | None, speculation: str | None
) -> None:
    fraction = sglang.mem_fraction_static(
        total,
        tensor=tensor,
        pipeline=pipeline,
        data=data,
        dp_attention=dp,
        chunked_prefill=chunk,
        speculation=speculation,
    )
    assert 0 < fraction < 1

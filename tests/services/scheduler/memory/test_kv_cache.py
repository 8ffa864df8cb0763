import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from schemas.models import ModelWeights
from services.scheduler.domain.memory.architecture import Architecture, architecture_of
from services.scheduler.domain.memory.fitting import BLOCK_TOKENS, MOST_TOKENS, fitting_tokens
from services.scheduler.domain.memory.kv_cache import bytes_per_token, sequence_bytes
from tests.services.scheduler.memory.published import PUBLISHED

GIB = 2**30


def the(name: str) -> Architecture:
    return architecture_of(ModelWeights(format="safetensors", weight_bytes=1, config=dict(PUBLISHED[name].config)))


# What a token takes


@pytest.mark.parametrize(
    ("name", "tensor", "pipeline", "token_bytes"),
    [
        ("Llama-3.1-70B", 8, 1, 40960),  # 80 layers × 2 × 1 head × 128 × 2
        ("Llama-3.1-70B", 16, 1, 40960),  # a head is not divided
        ("Llama-3.1-70B", 3, 1, 122880),  # three, three and two heads
        ("Llama-3.1-70B", 4, 2, 40960),  # 40 layers × 2 × 2 × 128 × 2
        ("Llama-3.1-405B", 8, 4, 16384),  # 32 of 126 layers × 2 × 1 × 128 × 2
        ("DeepSeek-V3", 8, 1, 70272),  # every rank holds the latent vector whole
        ("DeepSeek-V3", 8, 2, 35712),  # 31 of 61 layers × 576 × 2
        ("falcon-7b", 8, 1, 8192),  # its one head, on every rank
    ],
)
def test_parallelism_shares_heads_and_layers_out(name: str, tensor: int, pipeline: int, token_bytes: int) -> None:
    assert bytes_per_token(the(name), 2, tensor=tensor, pipeline=pipeline) == token_bytes


@pytest.mark.parametrize(("element_bytes", "token_bytes"), [(1, 65536), (2, 131072), (4, 262144), (34 / 32, 69632)])
def test_a_number_may_be_smaller_than_the_model_has_it(element_bytes: float, token_bytes: int) -> None:
    assert bytes_per_token(the("Llama-3.1-8B"), element_bytes) == token_bytes


def test_keys_and_values_may_differ_in_size() -> None:
    architecture = Architecture(attention_layers=10, kv_heads=4, head_size=192, value_size=128)
    assert bytes_per_token(architecture, 2) == 10 * 4 * (192 + 128) * 2


@pytest.mark.parametrize(
    "architecture",
    [
        Architecture(),
        Architecture(layers=2, attention_layers=2),
        Architecture(attention_layers=2, kv_heads=4),
        Architecture(kv_heads=4, head_size=64),
    ],
)
def test_of_a_model_that_tells_too_little_nothing_is_known(architecture: Architecture) -> None:
    assert bytes_per_token(architecture, 2) is None
    assert sequence_bytes(architecture, 100, 2) is None
    assert fitting_tokens(GIB, architecture, 2) is None


# What a sequence takes


@pytest.mark.parametrize(
    ("name", "tokens", "sequence"),
    [
        ("Llama-3.1-8B", 8192, 8192 * 131072),
        ("DeepSeek-V3", 8192, 8192 * 70272),
        ("Mistral-7B-v0.1", 4096, 4096 * 131072),
        ("Mistral-7B-v0.1", 32768, 4096 * 131072),
        ("gemma-3-27b", 1024, 1024 * 507904),
        ("gemma-3-27b", 131072, 131072 * 10 * 8192 + 1024 * 52 * 8192),  # a layer keeps 2 × 16 × 128 × 2 = 8192
        ("Llama-4-Scout-17B-16E", 65536, 65536 * 12 * 4096 + 8192 * 36 * 4096),
        ("Qwen3-Next-80B-A3B", 262144, 262144 * 24576 + 77266944),
        ("whisper-large-v3", 448, 448 * 163840 + 245760000),
        ("mamba-2.8b", 1_000_000, 24903680 // 1),
        ("bge-m3", 8192, 0),
    ],
)
def test_a_sequence_takes_what_each_kind_of_layer_keeps(name: str, tokens: int, sequence: int) -> None:
    assert sequence_bytes(the(name), tokens, 2) == sequence


def test_a_window_holds_a_batch_that_is_being_computed_beside_itself() -> None:
    mistral = the("Mistral-7B-v0.1")
    assert sequence_bytes(mistral, 32768, 2, batch_tokens=2048) == (4096 + 2048) * 131072
    assert sequence_bytes(mistral, 5000, 2, batch_tokens=2048) == 5000 * 131072


def test_what_a_sequence_keeps_anyway_is_shared_out_too() -> None:
    assert sequence_bytes(the("Qwen3-Next-80B-A3B"), 0, 2, tensor=2) == 77266944 // 2


def test_the_kinds_of_layers_are_shared_out_evenly() -> None:
    large = (131072 * 5 * 2 * 512 + 1024 * 25 * 8 * 256) * 2 * 2  # of half the layers, two of four heads and 8 of 16
    assert sequence_bytes(the("gemma-4-31B"), 131072, 2, tensor=2, pipeline=2) == large
    assert sequence_bytes(the("gemma-3-27b"), 131072, 2, tensor=2, pipeline=2) == (131072 * 5 + 1024 * 26) * 4096


architectures = st.builds(
    Architecture,
    attention_layers=st.integers(0, 200),
    windowed_layers=st.integers(0, 200),
    window=st.none() | st.integers(1, 10_000),
    fixed_bytes=st.sampled_from((0, 10**6)),
    kv_heads=st.integers(1, 128),
    head_size=st.integers(1, 512),
    value_size=st.none() | st.integers(1, 512),
    latent_size=st.none() | st.integers(1, 1000),
)
parallel = st.integers(1, 16)
element_sizes = st.sampled_from((0.5625, 1, 2, 4))


@given(architectures, st.integers(0, 10**6), st.integers(0, 10**6), element_sizes, parallel, parallel)
def test_more_tokens_never_take_less(
    architecture: Architecture, tokens: int, more: int, element_bytes: float, tensor: int, pipeline: int
) -> None:
    def taken(tokens: int) -> int:
        size = sequence_bytes(architecture, tokens, element_bytes, tensor=tensor, pipeline=pipeline)
        assert size is not None
        return size

    assert taken(tokens) <= taken(tokens + more)
    token = bytes_per_token(architecture, element_bytes, tensor=tensor, pipeline=pipeline)
    assert token is not None
    assert taken(tokens) <= (token + 2) * tokens * 2 + architecture.fixed_bytes


# What fits


@pytest.mark.parametrize(
    ("name", "room", "tokens"),
    [
        ("Llama-3.1-8B", GIB, 8192),
        ("Llama-3.1-8B", GIB - 1, 8176),
        ("Llama-3.1-8B", 131072 * 16, 16),
        ("Llama-3.1-8B", 131072 * 16 - 1, 0),
        ("Llama-3.1-8B", 0, 0),
        ("Llama-3.1-8B", -GIB, 0),
        ("gemma-3-27b", 131072 * 10 * 8192 + 1024 * 52 * 8192, 131072),
        ("Qwen3-Next-80B-A3B", 77266944 + 24576 * 1000, 992),
        ("Qwen3-Next-80B-A3B", 77266943, 0),
        ("Mistral-7B-v0.1", 4096 * 131072, MOST_TOKENS),
        ("Mistral-7B-v0.1", 4096 * 131072 - 1, 4080),
        ("bge-m3", 0, MOST_TOKENS),
    ],
)
def test_the_longest_context_that_fits_is_whole_blocks(name: str, room: int, tokens: int) -> None:
    assert fitting_tokens(room, the(name), 2) == tokens


@given(st.integers(0, 2**45), architectures, element_sizes, parallel, parallel)
@example(2**45, Architecture(attention_layers=1, kv_heads=1, head_size=1), 0.5625, 16, 16)
def test_what_fits_fits_and_one_block_more_does_not(
    room: int, architecture: Architecture, element_bytes: float, tensor: int, pipeline: int
) -> None:
    def taken(tokens: int) -> int:
        return sequence_bytes(architecture, tokens, element_bytes, tensor=tensor, pipeline=pipeline) or 0

    tokens = fitting_tokens(room, architecture, element_bytes, tensor, pipeline)
    assert tokens is not None
    assert tokens % BLOCK_TOKENS == 0
    assert tokens == 0 or taken(tokens) <= room
    assert tokens == MOST_TOKENS or taken(tokens + BLOCK_TOKENS) > room


@given(st.integers(0, 2**45), st.integers(0, 2**45), architectures, element_sizes, parallel, parallel)
def test_more_room_never_holds_less(
    room: int, more: int, architecture: Architecture, element_bytes: float, tensor: int, pipeline: int
) -> None:
    less = fitting_tokens(room, architecture, element_bytes, tensor, pipeline)
    assume(less is not None)
    assert (less or 0) <= (fitting_tokens(room + more, architecture, element_bytes, tensor, pipeline) or 0)
    wider = fitting_tokens(room, architecture, element_bytes, tensor * 2, pipeline)
    assert (less or 0) <= (wider or 0)

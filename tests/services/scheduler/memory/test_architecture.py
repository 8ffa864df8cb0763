from dataclasses import asdict
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.models import Category, ModelWeights
from services.scheduler.domain.memory.architecture import Architecture, architecture_of, category_of
from services.scheduler.domain.memory.kv_cache import bytes_per_token, sequence_bytes
from tests.services.scheduler.memory.published import DEEPSEEK_V3, PUBLISHED, Published, a_qwen2, a_qwen3


def weights(config: Any, *, category: Category = "unknown", architecture: str | None = None) -> ModelWeights:
    return ModelWeights(
        format="safetensors", weight_bytes=1, config=config, architecture=architecture, categories=(category,)
    )


def told_by(config: Any) -> Architecture:
    return architecture_of(weights(config))


@pytest.mark.parametrize("published", PUBLISHED.values(), ids=PUBLISHED)
def test_a_published_config_says_what_its_model_is(published: Published) -> None:
    assert told_by(published.config) == published.is_


@pytest.mark.parametrize("published", PUBLISHED.values(), ids=PUBLISHED)
def test_a_token_takes_what_the_paper_says(published: Published) -> None:
    architecture = told_by(published.config)
    assert bytes_per_token(architecture, architecture.element_bytes) == published.token_bytes


def test_a_longer_window_than_one_in_two_is_counted_by_hand() -> None:
    qwen2 = told_by(a_qwen2(28, 3584, 28, 4, 18944, use_sliding_window=True, max_window_layers=21, sliding_window=4096))
    assert (qwen2.attention_layers, qwen2.windowed_layers, qwen2.window) == (28, 7, 4096)
    exaone4 = told_by(
        {
            "model_type": "exaone4",
            "num_hidden_layers": 64,
            "num_attention_heads": 40,
            "sliding_window": 4096,
            "sliding_window_pattern": "LLLG",
        }
    )
    assert (exaone4.attention_layers, exaone4.windowed_layers, exaone4.window) == (64, 48, 4096)


@pytest.mark.parametrize(
    ("scaling", "context"),
    [
        ({"type": "linear", "factor": 4.0}, 16384),
        ({"type": "dynamic", "factor": 2}, 8192),
        ({"rope_type": "yarn", "factor": 4.0}, 16384),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048}, 8192),
        ({"rope_type": "llama3", "factor": 8.0}, 4096),
        ({"factor": 8.0}, 4096),
        ({"type": "linear", "factor": 2**20}, None),
        ({"type": "linear", "factor": 10**400}, 4096),
        ({"type": "linear", "factor": float("nan")}, 4096),
        ({"type": "linear", "factor": "4"}, 4096),
    ],
)
def test_positions_may_be_stretched(scaling: dict[str, Any], context: int | None) -> None:
    config = {"max_position_embeddings": 4096, "rope_scaling": scaling}
    assert architecture_of(weights({}).model_copy(update={"config": config})).context_length == context


def test_the_key_of_an_indexer_is_kept_beside_the_latent_vector() -> None:
    assert told_by({**DEEPSEEK_V3, "index_head_dim": 128}).latent_size == 512 + 64 + 128


def test_a_model_that_sees_is_multimodal_also_without_attention() -> None:
    sees = {name for name, published in PUBLISHED.items() if told_by(published.config).is_multimodal}
    assert sees == {name for name, published in PUBLISHED.items() if "vision_config" in str(published.config)}
    assert "gemma-3n-E4B" in sees


def test_without_a_layer_that_has_one_there_is_no_window() -> None:
    config = {"num_hidden_layers": 2, "layer_types": ["full_attention"] * 2, "sliding_window": 4096}
    assert (told_by(config).windowed_layers, told_by(config).window) == (0, None)
    config = {"num_hidden_layers": 2, "layer_types": ["sliding_attention"] * 2}
    assert (told_by(config).attention_layers, told_by(config).windowed_layers, told_by(config).window) == (2, 0, None)


def test_a_state_that_cannot_be_is_not_there() -> None:
    config = {
        "model_type": "mamba2",
        "num_hidden_layers": 1000,
        "state_size": 2**18,
        "mamba_expand": 2,
        "hidden_size": 2**17,
    }
    assert told_by(config).fixed_bytes == 0


def test_layers_that_a_list_does_not_name_see_everything() -> None:
    config = {"num_hidden_layers": 8, "layer_types": ["linear_attention", "full_attention"], "hidden_size": 64}
    assert told_by(config).attention_layers == 7
    config = {"num_hidden_layers": 1, "layer_types": ["linear_attention", "full_attention"], "hidden_size": 64}
    assert told_by(config).attention_layers == 0


def test_of_numbers_that_differ_between_layers_the_largest_counts() -> None:
    config = {"num_hidden_layers": 2, "num_kv_heads": [3, 5], "num_attention_heads": [12, 20], "head_dim": 64}
    architecture = told_by(config)
    assert (architecture.kv_heads, architecture.attention_heads) == (5, 20)


def test_without_a_config_a_header_says_what_the_model_is() -> None:
    header = ModelWeights(
        format="gguf", weight_bytes=1, architecture="gemma3", context_length=131072, layers=62, attention_layers=62,
        windowed_layers=52, window=1024, state_bytes=4096, hidden_size=5376, attention_heads=32, kv_heads=16,
        head_size=128, value_size=128, vocabulary_size=262144, categories=("llm",),
    )  # fmt: skip
    assert architecture_of(header) == Architecture(
        name="gemma3", category="llm", layers=62, attention_layers=62, windowed_layers=52, window=1024,
        fixed_bytes=4096, hidden_size=5376, attention_heads=32, kv_heads=16, head_size=128, value_size=128,
        vocabulary_size=262144, context_length=131072,
    )  # fmt: skip
    assert architecture_of(header.model_copy(update={"layers": 2**40, "kv_heads": 0})).layers is None
    assert architecture_of(header.model_copy(update={"kv_heads": 0})).kv_heads is None


@pytest.mark.parametrize(
    ("name", "category"),
    [
        ("LlamaForCausalLM", "llm"),
        ("Qwen2AudioForConditionalGeneration", "llm"),
        ("MiniCPMV", "llm"),
        ("QWenLMHeadModel", "llm"),
        ("BertModel", "embedding"),
        ("NomicBertModel", "embedding"),
        ("XLMRobertaForMaskedLM", "embedding"),
        ("Gemma3TextModel", "embedding"),
        ("BertForSequenceClassification", "reranker"),
        ("Qwen2ForRewardModel", "reranker"),
        ("WhisperForConditionalGeneration", "speech_to_text"),
        ("Qwen3ASRForConditionalGeneration", "speech_to_text"),
        ("Speech2TextForSpeechSeq2Seq", "speech_to_text"),
        ("Wav2Vec2ForCTC", "speech_to_text"),
        ("Qwen3TTSForConditionalGeneration", "text_to_speech"),
        ("ParlerTTSForConditionalGeneration", "text_to_speech"),
        ("SpeechT5ForTextToSpeech", "text_to_speech"),
        ("KokoroModel", "text_to_speech"),
        ("CosyVoice2Model", "text_to_speech"),
        ("StableDiffusionPipeline", "image"),
        ("FluxPipeline", "image"),
        ("QwenImagePipeline", "image"),
        ("FluxTransformer2DModel", "image"),
        ("BertForTokenClassification", "unknown"),
        (None, "unknown"),
    ],
)
def test_the_category_follows_the_name(name: str | None, category: Category) -> None:
    assert category_of(name) == category


def test_what_the_author_says_beats_the_name() -> None:
    embedding = architecture_of(weights(a_qwen3(28, 1024, 16, 8, 3072), category="embedding"))
    assert (embedding.name, embedding.category) == ("Qwen3ForCausalLM", "embedding")


def test_a_pipeline_of_diffusers_is_for_images() -> None:
    index = {"_class_name": "FluxPipeline", "_diffusers_version": "0.30.0", "vae": ["diffusers", "AutoencoderKL"]}
    architecture = told_by(index)
    assert (architecture.name, architecture.category) == ("FluxPipeline", "image")
    assert bytes_per_token(architecture, 2) is None


@pytest.mark.parametrize("nonsense", ["32", -1, 0, 2.5, True, None, [], {}, [{}], ["x"], 10**30, float("nan"), [-1, 0]])
@pytest.mark.parametrize("field", ["num_hidden_layers", "num_attention_heads", "vocab_size", "max_position_embeddings"])
def test_what_is_not_a_believable_number_is_not_there(field: str, nonsense: Any) -> None:
    published = {**PUBLISHED["Llama-3.1-8B"].config, field: nonsense, "rope_scaling": nonsense}
    architecture = architecture_of(weights({}).model_copy(update={"config": published}))
    found = {
        "num_hidden_layers": architecture.layers,
        "num_attention_heads": architecture.attention_heads,
        "vocab_size": architecture.vocabulary_size,
        "max_position_embeddings": architecture.context_length,
    }
    assert found == {
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "vocab_size": 128256,
        "max_position_embeddings": 131072,
        field: None,
    }


@pytest.mark.parametrize(
    ("absurd", "found"),
    [
        ({"head_dim": 2**11}, {"head_size": 128}),
        ({"hidden_size": 2**20}, {"hidden_size": None, "head_size": None, "intermediate_size": 14336}),
        ({"num_key_value_heads": 2**11}, {"kv_heads": 32}),
        ({"num_hidden_layers": 2**11}, {"layers": None, "attention_layers": None}),
        ({"kv_lora_rank": 2**14}, {"latent_size": None}),
        ({"sliding_window": 2**30}, {"window": None, "windowed_layers": 0}),
        ({"vision_config": {"num_heads": 2**11, "depth": 2**11, "hidden_size": 2**20}}, {"vision_heads": None}),
    ],
)
def test_what_is_above_every_published_model_is_not_there(absurd: dict[str, Any], found: dict[str, Any]) -> None:
    changed = asdict(told_by({**PUBLISHED["Llama-3.1-8B"].config, **absurd}))
    assert {name: changed[name] for name in found} == found


def fields_of(config: Any) -> set[str]:
    return {
        key
        for key, value in config.items()
        for key in ({key} | (fields_of(value) if isinstance(value, dict) else set()))
    }


FIELDS = sorted({field for published in PUBLISHED.values() for field in fields_of(published.config)})
NUMBERS = st.integers() | st.integers(1, 200) | st.floats() | st.booleans() | st.none()
WORDS = st.text(max_size=5) | st.sampled_from(
    ["yarn", "linear", "mamba", "gemma2", "falcon_h1", "sliding_attention", "*M-"]
)
VALUES = st.recursive(
    NUMBERS | WORDS,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.sampled_from(FIELDS), inner, max_size=8),
    max_leaves=30,
)


HOSTILE = st.sampled_from(
    [0, -1, -(2**40), 2**10, 2**18, 2**31, 2**53, 10**30, 10**400, float("inf"), float("nan"), 1e300]
)


@settings(max_examples=500, deadline=None)
@given(
    st.dictionaries(st.sampled_from(FIELDS), HOSTILE, max_size=12)
    | st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=25),
    st.sampled_from([published.config for published in PUBLISHED.values()]),
    st.booleans(),
    st.integers(1, 16),
    st.integers(1, 8),
)
def test_whatever_a_config_says_nothing_breaks_and_every_size_is_a_size(
    config: dict[str, Any], published: dict[str, Any], patch: bool, tensor: int, pipeline: int
) -> None:
    document = {**published, **config} if patch else config
    architecture = architecture_of(weights({}).model_copy(update={"config": document}))
    token = bytes_per_token(architecture, architecture.element_bytes, tensor=tensor, pipeline=pipeline)
    longest = sequence_bytes(
        architecture, architecture.context_length or 2**24, architecture.element_bytes, tensor=tensor, pipeline=pipeline
    )
    for size in (token, longest, architecture.fixed_bytes):
        assert size is None or 0 <= size <= 2**60
    assert architecture.windowed_layers <= (architecture.attention_layers or 0) <= (architecture.layers or 0)

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.downloader.domain.listing import Listing, RemoteFile
from services.downloader.domain.selection import (
    MOST_NAMED,
    PICKLED,
    Ambiguous,
    ImpossibleShards,
    NothingMatches,
    NoWeights,
    Selection,
    ShardsMissing,
    UnsafeFormat,
    Unselectable,
    select,
    select_pickled,
)
from tests.services.downloader.repositories import (
    BARTOWSKI,
    GEMMA,
    GPT_OSS,
    LLAMA,
    LORA,
    MINILM,
    MISTRAL,
    OPT,
    PIXTRAL,
    QWEN3,
    QWEN_VL,
    QWEN_WITH_CODE,
    REPOSITORIES,
    SDXL,
    TWO_PRECISIONS,
    UNSLOTH,
    listing_of,
    shards,
)

_TOKENIZER = ["special_tokens_map.json", "tokenizer.json", "tokenizer_config.json"]


def names_of(selection: Selection) -> list[str]:
    return [file.name for file in selection.files]


def companions_of(selection: Selection) -> list[str]:
    return [name for name in names_of(selection) if name not in selection.weights]


def what_fails(repository: tuple[str, ...], pattern: str | None = None) -> Unselectable:
    with pytest.raises(Unselectable) as raised:
        select(listing_of(*repository), pattern)
    return raised.value


def missing_from(repository: tuple[str, ...], pattern: str | None = None) -> tuple[str, ...]:
    failure = what_fails(repository, pattern)
    assert isinstance(failure, ShardsMissing)
    return failure.names


def models_of(repository: tuple[str, ...], pattern: str | None = None) -> tuple[str, ...]:
    failure = what_fails(repository, pattern)
    assert isinstance(failure, Ambiguous)
    assert failure.pattern == pattern
    return failure.models


# A whole repository of safetensors


def test_a_selection_names_files_as_they_were_listed_small_ones_first() -> None:
    listing = Listing(
        "c0ffee",
        (
            RemoteFile("model.safetensors", 3, sha256="aa"),
            RemoteFile("tokenizer.json", 2, git_sha1="bb"),
            RemoteFile("config.json", 1, git_sha1="cc"),
        ),
    )
    assert select(listing, None) == Selection(
        files=(listing.files[2], listing.files[1], listing.files[0]),
        weights=("model.safetensors",),
        format="safetensors",
        model=None,
    )


def test_of_a_model_everything_is_taken_but_what_git_needs() -> None:
    selection = select(listing_of(*QWEN3), None)
    assert selection.weights == shards("model.safetensors", 5)
    assert sorted(names_of(selection)) == sorted(set(QWEN3) - {".gitattributes"})


def test_code_and_templates_are_taken_pictures_sounds_films_and_papers_are_not() -> None:
    assert companions_of(select(listing_of(*QWEN_WITH_CODE), None)) == [
        "LICENSE",
        "NOTICE",
        "README.md",
        "cache_autogptq_cuda_256.cpp",
        "chat_template.jinja",
        "config.json",
        "configuration_qwen.py",
        "generation_config.json",
        "model.safetensors.index.json",
        "modeling_qwen.py",
        "qwen.tiktoken",
        "tokenization_qwen.py",
        "tokenizer_config.json",
    ]


def test_the_weights_that_the_authors_own_programs_read_are_left_out() -> None:
    selection = select(listing_of(*LLAMA), None)
    assert selection.weights == shards("model.safetensors", 4)
    assert not [name for name in names_of(selection) if name.startswith("original/")]
    selection = select(listing_of(*GPT_OSS), None)
    assert selection.weights == shards("model.safetensors", 3)
    assert not [name for name in names_of(selection) if name.startswith(("original/", "metal/"))]


def test_a_consolidated_file_is_left_out_with_its_index_where_the_usual_ones_are() -> None:
    selection = select(listing_of(*MISTRAL), None)
    assert selection.weights == shards("model.safetensors", 3)
    assert companions_of(selection) == [
        "README.md",
        "config.json",
        "generation_config.json",
        "model.safetensors.index.json",
        "params.json",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer.model",
        "tokenizer.model.v3",
        "tokenizer_config.json",
    ]


def test_a_consolidated_file_is_taken_where_there_is_no_other() -> None:
    selection = select(listing_of(*PIXTRAL), None)
    assert names_of(selection) == ["README.md", "params.json", "tekken.json", "consolidated.safetensors"]
    selection = select(listing_of("config.json", "consolidated.safetensors"), None)
    assert selection.weights == ("consolidated.safetensors",)


def test_only_a_usual_file_of_the_root_stands_for_a_consolidated_one() -> None:
    dense = ("config.json", "2_Dense/model.safetensors", "consolidated.safetensors")
    assert select(listing_of(*dense), None).weights == dense[1:]
    beside = ("config.json", "consolidated.safetensors", "models/a.safetensors")
    assert select(listing_of(*beside), None).weights == beside[1:]
    elsewhere = ("config.json", "consolidated/a.safetensors", "model.safetensors")
    assert select(listing_of(*elsewhere), None).weights == elsewhere[1:]


def test_an_index_is_of_the_weights_beside_it() -> None:
    repository = ("config.json", "model.safetensors.index.json", "model/a.safetensors", "x.safetensors")
    assert "model.safetensors.index.json" in names_of(select(listing_of(*repository), "x.safetensors"))
    repository = ("config.json", "model.safetensors.index.json", *shards("model.safetensors", 2), "model_x.safetensors")
    assert "model.safetensors.index.json" in names_of(select(listing_of(*repository), "model-*"))


def test_an_index_is_taken_whatever_its_weights_are_called() -> None:
    repository = ("config.json", "layers-1.safetensors", "model.safetensors.index.json")
    assert names_of(select(listing_of(*repository), None)) == [repository[0], repository[2], repository[1]]


def test_of_an_embedding_model_its_modules_are_taken_and_no_other_format() -> None:
    selection = select(listing_of(*MINILM), None)
    assert selection.weights == ("2_Dense/model.safetensors", "model.safetensors")
    assert companions_of(selection) == [
        "1_Pooling/config.json",
        "2_Dense/config.json",
        "README.md",
        "config.json",
        "config_sentence_transformers.json",
        "modules.json",
        "sentence_bert_config.json",
        *_TOKENIZER,
        "vocab.txt",
    ]


@pytest.mark.parametrize(
    "name",
    [
        "other.bin",
        "other.pt",
        "other.pth",
        "other.pth.tar",
        "other.pkl",
        "other.pickle",
        "other.ckpt",
        "other.joblib",
        "other.PT",
        "other.gguf",
        "other.h5",
        "other.msgpack",
        "other.onnx",
        "other.onnx_data",
        "other.tflite",
        "other.ot",
        "other.mlmodel",
        "pytorch_model.bin.index.json",
        "openvino_model.xml",
        ".hidden.json",
        ".cache/hidden.json",
        "a/.hidden.safetensors",
        "onnx/config.json",
        "openvino/config.json",
        "coreml/config.json",
        "original/params.json",
        "checkpoint-20/config.json",
        "global_step20/config.json",
        "optimizer.safetensors",
        "rng_state_0",
        "random_states_0",
        "events.out.tfevents.1",
        "picture.png",
        "picture.JPG",
        "sound.flac",
        "film.mp4",
        "paper.pdf",
    ],
)
def test_what_no_engine_loads_is_left_out(name: str) -> None:
    assert names_of(select(listing_of("config.json", name, "model.safetensors"), None)) == [
        "config.json",
        "model.safetensors",
    ]


@pytest.mark.parametrize(
    "name",
    [
        "generation_config.json",
        "merges.txt",
        "tokenizer.model",
        "qwen.tiktoken",
        "chat_template.jinja",
        "modeling_x.py",
        "optimizer.py",
        "LICENSE",
        "README.md",
        "a/b/c.json",
        "original",
        "checkpoint-final/a.json",
    ],
)
def test_what_an_engine_or_its_operator_may_read_is_taken(name: str) -> None:
    names = names_of(select(listing_of("config.json", name, "model.safetensors"), None))
    assert sorted(names) == sorted(["config.json", "model.safetensors", name])


def test_of_a_pipeline_its_parts_are_taken_without_variants_and_without_what_lies_beside_them() -> None:
    selection = select(listing_of(*SDXL), None)
    assert selection.format == "safetensors"
    assert selection.directory == ""
    assert selection.weights == (
        "text_encoder/model.safetensors",
        *shards("unet/diffusion_pytorch_model.safetensors", 3),
        "vae/diffusion_pytorch_model.safetensors",
    )
    assert companions_of(selection) == [
        "LICENSE.md",
        "README.md",
        "model_index.json",
        "scheduler/scheduler_config.json",
        "text_encoder/config.json",
        "tokenizer/merges.txt",
        "tokenizer/special_tokens_map.json",
        "tokenizer/tokenizer_config.json",
        "tokenizer/vocab.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors.index.json",
        "vae/config.json",
        "vae_decoder/config.json",
    ]


def test_of_a_pipeline_that_has_only_variants_they_are_taken() -> None:
    repository = ("model_index.json", "unet/config.json", "unet/diffusion_pytorch_model.fp16.safetensors")
    assert select(listing_of(*repository), None).weights == repository[2:]


def test_of_an_adapter_no_step_of_its_training_is_taken() -> None:
    selection = select(listing_of(*LORA), None)
    assert names_of(selection) == ["README.md", "adapter_config.json", *_TOKENIZER, "adapter_model.safetensors"]
    assert selection.directory == ""


def test_safetensors_are_taken_before_a_gguf() -> None:
    repository = ("a-Q4_K_M.gguf", "config.json", "mmproj-F16.gguf", "model.safetensors")
    assert names_of(select(listing_of(*repository), None)) == ["config.json", "model.safetensors"]


@pytest.mark.parametrize(
    "beside",
    [
        ("x.safetensors",),
        ("model_index.json", "x.safetensors"),
        ("config.json", "fp8/x.safetensors"),
        ("adapter_model.safetensors",),
        ("adapter_config.json", "x.safetensors"),
        ("consolidated.safetensors",),
        ("params.json", "x.safetensors"),
        ("config.json", "optimizer.safetensors"),
        ("config.json", ".x.safetensors"),
    ],
)
def test_safetensors_that_no_engine_finds_in_the_repository_are_not_taken_unasked(beside: tuple[str, ...]) -> None:
    selection = select(listing_of("a-Q4_K_M.gguf", *beside), None)
    assert names_of(selection) == ["a-Q4_K_M.gguf"]


def test_safetensors_that_no_engine_finds_are_offered() -> None:
    failure = what_fails(("README.md", "flux.safetensors", "lora/a.safetensors"))
    assert isinstance(failure, NoWeights)
    assert failure.available == ("flux.safetensors", "lora/a.safetensors")


# Safetensors by a pattern


def test_a_pattern_names_the_safetensors_of_a_directory() -> None:
    selection = select(listing_of(*TWO_PRECISIONS), "fp8/*")
    assert selection.weights == shards("fp8/model.safetensors", 2)
    assert selection.model is None
    assert selection.directory == "fp8"
    assert companions_of(selection) == [
        "README.md",
        "config.json",
        "fp8/chat/template.jinja",
        "fp8/config.json",
        "fp8/model.safetensors.index.json",
        *_TOKENIZER,
    ]


def test_a_directory_without_a_configuration_is_no_model_of_its_own() -> None:
    selection = select(listing_of("config.json", "fp8/a.safetensors", "fp8/tokenizer.json"), "fp8/*")
    assert names_of(selection) == ["config.json", "fp8/tokenizer.json", "fp8/a.safetensors"]
    assert selection.directory == ""


def test_weights_of_several_directories_and_parts_of_a_pipeline_are_read_from_the_root() -> None:
    selection = select(listing_of(*TWO_PRECISIONS), "*[84]/*.safetensors")
    assert selection.weights == (*shards("fp8/model.safetensors", 2), "int4/model.safetensors")
    assert selection.directory == ""
    assert select(listing_of(*SDXL), "unet/*").directory == ""


def test_a_pattern_for_one_shard_of_safetensors_takes_them_all() -> None:
    selection = select(listing_of(*QWEN3), "*-00002-of-00005.safetensors")
    assert selection.weights == shards("model.safetensors", 5)
    assert "config.json" in names_of(selection)


def test_a_pattern_for_all_safetensors_takes_nothing_twice() -> None:
    assert select(listing_of(*MISTRAL), "*.safetensors").weights == shards("model.safetensors", 3)
    assert select(listing_of(*LORA), "*.safetensors").weights == ("adapter_model.safetensors",)
    assert select(listing_of(*SDXL), "*.safetensors") == select(listing_of(*SDXL), None)


def test_safetensors_that_were_named_exactly_are_taken_alone() -> None:
    repository = ("config.json", "model.safetensors", "int4/config.json", "int4/model.safetensors")
    assert names_of(select(listing_of(*repository), "model.safetensors")) == ["config.json", "model.safetensors"]
    assert select(listing_of(*repository), "int4/model.safetensors").weights == ("int4/model.safetensors",)
    assert select(listing_of(*TWO_PRECISIONS), "model-00001-of-00002.safetensors").weights == shards(
        "model.safetensors", 2
    )


def test_a_pattern_for_what_would_be_left_out_takes_it() -> None:
    selection = select(listing_of(*MISTRAL), "consolidated*")
    assert selection.weights == ("consolidated.safetensors",)
    assert "consolidated.safetensors.index.json" in names_of(selection)
    assert "model.safetensors.index.json" not in names_of(selection)
    selection = select(listing_of(*GPT_OSS), "original/*")
    assert selection.weights == ("original/model.safetensors",)
    assert selection.directory == "original"
    assert "original/dtypes.json" in names_of(selection)
    selection = select(listing_of(*LORA), "checkpoint-500/*")
    assert selection.weights == ("checkpoint-500/adapter_model.safetensors",)
    assert selection.directory == "checkpoint-500"
    assert not [name for name in names_of(selection) if name.endswith((".pt", ".pth", ".bin"))]


def test_a_pattern_for_a_variant_takes_it_with_the_whole_pipeline() -> None:
    selection = select(listing_of(*SDXL), "*fp16*.safetensors")
    assert selection.weights == (
        "text_encoder/model.fp16.safetensors",
        *shards("unet/diffusion_pytorch_model.fp16.safetensors", 2),
        "vae/diffusion_pytorch_model.fp16.safetensors",
    )
    assert "tokenizer/vocab.json" in names_of(selection)
    assert "unet/diffusion_pytorch_model.safetensors.index.fp16.json" in names_of(selection)
    assert "unet/diffusion_pytorch_model.safetensors.index.json" not in names_of(selection)


def test_a_pattern_for_the_one_file_of_a_pipeline_takes_it() -> None:
    assert select(listing_of(*SDXL), "sd_xl_base_1.0.safetensors").weights == ("sd_xl_base_1.0.safetensors",)


# GGUF


def test_of_a_repository_with_one_gguf_that_is_taken_alone() -> None:
    selection = select(listing_of(".gitattributes", "README.md", "a-Q4_K_M.gguf", "config.json"), None)
    assert names_of(selection) == ["a-Q4_K_M.gguf"]
    assert selection == Selection(selection.files, ("a-Q4_K_M.gguf",), "gguf", "a-Q4_K_M.gguf")


def test_of_several_ggufs_one_has_to_be_named() -> None:
    assert models_of(UNSLOTH) == (
        "BF16/Qwen3-235B-A22B-BF16-00001-of-00010.gguf",
        "Q4_K_M/Qwen3-235B-A22B-Q4_K_M-00001-of-00003.gguf",
        "Qwen3-235B-A22B-UD-IQ1_S.gguf",
        "UD-Q4_K_XL/Qwen3-235B-A22B-UD-Q4_K_XL-00001-of-00003.gguf",
    )


def test_what_an_error_names_is_few() -> None:
    many = tuple(f"a-{number:03}.gguf" for number in range(100))
    assert models_of(many) == many[:MOST_NAMED]
    failure = what_fails(many, "b")
    assert isinstance(failure, NothingMatches)
    assert failure.available == many[:MOST_NAMED]
    assert missing_from(("a-00001-of-09999.gguf",)) == shards("a.gguf", 9999)[1 : MOST_NAMED + 1]


@pytest.mark.parametrize(
    ("pattern", "weights"),
    [
        ("*Q4_K_M*.gguf", ("Llama-3.3-70B-Instruct-Q4_K_M.gguf",)),
        ("Llama-3.3-70B-Instruct-Q4_K_M.gguf", ("Llama-3.3-70B-Instruct-Q4_K_M.gguf",)),
        ("*Q4_K_[LX].gguf", ("Llama-3.3-70B-Instruct-Q4_K_L.gguf",)),
        ("*Q?_0*", shards("Llama-3.3-70B-Instruct-Q8_0/Llama-3.3-70B-Instruct-Q8_0.gguf", 2)),
        ("*-Q8_0/*", shards("Llama-3.3-70B-Instruct-Q8_0/Llama-3.3-70B-Instruct-Q8_0.gguf", 2)),
        ("*Q6_K-00002-of-*", shards("Llama-3.3-70B-Instruct-Q6_K/Llama-3.3-70B-Instruct-Q6_K.gguf", 2)),
        (
            "Llama-3.3-70B-Instruct-Q6_K-00002-of-00002.gguf",
            shards("Llama-3.3-70B-Instruct-Q6_K/Llama-3.3-70B-Instruct-Q6_K.gguf", 2),
        ),
    ],
)
def test_a_pattern_names_a_gguf_with_all_its_shards(pattern: str, weights: tuple[str, ...]) -> None:
    selection = select(listing_of(*BARTOWSKI), pattern)
    assert names_of(selection) == list(weights)
    assert selection.weights == weights
    assert selection.model == weights[0]
    assert selection.format == "gguf"
    assert selection.projector is None


def test_the_directory_of_a_gguf_is_told() -> None:
    assert select(listing_of(*UNSLOTH), "*Q4_K_M*").directory == "Q4_K_M"
    assert select(listing_of(*UNSLOTH), "*IQ1*").directory == ""


def test_a_pattern_for_several_ggufs_is_not_enough() -> None:
    assert models_of(BARTOWSKI, "*Q4_K*") == (
        "Llama-3.3-70B-Instruct-Q4_K_L.gguf",
        "Llama-3.3-70B-Instruct-Q4_K_M.gguf",
    )
    assert models_of(UNSLOTH, "*Q4_K*") == (
        "Q4_K_M/Qwen3-235B-A22B-Q4_K_M-00001-of-00003.gguf",
        "UD-Q4_K_XL/Qwen3-235B-A22B-UD-Q4_K_XL-00001-of-00003.gguf",
    )


def test_the_case_of_letters_counts() -> None:
    failure = what_fails(BARTOWSKI, "*q4_k_m*")
    assert isinstance(failure, NothingMatches)


def test_a_pattern_is_matched_with_the_whole_path_and_with_the_last_part_where_it_has_one_part() -> None:
    repository = ("a/x-Q4.gguf", "b/y-Q4.gguf", "x-Q4.gguf.md", "z.gguf")
    assert select(listing_of(*repository), "x-*.gguf").model == "a/x-Q4.gguf"
    assert select(listing_of(*repository), "b/*").model == "b/y-Q4.gguf"
    assert select(listing_of(*repository), "b/y-Q4.gguf").model == "b/y-Q4.gguf"
    assert isinstance(what_fails(repository, "c/x-Q4.gguf"), NothingMatches)
    assert isinstance(what_fails(("c/a/x.gguf",), "a/x.gguf"), NothingMatches)


def test_a_pattern_without_a_directory_is_matched_with_the_whole_path_too() -> None:
    assert select(listing_of("Q4/a.gguf", "Q8/a.gguf"), "Q4*").model == "Q4/a.gguf"


def test_of_several_matches_the_one_that_was_named_exactly_wins() -> None:
    repository = ("a.gguf", "old/a.gguf", *shards("b.gguf", 2), *shards("old/b.gguf", 2))
    assert select(listing_of(*repository), "a.gguf").model == "a.gguf"
    assert select(listing_of(*repository), "b-00002-of-00002.gguf").weights == shards("b.gguf", 2)
    assert models_of(("new/a.gguf", "old/a.gguf"), "a.gguf") == ("new/a.gguf", "old/a.gguf")


def test_a_file_whose_name_is_the_pattern_is_no_model_for_that() -> None:
    assert select(listing_of("*", "a.gguf"), "*").model == "a.gguf"
    assert models_of(("*", "a.gguf", "b.gguf"), "*") == ("a.gguf", "b.gguf")


def test_a_name_with_brackets_in_it_names_itself() -> None:
    repository = ("a[1].gguf", "a1.gguf", "b/a[2].gguf")
    assert select(listing_of(*repository), "a[1].gguf").model == "a[1].gguf"
    assert select(listing_of(*repository), "b/a[2].gguf").model == "b/a[2].gguf"


def test_a_pattern_for_ggufs_and_safetensors_takes_the_gguf() -> None:
    repository = ("config.json", "model-Q4.gguf", "model.safetensors", "mmproj-F16.gguf")
    assert select(listing_of(*repository), "model*").model == "model-Q4.gguf"
    assert select(listing_of(*repository), "m*[4s]*").format == "gguf"
    assert select(listing_of(*repository), "*m[mo]*[p1s]*[rs]").format == "safetensors"


def test_what_was_measured_to_make_a_quantization_is_no_model() -> None:
    assert select(listing_of("a.gguf", "imatrix_a.gguf", "a.imatrix.gguf", "a-IMatrix.gguf"), None).model == "a.gguf"
    assert isinstance(what_fails(BARTOWSKI, "*imatrix*"), NoWeights)


def test_what_is_loaded_beside_a_model_is_no_model() -> None:
    selection = select(listing_of(*QWEN_VL), None)
    assert selection.model == "Qwen2.5-VL-7B-Instruct-Q4_K_M.gguf"
    assert isinstance(what_fails(QWEN_VL, "mtp-*"), NoWeights)
    assert isinstance(what_fails(("a/mtp-x.gguf", "mmproj.gguf")), NoWeights)


# The projector


def test_a_projector_is_taken_with_its_model_and_told() -> None:
    selection = select(listing_of(*QWEN_VL), None)
    assert names_of(selection) == [QWEN_VL[1], QWEN_VL[3]]
    assert selection.weights == (QWEN_VL[1], QWEN_VL[3])
    assert selection.projector == QWEN_VL[3]


@pytest.mark.parametrize(
    ("projectors", "taken"),
    [
        (("mmproj-BF16", "mmproj-F16", "mmproj-F32", "mmproj-Q8_0"), "mmproj-F16"),
        (("a.mmproj-fp16", "mmproj-BF16"), "a.mmproj-fp16"),
        (("mmproj-BF16", "mmproj-F32", "mmproj-Q8_0"), "mmproj-BF16"),
        (("mmproj-f32", "mmproj-q8_0"), "mmproj-f32"),
        (("mmproj-A", "mmproj-Q8_0"), "mmproj-Q8_0"),
        (("mmproj-b", "mmproj-a"), "mmproj-a"),
        (("mmproj-f16-model-bf16", "mmproj-f32"), "mmproj-f16-model-bf16"),
        (("mmproj-f16-model-q8_0", "mmproj-f32"), "mmproj-f32"),
        (("mmproj-xf16", "mmproj-Q8_0"), "mmproj-Q8_0"),
        (("mmproj-f16x", "mmproj-Q8_0"), "mmproj-Q8_0"),
    ],
)
def test_of_several_projectors_the_precision_decides_and_then_the_name(projectors: tuple[str, ...], taken: str) -> None:
    selection = select(listing_of("a-Q4.gguf", *(f"{name}.gguf" for name in projectors)), None)
    assert selection.projector == f"{taken}.gguf"


@pytest.mark.parametrize(
    ("projectors", "taken"),
    [
        (("Q4/mmproj-F32.gguf", "mmproj-F16.gguf"), "Q4/mmproj-F32.gguf"),
        (("Q8/mmproj-F16.gguf", "mmproj-F32.gguf"), "mmproj-F32.gguf"),
        (("Q8/mmproj-F16.gguf",), None),
    ],
)
def test_a_projector_beside_the_model_is_taken_else_one_of_the_root(
    projectors: tuple[str, ...], taken: str | None
) -> None:
    listing = listing_of(*shards("Q4/a-Q4.gguf", 2), "Q8/a-Q8.gguf", *projectors)
    assert select(listing, "*-Q4-*").projector == taken


def test_a_projector_that_the_pattern_matches_is_taken() -> None:
    assert names_of(select(listing_of(*GEMMA), "*Q8_0*")) == ["gemma-3-4b-it-Q8_0.gguf", "mmproj-Q8_0.gguf"]
    assert select(listing_of(*GEMMA), "*Q4_K_M*").projector == "mmproj-F16.gguf"
    assert select(listing_of("a.gguf", "mmproj-BF16.gguf", "mmproj-F16.gguf"), "*.gguf").projector == "mmproj-F16.gguf"
    elsewhere = ("m/a.gguf", "mmproj-F32.gguf", "p/mmproj-F16.gguf")
    assert select(listing_of(*elsewhere), "*.gguf").projector == "mmproj-F32.gguf"
    assert select(listing_of(*elsewhere), "?/*.gguf").projector == "p/mmproj-F16.gguf"


def test_a_pattern_for_projectors_alone_takes_one() -> None:
    selection = select(listing_of(*GEMMA), "mmproj-F32.gguf")
    assert names_of(selection) == ["mmproj-F32.gguf"]
    assert selection == Selection(selection.files, ("mmproj-F32.gguf",), "gguf", "mmproj-F32.gguf")
    assert select(listing_of(*GEMMA), "mmproj*").model == "mmproj-F16.gguf"


# What can't be selected


def test_a_pattern_that_matches_nothing_is_told_what_there_is() -> None:
    failure = what_fails(GEMMA, "*Q5_K_M*")
    assert isinstance(failure, NothingMatches)
    assert failure.pattern == "*Q5_K_M*"
    assert failure.available == ("gemma-3-4b-it-BF16.gguf", "gemma-3-4b-it-Q4_K_M.gguf", "gemma-3-4b-it-Q8_0.gguf")
    failure = what_fails(TWO_PRECISIONS, "fp4/*")
    assert isinstance(failure, NothingMatches)
    assert failure.available == (
        *shards("fp8/model.safetensors", 2),
        "int4/model.safetensors",
        *shards("model.safetensors", 2),
    )


def test_a_hidden_file_is_never_matched() -> None:
    assert isinstance(what_fails((".a.gguf", ".b/a.gguf"), "*a.gguf"), NothingMatches)


@pytest.mark.parametrize(
    ("repository", "pattern", "formats"),
    [
        (OPT, None, (".bin",)),
        (OPT, "pytorch_model*", (".bin",)),
        (MINILM, "*.bin", (".bin",)),
        (("original/consolidated.00.pth", "config.json", "a.CKPT"), None, (".ckpt", ".pth")),
        (("a.pkl", "mmproj-F16.gguf"), None, (".pkl",)),
    ],
)
def test_pickled_weights_are_never_taken(
    repository: tuple[str, ...], pattern: str | None, formats: tuple[str, ...]
) -> None:
    failure = what_fails(repository, pattern)
    assert isinstance(failure, UnsafeFormat)
    assert failure.formats == formats


@pytest.mark.parametrize(
    ("repository", "pattern"),
    [
        ((), None),
        (("README.md",), None),
        (("model.onnx", "tf_model.h5", "flax_model.msgpack", "config.json"), None),
        (("training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth"), None),
        (("x.safetensors", "x.bin"), None),
        (QWEN3, "*.json"),
        (OPT, "tf_model.h5"),
    ],
)
def test_a_repository_without_weights_that_we_load_has_none(repository: tuple[str, ...], pattern: str | None) -> None:
    assert isinstance(what_fails(repository, pattern), NoWeights)


def test_a_model_lacks_no_shard() -> None:
    q4 = shards("Q4_K_M/Qwen3-235B-A22B-Q4_K_M.gguf", 3)
    for lost in q4:
        assert missing_from(tuple(name for name in UNSLOTH if name != lost), "*Q4_K_M*") == (lost,)
    for lost in shards("model.safetensors", 5):
        assert missing_from(tuple(name for name in QWEN3 if name != lost)) == (lost,)
    lost = shards("unet/diffusion_pytorch_model.safetensors", 3)[1]
    assert missing_from(tuple(name for name in SDXL if name != lost)) == (lost,)


def test_a_shard_missing_from_another_model_matters_not() -> None:
    repository = tuple(name for name in UNSLOTH if "BF16-00002" not in name)
    assert select(listing_of(*repository), "*Q4_K_M*").model == "Q4_K_M/Qwen3-235B-A22B-Q4_K_M-00001-of-00003.gguf"


@pytest.mark.parametrize("name", ["a-00001-of-00000.gguf", "a-00001-of-99999.gguf", "a-00001-of-99999.safetensors"])
def test_shards_that_can_not_be_are_no_model(name: str) -> None:
    assert isinstance(what_fails(("config.json", name)), ImpossibleShards)


# Whatever is listed


_NAMES = st.one_of(
    st.sampled_from(sorted({name for names in REPOSITORIES.values() for name in names})),
    st.builds(
        "{}{}{}{}".format,
        st.sampled_from(["", "a/", "fp8/", "original/", "onnx/", ".b/"]),
        st.sampled_from(["model", "a-Q4", "mmproj-F16", "mtp-a", "config", "consolidated", "adapter_model", ".x"]),
        st.sampled_from(["", "-00001-of-00002", "-00002-of-00002", "-00003-of-00002", ".fp16"]),
        st.sampled_from([".safetensors", ".gguf", ".bin", ".PTH", ".json", ".safetensors.index.json", ".png"]),
    ),
)
_LISTED = st.one_of(
    st.lists(_NAMES, max_size=12, unique=True), st.sampled_from([list(names) for names in REPOSITORIES.values()])
)
_PATTERNS = st.one_of(
    st.none(),
    _NAMES,
    st.sampled_from(["*", "*.gguf", "*.safetensors", "*Q4*", "fp8/*", "*.bin", "original/*", "*00002*"]),
    st.text(alphabet="*?[]!-aQ4/.\\", min_size=1, max_size=12),
)


@given(_LISTED, _PATTERNS)
def test_a_selection_is_whole_safe_and_of_what_is_listed(names: list[str], pattern: str | None) -> None:
    listing = listing_of(*names)
    try:
        selection = select(listing, pattern)
    except Unselectable:
        return
    selected = names_of(selection)
    assert [listing.by_name[name] for name in selected] == list(selection.files)
    assert len(set(selected)) == len(selected)
    assert not [name for name in selected if name.lower().endswith(PICKLED)]
    assert not [name for name in selected if any(part.startswith(".") for part in name.split("/"))]
    assert selection.weights
    assert tuple(selected[-len(selection.weights) :]) == selection.weights == tuple(sorted(selection.weights))
    assert companions_of(selection) == sorted(companions_of(selection))
    assert {name.rpartition(".")[2] for name in selection.weights} == {selection.format}
    assert (selection.model is None) == (selection.format == "safetensors")
    for name in selection.weights:
        stem, of, count = name.rpartition("-of-")
        if of and stem[-6] == "-":
            counted = range(1, int(count[:5]) + 1)
            assert {f"{stem[:-5]}{number:05}-of-{count}" for number in counted} <= set(selection.weights)


@given(st.data(), _LISTED, _PATTERNS)
def test_the_order_of_a_listing_changes_nothing(data: st.DataObject, names: list[str], pattern: str | None) -> None:
    def outcome(listed: list[str]) -> object:
        try:
            return names_of(select(listing_of(*listed), pattern))
        except Unselectable as failure:
            return type(failure), vars(failure)

    assert outcome(data.draw(st.permutations(names))) == outcome(names)


def test_pickled_weights_of_a_repository_that_somebody_trusts() -> None:
    names = (
        "config.json", "tokenizer.json", "README.md", "photo.png", "optimizer.bin", "pytorch_model.bin.index.json",
        *shards("pytorch_model.bin", 2), "flax_model.msgpack", "onnx/model.onnx",
    )  # fmt: skip
    chosen = select_pickled(listing_of(*names))
    assert chosen.weights == shards("pytorch_model.bin", 2)
    assert chosen.format == "pickle"
    assert [file.name for file in chosen.files] == [
        *sorted(["config.json", "tokenizer.json", "README.md", "pytorch_model.bin.index.json"]),
        *shards("pytorch_model.bin", 2),
    ]


def test_a_trusted_repository_needs_weights_and_a_configuration_all_the_same() -> None:
    for names in (("config.json", "model.onnx"), ("pytorch_model.bin",)):
        with pytest.raises(Unselectable):
            select_pickled(listing_of(*names))

import json
import os
import shutil
import socket
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any

import pytest

from schemas.asks import InspectModel, ModelInspection
from schemas.models import ModelWeights
from schemas.reasons import (
    InspectionFailed,
    ModelFileInvalid,
    ModelFilesIncomplete,
    ModelFileTruncated,
    ModelNotFound,
    NotTheFirstShard,
    PathNotAllowed,
    Reason,
    WeightsUnknown,
)
from schemas.sources import LocalPath
from services.downloader.adapters.local_path import inspect_model
from services.downloader.domain.short_config import MAX_BYTES, short_config
from tests.services.downloader.files import (
    A_CONFIG,
    A_LLAMA,
    FIRST_OF_TWO,
    MODELS,
    SECOND_OF_TWO,
    TINYCHAT,
    WHOLE,
    Tensor,
    a_gguf,
    a_safetensors,
    a_shard,
    a_tensor,
    text,
    u32,
    write,
)

INDEX = "model.safetensors.index.json"


def inspect(path: Path | str, *allowed_roots: Path) -> ModelInspection:
    return inspect_model(InspectModel(source=LocalPath(path=str(path))), allowed_roots)


def weights_of(path: Path) -> ModelWeights:
    inspection = inspect(path)
    assert inspection.weights is not None, inspection.reasons
    assert inspection == ModelInspection(weights=inspection.weights)
    return inspection.weights


def because(*reasons: Reason) -> ModelInspection:
    return ModelInspection(reasons=reasons)


def invalid(path: Path | str, problem: str) -> ModelInspection:
    return because(ModelFileInvalid(path=str(path), problem=problem))


def incomplete(path: Path, *missing: str) -> ModelInspection:
    return because(ModelFilesIncomplete(path=str(path), missing=missing))


# GGUF


def test_a_gguf_file_is_what_its_header_says_and_weighs_what_it_has() -> None:
    assert inspect(WHOLE) == ModelInspection(
        weights=ModelWeights(
            format="gguf",
            weight_bytes=1_871_872,
            files=(str(WHOLE),),
            architecture="llama",
            context_length=4096,
            layers=4,
            hidden_size=128,
            attention_heads=4,
            kv_heads=2,
            head_size=32,
            value_size=32,
            vocabulary_size=1024,
            layer_bytes=1_576_960,
            categories=("llm",),
        )
    )


def test_shards_weigh_together_and_are_what_the_first_says() -> None:
    whole = weights_of(WHOLE)
    assert weights_of(FIRST_OF_TWO) == whole.model_copy(
        update={"weight_bytes": 1_081_856 + 790_208, "files": (str(FIRST_OF_TWO), str(SECOND_OF_TWO))}
    )


def test_a_later_shard_is_answered_with_the_name_of_the_first() -> None:
    later = NotTheFirstShard(path=str(SECOND_OF_TWO), first=FIRST_OF_TWO.name)
    assert inspect(SECOND_OF_TWO) == ModelInspection(reasons=(later,))


def test_shards_that_are_not_there_are_named(tmp_path: Path) -> None:
    write(tmp_path, {"m-00001-of-00004.gguf": a_shard(1, 4), "m-00003-of-00004.gguf": a_shard(3, 4, {})})
    first = tmp_path / "m-00001-of-00004.gguf"
    assert inspect(first) == incomplete(first, "m-00002-of-00004.gguf", "m-00004-of-00004.gguf")


def test_of_very_many_missing_shards_some_are_named_and_the_rest_counted(tmp_path: Path) -> None:
    write(tmp_path, {"m-00001-of-00500.gguf": a_shard(1, 500)})
    (reason,) = inspect(tmp_path / "m-00001-of-00500.gguf").reasons
    assert isinstance(reason, ModelFilesIncomplete)
    assert (reason.missing[0], reason.missing[-1]) == ("m-00002-of-00500.gguf", "467 more")
    assert len(reason.missing) == 33


def test_every_broken_shard_is_objected_to(tmp_path: Path) -> None:
    second = a_shard(2, 3, {})
    write(
        tmp_path,
        {
            "m-00001-of-00003.gguf": a_shard(1, 3),
            "m-00002-of-00003.gguf": second[:-1],
            "m-00003-of-00003.gguf": b"not a model",
        },
    )
    assert inspect(tmp_path / "m-00001-of-00003.gguf") == because(
        ModelFileTruncated(
            path=str(tmp_path / "m-00002-of-00003.gguf"), expected_bytes=len(second), actual_bytes=len(second) - 1
        ),
        ModelFileInvalid(path=str(tmp_path / "m-00003-of-00003.gguf"), problem="it does not begin with GGUF"),
    )


def test_an_answer_has_a_bounded_number_of_objections(tmp_path: Path) -> None:
    write(tmp_path, {f"m-{number:05}-of-00100.gguf": b"not a model" for number in range(1, 101)})
    assert len(inspect(tmp_path / "m-00001-of-00100.gguf").reasons) == 32


def test_a_renamed_shard_is_refused(tmp_path: Path) -> None:
    write(tmp_path, {"m.gguf": a_shard(1, 2)})
    assert inspect(tmp_path / "m.gguf") == invalid(tmp_path / "m.gguf", "its header says shard 1 of 2, its name 1 of 1")


def test_a_truncated_file_says_how_much_of_it_is_there(tmp_path: Path) -> None:
    path = tmp_path / WHOLE.name
    shutil.copy(WHOLE, path)
    os.truncate(path, 1_871_871)
    assert inspect(path) == because(
        ModelFileTruncated(path=str(path), expected_bytes=1_871_872, actual_bytes=1_871_871)
    )


def test_a_file_that_grows_is_accepted_only_when_it_is_whole(tmp_path: Path) -> None:
    content, path = a_gguf(), tmp_path / "m.gguf"
    accepted: list[int] = []
    for length in range(len(content) + 1):
        path.write_bytes(content[:length])
        inspection = inspect(path)
        if inspection.weights is not None:
            accepted.append(length)
        else:
            (reason,) = inspection.reasons
            assert isinstance(reason, ModelFileInvalid | ModelFileTruncated)
    assert accepted == [len(content)]


def test_a_file_that_only_calls_itself_gguf_is_refused(tmp_path: Path) -> None:
    write(tmp_path, {"m.gguf": b"<!DOCTYPE html>", "empty.gguf": b""})
    assert inspect(tmp_path / "m.gguf") == invalid(tmp_path / "m.gguf", "it does not begin with GGUF")
    assert inspect(tmp_path / "empty.gguf") == invalid(
        tmp_path / "empty.gguf", "it ends inside its header, after 0 bytes"
    )


def test_a_gguf_file_of_another_name_is_known_by_its_content(tmp_path: Path) -> None:
    write(tmp_path, {"sha256-0123": a_gguf()})
    assert weights_of(tmp_path / "sha256-0123").files == (str(tmp_path / "sha256-0123"),)


def test_a_pooled_model_is_for_embeddings(tmp_path: Path) -> None:
    write(tmp_path, {"m.gguf": a_gguf({**A_LLAMA, "llama.pooling_type": u32(1)})})
    assert weights_of(tmp_path / "m.gguf").categories == ("embedding",)


# Directories of GGUF


def test_a_directory_with_one_gguf_is_that_model(tmp_path: Path) -> None:
    projector = a_gguf({"general.architecture": text("clip")})
    write(tmp_path, {"m.gguf": a_gguf(), "mmproj-m.gguf": projector, "README.md": b"read me"})
    assert weights_of(tmp_path) == weights_of(tmp_path / "m.gguf")


def test_a_directory_with_the_shards_of_one_model_is_that_model(tmp_path: Path) -> None:
    shutil.copy(FIRST_OF_TWO, tmp_path)
    shutil.copy(SECOND_OF_TWO, tmp_path)
    assert weights_of(tmp_path) == weights_of(tmp_path / FIRST_OF_TWO.name)


def test_a_directory_without_the_first_shard_misses_it(tmp_path: Path) -> None:
    shutil.copy(SECOND_OF_TWO, tmp_path)
    assert inspect(tmp_path) == incomplete(tmp_path / FIRST_OF_TWO.name, FIRST_OF_TWO.name)


def test_a_directory_with_several_gguf_models_needs_a_choice() -> None:
    assert inspect(MODELS) == invalid(
        MODELS, "it holds 3 GGUF models, tinychat-f16-00001-of-00002.gguf and others; give one of them"
    )


def test_a_directory_without_weights_weighs_nobody_knows_what(tmp_path: Path) -> None:
    write(tmp_path, {"config.json": A_CONFIG, "mmproj-m.gguf": a_gguf()})
    assert inspect(tmp_path) == because(WeightsUnknown(path=str(tmp_path)))


def test_where_a_shard_has_blocks_of_an_unknown_type_they_weigh_nobody_knows_what(tmp_path: Path) -> None:
    place = {"split.no": u32(1), "split.count": u32(2)}
    write(
        tmp_path,
        {
            "m-00001-of-00002.gguf": a_shard(1, 2),
            "m-00002-of-00002.gguf": a_gguf(place, [Tensor("blk.1.attn_q.weight", type=999)]),
        },
    )
    assert weights_of(tmp_path / "m-00001-of-00002.gguf").layer_bytes is None


def test_a_window_is_answered_with_its_layers(tmp_path: Path) -> None:
    metadata = {
        "general.architecture": text("gemma3"),
        "gemma3.block_count": u32(12),
        "gemma3.attention.sliding_window": u32(1024),
    }
    write(tmp_path, {"m.gguf": a_gguf(metadata)})
    weights = weights_of(tmp_path / "m.gguf")
    assert (weights.layers, weights.windowed_layers, weights.window) == (12, 10, 1024)


# Directories of safetensors


def test_a_safetensors_directory_is_what_its_config_says_and_weighs_what_its_files_have() -> None:
    assert inspect(TINYCHAT) == ModelInspection(
        weights=ModelWeights(
            format="safetensors",
            weight_bytes=1_841_368,
            files=(str(TINYCHAT / "model.safetensors"),),
            config=short_config((TINYCHAT / "config.json").read_bytes()),
            architecture="LlamaForCausalLM",
            context_length=4096,
            layers=4,
            kv_heads=2,
            head_size=32,
            categories=("llm",),
        )
    )


def a_model(**changes: bytes | object | None) -> Mapping[str, bytes | object]:
    """Two shards, their index and a config; `None` leaves a file out."""
    files = {
        "config.json": A_CONFIG,
        INDEX: {"weight_map": {"v": "a.safetensors", "w": "b.safetensors"}},
        "a.safetensors": a_safetensors(),
        "b.safetensors": a_safetensors(),
    } | {name.replace("__", "."): content for name, content in changes.items()}
    return {name: content for name, content in files.items() if content is not None}


def test_an_index_names_the_files_of_the_model_and_others_do_not_count(tmp_path: Path) -> None:
    write(tmp_path, a_model(consolidated__safetensors=a_safetensors()))
    weights = weights_of(tmp_path)
    assert weights.files == (str(tmp_path / "a.safetensors"), str(tmp_path / "b.safetensors"))
    assert weights.weight_bytes == 2 * len(a_safetensors())


def test_without_an_index_every_file_counts(tmp_path: Path) -> None:
    write(tmp_path, a_model(**{INDEX: None}))
    assert weights_of(tmp_path).weight_bytes == 2 * len(a_safetensors())


def test_what_only_looks_like_weights_or_an_index_does_not_count(tmp_path: Path) -> None:
    write(tmp_path, {"._m.safetensors": b"finder", "._m.gguf": b"finder", f"text_{INDEX}": {}, "config.json": A_CONFIG})
    assert inspect(tmp_path) == because(WeightsUnknown(path=str(tmp_path)))


def test_files_that_the_index_names_and_are_not_there_are_named(tmp_path: Path) -> None:
    write(tmp_path, a_model(b__safetensors=None))
    assert inspect(tmp_path) == incomplete(tmp_path, "b.safetensors")


def test_an_index_alone_asks_for_all_its_files(tmp_path: Path) -> None:
    write(tmp_path, a_model(a__safetensors=None, b__safetensors=None))
    assert inspect(tmp_path) == incomplete(tmp_path, "a.safetensors", "b.safetensors")


def test_without_an_index_one_shard_asks_for_the_others(tmp_path: Path) -> None:
    write(tmp_path, {"config.json": A_CONFIG, "m-00002-of-00002.safetensors": a_safetensors()})
    assert inspect(tmp_path) == incomplete(tmp_path, "m-00001-of-00002.safetensors")


def test_safetensors_without_a_config_are_incomplete(tmp_path: Path) -> None:
    write(tmp_path, a_model(config__json=None))
    assert inspect(tmp_path) == incomplete(tmp_path, "config.json")


def test_a_link_to_nothing_is_a_missing_file(tmp_path: Path) -> None:
    write(tmp_path, a_model(b__safetensors=None, **{INDEX: None}))
    (tmp_path / "b.safetensors").symlink_to("gone")
    assert inspect(tmp_path) == incomplete(tmp_path, "b.safetensors")
    (tmp_path / INDEX).symlink_to("gone")
    assert inspect(tmp_path) == incomplete(tmp_path, INDEX)


def test_a_truncated_shard_says_how_much_of_it_is_there(tmp_path: Path) -> None:
    whole = a_safetensors()
    write(tmp_path, a_model(a__safetensors=whole[:-1], b__safetensors=whole[:-2]))
    assert inspect(tmp_path) == because(
        *(
            ModelFileTruncated(path=str(tmp_path / name), expected_bytes=len(whole), actual_bytes=len(whole) - lost)
            for name, lost in (("a.safetensors", 1), ("b.safetensors", 2))
        )
    )


def test_bytes_behind_the_last_tensor_are_refused(tmp_path: Path) -> None:
    write(tmp_path, a_model(b__safetensors=a_safetensors() + b"!"))
    assert inspect(tmp_path) == invalid(tmp_path / "b.safetensors", "1 bytes follow its last tensor")


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("config.json", b"{", "it is not JSON"),
        ("config.json", {"num_hidden_layers": "many"}, "num_hidden_layers is not a count"),
        ("config.json", b" " * 10_000_001, "it is larger than 10000000 bytes"),
        (INDEX, b"\xff", "it is not JSON"),
        (INDEX, {"weight_map": {"w": "../config.json"}}, "its weight_map names something that is not a file beside it"),
        ("a.safetensors", b"garbage", "it ends inside its header, after 7 bytes"),
        (
            "a.safetensors",
            a_safetensors({"w": a_tensor(2, 64)}),
            "its tensors overlap or leave a hole at byte 0 of the data",
        ),
    ],
)
def test_garbage_is_refused_by_the_name_of_its_file(
    tmp_path: Path, name: str, content: bytes | object, problem: str
) -> None:
    write(tmp_path, a_model(**{name: content}))
    assert inspect(tmp_path) == invalid(tmp_path / name, problem)


def test_a_number_of_shards_that_cannot_be_is_refused(tmp_path: Path) -> None:
    write(tmp_path, {"m-00001-of-99999.safetensors": a_safetensors()})
    assert inspect(tmp_path) == invalid(tmp_path, "'m-00001-of-99999.safetensors' claims to be one of 99999 shards")


def test_an_encoder_is_for_embeddings(tmp_path: Path) -> None:
    write(tmp_path, a_model(config__json={**A_CONFIG, "architectures": ["BertModel"]}))
    assert weights_of(tmp_path).categories == ("embedding",)


def test_a_safetensors_file_is_answered_with_its_directory() -> None:
    path = TINYCHAT / "model.safetensors"
    assert inspect(path) == invalid(path, "give the directory that holds it and its config.json")


def test_a_model_of_sentence_transformers_embeds_whatever_its_kind(tmp_path: Path) -> None:
    write(tmp_path, a_model(modules__json=[]))
    assert weights_of(tmp_path).categories == ("embedding",)
    write(tmp_path, {"config.json": {**A_CONFIG, "architectures": ["BertForSequenceClassification"]}})
    assert weights_of(tmp_path).categories == ("unknown",)


def test_a_config_is_answered_short_however_long_it_is(tmp_path: Path) -> None:
    labels = {str(number): f"LABEL_{number}" for number in range(100_000)}
    write(tmp_path, a_model(config__json={**A_CONFIG, "id2label": labels, "layer_types": ["full_attention"] * 48}))
    answer = inspect(tmp_path)
    assert answer.weights is not None
    assert answer.weights.config == {**A_CONFIG, "layer_types": ["full_attention"] * 48}
    assert len(answer.model_dump_json()) < 2 * MAX_BYTES


# Pipelines of diffusers


def a_pipeline(**changes: bytes | object | None) -> Mapping[str, Mapping[str, bytes | object]]:
    """Directory → its files; a part that is None is left out."""
    parts = {
        ".": {
            "model_index.json": {
                "_class_name": "FluxPipeline",
                "_diffusers_version": "0.30.0",
                "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
                "text_encoder": ["transformers", "CLIPTextModel"],
                "image_encoder": [None, None],
                "transformer": ["diffusers", "FluxTransformer2DModel"],
            },
            "flux1-dev.safetensors": a_safetensors(),
        },
        "scheduler": {"scheduler_config.json": {}},
        "text_encoder": {
            "config.json": A_CONFIG,
            "model.safetensors": a_safetensors(),
            "model.fp16.safetensors": a_safetensors(),
        },
        "transformer": {
            "config.json": {},
            "diffusion_pytorch_model.safetensors.index.json": {
                "weight_map": {"w": "b.safetensors", "v": "a.safetensors"}
            },
            "a.safetensors": a_safetensors(),
            "b.safetensors": a_safetensors(),
            "c.safetensors": a_safetensors(),
        },
    } | changes
    return {name: files for name, files in parts.items() if isinstance(files, Mapping)}


def write_pipeline(directory: Path, pipeline: Mapping[str, Mapping[str, bytes | object]]) -> Path:
    for part, files in pipeline.items():
        write(directory / part, files)
    return directory


def test_a_pipeline_weighs_what_its_parts_weigh(tmp_path: Path) -> None:
    path = write_pipeline(tmp_path, a_pipeline())
    names = ("text_encoder/model.safetensors", "transformer/a.safetensors", "transformer/b.safetensors")
    assert inspect(path) == ModelInspection(
        weights=ModelWeights(
            format="safetensors",
            weight_bytes=3 * len(a_safetensors()),
            files=tuple(str(path / name) for name in names),
            config={"_class_name": "FluxPipeline", "image_encoder": [None, None]},
            architecture="FluxPipeline",
            categories=("image",),
        )
    )


def test_a_part_that_has_only_a_variant_is_that_variant(tmp_path: Path) -> None:
    only = {"model.fp16.safetensors": a_safetensors()}
    path = write_pipeline(tmp_path, a_pipeline(text_encoder=only))
    assert weights_of(path).files[0] == str(path / "text_encoder" / "model.fp16.safetensors")


def test_parts_and_shards_of_a_pipeline_that_are_not_there_are_named(tmp_path: Path) -> None:
    path = write_pipeline(tmp_path, a_pipeline(scheduler=None, text_encoder=None))
    assert inspect(path) == incomplete(path, "scheduler", "text_encoder")
    write_pipeline(tmp_path, a_pipeline())
    (path / "transformer" / "b.safetensors").unlink()
    assert inspect(path) == incomplete(path / "transformer", "b.safetensors")


def test_a_pipeline_without_weights_weighs_nobody_knows_what(tmp_path: Path) -> None:
    path = write_pipeline(tmp_path, a_pipeline(text_encoder={"model.bin": b""}, transformer={"model.bin": b""}))
    assert inspect(path) == because(WeightsUnknown(path=str(path)))


def test_a_part_that_is_no_directory_or_leads_elsewhere_is_refused(tmp_path: Path) -> None:
    path = write_pipeline(tmp_path / "m", a_pipeline(scheduler=None))
    (path / "scheduler").write_bytes(b"")
    assert inspect(path) == invalid(path / "scheduler", "it is no directory")
    (path / "scheduler").unlink()
    (path / "scheduler").symlink_to("../elsewhere")
    write(tmp_path / "elsewhere", {})
    assert inspect(path, path) == because(PathNotAllowed(path=str(path / "scheduler")))


@pytest.mark.parametrize(
    ("index", "problem"),
    [
        (b"[]", "it is not a JSON object"),
        ({}, "_class_name is not a name"),
        ({"_class_name": "a/b"}, "_class_name is not a name"),
        ({"_class_name": "P", "../x": ["a", "b"]}, "its part '../x' is not a directory beside it"),
        ({"_class_name": "P", **{f"p{n}": ["a", "b"] for n in range(65)}}, "it names 65 parts"),
    ],
)
def test_a_pipeline_that_cannot_be_true_is_refused(tmp_path: Path, index: object, problem: str) -> None:
    write(tmp_path, {"model_index.json": index})
    assert inspect(tmp_path) == invalid(tmp_path / "model_index.json", problem)


# What is loaded beside a model

AN_ADAPTER: Mapping[str, bytes | object] = {
    "adapter_config.json": {"peft_type": "LORA", "r": 16},
    "adapter_model.safetensors": a_safetensors(),
}


def inspect_all(model: Path, *adapters: Path, draft: Path | None = None) -> ModelInspection:
    return inspect_model(
        InspectModel(
            source=LocalPath(path=str(model)),
            adapters=tuple(LocalPath(path=str(adapter)) for adapter in adapters),
            draft=LocalPath(path=str(draft)) if draft else None,
        ),
        (),
    )


def test_adapters_and_a_draft_weigh_beside_the_model(tmp_path: Path) -> None:
    first, second = write(tmp_path / "1", AN_ADAPTER), write(tmp_path / "2", AN_ADAPTER)
    weights = weights_of(TINYCHAT)
    assert inspect_all(TINYCHAT, first, second, draft=TINYCHAT) == ModelInspection(
        weights=weights.model_copy(update={"lora_bytes": 2 * len(a_safetensors()), "draft_bytes": weights.weight_bytes})
    )


def test_a_gguf_adapter_is_one_file(tmp_path: Path) -> None:
    adapter = a_gguf({**A_LLAMA, "general.type": text("adapter")})
    write(tmp_path, {"lora.gguf": adapter})
    found = inspect_all(WHOLE, tmp_path / "lora.gguf")
    assert found.weights is not None
    assert found.weights.lora_bytes == len(adapter)
    assert inspect(tmp_path / "lora.gguf") == invalid(tmp_path / "lora.gguf", "it is an adapter, not a model")
    assert inspect_all(WHOLE, WHOLE) == invalid(WHOLE, "it is a model, not an adapter")


def test_a_draft_in_shards_weighs_all_of_them() -> None:
    found = inspect_all(WHOLE, draft=FIRST_OF_TWO)
    assert found.weights is not None
    assert found.weights.draft_bytes == 1_081_856 + 790_208


def test_every_one_that_is_unusable_is_objected_to(tmp_path: Path) -> None:
    bare = write(tmp_path / "bare", {"adapter_config.json": {}})
    short = write(tmp_path / "short", {**AN_ADAPTER, "adapter_model.safetensors": a_safetensors()[:-1]})
    gone = tmp_path / "gone"
    assert inspect_all(tmp_path / "model", bare, short, WHOLE, draft=gone) == because(
        ModelNotFound(path=str(tmp_path / "model")),
        ModelFilesIncomplete(path=str(bare), missing=("adapter_model.safetensors",)),
        ModelFileTruncated(
            path=str(short / "adapter_model.safetensors"),
            expected_bytes=len(a_safetensors()),
            actual_bytes=len(a_safetensors()) - 1,
        ),
        ModelFileInvalid(path=str(WHOLE), problem="it is a model, not an adapter"),
        ModelNotFound(path=str(gone)),
    )


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        (b"{", "it is not JSON"),
        ([], "it is not a JSON object"),
        ({"peft_type": "IA3"}, "it is a 'IA3' adapter, not LoRA"),
        ({"peft_type": 1}, "it is a '1' adapter, not LoRA"),
    ],
)
def test_what_is_no_lora_adapter_is_refused(tmp_path: Path, config: object, problem: str) -> None:
    adapter = write(tmp_path, {**AN_ADAPTER, "adapter_config.json": config})
    assert inspect_all(WHOLE, adapter) == invalid(adapter / "adapter_config.json", problem)


def test_an_adapter_lies_where_models_may(tmp_path: Path) -> None:
    adapter = write(tmp_path / "adapter", AN_ADAPTER)
    question = InspectModel(source=LocalPath(path=str(WHOLE)), adapters=(LocalPath(path=str(adapter)),))
    assert inspect_model(question, (MODELS,)) == because(PathNotAllowed(path=str(adapter)))


@pytest.mark.parametrize("name", AN_ADAPTER)
def test_of_an_adapter_what_is_no_file_is_never_opened(tmp_path: Path, name: str) -> None:
    adapter = write(tmp_path, {other: content for other, content in AN_ADAPTER.items() if other != name})
    os.mkfifo(adapter / name)
    assert inspect_all(WHOLE, adapter) == invalid(adapter / name, "it is a pipe")


# Paths


def test_a_path_must_be_absolute() -> None:
    assert inspect("examples/models/tinychat") == invalid("examples/models/tinychat", "the path is not absolute")


@pytest.mark.parametrize("path", ["/no/such/model.gguf", "/etc/passwd/model.gguf", "/a\0b", "/" + "a" * 300])
def test_where_nothing_is_nothing_is_found(path: str) -> None:
    assert inspect(path) == because(ModelNotFound(path=path))


def test_links_in_a_circle_lead_to_nothing(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").symlink_to("m.gguf")
    assert inspect(tmp_path / "m.gguf") == because(ModelNotFound(path=str(tmp_path / "m.gguf")))


def test_a_file_name_that_is_not_utf8_is_refused_by_its_directory(tmp_path: Path) -> None:
    os.close(os.open(os.fsencode(tmp_path) + b"/\xff.gguf", os.O_CREAT))
    assert inspect(tmp_path) == invalid(tmp_path, r"the file name '\udcff.gguf' in it is not UTF-8")


def test_a_disk_that_fails_is_said_to_have_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> int:
        raise OSError(5, "Input/output error")

    path = write(tmp_path, {"m.gguf": a_gguf()}) / "m.gguf"
    monkeypatch.setattr(os, "open", fail)
    assert inspect(path) == because(InspectionFailed(problem=f"{path}: Input/output error"))


def test_models_under_an_allowed_directory_are_looked_at(tmp_path: Path) -> None:
    write(tmp_path / "models", {"m.gguf": a_gguf()})
    (tmp_path / "link").symlink_to("models")
    for root in (tmp_path, tmp_path / "link"):
        assert inspect(tmp_path / "link" / "m.gguf", MODELS, root).weights is not None


def test_what_lies_elsewhere_is_not_even_said_to_exist(tmp_path: Path) -> None:
    write(tmp_path / "models-2", {"m.gguf": a_gguf()})
    for name in ("models-2/m.gguf", "models/../models-2/m.gguf", "models-2/nothing", "models-2"):
        path = str(tmp_path) + "/" + name
        assert inspect(path, tmp_path / "models") == because(PathNotAllowed(path=path))


def test_a_link_leads_nowhere_that_is_not_allowed(tmp_path: Path) -> None:
    write(tmp_path / "secret", {"m.gguf": a_gguf(), "config.json": A_CONFIG})
    models = write(tmp_path / "models", {"a.safetensors": a_safetensors()})
    (models / "m.gguf").symlink_to("../secret/m.gguf")
    (models / "config.json").symlink_to("../secret/config.json")
    for path, outside in ((models / "m.gguf", "m.gguf"), (models, "config.json")):
        assert inspect(path, models) == because(PathNotAllowed(path=str(models / outside)))


# What is no file


@pytest.fixture
def only_regular_files_are_opened(monkeypatch: pytest.MonkeyPatch) -> Generator[None, None, None]:
    really_open = os.open

    def watched(path: Path, flags: int) -> int:
        assert path.is_file(), f"{path} was opened"
        return really_open(path, flags)

    with monkeypatch.context() as patched:
        patched.setattr(os, "open", watched)
        yield


@pytest.mark.usefixtures("only_regular_files_are_opened")
@pytest.mark.parametrize(
    ("path", "kind"), [("pipe.gguf", "a pipe"), ("socket.gguf", "a socket"), ("/dev/null", "a device")]
)
def test_what_is_no_file_is_never_opened(tmp_path: Path, path: str, kind: str) -> None:
    os.mkfifo(tmp_path / "pipe.gguf")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket.gguf"))
        assert inspect(tmp_path / path) == invalid(tmp_path / path, f"it is {kind}")


@pytest.mark.usefixtures("only_regular_files_are_opened")
@pytest.mark.parametrize("name", ["config.json", INDEX, "b.safetensors"])
def test_what_is_no_file_is_never_opened_in_a_directory_either(tmp_path: Path, name: str) -> None:
    write(tmp_path, a_model(**{name: None}))
    os.mkfifo(tmp_path / name)
    assert inspect(tmp_path) == invalid(tmp_path / name, "it is a pipe")


def test_a_directory_that_calls_itself_gguf_is_looked_into(tmp_path: Path) -> None:
    write(tmp_path / "m.gguf", {"inner.gguf": a_gguf()})
    assert weights_of(tmp_path / "m.gguf").files == (str(tmp_path / "m.gguf" / "inner.gguf"),)
    assert inspect(tmp_path) == invalid(tmp_path / "m.gguf", "it is a directory")


def test_a_file_that_is_replaced_by_a_pipe_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, {"m.gguf": a_gguf()}) / "m.gguf"
    really_open = os.open

    def replaced(path: Path, flags: int) -> int:
        path.unlink()
        os.mkfifo(path)
        return really_open(path, flags)

    monkeypatch.setattr(os, "open", replaced)
    assert inspect(path) == invalid(path, "it is a pipe")


def test_inspecting_changes_nothing_and_twice_is_once(tmp_path: Path) -> None:
    shutil.copytree(TINYCHAT, tmp_path / "m")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert inspect(tmp_path / "m") == inspect(tmp_path / "m")
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_an_inspection_survives_the_wire(tmp_path: Path) -> None:
    for inspection in (inspect(WHOLE), inspect(TINYCHAT), inspect(tmp_path)):
        assert ModelInspection.model_validate(json.loads(inspection.model_dump_json())) == inspection

"""A wish that is read comes back as it was sent."""

import pytest
from pydantic import ValidationError

from schemas.backends import built_in
from schemas.models import ExtendedKvCache, ModelSpec
from schemas.sources import HuggingFace, LocalPath, ModelScope, Source
from services.api.adapters.http.requests import ChangeModel, CreateModel
from services.api.domain.models import written_as

SENT = {
    "name": "m",
    "local_path": "/models/m",
    "backend": "vLLM",
    "entrypoint": ["vllm", "serve"],
    "run_command": "serve '{{model_path}}'",
    "extended_kv_cache": {"ram_size": 64, "chunk_size": 256},
}


def test_what_an_engine_is_started_with_is_read() -> None:
    spec = CreateModel.model_validate(SENT).spec("m", built_in())
    assert spec.entrypoint == ("vllm", "serve")
    assert spec.run_command == "serve '{{model_path}}'"
    assert spec.extended_kv_cache == ExtendedKvCache(ram_size=64, chunk_size=256)


def test_a_change_of_something_else_leaves_it() -> None:
    before = CreateModel.model_validate(SENT).spec("m", built_in())
    after = ChangeModel.model_validate({"replicas": 3}).over(before, built_in())
    assert after == before.model_copy(update={"replicas": 3})


def spec_of(**fields: object) -> ModelSpec:
    return CreateModel.model_validate({"name": "m", "backend": "vLLM"} | fields).spec("m", built_in())


QWEN = {"huggingface_repo_id": "Qwen/Qwen3-8B", "huggingface_filename": "*Q4*.gguf", "revision": "v1"}


@pytest.mark.parametrize(
    ("fields", "source"),
    [
        ({"local_path": "/m"}, LocalPath(path="/m")),
        ({"huggingface_repo_id": "gpt2"}, HuggingFace(repo_id="gpt2")),
        (QWEN, HuggingFace(repo_id="Qwen/Qwen3-8B", filename="*Q4*.gguf", revision="v1")),
        (
            {"source": "huggingface", "local_path": None} | QWEN,
            HuggingFace(repo_id="Qwen/Qwen3-8B", filename="*Q4*.gguf", revision="v1"),
        ),
        (
            {"model_scope_model_id": "a/b", "model_scope_file_path": "q/c.gguf"},
            ModelScope(repo_id="a/b", filename="q/c.gguf", revision="master"),
        ),
    ],
)
def test_the_source_follows_from_the_fields_that_are_given(fields: dict[str, object], source: Source) -> None:
    assert spec_of(**fields).source == source


def test_every_source_is_read_as_it_was_sent_also_of_adapters_and_draft_models() -> None:
    spec = spec_of(
        **QWEN,
        lora_list=[{"lora_name": "a", "local_path": "/l"}, {"lora_name": "b", "model_scope_model_id": "a/b"}],
        speculative_config={"algorithm": "draft_model", "huggingface_repo_id": "a/draft", "draft_tokens": 5},
    )
    assert [lora.source for lora in spec.lora_list] == [LocalPath(path="/l"), ModelScope(repo_id="a/b")]
    assert spec.speculative_config is not None
    assert spec.speculative_config.draft_model == HuggingFace(repo_id="a/draft")
    assert CreateModel.model_validate(written_as(spec)).spec("m", built_in()) == spec
    no_draft = spec_of(**QWEN, speculative_config={"algorithm": "ngram"})
    assert CreateModel.model_validate(written_as(no_draft)).spec("m", built_in()) == no_draft


@pytest.mark.parametrize(
    ("change", "source"),
    [
        ({"revision": "v2"}, HuggingFace(repo_id="Qwen/Qwen3-8B", filename="*Q4*.gguf", revision="v2")),
        ({"revision": None}, HuggingFace(repo_id="Qwen/Qwen3-8B", filename="*Q4*.gguf", revision="main")),
        ({"huggingface_filename": None}, HuggingFace(repo_id="Qwen/Qwen3-8B", revision="v1")),
        ({"huggingface_repo_id": "a/b"}, HuggingFace(repo_id="a/b", filename="*Q4*.gguf", revision="v1")),
        ({"model_scope_model_id": "a/b"}, ModelScope(repo_id="a/b")),
        (
            {"source": "model_scope", "model_scope_model_id": "a/b", "revision": "x"},
            ModelScope(repo_id="a/b", revision="x"),
        ),
        ({"local_path": "/m", "huggingface_repo_id": None}, LocalPath(path="/m")),
        ({"replicas": 3}, HuggingFace(repo_id="Qwen/Qwen3-8B", filename="*Q4*.gguf", revision="v1")),
    ],
)
def test_a_change_of_the_source_keeps_what_is_still_of_it(change: dict[str, object], source: Source) -> None:
    before = spec_of(**QWEN)
    after = ChangeModel.model_validate(change).over(before, built_in())
    assert after == before.model_copy(update={"source": source, "replicas": after.replicas})


@pytest.mark.parametrize("command", ["a 'b", " ", 'say "hi'])
def test_a_run_command_that_no_shell_could_split_is_refused(command: str) -> None:
    with pytest.raises(ValidationError, match="run_command"):
        CreateModel.model_validate(SENT | {"run_command": command})

"""A wish that is read comes back as it was sent."""

import pytest
from pydantic import ValidationError

from schemas.backends import built_in
from schemas.models import ExtendedKvCache
from services.api.adapters.http.requests import ChangeModel, CreateModel

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


@pytest.mark.parametrize("command", ["a 'b", " ", 'say "hi'])
def test_a_run_command_that_no_shell_could_split_is_refused(command: str) -> None:
    with pytest.raises(ValidationError, match="run_command"):
        CreateModel.model_validate(SENT | {"run_command": command})

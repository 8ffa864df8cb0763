"""How each engine is handed its key: never on a command line, and not to one that couldn't ask for it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kernel.accounts import new_seed, public_key
from kernel.engine_keys import Holder, SealedKeys
from schemas.ids import InstanceId, WorkerId
from services.agent.adapters.engine_keys import EngineKeys, attempt_directory
from services.agent.domain.containers import contained
from services.agent.domain.engines.command import ENGINES, command_of
from services.agent.domain.engines.keys import asks_for
from services.agent.domain.gpu_access import gpu_access
from services.agent.domain.runtime import EngineCommand, EngineId, EngineNotStarted
from tests.services.agent.starts import a_launch, a_start

KEY = "mek_0123456789abcdefghijklmnopqrstuvwxyz"
ENGINE = EngineId(InstanceId("i-1"), 1)
WORKER = WorkerId("w-0")


def started(backend: str, *parameters: str, key: str | None = KEY, rank: int = 0, **fields: Any) -> EngineCommand:
    launch = a_launch(backend, *parameters, **fields)
    return command_of(a_start(launch, nodes=rank + 1, rank=rank, engine_key=key, directory="/d/i-1.1"))


@pytest.mark.parametrize("backend", ENGINES)
def test_no_command_line_has_it(backend: str) -> None:
    command = started(backend, run_command="serve {{engine_key}} {{MINE}}", env={"MINE": "{{ engine_key }}"})
    assert not [word for word in command.argv if KEY in word]


@pytest.mark.parametrize(("backend", "variable"), [("vLLM", "VLLM_API_KEY"), ("llama.cpp", "LLAMA_API_KEY")])
def test_engines_that_read_it_from_their_environment_find_it_there(backend: str, variable: str) -> None:
    command = started(backend)
    assert (command.env[variable], asks_for(command, KEY), command.files) == (KEY, True, {})
    without = started(backend, key=None)
    assert (variable in without.env, asks_for(without, KEY)) == (False, False)
    assert command.argv == without.argv


def test_sglang_reads_it_from_a_file_that_goes_into_its_container() -> None:
    command = started("SGLang")
    assert command.argv[-2:] == ("--config", "/d/i-1.1/key.yaml")
    assert command.files == {"/d/i-1.1/key.yaml": f"api-key: {KEY}\n"}
    start = a_start(a_launch("SGLang"), engine_key=KEY, directory="/d/i-1.1")
    container = contained(start, command, "image", gpu_access("cuda", (), "hook")).container
    assert container is not None
    assert ("/d/i-1.1", True) in [(mount.path, mount.read_only) for mount in container.mounts]


@pytest.mark.parametrize(
    "command",
    [
        started("SGLang", "--config", "/mine.yaml"),
        started("SGLang", backend_version="0.4.6"),
        started("SGLang", categories=("image",)),
        started("SGLang", rank=1),
        started("MindIE"),
        started("Custom", run_command="serve"),
    ],
)
def test_an_engine_that_could_not_ask_for_it_is_not_said_to(command: EngineCommand) -> None:
    assert not asks_for(command, KEY)
    assert KEY not in str((command.argv, command.env, command.files))


def test_an_image_that_only_its_author_knows_gets_it_where_he_says() -> None:
    env = {"TOKEN": "{{engine_key}}", "HEADER": "Bearer {{ engine_key }}", "OTHER": "{{port}}"}
    command = started("Custom", run_command="serve", env=env)
    assert {name: command.env[name] for name in env} == {"TOKEN": KEY, "HEADER": f"Bearer {KEY}", "OTHER": "{{port}}"}
    assert asks_for(command, KEY)
    without = started("Custom", run_command="serve", env=env, key=None)
    assert without.env["TOKEN"] == ""


def test_a_start_does_not_show_it() -> None:
    assert KEY not in repr(a_start(a_launch("vLLM"), engine_key=KEY))


# -- what is kept on the worker ---------------------------------------------------------------------------------------


def test_an_attempt_keeps_its_key_and_another_has_another(tmp_path: Path) -> None:
    seed = new_seed()
    first = replace_ref(public_key(seed))
    keys = EngineKeys(tmp_path, WORKER)
    key = keys.of_attempt(first)
    assert key is not None
    assert EngineKeys(tmp_path, WORKER).of_attempt(first) == key == keys.kept(ENGINE)
    sealed = keys.sealed(first, key)
    assert sealed is not None
    assert SealedKeys([seed]).opened(sealed, Holder(WORKER, ENGINE.instance_id, 1)) == key
    assert keys.of_attempt(first.model_copy(update={"attempt": 2})) not in (None, key)


def test_only_the_agents_user_can_read_it(tmp_path: Path) -> None:
    EngineKeys(tmp_path / "made", WORKER).of_attempt(replace_ref(public_key(new_seed())))
    (path,) = (tmp_path / "made").rglob("*.key")
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    assert [each.name for each in path.parent.iterdir()] == ["1.key"]


def test_what_is_forgotten_is_gone_with_what_was_written_for_it(tmp_path: Path) -> None:
    keys = EngineKeys(tmp_path, WORKER)
    keys.of_attempt(replace_ref(public_key(new_seed())))
    directory = attempt_directory(tmp_path, ENGINE)
    directory.mkdir()
    (directory / "key.yaml").write_text("api-key: x\n")
    keys.forget(ENGINE)
    keys.forget(ENGINE)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("ref", [None, "", "UABC"])
def test_without_gateways_to_seal_it_for_there_is_none(tmp_path: Path, ref: str | None) -> None:
    assert EngineKeys(tmp_path, WORKER).of_attempt(replace_ref(ref)) is None
    assert list(tmp_path.iterdir()) == []


def test_an_engine_whose_key_could_not_be_kept_is_not_started(tmp_path: Path) -> None:
    (tmp_path / "i-1").write_text("in the way")
    with pytest.raises(EngineNotStarted, match="can't be written"):
        EngineKeys(tmp_path, WORKER).of_attempt(replace_ref(public_key(new_seed())))


def replace_ref(ref: str | None) -> Any:
    start = a_start(a_launch("vLLM"))
    return replace(start, assigned=start.assigned.model_copy(update={"engine_key_ref": ref})).assigned

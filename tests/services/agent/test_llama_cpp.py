"""Golden command lines."""

import shlex

from schemas.assignment import AssignedInstance
from schemas.ids import InstanceId, ModelId
from schemas.models import Launch
from schemas.sources import LocalPath
from services.agent.domain.engines.llama_cpp import llama_cpp
from services.agent.domain.engines.start import Start
from services.agent.domain.runtime import EngineCommand

MODEL = "/models/tinychat.gguf"


def command(*parameters: str, weights: tuple[str, ...] = (MODEL,), env: dict[str, str] | None = None) -> EngineCommand:
    launch = Launch(
        model_name="tiny",
        generation=1,
        backend="llama.cpp",
        source=LocalPath(path=MODEL),
        parameters=parameters,
        env=env or {},
    )
    assigned = AssignedInstance(
        instance_id=InstanceId("i-1"),
        model_id=ModelId("m-1"),
        attempt=1,
        rank=0,
        world_size=1,
        members=(),
        leader_address="10.0.0.1",
        launch=launch,
    )
    return llama_cpp(Start(assigned=assigned, host="10.0.0.1", address="10.0.0.1", port=8123, weights=weights))


def line(*parameters: str) -> str:
    """As a shell would have it: what isn't one argument is quoted."""
    return shlex.join(command(*parameters).argv)


def test_a_model_without_parameters() -> None:
    assert command(env={"OMP_NUM_THREADS": "2"}) == EngineCommand(
        argv=(
            *("llama-server", "--model", MODEL, "--alias", "tiny"),
            *("--host", "10.0.0.1", "--port", "8123", "--metrics"),
        ),
        env={"OMP_NUM_THREADS": "2"},
        program="llama-server",
        health_path="/health",
        port=8123,
    )


def test_the_users_parameters_come_last_as_they_were_given() -> None:
    assert (
        line("--ctx-size=4096", "-ngl", "99", "--cache_type_k q8_0")
        == "llama-server --model /models/tinychat.gguf --alias tiny --host 10.0.0.1 --port 8123 --metrics"
        " --ctx-size=4096 -ngl 99 --cache_type_k q8_0"
    )


def test_what_the_user_gave_is_not_given_a_second_time() -> None:
    assert (
        line("-m", "/other.gguf", "-a=other", "--host 0.0.0.0", "--port=9000", "--metrics")
        == "llama-server -m /other.gguf -a=other --host 0.0.0.0 --port=9000 --metrics"
    )


def test_the_engine_is_asked_for_its_health_where_the_user_put_it() -> None:
    moved = command("--port", "9000", "--api_prefix=/llm")
    assert (moved.port, moved.health_path) == (9000, "/llm/health")


def test_of_a_model_in_shards_the_first_is_named() -> None:
    shards = ("/m/big-00002-of-00003.gguf", "/m/big-00001-of-00003.gguf", "/m/big-00003-of-00003.gguf")
    assert command(weights=shards).argv[:3] == ("llama-server", "--model", "/m/big-00001-of-00003.gguf")


def test_without_known_files_the_path_that_the_user_gave_is_named() -> None:
    assert command(weights=()).argv[:3] == ("llama-server", "--model", MODEL)

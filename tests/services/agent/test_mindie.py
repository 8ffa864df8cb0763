"""MindIE: flags become its configuration, and none is lost on the way."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.reasons import ParameterInvalid, Reason, UnknownParameter
from services.agent.domain.engines.mindie import KEYS, mindie
from services.agent.domain.runtime import EngineCommand, EngineNotStarted
from tests.services.agent.starts import MODEL, a_launch, a_start, over

DIRECTORY = "/var/lib/muster/engines/i-1.1"


def command(*parameters: str, gpus: int = 2, nodes: int = 1, rank: int = 0, **fields: Any) -> EngineCommand:
    launch = a_launch("MindIE", *parameters, **fields)
    return mindie(a_start(launch, "cann", gpus=gpus, nodes=nodes, rank=rank, directory=DIRECTORY))


def config(*parameters: str, **fields: Any) -> dict[str, Any]:
    return json.loads(command(*parameters, **fields).files[f"{DIRECTORY}/config.json"])


def section(of: dict[str, Any], name: str) -> dict[str, Any]:
    backend = of["BackendConfig"]
    deploy = backend["ModelDeployConfig"]
    places = {"ServerConfig": of["ServerConfig"], "BackendConfig": backend, "ModelDeployConfig": deploy}
    places |= {"ModelConfig": deploy["ModelConfig"][0], "ScheduleConfig": backend["ScheduleConfig"]}
    return places[name]


def refused(*parameters: str, **fields: Any) -> tuple[Reason, ...]:
    with pytest.raises(EngineNotStarted) as error:
        command(*parameters, **fields)
    return error.value.reasons


def test_what_is_assigned_is_configured() -> None:
    made = config(context_length=4096, **over(tensor=2))
    assert section(made, "ServerConfig")["ipAddress"] == "10.0.0.1"
    assert section(made, "ServerConfig")["port"] == 40000
    assert made["BackendConfig"]["npuDeviceIds"] == [[0, 1]]
    assert section(made, "ModelDeployConfig")["maxSeqLen"] == 4096
    model = section(made, "ModelConfig")
    assert (model["modelName"], model["modelWeightPath"], model["worldSize"], model["tp"]) == ("qwen3-8b", MODEL, 2, 2)


@pytest.mark.parametrize(
    ("parameters", "fields", "share"),
    [
        ((), {"memory_fraction": 0.9}, "0.9"),
        ((), {}, "0.8"),
        (("--npu-memory-fraction=0.7",), {"memory_fraction": 0.7}, "0.7"),
        (("--npu_memory_fraction 0.5",), {"memory_fraction": 0.9}, "0.5"),
        ((), {"memory_fraction": 0.9, "env": {"NPU_MEMORY_FRACTION": "0.6"}}, "0.6"),
    ],
)
def test_the_share_that_placement_reckoned_with_is_passed(
    parameters: tuple[str, ...], fields: dict[str, Any], share: str
) -> None:
    assert command(*parameters, **fields).env["NPU_MEMORY_FRACTION"] == share


@pytest.mark.parametrize(
    ("parameters", "where", "key", "value"),
    [
        (("--max-seq-len=16384",), "ModelDeployConfig", "maxSeqLen", 16384),
        (("--max_seq_len 16384",), "ModelDeployConfig", "maxSeqLen", 16384),
        (("--max-batch-size", "64"), "ScheduleConfig", "maxBatchSize", 64),
        (("--tensor-parallel-size=1",), "ModelConfig", "tp", 1),
        (("--moe-tp=4",), "ModelConfig", "moe_tp", 4),
        (("--trust-remote-code",), "ModelConfig", "trustRemoteCode", True),
        (("--trust-remote-code=false",), "ModelConfig", "trustRemoteCode", False),
        (("--no-trust-remote-code",), "ModelConfig", "trustRemoteCode", False),
        (("--enable-prefix-cache", "--max-link-num=300"), "ServerConfig", "maxLinkNum", 300),
        (("--e2e-timeout=60",), "ServerConfig", "e2eTimeout", 60),
        (("--npu-mem-size", "-1"), "ModelConfig", "npuMemSize", -1),
        (("--max-lora-rank=64",), "ModelDeployConfig", "maxLoraRank", 64),
    ],
)
def test_a_flag_is_a_key_in_other_letters(parameters: tuple[str, ...], where: str, key: str, value: Any) -> None:
    assert section(config(*parameters, **over(tensor=2)), where)[key] == value


@given(
    st.lists(
        st.sampled_from([(where, key, kind) for where, keys in KEYS.items() for key, kind in keys.items()]),
        unique=True,
        max_size=6,
    ),
    st.integers(1, 1000),
)
def test_no_flag_is_lost(keys: list[tuple[str, str, str]], number: int) -> None:
    """As the key itself in other letters, written either way."""
    values = {"number": (str(number), number), "switch": ("true", True), "text": ("some text", "some text")}
    parameters: list[str] = []
    for position, (_, key, kind) in enumerate(keys):
        name = "".join(f"-{letter.lower()}" if letter.isupper() else letter for letter in key).replace("d-p-", "dp-")
        name = name.replace("_", "-") if position % 2 else name.replace("-", "_")
        parameters.append(f"--{name}={values[kind][0]}")
    made = config(*parameters)
    for where, key, kind in keys:
        assert section(made, where)[key] == values[kind][1]


def test_a_flag_that_has_no_key_is_refused_and_all_of_them_are_named() -> None:
    assert refused("--no-such=1", "--max-batch-size=many", "loose") == (
        UnknownParameter(parameter="--no-such"),
        ParameterInvalid(parameter="--max-batch-size", value="many", expected="a whole number"),
        UnknownParameter(parameter="loose"),
    )


def test_prompts_fit_into_a_batch() -> None:
    made = config("--max-seq-len=32768")
    assert section(made, "ScheduleConfig")["maxPrefillTokens"] >= section(made, "ModelDeployConfig")["maxInputTokenLen"]


def test_machines_read_the_same_rank_table() -> None:
    leader, follower = (command(nodes=2, rank=rank) for rank in (0, 1))
    path = f"{DIRECTORY}/ranktable.json"
    assert leader.files[path] == follower.files[path]
    table = json.loads(leader.files[path])
    ranks = [(device["rank_id"], device["device_ip"]) for each in table["server_list"] for device in each["device"]]
    assert ranks == [("0", "10.1.0.4"), ("1", "10.1.0.5"), ("2", "10.1.1.4"), ("3", "10.1.1.5")]
    assert (leader.env["WORLD_SIZE"], leader.env["RANKTABLEFILE"]) == ("4", path)
    assert [each.env["MIES_CONTAINER_IP"] for each in (leader, follower)] == ["10.0.0.1", "10.0.0.2"]
    assert [each.health_path for each in (leader, follower)] == ["/info", None]
    assert all(
        json.loads(each.files[f"{DIRECTORY}/config.json"])["BackendConfig"]["multiNodesInferEnabled"]
        for each in (leader, follower)
    )


def test_machines_meet_at_the_same_port() -> None:
    ports = {config(nodes=2, rank=rank)["BackendConfig"]["multiNodesInferPort"] for rank in (0, 1)}
    assert ports == {21404}
    assert "multiNodesInferPort" not in config()["BackendConfig"]


def test_one_machine_has_no_rank_table() -> None:
    alone = command()
    assert list(alone.files) == [f"{DIRECTORY}/config.json"]
    assert "RANKTABLEFILE" not in alone.env


def test_adapters() -> None:
    deploy = section(config(lora_list=[{"lora_name": "a", "source": {"path": "/models/a"}}]), "ModelDeployConfig")
    assert deploy["LoraModules"] == [{"name": "a", "path": "/models/a", "baseModelName": "qwen3-8b"}]
    assert deploy["maxLoras"] == 1


def test_drafting_is_multi_token_prediction_or_refused() -> None:
    made = config(speculative_config={"algorithm": "mtp", "draft_tokens": 2})
    plugin = json.loads(section(made, "ModelConfig")["plugin_params"])
    assert plugin == {"plugin_type": "mtp", "num_speculative_tokens": 2}
    (reason,) = refused(speculative_config={"algorithm": "eagle3"})
    assert isinstance(reason, ParameterInvalid)
    assert reason.field == "speculative_config"


def test_the_daemon_gets_no_word_of_the_users() -> None:
    """Its start is a constant text for a shell."""
    argv = command("--model-name=$(reboot)").argv
    assert argv == command().argv
    assert argv[:2] == ("bash", "-c")

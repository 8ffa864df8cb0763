"""vLLM: what is special to it."""

import json
from typing import Any

import pytest

from services.agent.domain.engines.start import Start
from services.agent.domain.engines.vllm import vllm
from tests.services.agent.starts import MODEL, a_launch, a_start, over


def values(argv: tuple[str, ...], *names: str) -> dict[str, str | None]:
    """The flags of these names that are there."""
    return {name: argv[argv.index(name) + 1] for name in names if name in argv}


DISTRIBUTION = (
    *("--distributed-executor-backend", "--nnodes", "--node-rank", "--master-addr", "--master-port"),
    *("--data-parallel-size", "--data-parallel-size-local", "--data-parallel-start-rank"),
    *("--data-parallel-address", "--data-parallel-rpc-port"),
)


def on_machines(
    rank: int, *parameters: str, gpus: int = 4, nodes: int = 2, version: str | None = "0.32", **fields: Any
) -> Start:
    launch = a_launch("vLLM", *parameters, backend_version=version, **fields)
    return a_start(launch, gpus=gpus, nodes=nodes, rank=rank, interface="eth0")


@pytest.mark.parametrize("rank", [0, 1])
def test_one_replica_over_machines_meets_at_the_leaders(rank: int) -> None:
    command = vllm(on_machines(rank, **over(tensor=4, pipeline=2)))
    assert values(command.argv, *DISTRIBUTION) == {
        "--distributed-executor-backend": "mp",
        "--nnodes": "2",
        "--node-rank": str(rank),
        "--master-addr": "10.0.0.1",
        "--master-port": "21405",
    }
    assert ("--headless" in command.argv, command.health_path) == ((False, "/health") if rank == 0 else (True, None))


@pytest.mark.parametrize(("rank", "first"), [(0, {}), (1, {"--data-parallel-start-rank": "2"})])
def test_machines_that_hold_whole_replicas_share_out_their_ranks(rank: int, first: dict[str, str]) -> None:
    command = vllm(on_machines(rank, **over(tensor=2, data=4)))
    assert (
        values(command.argv, *DISTRIBUTION)
        == {
            "--distributed-executor-backend": "mp",
            "--data-parallel-size": "4",
            "--data-parallel-size-local": "2",
            "--data-parallel-address": "10.0.0.1",
            "--data-parallel-rpc-port": "21404",
        }
        | first
    )
    assert ("--headless" in command.argv) == (rank == 1)


@pytest.mark.parametrize(("rank", "replica"), [(0, None), (1, None), (2, "1"), (3, "1")])
def test_replicas_that_take_several_machines_meet_both_ways(rank: int, replica: str | None) -> None:
    found = values(vllm(on_machines(rank, nodes=4, **over(tensor=8, data=2))).argv, *DISTRIBUTION)
    assert found["--node-rank"] == str(rank)
    assert found["--data-parallel-size-local"] == "1"
    assert found.get("--data-parallel-start-rank") == replica
    assert {"--nnodes", "--master-addr", "--data-parallel-address"} <= found.keys()


def test_every_machine_answers_where_the_user_balances_over_them() -> None:
    command = vllm(on_machines(1, "--data-parallel-hybrid-lb", **over(tensor=2, data=4)))
    assert "--headless" not in command.argv
    assert command.health_path == "/health"


def test_members_come_to_the_same_ports_and_other_attempts_to_others() -> None:
    start = on_machines(0)
    other = start.assigned.model_copy(update={"attempt": 2})
    again = Start(assigned=other, host="h", address="a", port=1)
    assert start.meeting_port(1) == on_machines(1).meeting_port(1) != again.meeting_port(1)
    assert all(20000 <= each.meeting_port(3) < 30000 for each in (start, again))


def test_ports_that_are_fixed_for_the_leader_are_taken() -> None:
    start = on_machines(1)
    leader, follower = start.assigned.members
    members = (leader.model_copy(update={"ports": (40000, 40001, 40002)}), follower)
    fixed = Start(assigned=start.assigned.model_copy(update={"members": members}), host="h", address="a", port=1)
    assert [fixed.meeting_port(0), fixed.meeting_port(1)] == [40001, 40002]
    assert fixed.meeting_port(2) == start.meeting_port(2)


@pytest.mark.parametrize(
    ("version", "parameters", "executor"),
    [
        ("0.32", (), "mp"), (None, (), "mp"), ("0.18", (), "mp"), ("0.17.1", (), "ray"),
        ("0.32", ("--distributed_executor_backend=ray",), "ray"), ("0.11", ("--distributed-executor-backend", "mp"), "mp"),
    ],
)  # fmt: skip
def test_older_ones_and_those_whose_users_say_so_use_ray(
    version: str | None, parameters: tuple[str, ...], executor: str
) -> None:
    follower = vllm(on_machines(1, *parameters, version=version))
    assert ("ray" in follower.argv) == (executor == "ray")


def test_ray_runs_on_every_machine_and_the_server_beside_the_first() -> None:
    leader = vllm(on_machines(0, version="0.17", **over(tensor=4, pipeline=2)))
    head = ("ray", "start", "--block", "--node-ip-address=10.0.0.1", "--disable-usage-stats", "--head", "--port=21407")
    head = (*head, "--include-dashboard=false")
    assert leader.argv[:2] + leader.argv[3 : 4 + len(head)] == ("python3", "-c", str(len(head)), *head)
    serving = leader.argv[4 + len(head) :]
    assert serving[:2] + serving[3:8] == ("python3", "-c", "10.0.0.1", "21407", "vllm", "serve", MODEL)
    assert leader.env["RAY_ADDRESS"] == "10.0.0.1:21407"
    follower = vllm(on_machines(1, version="0.17"))
    node = (
        "ray",
        "start",
        "--block",
        "--node-ip-address=10.0.0.2",
        "--disable-usage-stats",
        "--address=10.0.0.1:21407",
    )
    assert (follower.argv[5:], follower.health_path) == (node, None)


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"algorithm": "mtp"}, {"method": "mtp", "num_speculative_tokens": 1}),
        ({"algorithm": "ngram", "draft_tokens": 6}, {"method": "ngram", "num_speculative_tokens": 6}),
        (
            {"algorithm": "eagle3", "draft_model": {"path": "/models/e"}},
            {"method": "eagle3", "model": "/models/e", "num_speculative_tokens": 3},
        ),
        (
            {"algorithm": "draft_model", "draft_model": {"path": "/models/d"}, "draft_tokens": 2},
            {"model": "/models/d", "num_speculative_tokens": 2},
        ),
    ],
)
def test_drafting(asked: dict[str, Any], told: dict[str, Any]) -> None:
    argv = vllm(a_start(a_launch("vLLM", speculative_config=asked))).argv
    assert json.loads(argv[argv.index("--speculative-config") + 1]) == told


def test_adapters_are_named_in_a_form_that_holds_every_name() -> None:
    adapters = [{"lora_name": name, "source": {"path": f"/models/{name}"}} for name in ("a=b", "ü c")]
    argv = vllm(a_start(a_launch("vLLM", lora_list=adapters))).argv
    first = argv.index("--lora-modules")
    assert argv[first + 1 : first + 3] == ('{"name":"a=b","path":"/models/a=b"}', '{"name":"ü c","path":"/models/ü c"}')
    assert values(argv, "--max-loras") == {"--max-loras": "2"}
    assert "--enable-lora" in argv


@pytest.mark.parametrize(("asked", "gib"), [({"ram_size": 64}, "64"), ({"ram_ratio": 0.5}, "36"), ({}, "86.4")])
@pytest.mark.parametrize("kind", ["cuda", "rocm"])
def test_a_cache_in_ram(asked: dict[str, float], gib: str, kind: str) -> None:
    """As large as is said, or as a multiple of what the instance claims on its GPUs: 72 GiB."""
    command = vllm(a_start(a_launch("vLLM", extended_kv_cache=asked | {"chunk_size": 128}), kind))
    assert "--kv-transfer-config" in command.argv
    assert command.env["LMCACHE_MAX_LOCAL_CPU_SIZE"] == gib
    assert command.env["LMCACHE_CHUNK_SIZE"] == "128"


def test_ranks_share_the_ram_of_a_worker_out() -> None:
    launch = a_launch("vLLM", extended_kv_cache={"ram_size": 64}, parallelism={"tensor": 2})
    assert vllm(a_start(launch, gpus=2)).env["LMCACHE_MAX_LOCAL_CPU_SIZE"] == "32"


def test_where_there_is_no_build_of_it_there_is_no_cache_in_ram() -> None:
    command = vllm(a_start(a_launch("vLLM", extended_kv_cache={}), "cann"))
    assert "--kv-transfer-config" not in command.argv
    assert not [name for name in command.env if name.startswith("LMCACHE")]


@pytest.mark.parametrize(
    ("category", "version", "flags"),
    [
        ("embedding", "0.32", {"--runner": "pooling"}),
        ("reranker", None, {"--runner": "pooling"}),
        ("embedding", "0.9.2", {"--task": "embed"}),
        ("reranker", "0.9.2", {"--task": "score"}),
        ("llm", "0.32", {}),
    ],
)
def test_models_that_answer_with_vectors_or_scores(category: str, version: str | None, flags: dict[str, str]) -> None:
    launch = a_launch("vLLM", backend_version=version, categories=[category])
    assert values(vllm(a_start(launch)).argv, "--runner", "--task") == flags


def test_models_that_make_images() -> None:
    assert "--omni" in vllm(a_start(a_launch("vLLM", categories=["image"]))).argv


@pytest.mark.parametrize(("family", "is_old"), [("Ascend310P3", True), ("Ascend910B2", False), (None, False)])
def test_ascends_310p_has_no_graphs(family: str | None, is_old: bool) -> None:
    argv = vllm(a_start(a_launch("vLLM"), "cann", family=family)).argv
    assert ("--enforce-eager" in argv, "--dtype" in argv) == (is_old, is_old)


@pytest.mark.parametrize(
    ("version", "known"), [(None, False), ("0.8.3", False), ("0.15", False), ("0.16.0", True), ("0.32", True)]
)
def test_what_older_ones_do_not_know_is_not_passed(version: str | None, known: bool) -> None:
    argv = vllm(a_start(a_launch("vLLM", backend_version=version))).argv
    assert ("--disable-access-log-for-endpoints" in argv) == known


def test_a_run_command_takes_the_place_of_the_program_and_the_model() -> None:
    launch = a_launch("vLLM", run_command="python3 -m vllm.entrypoints.openai.api_server --model={{model_path}}")
    argv = vllm(a_start(launch)).argv
    assert argv[:4] == ("python3", "-m", "vllm.entrypoints.openai.api_server", f"--model={MODEL}")
    assert argv[4] == "--host"


def test_libraries_talk_over_the_interface_of_the_workers_address() -> None:
    env = vllm(on_machines(1)).env
    assert (env["VLLM_HOST_IP"], env["NCCL_SOCKET_IFNAME"], env["GLOO_SOCKET_IFNAME"]) == ("10.0.0.2", "=eth0", "eth0")
    ascend = vllm(a_start(a_launch("vLLM"), "cann", gpus=2, nodes=2, interface="eth0")).env
    assert (ascend["HCCL_SOCKET_IFNAME"], "NCCL_SOCKET_IFNAME" in ascend) == ("eth0", False)


@pytest.mark.parametrize(("nodes", "version"), [(1, "0.32"), (2, "0.32"), (2, "0.17")])
def test_the_users_environment_wins(nodes: int, version: str) -> None:
    start = on_machines(0, nodes=nodes, version=version, env={"OMP_NUM_THREADS": "8"})
    assert vllm(start).env["OMP_NUM_THREADS"] == "8"


# -- on processors ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sizes", "nodes", "processors", "told"),
    [
        ({}, 1, 8, None),
        ({"tensor": 2}, 1, 8, "0,1,2,3|4,5,6,7"),
        ({"tensor": 2, "pipeline": 2}, 1, 9, "0,1|2,3|4,5|6,7"),
        ({"data": 2}, 1, 2, "0|1"),
        ({"tensor": 4}, 1, 2, None),
    ],
    ids=["one rank", "two", "one is left over", "two copies", "too few"],
)
def test_ranks_share_the_processors_out(sizes: dict[str, int], nodes: int, processors: int, told: str | None) -> None:
    start = a_start(a_launch("vLLM", parallelism=sizes), None, nodes=nodes, processors=tuple(range(processors)))
    assert vllm(start).env.get("VLLM_CPU_OMP_THREADS_BIND") == told


def test_on_processors_the_number_of_threads_is_vllms_own() -> None:
    assert "OMP_NUM_THREADS" not in vllm(a_start(a_launch("vLLM"), None)).env
    assert vllm(a_start(a_launch("vLLM"))).env["OMP_NUM_THREADS"] == "1"

"""`docker compose -f deploy/compose.yaml up`, as it is: a model is served, and again after everything was stopped and started."""

import json
from typing import Any

import pytest

from tests.compose.conftest import ADDRESS, Compose

pytestmark = [pytest.mark.compose, pytest.mark.timeout(900)]

QUESTION = {"model": "tinychat", "messages": [{"role": "user", "content": "Who are you?"}], "max_tokens": 32}


def answer_of(compose: Compose) -> str:
    answer = compose.ask("/v1/chat/completions", QUESTION | {"temperature": 0}, key=compose.key())
    return str(answer["choices"][0]["message"]["content"])


def instances(compose: Compose) -> list[dict[str, Any]]:
    return compose.ask("/v2/model-instances", key=compose.key())["items"]


def engines(compose: Compose) -> list[str]:
    client = compose.client()
    try:
        return sorted(each["Id"] for each in client.containers(filters={"label": "muster.instance"}))
    finally:
        client.close()


def test_a_model_is_served_and_is_there_again_after_down_and_up(compose: Compose) -> None:
    compose.run("up", "-d")
    compose.until_ready()
    path = compose.data / "models" / "tinychat-f16.gguf"
    said = compose.muster("deploy", "tinychat", "--path", str(path), "--wait", "--timeout", "120")
    assert "tinychat is ready" in said
    first = answer_of(compose)
    assert first
    (instance,) = instances(compose)
    assert (instance["worker_ip"], instance["image"]) == (ADDRESS, "muster-agent:0.1.0")
    assert 40000 <= instance["port"] <= 40063
    (engine,) = engines(compose)

    compose.run("restart", "agent", "nats")
    compose.until_ready()
    assert answer_of(compose) == first
    assert engines(compose) == [engine], "the engine was not restarted"

    compose.run("down", "--timeout=20")
    assert engines(compose) == [engine], "the control plane may be down, engines run on"
    compose.run("up", "-d")
    compose.until_ready()
    said = compose.muster("ps")
    assert "tinychat" in said
    compose.muster("events")  # the log is whole
    assert answer_of(compose) == first
    (again,) = instances(compose)
    assert (again["id"], again["attempt"], engines(compose)) == (instance["id"], instance["attempt"], [engine])

    compose.muster("delete", "tinychat")
    compose.until(lambda: engines(compose) == [])


def test_services_run_locked_down(compose: Compose) -> None:
    compose.run("up", "-d")
    compose.until_ready()
    client = compose.client()
    try:
        found = {
            each["Labels"]["com.docker.compose.service"]: client.inspect_container(each["Id"])["HostConfig"]
            for each in client.containers(filters={"label": "com.docker.compose.project=muster"})
        }
    finally:
        client.close()
    assert set(found) == {"nats", "postgres", "api", "scheduler", "downloader", "agent"}
    for service in ("api", "scheduler", "downloader"):
        host = found[service]
        assert (host["ReadonlyRootfs"], host["CapDrop"], host["Privileged"]) == (True, ["ALL"], False), service
    assert [service for service, host in found.items() if host["Privileged"]] == []


def test_an_agent_whose_data_lies_elsewhere_on_the_host_refuses_to_go_on(compose: Compose) -> None:
    client = compose.client()
    elsewhere = compose.data / "elsewhere"
    host = client.create_host_config(
        network_mode="host",
        binds=[
            "/run/docker.sock:/var/run/docker.sock",
            f"{elsewhere}:/somewhere",
            "muster_keys-worker:/keys/worker:ro",
        ],
    )
    settings = {
        "MUSTER_RUNTIME": "docker",
        "MUSTER_DATA_DIR": "/somewhere",
        "MUSTER_AGENT_NKEY_SEED_FILE": "/keys/worker/agent.seed",
    }
    made = client.create_container("muster-agent:0.1.0", user="0:0", environment=settings, host_config=host)
    try:
        client.start(made)
        assert client.wait(made, timeout=60)["StatusCode"] == 2
        said = client.logs(made).decode()
        assert f"cache_path_not_shared: /somewhere is {elsewhere} on the host" in said
        assert "-v /somewhere:/somewhere" in said
    finally:
        client.remove_container(made, force=True)
        client.close()


def test_a_further_machine_gets_keys_and_joins(compose: Compose) -> None:
    compose.run("up", "-d")
    compose.until_ready()
    said = compose.run("run", "--rm", "-T", "setup", "muster", "init", "/keys", "--user", "10001", "--worker", "second")
    assert "second" in said
    compose.run("kill", "-s", "HUP", "nats")
    keys = compose.data / "second-keys"
    compose.run(
        "run",
        "--rm",
        "-T",
        f"--volume={compose.data}:/to",
        "setup",
        "cp",
        "-r",
        "/keys/workers/second",
        "/to/second-keys",
    )
    compose.run(
        "up",
        "-d",
        "--no-deps",
        "worker-agent",
        MUSTER_WORKER_KEYS=str(keys),
        MUSTER_WORKER_NAME="second",
        MUSTER_WORKER_IP=ADDRESS,
    )
    compose.until(lambda: "second" in [each["name"] for each in compose.ask("/v2/workers", key=compose.key())["items"]])
    workers = {each["name"]: each for each in compose.ask("/v2/workers", key=compose.key())["items"]}
    assert len(workers) == 2, json.dumps(workers)
    compose.run("rm", "--stop", "--force", "worker-agent")

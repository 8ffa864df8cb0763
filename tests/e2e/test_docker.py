"""The main job with engines in containers: deployed, pulled or found, answering, restarted with everything around them."""

import asyncio
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from services.agent.adapters.docker import connect
from tests.chaos.what_must_hold import facts_of, of_type
from tests.support.disks import a_disk, nearly_full
from tests.support.docker_engine import HAVE_OWN_NETWORK, DockerEngine, missing, why_not
from tests.support.registry import Registry, registry_of, slow_door
from tests.support.stack import Stack

pytestmark = [
    pytest.mark.docker,
    pytest.mark.skipif(not HAVE_OWN_NETWORK, reason="engines can be reached where `make test-docker` runs it"),
]

IMAGE = "llama-cpp-test:1"
MIB = 2**20
MODULE = "services.agent.adapters.llama_cpp_server"


@pytest.fixture(scope="module")
def engine() -> Iterator[tuple[DockerEngine, str]]:
    """And the Python that is in its image."""
    if (reason := why_not()) is not None:
        pytest.skip(reason)
    with tempfile.TemporaryDirectory(prefix="m") as directory:  # sockets have short names
        engine = DockerEngine(Path(directory))
        engine.start()
        try:
            yield engine, engine.make_llama_cpp_image(IMAGE)
        finally:
            engine.remove()


@pytest.fixture(scope="module")
def registry(engine: tuple[DockerEngine, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    if (reason := missing("docker-registry")) is not None:
        pytest.skip(reason)
    with registry_of(engine[0], tmp_path_factory.mktemp("registry")) as registry:
        yield registry


def settings(engine: DockerEngine) -> dict[str, Any]:
    """On an address that the kernel forwards: to loopback only a child of dockerd does, which goes with it."""
    return {"runtime": "docker", "docker_host": engine.url, "worker_ip": "192.0.2.1"}


def running(engine: DockerEngine) -> list[str]:
    """Ids of its containers."""
    client = connect(engine.url)
    try:
        return [each["Id"] for each in client.containers()]
    finally:
        client.close()


def backend_of(program: str) -> dict[str, Any]:
    image = {"image": IMAGE, "accelerator": "cpu", "entrypoint": [program, "-m", MODULE]}
    return {"backend_name": "llama.cpp", "engine": "llama.cpp", "images": [image]}


def key_in(engine: DockerEngine, container: str) -> str:
    """Its environment is what root sees of it; whatever else is told of it has no key."""
    client = connect(engine.url)
    try:
        found = client.inspect_container(container)
    finally:
        client.close()
    (key,) = [each.partition("=")[2] for each in found["Config"].pop("Env") if each.startswith("LLAMA_API_KEY=")]
    assert key
    assert key not in str(found)
    return key


async def status_of(instance: dict[str, Any], key: str | None) -> int:
    """Of an answer of the engine itself, past the gateway."""
    body = {"model": "tinychat", "messages": [{"role": "user", "content": "Who are you?"}]}
    url = f"http://{instance['worker_ip']}:{instance['port']}/v1/chat/completions"
    headers = {"authorization": f"Bearer {key}"} if key is not None else {}
    async with aiohttp.request("POST", url, json=body, headers=headers) as answer:
        return answer.status


async def test_a_model_is_served_from_a_container_and_survives_its_agent_and_its_docker_engine(
    stack: Stack, engine: tuple[DockerEngine, str]
) -> None:
    docker, program = engine
    await stack.start_scheduler()
    await stack.start_worker(**settings(docker))
    await stack.start_api()
    client = stack.client()
    assert (await client.request("POST", "/v2/inference-backends", backend_of(program)))[0] == 201
    await client.deploy("tinychat")
    await client.until_state("/v2/models/tinychat", "ready", seconds=60)
    (instance,) = (await client.get("/v2/model-instances"))["items"]
    assert (instance["image"], instance["image_digest"][:7]) == (IMAGE, "sha256:")
    assert (await client.ask("tinychat"))[0] == 200
    (container,) = await asyncio.to_thread(running, docker)
    (instance,) = (await client.get("/v2/model-instances"))["items"]
    key = await asyncio.to_thread(key_in, docker, container)
    assert await status_of(instance, None) == 401
    assert await status_of(instance, key) == 200

    await stack.stop("agent-0")
    await asyncio.to_thread(docker.end)
    assert (await client.ask("tinychat"))[0] == 200, "nobody but the engine is needed to answer"
    await asyncio.to_thread(docker.start)
    await stack.start_agent(**settings(docker))
    await client.until_state("/v2/workers/worker-0", "ready", seconds=60)
    assert (await client.ask("tinychat"))[0] == 200
    assert await asyncio.to_thread(running, docker) == [container]
    assert of_type(await facts_of(stack), "InstanceFailed") == []

    await client.request("DELETE", "/v2/models/tinychat")
    await client.until("/v2/model-instances", lambda found: found["items"] == [], seconds=60)
    assert await asyncio.to_thread(running, docker) == []


async def test_an_image_that_nobody_has_is_an_error_with_its_reason(
    stack: Stack, engine: tuple[DockerEngine, str]
) -> None:
    docker, _ = engine
    await stack.start_scheduler()
    await stack.start_worker(**settings(docker))
    await stack.start_api()
    client = stack.client()
    await client.deploy("none", image_name="127.0.0.1:1/nobody/made-this:1", restart_on_error=False)
    model = await client.until_state("/v2/models/none", "pending", seconds=60)
    (instance,) = (await client.get("/v2/model-instances"))["items"]
    instance = await client.until_state(f"/v2/model-instances/{instance['id']}", "error", seconds=60)

    assert [reason["code"] for reason in instance["reasons"]] == ["image_not_pulled"]
    assert model["ready_replicas"] == 0


async def test_what_a_backend_needs_runs_only_where_the_operator_allows_it(
    stack: Stack, engine: tuple[DockerEngine, str]
) -> None:
    docker, program = engine
    await stack.start_scheduler()
    await stack.start_worker(**settings(docker))
    await stack.start_api()
    client = stack.client()
    needy = backend_of(program) | {"needs": {"writable_root": True, "host_ipc": True}}
    assert (await client.request("POST", "/v2/inference-backends", needy))[0] == 201
    await client.deploy("tinychat", restart_on_error=False)
    instances = await client.until(
        "/v2/model-instances", lambda found: any(each["state"] == "error" for each in found["items"]), seconds=60
    )
    (reason,) = instances["items"][0]["reasons"]
    assert (reason["code"], reason["who"], reason["numbers"]) == (
        "need_not_allowed",
        "operator",
        {"needs": ["host_ipc"]},
    )
    assert await asyncio.to_thread(running, docker) == []

    await stack.stop("agent-0")
    await stack.start_agent(**settings(docker), allowed_needs="writable_root,host_ipc")
    (instance,) = (await client.get("/v2/model-instances"))["items"]
    assert (await client.request("DELETE", f"/v2/model-instances/{instance['id']}"))[0] == 200
    await client.until_state("/v2/models/tinychat", "ready", seconds=60)
    (container,) = await asyncio.to_thread(running, docker)
    assert await asyncio.to_thread(ipc_of, docker, container) == "host"
    await client.request("DELETE", "/v2/models/tinychat")
    await client.until("/v2/model-instances", lambda found: found["items"] == [], seconds=60)


def ipc_of(engine: DockerEngine, container: str) -> str:
    client = connect(engine.url)
    try:
        return str(client.inspect_container(container)["HostConfig"]["IpcMode"])
    finally:
        client.close()


async def test_who_waits_for_an_image_sees_how_far_it_is_how_fast_it_comes_and_what_remains(
    stack: Stack, engine: tuple[DockerEngine, str], registry: Registry
) -> None:
    docker, _ = engine
    await asyncio.to_thread(registry.holds, "weights:1", {"first": os.urandom(24 * MIB)})
    await stack.start_scheduler()
    worker_id = await stack.start_worker(**settings(docker))
    await stack.start_api()
    client = stack.client()
    async with slow_door(registry, 3 * MIB) as door:
        image = f"{door}/weights:1"
        await client.deploy("slow", image_name=image, restart_on_error=False)

        def told(found: dict[str, Any]) -> bool:
            pulls = [pull for instance in found["items"] for pull in instance["pulls"]]
            return bool(pulls) and pulls[0]["remaining_seconds"] is not None

        (instance,) = (await client.until("/v2/model-instances", told, seconds=60))["items"]
        (pull,) = instance["pulls"]
        assert (pull["worker_id"], pull["image"], instance["state"]) == (worker_id, image, "starting")
        assert 0 < pull["bytes"] < pull["total"]
        assert 24 * MIB <= pull["total"] < 25 * MIB
        assert pull["bytes_per_second"] > 0
        assert 0 < pull["remaining_seconds"] < 3600
        of_it = f"/v2/model-instances/{instance['id']}"
        assert (await client.get(of_it))["pulls"] != []

        await client.until(
            of_it, lambda found: found["pulls"] == [], seconds=60
        )  # it is here: what is in it is no engine
    assert [fact for fact in await facts_of(stack) if "bytes_per_second" in str(fact)] == []


async def test_an_image_is_pulled_ahead_of_any_model_and_goes_on_with_the_next_agent(
    stack: Stack, engine: tuple[DockerEngine, str], registry: Registry
) -> None:
    docker, _ = engine
    await asyncio.to_thread(registry.holds, "ahead:1", {"first": os.urandom(24 * MIB)})
    await stack.start_scheduler()
    worker_id = await stack.start_worker(**settings(docker))
    await stack.start_api()
    client = stack.client()
    await client.until_state("/v2/workers/worker-0", "ready")
    async with slow_door(registry, 3 * MIB) as door:
        image = {"image": f"{door}/ahead:{{version}}", "accelerator": "cpu"}
        backend = {"backend_name": "mine", "engine": "llama.cpp", "images": [image], "default_version": "1"}
        assert (await client.request("POST", "/v2/inference-backends", backend))[0] == 201
        pull = "/v2/inference-backends/mine/pull"
        first = {"worker": "worker-0", "worker_id": worker_id, "image": f"{door}/ahead:1", "reasons": []}
        unknown = {"bytes": None, "total": None, "bytes_per_second": None, "remaining_seconds": None}
        await client.until(pull, lambda found: found["workers"] == [first | unknown | {"state": "absent"}])

        status, answer, _ = await client.request("POST", pull, {})
        assert (status, answer["backend"], answer["version"]) == (202, "mine", None)
        (told,) = answer["workers"]
        assert told | unknown == first | unknown | {"state": "pulling"}

        def is_known(found: dict[str, Any]) -> bool:
            return found["workers"][0]["remaining_seconds"] is not None

        (told,) = (await client.until(pull, is_known, seconds=60))["workers"]
        assert 0 < told["bytes"] < told["total"] < 25 * MIB
        assert told["bytes_per_second"] > 0

        await stack.stop("agent-0")
        await stack.start_agent(**settings(docker))
        await client.until(pull, lambda found: found["workers"][0]["state"] == "pulling", seconds=60)
        (told,) = (await client.until(pull, lambda found: found["workers"][0]["state"] == "here", seconds=90))[
            "workers"
        ]
        assert told == first | unknown | {"state": "here"}

        status, answer, _ = await client.request("POST", pull, {"workers": ["worker-0"]})
        assert (status, answer["workers"]) == (202, [first | unknown | {"state": "here"}])

        second = f"{pull}?version=2&worker=worker-0"
        await client.request("POST", pull, {"version": "2"})
        (told,) = (await client.until(second, lambda found: found["workers"][0]["state"] == "failed", seconds=60))[
            "workers"
        ]
        assert [reason["code"] for reason in told["reasons"]] == ["image_not_found"]
        assert told["image"] == f"{door}/ahead:2"
    await stack.stop("agent-0")
    (told,) = (await client.get(f"{pull}?worker={worker_id}"))["workers"]
    assert told["state"] == "refused"
    assert {reason["code"] for reason in told["reasons"]} <= {"agent_silent", "worker_not_ready"}


async def test_an_agent_whose_disk_is_full_says_so_lives_and_starts_the_engine_when_there_is_room(
    stack: Stack, engine: tuple[DockerEngine, str], tmp_path: Path
) -> None:
    docker, program = engine
    with a_disk(tmp_path / "agents", 4 * MIB) as disk:
        await stack.start_scheduler()
        await stack.start_worker(**settings(docker), data_dir=disk)
        await stack.start_api()
        client = stack.client()
        assert (await client.request("POST", "/v2/inference-backends", backend_of(program)))[0] == 201
        await client.until_state("/v2/workers/worker-0", "ready")
        with nearly_full(disk):
            await client.deploy("tinychat")

            def has_failed(found: dict[str, Any]) -> bool:
                return [instance["state"] for instance in found["items"]] == ["error"]

            (instance,) = (await client.until("/v2/model-instances", has_failed, seconds=60))["items"]
            (reason,) = instance["reasons"]
            assert reason["code"] == "disk_full"
            assert str(disk) in reason["text"]
            assert stack.failure_of("agent-0") is None
            assert await asyncio.to_thread(running, docker) == []

        await client.until_state("/v2/models/tinychat", "ready", seconds=120)
        assert len(of_type(await facts_of(stack), "InstanceFailed")) < 10, (
            "each attempt waits longer than the one before"
        )
        await client.request("DELETE", "/v2/models/tinychat")
        await client.until("/v2/model-instances", lambda found: found["items"] == [], seconds=60)
        await stack.stop("agent-0")


def a_stranger(engine: DockerEngine, program: str, name: str, labels: dict[str, str]) -> str:
    """A container that is not this worker's, and runs; its id."""
    client = connect(engine.url)
    try:
        made = client.create_container(
            IMAGE, ["-c", "import time; time.sleep(600)"], entrypoint=[program], labels=labels, name=name
        )
        client.start(made["Id"])
        return str(made["Id"])
    finally:
        client.close()


def remove(engine: DockerEngine, containers: set[str]) -> None:
    client = connect(engine.url)
    for each in containers:
        client.remove_container(each, force=True)
    client.close()


async def test_an_engine_whose_instance_was_deleted_while_its_agent_was_away_is_stopped_and_nothing_else_is(
    stack: Stack, engine: tuple[DockerEngine, str]
) -> None:
    docker, program = engine
    await stack.start_scheduler()
    worker_id = await stack.start_worker(**settings(docker))
    await stack.start_api()
    client = stack.client()
    assert (await client.request("POST", "/v2/inference-backends", backend_of(program)))[0] == 201
    for name in ("gone", "stays"):
        await client.deploy(name)
        await client.until_state(f"/v2/models/{name}", "ready", seconds=60)
    of = {each["model_name"]: each["id"] for each in (await client.get("/v2/model-instances"))["items"]}
    labels = {"muster.instance": of["gone"], "muster.attempt": "1", "muster.port": "1", "muster.details": "{}"}
    strangers = {
        await asyncio.to_thread(a_stranger, docker, program, "nobody", {}),
        await asyncio.to_thread(a_stranger, docker, program, f"muster-{worker_id}-{of['gone']}-7", {"app": "else"}),
        await asyncio.to_thread(a_stranger, docker, program, "other", labels | {"muster.worker": "w-other"}),
    }
    ours = set(await asyncio.to_thread(running, docker)) - strangers
    assert len(ours) == 2

    await stack.stop("agent-0")
    await client.request("DELETE", "/v2/models/gone")
    await client.until_state(f"/v2/model-instances/{of['gone']}", "stopping", seconds=60)
    assert set(await asyncio.to_thread(running, docker)) == ours | strangers, "nobody is there to stop it"

    await stack.start_agent(**settings(docker))
    await client.until(
        "/v2/model-instances", lambda found: [each["id"] for each in found["items"]] == [of["stays"]], seconds=60
    )
    left = set(await asyncio.to_thread(running, docker))
    assert strangers <= left
    assert len(left - strangers) == 1
    assert left - strangers <= ours, "the engine that stays is the same"
    assert (await client.ask("stays"))[0] == 200

    await client.request("DELETE", "/v2/models/stays")
    await client.until("/v2/model-instances", lambda found: found["items"] == [], seconds=60)
    assert set(await asyncio.to_thread(running, docker)) == strangers
    await asyncio.to_thread(remove, docker, strangers)

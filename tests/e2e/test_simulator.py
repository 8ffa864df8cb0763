"""A simulated fleet on a real Muster: scheduler, api, gateway and the bus between them are the real ones."""

import asyncio
import json
import os
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from kernel.accounts import new_seed
from schemas.facts import InstanceFailed, InstanceRestartPlanned, InstanceRunning, ModelPeakMeasured
from schemas.facts.base import Fact
from services.simulator.domain.fleet import worker_id_of
from tests.chaos.what_must_hold import attempts_of, facts, facts_of
from tests.e2e.test_up import up
from tests.services.cli.conftest import MUSTER
from tests.support.stack import Client, Stack

GIB = 2**30
GPU: dict[str, Any] = {"vendor": "nvidia", "type": "cuda", "name": "H100", "memory_total": 80 * GIB}
MODELS: dict[str, Any] = {
    "/models/chat.gguf": {"format": "gguf", "weight_bytes": 30 * GIB},
    "/models/rare.gguf": {"format": "gguf", "weight_bytes": 30 * GIB, "missing_on": ["gpu-0", "gpu-2"]},
}
QUICK: dict[str, Any] = {"start_seconds": [0.1, 0.5], "first_token_seconds": 0, "token_seconds": 0}
SOON: dict[str, Any] = {"restart_base_seconds": 0.2}
IMPATIENT: dict[str, Any] = SOON | {"lease_seconds": 3.0, "eviction_seconds": 1.0}
"""Beats come every 2 s."""


def workers(count: int, name: str = "gpu-{n}", *, gpus: int = 1, vram: int = 80 * GIB, **more: Any) -> dict[str, Any]:
    machine = {"name": name, "count": count, "cpu_count": 64, "memory_total": 512 * GIB}
    return machine | {"gpus": [GPU | {"count": gpus, "memory_total": vram}], "engines": QUICK} | more


def a_fleet(*groups: dict[str, Any]) -> dict[str, Any]:
    return {"seed": "tests", "workers": list(groups), "models": MODELS}


@pytest_asyncio.fixture(loop_scope="session")
async def stack(database_url: str, tmp_path: Path) -> AsyncIterator[Stack]:
    """Scheduler and api decide and serve; no worker is there."""
    async with Stack(tmp_path / "stack", database_url, workers=0, simulator=True) as made:
        await made.start_scheduler(**SOON)
        await made.start_api()
        yield made


@pytest_asyncio.fixture(loop_scope="session")
async def client(stack: Stack) -> Client:
    return stack.client()


async def states(client: Client) -> dict[str, str]:
    return {worker["name"]: worker["state"] for worker in (await client.get("/v2/workers"))["items"]}


async def until_all(client: Client, count: int, state: str = "ready", *, seconds: float = 30) -> list[dict[str, Any]]:
    body = await client.until(
        "/v2/workers",
        lambda found: len(found["items"]) == count and all(worker["state"] == state for worker in found["items"]),
        seconds=seconds,
    )
    return body["items"]


async def instances(client: Client, model: str) -> list[dict[str, Any]]:
    return (await client.get(f"/v2/model-instances?model={model}"))["items"]


async def until_facts(stack: Stack, enough: Callable[[list[Fact]], bool], *, seconds: float = 30) -> list[Fact]:
    found: list[Fact] = []
    for _ in range(int(seconds / 0.1)):
        found = facts(await facts_of(stack))
        if enough(found):
            return found
        await asyncio.sleep(0.1)
    raise AssertionError(f"it never happened; last: {found[-10:]}")


# -- what users see -----------------------------------------------------------------------------------------------------


async def test_twenty_workers_join_and_their_engines_answer_through_the_gateway(stack: Stack, client: Client) -> None:
    await stack.start_simulator(a_fleet(workers(15, gpus=8), workers(5, "cpu-{n}", gpus=1, arch="arm64")))
    there = await until_all(client, 20)

    assert {worker["id"] for worker in there} == {
        worker_id_of("tests", name) for name in [f"gpu-{n}" for n in range(15)] + [f"cpu-{n}" for n in range(5)]
    }
    assert len({worker["ip"] for worker in there}) == 20

    await client.deploy("chat", "/models/chat.gguf", replicas=6)
    await client.until("/v2/models/chat", lambda model: model["ready_replicas"] == 6)
    running = await instances(client, "chat")
    assert {instance["state"] for instance in running} == {"running"}
    status, answer = await client.ask("chat")
    assert (status, answer["model"]) == (200, "chat")
    assert answer["choices"][0]["message"]["content"].startswith("I am simulated")
    body = {"model": "chat", "stream": True, "messages": [], "max_tokens": 3}
    async with client.session.post(client.url + "/v1/chat/completions", json=body) as streamed:
        text = await streamed.text()
    assert text.endswith("data: [DONE]\n\n")
    assert text.count("data: {") == 4
    logs = await client.get(f"/v2/model-instances/{running[0]['name']}/logs")
    assert logs["lines"][0].startswith("simulated engine ")
    assert stack.failure_of("simulator") is None

    status, _, _ = await client.request("DELETE", "/v2/models/chat")
    assert status in (200, 202)
    await client.until("/v2/model-instances", lambda found: found["items"] == [])


async def test_an_engine_crashes_as_told_and_is_started_again(stack: Stack, client: Client) -> None:
    crash = {"after_seconds": 2, "exit_code": 137, "reason": {"code": "out_of_memory"}, "log": ["CUDA out of memory"]}
    await stack.start_simulator(a_fleet(workers(1, engines=QUICK | {"crash": crash})))
    await client.deploy("chat", "/models/chat.gguf")

    await until_facts(stack, lambda found: sum(isinstance(fact, InstanceRunning) for fact in found) >= 2)

    failed = next(fact for fact in facts(await facts_of(stack)) if isinstance(fact, InstanceFailed))
    assert (failed.attempt, failed.phase, failed.exit_code) == (1, "running", 137)
    assert [reason.code for reason in failed.reasons] == ["out_of_memory"]
    assert failed.log_tail[-1] == "CUDA out of memory"
    assert any(isinstance(fact, InstanceRestartPlanned) for fact in facts(await facts_of(stack)))


async def test_a_crashed_engine_refuses_and_the_gateway_asks_another(stack: Stack, client: Client) -> None:
    await stack.start_simulator(a_fleet(workers(2)))
    await client.deploy("chat", "/models/chat.gguf", replicas=2)
    await client.until("/v2/models/chat", lambda model: model["ready_replicas"] == 2)
    first = (await instances(client, "chat"))[0]
    simulator: Any = stack.services["simulator"]
    simulator._answers.close((first["worker_id"], (first["id"], 1)))

    answers = await asyncio.gather(*(client.ask("chat") for _ in range(10)))

    assert {status for status, _ in answers} == {200}
    with pytest.raises(aiohttp.ClientConnectorError):
        await client.session.get(f"http://{first['worker_ip']}:{first['port']}/health")


async def test_a_worker_that_says_goodbye_is_left_at_once_and_is_back_as_told(stack: Stack, client: Client) -> None:
    leaving = workers(1, "leaves", life={"leaves_at_seconds": 5, "returns_at_seconds": 7})
    await stack.start_simulator(a_fleet(leaving))
    await client.deploy("chat", "/models/chat.gguf")
    await client.until("/v2/models/chat", lambda model: model["ready_replicas"] == 1)

    worker = await client.until_state("/v2/workers/leaves", "unreachable")
    assert [reason["code"] for reason in worker["reasons"]] == ["agent_stopped"]
    await client.until_state("/v2/workers/leaves", "ready")
    await client.until("/v2/models/chat", lambda model: model["ready_replicas"] == 1)
    (instance,) = await instances(client, "chat")
    assert attempts_of(await facts_of(stack), instance["id"]) == [1, 2]
    assert (await client.ask("chat"))[0] == 200


async def test_a_worker_that_falls_silent_is_missed_and_is_back_without_its_engine(
    stack: Stack, client: Client
) -> None:
    await stack.stop("scheduler")
    await stack.start_scheduler(**IMPATIENT)
    life = {"leaves_at_seconds": 5, "returns_at_seconds": 12, "says_goodbye": False}
    one = 40 * GIB  # has room for one of them
    await stack.start_simulator(a_fleet(workers(1, "silent", life=life, vram=one), workers(2, vram=one)))
    selector = {"gpu_ids": ["silent:cuda:0", "gpu-0:cuda:0"]}
    await client.deploy("chat", "/models/chat.gguf", gpu_selector=selector, replicas=2)
    await client.until("/v2/models/chat", lambda model: model["ready_replicas"] == 2)
    (lost,) = [instance for instance in await instances(client, "chat") if instance["worker_name"] == "silent"]

    worker = await client.until_state("/v2/workers/silent", "unreachable")
    assert [reason["code"] for reason in worker["reasons"]] == ["worker_silent"]
    await client.until_state("/v2/workers/silent", "ready")
    await client.until("/v2/models/chat", lambda model: model["ready_replicas"] == 2)
    log = await facts_of(stack)
    (failed,) = [fact for fact in facts(log) if isinstance(fact, InstanceFailed)]
    assert (failed.instance_id, [reason.code for reason in failed.reasons]) == (lost["id"], ["machine_restarted"])
    assert attempts_of(log, lost["id"]) == [1, 2]


async def test_a_file_that_is_not_there_is_a_reason_for_each_worker_that_lacks_it(stack: Stack, client: Client) -> None:
    await stack.start_simulator(a_fleet(workers(3)))
    await until_all(client, 3)
    await client.deploy("rare", "/models/rare.gguf", replicas=2)
    await client.deploy("none", "/models/none.gguf")

    await client.until("/v2/models/rare", lambda model: model["ready_replicas"] == 2)
    assert {instance["worker_name"] for instance in await instances(client, "rare")} == {"gpu-1"}
    none = await client.until(
        "/v2/model-instances/none-0",
        lambda instance: [reason["code"] for reason in instance["reasons"]] == ["model_not_found"] * 3,
    )
    assert {reason["worker"] for reason in none["reasons"]} == {"gpu-0", "gpu-1", "gpu-2"}


# -- what happens to the simulator ----------------------------------------------------------------------------------------


async def test_killed_and_started_again_it_is_the_same_fleet_whose_machines_have_started_again(
    stack: Stack, client: Client
) -> None:
    fleet = a_fleet(workers(3))
    simulator = await stack.spawn("simulator", described=fleet)
    before = await until_all(client, 3, seconds=60)
    await client.deploy("chat", "/models/chat.gguf", replicas=3)
    await client.until("/v2/models/chat", lambda model: model["ready_replicas"] == 3)

    simulator.kill()
    await simulator.wait()
    await stack.spawn("simulator", described=fleet)

    found = await until_facts(stack, lambda found: sum(isinstance(fact, InstanceFailed) for fact in found) == 3)
    failed = [fact for fact in found if isinstance(fact, InstanceFailed)]
    assert {reason.code for fact in failed for reason in fact.reasons} == {"machine_restarted"}
    await client.until("/v2/models/chat", lambda model: model["ready_replicas"] == 3)
    after = await until_all(client, 3)
    assert [worker["id"] for worker in after] == [worker["id"] for worker in before]
    log = await facts_of(stack)
    for instance in await instances(client, "chat"):
        assert attempts_of(log, instance["id"]) == [1, 2]
    assert (await client.ask("chat"))[0] == 200


async def test_ctrl_c_takes_all_workers_away_in_order(stack: Stack, client: Client) -> None:
    simulator = await stack.spawn("simulator", described=a_fleet(workers(300)))
    await until_all(client, 300, seconds=60)

    simulator.send_signal(signal.SIGINT)
    async with asyncio.timeout(10):
        assert await simulator.wait() == 0

    there = await until_all(client, 300, "unreachable")
    assert {reason["code"] for worker in there for reason in worker["reasons"]} == {"agent_stopped"}


@pytest.mark.parametrize("what", ["scheduler", "nats"])
async def test_it_outlives_what_it_talks_to(stack: Stack, client: Client, what: str) -> None:
    await stack.start_simulator(a_fleet(workers(20)))
    await until_all(client, 20)
    await client.deploy("chat", "/models/chat.gguf")
    await client.until("/v2/models/chat", lambda model: model["ready_replicas"] == 1)

    restart: dict[str, Callable[[], Awaitable[object]]] = {
        "scheduler": lambda: stack.stop("scheduler"),
        "nats": lambda: stack.nats.restart(kill=True),
    }
    await restart[what]()
    if what == "scheduler":
        await stack.start_scheduler(**SOON)

    await client.until_written("PATCH", "/v2/models/chat", {"replicas": 2})
    await client.until("/v2/models/chat", lambda model: model["ready_replicas"] == 2, seconds=60)
    await until_all(client, 20)
    first = min(await instances(client, "chat"), key=lambda instance: instance["name"])
    assert attempts_of(await facts_of(stack), first["id"]) == [1], "its engine ran on"
    assert stack.failure_of("simulator") is None


# -- the command ----------------------------------------------------------------------------------------------------------


async def command(stack: Stack, fleet: bytes, *arguments: str, seed: str | None = None) -> tuple[int | None, str, str]:
    file = stack.directory / "given.json"
    file.write_bytes(fleet)
    environment = {"MUSTER_SIMULATOR_NKEY_SEED": seed or stack.seeds["simulator"], "COLUMNS": "200"}
    process = await asyncio.create_subprocess_exec(
        MUSTER,
        "simulate",
        str(file),
        *arguments,
        env={**os.environ, **environment},
        cwd=stack.directory,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(30):
            said, trouble = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return process.returncode, said.decode(), trouble.decode()


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (
            b"{",
            "this is not JSON: Expecting property name enclosed in double quotes: line 1 column 2 (char 1) (fleet_not_json)",
        ),
        (
            json.dumps(a_fleet(workers(1, "gpu-0"), workers(1, "gpu-0"))).encode(),
            "workers.1.name: gpu-0 is called like a worker of workers.0.name (duplicate_worker)",
        ),
        (json.dumps(a_fleet()).encode(), "workers: a fleet has at least one worker (no_workers)"),
        (
            json.dumps(a_fleet(workers(1, gpu=1))).encode(),
            "workers.0.gpu: Extra inputs are not permitted (fleet_invalid)",
        ),
    ],
)
async def test_a_bad_file_is_refused_with_a_sentence_and_nobody_joins(
    stack: Stack, client: Client, content: bytes, why: str
) -> None:
    done = await command(stack, content, "--nats", stack.nats.url)

    assert done == (2, "", f"muster: {stack.directory / 'given.json'}: {why}\n")
    assert await states(client) == {}
    assert (await stack.operator.js_api("STREAM.INFO.REPORTS"))["state"]["last_seq"] == 0


async def test_a_key_that_is_not_a_simulators_lets_nobody_join(stack: Stack, client: Client) -> None:
    code, said, trouble = await command(
        stack, json.dumps(a_fleet(workers(1))).encode(), "--nats", stack.nats.url, seed=new_seed()
    )
    assert (code, said) == (1, "")
    assert trouble.startswith("muster: this Muster takes no simulator, or not this key")
    assert await states(client) == {}


async def test_an_address_that_is_not_this_machines_is_refused_and_nobody_joins(stack: Stack, client: Client) -> None:
    fleet = json.dumps(a_fleet(workers(1))).encode()
    code, _, trouble = await command(stack, fleet, "--nats", stack.nats.url, "--address", "192.0.2.1")
    assert code == 2
    assert trouble.startswith("muster: simulated engines can't listen on 192.0.2.1 (")
    assert await states(client) == {}


async def test_without_a_muster_it_says_how_to_start_one(stack: Stack) -> None:
    done = await command(stack, json.dumps(a_fleet(workers(1))).encode())
    assert done == (
        2,
        "",
        "muster: no Muster runs on .muster: start `muster up --simulator`, or name one with --nats\n",
    )


def simulate(directory: Path, fleet: Path) -> "subprocess.Popen[str]":
    """Against the Muster on this data directory."""
    return subprocess.Popen(
        [MUSTER, "simulate", str(fleet), "--data-dir", str(directory)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def test_a_muster_takes_a_simulator_when_it_was_started_for_one_and_only_then(tmp_path: Path) -> None:
    directory, fleet = tmp_path / "data", tmp_path / "fleet.json"
    fleet.write_text(json.dumps(a_fleet(workers(3))))
    seed = directory / "keys" / "simulator.seed"

    with up(directory, "--port", "0") as running:
        assert "simulator" not in {path.stem for path in (directory / "keys").iterdir()}
        assert "deny" not in (directory / "nats" / "nats.conf").read_text()
        with simulate(directory, fleet) as refused:
            said, trouble = refused.communicate(timeout=60)
        assert (refused.returncode, said) == (2, "")
        assert trouble.startswith(f"muster: there is no key for a simulator ({seed}): `muster up --simulator` makes it")
        running.end(signal.SIGTERM)

    with up(directory, "--port", "0", "--simulator") as running:
        assert seed.stat().st_mode & 0o777 == 0o600
        with simulate(directory, fleet) as simulator:
            ready: list[str] = []
            try:
                for _ in range(300):
                    ready = [w["name"] for w in running.get("/v2/workers")["items"] if w["state"] == "ready"]
                    if len(ready) == 4:
                        break
                    time.sleep(0.1)
                assert {"gpu-0", "gpu-1", "gpu-2"} < set(ready)
                simulator.send_signal(signal.SIGINT)
                said, trouble = simulator.communicate(timeout=60)
                assert (simulator.returncode, trouble) == (0, "")
                assert said.splitlines()[0] == "3 workers join; Ctrl-C takes them away again"
                assert said.splitlines()[-1] == "they have left"
            finally:
                simulator.kill()
        running.end(signal.SIGTERM)

    with up(directory, "--port", "0") as running:  # the key is still there, and opens nothing
        with simulate(directory, fleet) as refused:
            said, trouble = refused.communicate(timeout=60)
        assert (refused.returncode, said) == (1, "")
        assert "takes no simulator" in trouble
        running.end(signal.SIGTERM)


async def test_the_peaks_that_a_file_tells_are_shown_beside_what_is_claimed(stack: Stack, client: Client) -> None:
    engines = QUICK | {"peak_vram": 20 * GIB, "peak_ram": [GIB, GIB]}
    await stack.start_simulator(a_fleet(workers(1, gpus=2, engines=engines)))
    await until_all(client, 1)
    await client.deploy("chat", "/models/chat.gguf", replicas=2)
    await client.until_state("/v2/models/chat", "ready")

    placement = await client.get("/v2/models/chat/placement")
    (measured,) = placement["measured"]
    claim = placement["instances"][0]["members"][0]["claim"]
    assert measured["instances"] == 2
    assert (measured["gpu"], measured["gpus"], measured["peak_vram"], measured["peak_ram"]) == (
        "H100",
        1,
        20 * GIB,
        GIB,
    )
    assert (measured["claimed_vram"], measured["claimed_ram"]) == (max(claim["vram"].values()), claim["ram"])
    assert "measured 20.0 GiB at most" in measured["text"]
    assert measured["warning"].startswith("holds more RAM than it claims: set claim_override")
    told = [fact for fact in facts(await facts_of(stack)) if isinstance(fact, ModelPeakMeasured)]
    assert len(told) == 1, "the second instance holds as much"

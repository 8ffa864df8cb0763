"""Real vLLM, built for processors, run by agents as processes: alone, in two ranks, on two workers (`make test-vllm`)."""

import asyncio
import os
import signal
from pathlib import Path
from typing import Any, Final

import aiohttp
import orjson
import psutil
import pytest

from tests.chaos.what_must_hold import facts_of, of_type
from tests.e2e.machines import GIB, a_gpu, a_machine
from tests.support.stack import EXAMPLES, Client, Stack

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]

VLLM: Final = os.environ.get("TESTS_VLLM", str(Path(__file__).parents[2] / ".venv-vllm" / "bin" / "vllm"))
PARAMETERS: Final = ("--max-model-len=2048", "--enforce-eager")
SMALL_CACHE: Final = {"VLLM_CPU_KVCACHE_SPACE": "1"}
STARTED_SECONDS: Final = 300.0
"""Two cores start one in 40 s. A guard, no figure."""


async def deploy(client: Client, *parameters: str, **fields: Any) -> dict[str, Any]:
    return await client.deploy(
        "tinychat",
        EXAMPLES / "tinychat",
        backend="vLLM",
        backend_parameters=[*PARAMETERS, *parameters],
        env=SMALL_CACHE,
        **fields,
    )


async def until_ready(client: Client) -> dict[str, Any]:
    await client.until_state("/v2/models/tinychat", "ready", seconds=STARTED_SECONDS)
    return await the_instance(client)


async def the_instance(client: Client) -> dict[str, Any]:
    (instance,) = (await client.get("/v2/model-instances"))["items"]
    return instance


async def answer_of(client: Client) -> str:
    status, answer = await client.ask("tinychat")
    assert status == 200, answer
    return answer["choices"][0]["message"]["content"]


def session(pid: int) -> list[psutil.Process]:
    """Everything that the engine has started, whoever is its parent by now."""
    found: list[psutil.Process] = []
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == pid and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (ProcessLookupError, psutil.NoSuchProcess):
            pass
    return found


async def until_nothing_is_left(pid: int, processes: list[psutil.Process]) -> None:
    for _ in range(300):
        if not session(pid) and not any(process.is_running() for process in processes):
            return
        await asyncio.sleep(0.1)
    raise AssertionError(f"still there: {session(pid)}")


async def test_one_instance_serves_on_processors_and_nothing_is_left_of_it_when_it_is_killed(stack: Stack) -> None:
    await stack.start_all(vllm_command=f"{VLLM} serve")
    client = stack.client()
    (worker,) = (await client.get("/v2/workers"))["items"]
    assert worker["backends"].keys() == {"llama.cpp", "vLLM"}
    assert worker["backends"]["vLLM"].endswith("+cpu")

    await deploy(client, cpu_offloading=True)
    instance = await until_ready(client)
    (place,) = instance["members"]
    assert place["gpu_indexes"] == []
    assert place["claim"]["ram"] > 3 * GIB, "weights and what is beside them, and a GiB of cache"
    assert "TinyChat" in await answer_of(client)
    assert await streamed(client) == await answer_of(client)

    ((_, pid),) = stack.engines().items()
    await nobody_else_is_answered(pid)
    parts = session(pid)
    assert len(parts) >= 3, "the server, its core and a worker"
    os.kill(pid, signal.SIGKILL)
    await until_nothing_is_left(pid, parts)
    failed = await client.until(
        f"/v2/model-instances/{instance['id']}", lambda seen: seen["state"] == "error" or seen["attempt"] > 1
    )
    (failure,) = of_type(await facts_of(stack), "InstanceFailed")
    assert failure.envelope.data["exit_code"] == 128 + signal.SIGKILL
    assert failed["id"] == instance["id"]


async def streamed(client: Client) -> str:
    body = {
        "model": "tinychat",
        "messages": [{"role": "user", "content": "Who are you?"}],
        "temperature": 0,
        "stream": True,
    }
    async with client.session.post(f"{client.url}/v1/chat/completions", json=body) as answer:
        assert answer.status == 200
        lines = [line.decode().strip() async for line in answer.content if line.strip()]
    assert lines[-1] == "data: [DONE]"
    chunks = [orjson.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    return "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])


async def nobody_else_is_answered(pid: int) -> None:
    """Its key is in its environment, not on its command line; without it nobody gets a token."""
    process = psutil.Process(pid)
    (listens,) = {each.laddr.port for each in process.net_connections() if each.status == psutil.CONN_LISTEN}
    key = process.environ()["VLLM_API_KEY"]
    assert key not in " ".join(process.cmdline())
    body = {"model": "tinychat", "messages": [{"role": "user", "content": "Who are you?"}]}
    at = f"http://127.0.0.1:{listens}/v1/chat/completions"
    async with aiohttp.ClientSession() as http, http.post(at, json=body) as answer:
        assert answer.status == 401


async def test_two_ranks_share_a_model_out_on_processors(stack: Stack) -> None:
    if (os.cpu_count() or 1) < 2:
        pytest.skip("two ranks want two processors")
    await stack.start_all(vllm_command=f"{VLLM} serve")
    client = stack.client()
    await deploy(client, "--tensor-parallel-size=2", cpu_offloading=True)
    instance = await until_ready(client)
    assert "TinyChat" in await answer_of(client)
    ((_, pid),) = stack.engines().items()
    workers = [process for process in session(pid) if "Worker" in "".join(process.cmdline())]
    assert len(workers) == 2
    assert {tuple(worker.cpu_affinity()) for worker in workers} != {tuple(psutil.Process().cpu_affinity())}
    parts = session(pid)
    assert (await client.request("DELETE", "/v2/models/tinychat"))[0] == 200
    await client.until(
        "/v2/model-instances", lambda found: all(i["id"] != instance["id"] for i in found["items"]), seconds=60
    )
    await until_nothing_is_left(pid, parts)


async def test_two_workers_run_one_instance_and_the_one_that_fails_is_named(stack: Stack) -> None:
    """Each worker is said to have one GPU, so that one alone is not enough; vLLM computes on processors all the same."""
    await stack.start_scheduler(restart_base_seconds=0.2)
    for number in range(2):
        machine = a_machine(stack.directory, f"m{number}", ram=16 * GIB, gpus=(a_gpu(0, 24 * GIB),))
        command = f"env VLLM_CPU_OMP_THREADS_BIND={number % (os.cpu_count() or 1)} {VLLM} serve"
        await stack.start_worker(number, inventory=machine, vllm_command=command)
    await stack.start_api()
    client = stack.client()
    await deploy(client, "--tensor-parallel-size=2", distributed_inference_across_workers=True)
    instance = await until_ready(client)
    assert [member["role"] for member in instance["members"]] == ["leader", "follower"]
    assert "TinyChat" in await answer_of(client)
    first, second = ({**stack.engines(number)} for number in range(2))
    assert first.keys() == second.keys(), "the same attempt on both"

    follower = instance["members"][1]["worker_id"]
    number = [worker.id for worker in stack.workers].index(follower)
    (killed,) = stack.engines(number).values()
    (leads,) = stack.engines(1 - number).values()
    parts = session(killed) + session(leads)
    os.kill(killed, signal.SIGKILL)
    again = await client.until(
        f"/v2/model-instances/{instance['id']}",
        lambda seen: (seen["state"], seen["attempt"]) == ("running", 2),
        seconds=STARTED_SECONDS,
    )
    assert again["restart_count"] == 1
    (failure,) = of_type(await facts_of(stack), "InstanceFailed")
    (reason,) = failure.envelope.data["reasons"]
    assert (reason["code"], reason["worker_id"]) == ("engine_killed", follower), (
        "the follower ended first, and the leader for that"
    )
    assert not any(part.is_running() for part in parts)
    assert "TinyChat" in await answer_of(client)

"""Engines answer nobody but the gateways: the real llama.cpp asks for a key that no one else knows."""

import os
import signal
from pathlib import Path
from typing import Any

import aiohttp

from kernel.engine_keys import Holder, SealedKeys
from schemas.ids import InstanceId
from services.agent.process import AgentProcess
from tests.support.stack import Client, Stack

QUESTION = {"model": "tinychat", "messages": [{"role": "user", "content": "Who are you?"}]}


async def serving(stack: Stack, **agent_settings: Any) -> Client:
    await stack.start_all(**agent_settings)
    client = stack.client()
    await client.deploy("tinychat")
    await client.until_state("/v2/models/tinychat", "ready")
    return client


async def the_instance(client: Client) -> dict[str, Any]:
    return (await client.get("/v2/model-instances"))["items"][0]


async def asked(instance: dict[str, Any], key: str | None, path: str = "/v1/chat/completions") -> int:
    """The engine itself, past the gateway."""
    headers = {"authorization": f"Bearer {key}"} if key is not None else {}
    url = f"http://{instance['worker_ip']}:{instance['port']}{path}"
    async with aiohttp.request("POST", url, json=QUESTION, headers=headers) as answer:
        return answer.status


async def key_of(stack: Stack, client: Client, instance: dict[str, Any]) -> str:
    """As a gateway has it: out of the fact, with the gateways' seed."""
    timeline = (await client.get(f"/v2/model-instances/{instance['id']}/timeline"))["items"]
    running = [event["data"] for event in timeline if event["type"] == "InstanceRunning"][-1]
    holder = Holder(stack.workers[0].id, InstanceId(instance["id"]), running["attempt"])
    key = SealedKeys([stack.engine_key_seed]).opened(running["sealed_key"], holder)
    assert key is not None
    return key


def pid_of(stack: Stack, number: int = 0) -> int:
    (pid,) = stack.engines(number).values()
    return pid


async def test_an_engine_refuses_whoever_is_no_gateway_and_each_attempt_has_its_own_key(stack: Stack) -> None:
    client = await serving(stack)
    instance = await the_instance(client)
    assert (await client.ask("tinychat"))[0] == 200
    key = await key_of(stack, client, instance)
    assert await asked(instance, None) == 401
    assert await asked(instance, "mek_another") == 401
    assert await asked(instance, key) == 200

    os.killpg(pid_of(stack), signal.SIGKILL)
    await client.until(
        "/v2/models/tinychat", lambda model: model["state"] == "ready" and model["since"] > instance["since"]
    )
    again = await the_instance(client)
    assert (await client.ask("tinychat"))[0] == 200
    assert await asked(again, key) == 401
    assert await key_of(stack, client, again) != key
    assert await asked(again, await key_of(stack, client, again)) == 200


async def test_the_key_survives_that_everything_but_the_engine_starts_again(stack: Stack) -> None:
    client = await serving(stack)
    pid = pid_of(stack)
    key = await key_of(stack, client, await the_instance(client))
    for name in ("agent-0", "scheduler", "api"):
        await stack.stop(name)
    await stack.start_scheduler()
    agent = await stack.start_agent()
    await stack.start_api()
    client = stack.client()
    await client.until_state("/v2/models/tinychat", "ready")
    assert (await client.ask("tinychat"))[0] == 200
    assert pid_of(stack) == pid
    assert [watched.key for watched in watched_by(agent)] == [key]


async def test_all_gateways_know_it(stack: Stack) -> None:
    await serving(stack)
    second = await stack.start_api("second")
    assert (await stack.client(second.port).ask("tinychat"))[0] == 200


async def test_a_gateway_with_another_seed_gets_no_answer_and_its_client_is_not_told_to_send_a_key(
    stack: Stack,
) -> None:
    await serving(stack)
    stranger = await stack.start_api("stranger", engine_key_seed=None)
    status, answer = await stack.client(stranger.port).ask("tinychat")
    assert (status, answer["error"]["code"]) == (502, "engine_unreachable")
    assert await in_flight(stack) == {}


async def test_an_engine_without_a_key_goes_on_when_keys_are_introduced(stack: Stack) -> None:
    await stack.start_scheduler(engine_key_public=None)
    await stack.start_api(engine_key_seed=None)
    await stack.start_worker(0)
    client = stack.client()
    await client.deploy("tinychat")
    await client.until_state("/v2/models/tinychat", "ready")
    pid = pid_of(stack)
    assert await asked(await the_instance(client), None) == 200
    for name in ("agent-0", "scheduler", "api"):
        await stack.stop(name)
    await stack.start_scheduler()
    await stack.start_agent()
    await stack.start_api()
    client = stack.client()
    await client.until_state("/v2/models/tinychat", "ready")
    assert (await client.ask("tinychat"))[0] == 200
    assert pid_of(stack) == pid


async def test_the_key_is_nowhere_where_others_read(stack: Stack) -> None:
    """Not in the log, in PostgreSQL, in an answer or a line; on its worker in one file that nobody else may read."""
    client = await serving(stack)
    instance = await the_instance(client)
    key = await key_of(stack, client, instance)
    pid = pid_of(stack)
    assert (await client.ask("tinychat"))[0] == 200

    assert key.encode() not in read(f"/proc/{pid}/cmdline")
    assert key.encode() in read(f"/proc/{pid}/environ")  # which is the user's own
    sql = await stack.sql()
    try:
        bodies = [bytes(row["body"]).decode() for row in await sql.fetch("SELECT body FROM muster.event_log")]
        rows = [str(row) for row in await sql.fetch("SELECT * FROM muster.endpoints")]
    finally:
        await sql.close()
    assert [text for text in bodies if "sealed_key" in text]
    assert [text for text in rows if "sealed_key=" in text]
    answers = [str(await client.get(path)) for path in ("/v2/models", "/v2/model-instances", "/v2/workers")]
    assert not [text for text in (*bodies, *rows, *answers) if key in text]
    holding = [path for path in stack.directory.rglob("*") if path.is_file() and key.encode() in path.read_bytes()]
    assert [path.suffix for path in holding] == [".key"]
    assert holding[0].stat().st_mode & 0o777 == 0o600

    await client.request("DELETE", "/v2/models/tinychat")
    await client.until("/v2/model-instances", lambda found: found["items"] == [])
    assert not holding[0].exists()


def read(path: str) -> bytes:
    return Path(path).read_bytes()


def watched_by(agent: AgentProcess) -> Any:
    return agent._engines.values()  # pyright: ignore[reportPrivateUsage]


async def in_flight(stack: Stack) -> dict[str, int]:
    api = stack.services["stranger"]
    return dict(api.routes.picture("g").instances)  # pyright: ignore[reportAttributeAccessIssue]

"""A worker that nobody can dial is served through the bus: its agent lives in a network from which NATS alone is reached."""

import asyncio
import io
import os
import signal
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import psutil
import pytest
import pytest_asyncio
from aiohttp import web

from services.api.domain import reach
from services.api.process import ApiProcess
from tests.e2e.an_engine import CHUNKS, COMMAND
from tests.support import behind_nat
from tests.support.stack import Client, Stack

NOWHERE = "192.0.2.77"
"""TEST-NET-1 (RFC 5737): an address that the worker has and that leads nowhere from here."""
WHY_NOT = behind_nat.why_not()
pytestmark = pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))


@pytest_asyncio.fixture(loop_scope="session")
async def way(stack: Stack) -> AsyncIterator[tuple[str, ...]]:
    with tempfile.TemporaryDirectory(prefix="m-") as short:
        async with behind_nat.way_to(stack.nats.url, Path(short) / "s", NOWHERE) as before:
            yield before


async def behind(
    stack: Stack, way: tuple[str, ...], address: str = "127.0.0.1", **settings: Any
) -> tuple[Client, asyncio.subprocess.Process]:
    """A model that is served by a worker there, and that worker's agent. Its engine is not reached from here."""
    await stack.start_scheduler(restart_base_seconds=60)
    await stack.start_downloader()
    agent = await stack.spawn("agent", before=way, worker_ip=address, **settings)
    await stack.start_api()
    client = stack.client()
    await client.deploy("chat")
    await client.until_state("/v2/models/chat", "ready")
    (instance,) = (await client.get("/v2/model-instances"))["items"]
    with pytest.raises((OSError, TimeoutError)):
        async with asyncio.timeout(1):
            await asyncio.open_connection(instance["worker_ip"], instance["port"])
    return client, agent


def chat(content: str, **more: object) -> dict[str, object]:
    return {"model": "chat", "messages": [{"role": "user", "content": content}]} | more


def api_of(stack: Stack) -> ApiProcess:
    api = stack.services["api"]
    assert isinstance(api, ApiProcess)
    return api


async def until_nothing_is_in_flight(stack: Stack) -> None:
    for _ in range(600):
        if not api_of(stack).routes.in_flight.total():
            return
        await asyncio.sleep(0.05)
    raise AssertionError("requests that are over are still counted")


async def connections_to_the_engine(stack: Stack, expected: int) -> None:
    (pid,) = stack.engines(0).values()
    port, found = f"{port_of(pid):04X}", []
    for _ in range(600):
        found = [fields for fields in sockets_seen_by(pid) if fields[1].endswith(f":{port}") and fields[3] == "01"]
        if len(found) == expected:
            return
        await asyncio.sleep(0.05)
    raise AssertionError(f"{len(found)} connections to the engine, not {expected}")


def sockets_seen_by(pid: int) -> list[list[str]]:
    """In its own network namespace; the fourth field 01: established."""
    return [line.split() for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()]


def port_of(pid: int) -> int:
    arguments = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
    return int(arguments[arguments.index("--port") + 1])


@pytest.mark.parametrize(("how", "address"), [("auto", "127.0.0.1"), ("auto", NOWHERE), ("relay", NOWHERE)], ids=str)
async def test_a_real_engine_that_nobody_can_dial_answers(
    stack: Stack, way: tuple[str, ...], how: str, address: str
) -> None:
    client, _ = await behind(stack, way, address, reach=how)

    status, answer = await client.ask("chat")
    assert status == 200, answer
    assert answer["usage"]["completion_tokens"] > 0
    assert (await client.get("/v2/workers/worker-0"))["reach"] == how

    body = chat("Who are you?", stream=True, temperature=0)
    async with client.session.post(client.url + "/v1/chat/completions", json=body) as streamed:
        pieces = [piece async for piece in streamed.content.iter_any()]
    assert streamed.headers["content-type"].startswith("text/event-stream")
    assert b"".join(pieces).rstrip().endswith(b"data: [DONE]")

    async def one() -> bytes:
        async with client.session.post(client.url + "/v1/chat/completions", json=body) as each:
            assert each.status == 200
            return await each.read()

    answers = await asyncio.gather(*(one() for _ in range(8)))
    assert all(each.rstrip().endswith(b"data: [DONE]") for each in answers)
    await until_nothing_is_in_flight(stack)


async def test_who_may_only_be_dialled_is_not_relayed(stack: Stack, way: tuple[str, ...]) -> None:
    client, _ = await behind(stack, way, reach="direct", llama_cpp_command=COMMAND)
    status, answer = await client.ask("chat")
    assert (status, answer["error"]["code"]) == (502, "engine_unreachable")


async def test_a_stream_is_passed_on_byte_for_byte(stack: Stack, way: tuple[str, ...]) -> None:
    client, _ = await behind(stack, way, llama_cpp_command=COMMAND)
    async with client.session.post(client.url + "/v1/chat/completions", json=chat("slowly", stream=True)) as answer:
        pieces = [piece async for piece in answer.content.iter_any()]
    assert b"".join(pieces) == b"".join(CHUNKS)
    assert len(pieces) == len(CHUNKS)


async def test_a_client_that_hangs_up_frees_the_engine(stack: Stack, way: tuple[str, ...]) -> None:
    client, _ = await behind(stack, way, llama_cpp_command=COMMAND)
    never = stack.directory / "never"
    answer = await client.session.post(client.url + "/v1/chat/completions", json=chat(f"until {never}", stream=True))
    assert await answer.content.readany() == CHUNKS[0]
    await connections_to_the_engine(stack, 1)

    answer.close()

    await until_nothing_is_in_flight(stack)
    await connections_to_the_engine(stack, 0)


async def test_an_agent_that_dies_in_the_middle_ends_the_answer(stack: Stack, way: tuple[str, ...]) -> None:
    client, agent = await behind(stack, way, llama_cpp_command=COMMAND)
    never = stack.directory / "never"
    async with client.session.post(
        client.url + "/v1/chat/completions", json=chat(f"until {never}", stream=True)
    ) as answer:
        assert await answer.content.readany() == CHUNKS[0]
        agent.send_signal(signal.SIGKILL)
        with pytest.raises(aiohttp.ClientPayloadError):
            async with asyncio.timeout(30):
                await answer.content.read()
    await until_nothing_is_in_flight(stack)


async def test_bodies_of_50_megabytes_pass_and_the_agent_stays_small(stack: Stack, way: tuple[str, ...]) -> None:
    client, agent = await behind(stack, way, llama_cpp_command=COMMAND)
    assert (await client.ask("chat"))[0] == 200
    before = psutil.Process(agent.pid).memory_info().rss
    padding = os.urandom(25 * 2**20).hex()
    peak = before

    async def watch() -> None:
        nonlocal peak
        while True:
            peak = max(peak, psutil.Process(agent.pid).memory_info().rss)
            await asyncio.sleep(0.02)

    watching = asyncio.create_task(watch())
    body = orjson.dumps(chat("echo", padding=padding))
    async with client.session.post(client.url + "/v1/chat/completions", data=io.BytesIO(body)) as answered:
        answer = await answered.json()
    watching.cancel()
    assert (answered.status, answer["padding"] == padding) == (200, True)
    assert peak - before < 24 * 2**20, f"the agent grew by {(peak - before) / 2**20:.0f} MiB"


async def test_a_client_that_reads_nothing_holds_up_neither_others_nor_the_agents_memory(
    stack: Stack, way: tuple[str, ...]
) -> None:
    client, agent = await behind(stack, way, llama_cpp_command=COMMAND)
    assert (await client.ask("chat"))[0] == 200
    before = psutil.Process(agent.pid).memory_info().rss
    body = orjson.dumps(chat("echo", padding="x" * (30 * 2**20)))
    lazy = await client.session.post(client.url + "/v1/chat/completions", data=io.BytesIO(body))

    answers = await asyncio.gather(*(client.ask("chat") for _ in range(20)))

    assert {status for status, _ in answers} == {200}
    grown = psutil.Process(agent.pid).memory_info().rss - before
    assert grown < 24 * 2**20, f"the agent grew by {grown / 2**20:.0f} MiB"
    assert len(orjson.loads(await lazy.read())["padding"]) == 30 * 2**20


async def test_more_requests_than_an_agent_may_relay_are_refused(stack: Stack, way: tuple[str, ...]) -> None:
    client, _ = await behind(stack, way, llama_cpp_command=COMMAND, relayed_requests=1)
    goes_on = stack.directory / "goes-on"
    async with client.session.post(
        client.url + "/v1/chat/completions", json=chat(f"until {goes_on}", stream=True)
    ) as answer:
        assert await answer.content.readany() == CHUNKS[0]
        status, refused = await client.ask("chat")
        assert (status, refused["error"]["code"]) == (503, "worker_busy")
        goes_on.touch()
        await answer.content.read()
    assert (await client.ask("chat"))[0] == 200


async def test_a_gateway_that_dies_frees_the_engine(stack: Stack, way: tuple[str, ...]) -> None:
    await behind(stack, way, llama_cpp_command=COMMAND)
    api, port = await stack.spawn_api()
    client = stack.client(port)
    never = stack.directory / "never"
    answer = await client.session.post(client.url + "/v1/chat/completions", json=chat(f"until {never}", stream=True))
    assert await answer.content.readany() == CHUNKS[0]
    await connections_to_the_engine(stack, 1)

    api.send_signal(signal.SIGKILL)

    await connections_to_the_engine(stack, 0)
    answer.close()


async def test_a_worker_that_can_be_dialled_again_is(
    stack: Stack, way: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reach, "RELAYED_SECONDS", 0.0)
    client, _ = await behind(stack, way, llama_cpp_command=COMMAND)
    assert "pid" in (await client.ask("chat"))[1]
    (instance,) = (await client.get("/v2/model-instances"))["items"]

    async def dialled(_: web.Request) -> web.Response:
        return web.json_response({"dialled": True})

    app = web.Application()
    app.router.add_post("/v1/chat/completions", dialled)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", instance["port"]).start()
    try:
        for _ in range(200):
            status, answer = await client.ask("chat")
            assert status == 200
            if answer == {"dialled": True}:
                return
            await asyncio.sleep(0.05)
        raise AssertionError("it is relayed for ever")
    finally:
        await runner.cleanup()


async def test_a_restarted_server_of_the_bus_does_not_end_relaying(stack: Stack, way: tuple[str, ...]) -> None:
    client, _ = await behind(stack, way, reach="relay", llama_cpp_command=COMMAND)
    await stack.nats.restart()
    for _ in range(200):
        if (await client.ask("chat"))[0] == 200:
            return
        await asyncio.sleep(0.1)
    raise AssertionError("nothing is relayed any more")

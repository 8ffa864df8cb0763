"""Logs of engines and of workers' services through the whole: real engines, bus, api, command."""

import asyncio
import os
import re
import signal
import socket
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from kernel.bus import Bus
from schemas.asks import LogLines, TailLog
from schemas.subjects import ask
from tests.e2e.machines import QUICK
from tests.services.agent.engines import GUARD_SECONDS
from tests.support.stack import KEY, Client, Stack

MUSTER = Path(sys.executable).with_name("muster")
SHORT: dict[str, Any] = {"restart_base_seconds": 0.2}
CHATTY: dict[str, Any] = {
    "llama_cpp_command": f"{sys.executable} -I -S -u {Path(__file__).with_name('a_chatty_engine.py')}",
    "engine_log_segment_bytes": 65536,
}


class Text:
    """A followed log, line by line."""

    def __init__(self, answer: aiohttp.ClientResponse) -> None:
        self._answer = answer

    async def line(self) -> str | None:
        """None: it has ended."""
        async with asyncio.timeout(GUARD_SECONDS):
            line = await self._answer.content.readline()
        return line.decode().removesuffix("\n") if line else None

    async def until(self, pattern: str) -> list[str]:
        """What came up to the first line with this in it."""
        told: list[str] = []
        while (line := await self.line()) is not None:
            told.append(line)
            if re.search(pattern, line):
                return told
        raise AssertionError(f"{pattern} never came; last: {told[-5:]}")

    async def rest(self) -> list[str]:
        told: list[str] = []
        while (line := await self.line()) is not None:
            told.append(line)
        return told


@asynccontextmanager
async def followed(client: Client, path: str) -> AsyncGenerator[Text]:
    url = f"{client.url}{path}{'&' if '?' in path else '?'}follow=true"
    async with client.session.get(url, timeout=aiohttp.ClientTimeout(total=None)) as answer:
        assert answer.status == 200, await answer.text()
        assert answer.headers["content-type"] == "text/plain; charset=utf-8"
        yield Text(answer)


def beginnings(lines: list[str]) -> list[str]:
    """Without what the engine says of a probe that broke off while it died."""
    return [line for line in lines if line.startswith(("engine of", "…"))]


async def running(client: Client, model: str = "chat") -> dict[str, Any]:
    await client.until_state(f"/v2/models/{model}", "ready", seconds=60)
    (instance,) = (await client.get(f"/v2/model-instances?model={model}"))["items"]
    return instance


def numbers(lines: list[str]) -> list[int]:
    return [int(line.split()[1]) for line in lines if line.startswith("line ")]


async def test_a_log_is_followed_while_a_real_engine_serves_and_ends_with_its_instance(stack: Stack) -> None:
    await stack.start_all()
    client = stack.client()
    await client.deploy("chat")
    instance = await running(client)

    tail = await client.get(f"/v2/model-instances/{instance['id']}/logs?tail=5")
    assert tail["attempt"] == 1
    assert len(tail["lines"]) == 5
    async with followed(client, f"/v2/model-instances/{instance['name']}/logs?tail=5") as log:
        assert (await client.ask("chat"))[0] == 200
        await log.until("POST /v1/chat/completions|done request|release|slot")
        status, _, _ = await client.request("DELETE", "/v2/models/chat")
        assert status == 200
        await log.rest()

    told = await client.get(f"/v2/model-instances/{instance['id']}/logs?attempt=1")
    assert tail["lines"][-1] in told["lines"]


async def test_nothing_is_lost_over_rotations_and_a_killed_agent(stack: Stack) -> None:
    await stack.start_scheduler(**SHORT)
    await stack.start_downloader(0)
    agent = await stack.spawn("agent", **CHATTY)
    await stack.start_api()
    client = stack.client()
    await client.deploy("chat")
    instance = await running(client)
    engines = stack.engines()
    folder = stack.directory / "worker-0" / "engines" / instance["id"]

    async with followed(client, f"/v2/model-instances/{instance['id']}/logs?tail=1") as log:
        told = await log.until("line")
        agent.kill()
        await agent.wait()
        told += await log.until("… the worker does not answer")
        await stack.spawn("agent", **CHATTY)
        first = numbers(told)[0]
        while (line := await log.line()) is not None and len(list(folder.glob("*.gz"))) < 2:
            told.append(line)
        told += [line or ""]
        for _ in range(2000):
            told.append(await log.line() or "")

    found = numbers(told)
    assert found == list(range(first, first + len(found)))
    assert len(found) > 2000
    assert stack.engines() == engines


async def test_the_next_attempt_is_followed_and_the_former_one_can_be_read(stack: Stack) -> None:
    await stack.start_scheduler(**SHORT)
    await stack.start_worker(0, **QUICK)
    await stack.start_api()
    client = stack.client()
    await client.deploy("chat")
    instance = await running(client)
    path = f"/v2/model-instances/{instance['id']}/logs"

    status, problem, _ = await client.request("GET", f"{path}?previous=true")
    assert (status, problem["code"], problem["message"]) == (404, "no_logs", "chat-0 has had one attempt only")
    async with followed(client, f"{path}?tail=100") as every, followed(client, f"{path}?tail=100&attempt=1") as one:
        assert await every.line() == "engine of chat starts"
        (pid,) = stack.engines().values()
        os.kill(pid, signal.SIGKILL)
        assert beginnings(await every.until("starts")) == ["… attempt 2 begins", "engine of chat starts"]
        assert beginnings(await one.rest()) == ["engine of chat starts"]

    previous = await client.get(f"{path}?previous=true")
    assert (previous["attempt"], beginnings(previous["lines"])) == (1, ["engine of chat starts"])
    await client.request("DELETE", "/v2/models/chat")
    await client.until("/v2/model-instances", lambda found: not found["items"])
    assert beginnings((await client.get(path))["lines"]) == ["engine of chat starts"]
    assert beginnings((await client.get(f"{path}?attempt=1"))["lines"]) == ["engine of chat starts"]
    async with client.session.get(f"{client.url}{path}", headers={"accept": "text/plain"}) as answer:
        assert beginnings((await answer.text()).splitlines()) == ["engine of chat starts"]


async def questions(bus: Bus, worker: str) -> tuple[list[bytes], Any]:
    heard: list[bytes] = []

    async def hear(message: Any) -> None:
        heard.append(message.data)

    return heard, await bus.subscribe(ask(worker, "logs"), hear)


async def test_a_reader_that_vanishes_or_stands_still_is_asked_for_no_more(stack: Stack) -> None:
    await stack.start_all(**CHATTY)
    client = stack.client()
    await client.deploy("chat", backend_parameters=["--long"])
    instance = await running(client)
    path = f"/v2/model-instances/{instance['id']}/logs"
    heard, _ = await questions(stack.operator, stack.workers[0].id)

    async with followed(client, f"{path}?tail=1") as log:
        await log.until("line")
    await until_silent(heard)

    async with a_plain_reader(client, f"{path}?follow=true") as reader:
        assert await reader.readline() == b"HTTP/1.1 200 OK\r\n"
        await until_silent(
            heard
        )  # it reads no more: what is sent fills what the kernel holds, then nothing is asked for
        line = b" "
        async with asyncio.timeout(GUARD_SECONDS):
            while line and b"lines skipped" not in line:
                line = await reader.readline()
    assert re.fullmatch(rb"\S+ [1-9]\d* lines skipped\n", line)


@asynccontextmanager
async def a_plain_reader(client: Client, path: str) -> AsyncGenerator[asyncio.StreamReader]:
    """Without the buffers of an HTTP client."""
    port = int(client.url.rpartition(":")[2])
    narrow = socket.socket()
    narrow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    narrow.setblocking(False)  # noqa: FBT003 - the name that the socket gives it
    await asyncio.get_running_loop().sock_connect(narrow, ("127.0.0.1", port))
    reader, writer = await asyncio.open_connection(sock=narrow, limit=4096)
    try:
        writer.write(f"GET {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\n\r\n".encode())
        yield reader
    finally:
        writer.transport.abort()
        with suppress(ConnectionError):
            await writer.wait_closed()


async def until_silent(heard: list[bytes]) -> None:
    for _ in range(60):
        before = len(heard)
        await asyncio.sleep(1.5)
        if len(heard) == before:
            return
    raise AssertionError("the worker is asked on and on")


async def test_an_answer_fits_into_a_message_whatever_an_engine_writes(stack: Stack) -> None:
    await stack.start_all(**CHATTY)
    client = stack.client()
    await client.deploy("chat", backend_parameters=["--quotes"])
    instance = await running(client)
    bus = await stack.bus("api")
    for more in ({}, {"follow": True}, {"follow": True, "after": ""}):
        question = TailLog.model_validate({"instance_id": instance["id"], "lines": 2000} | more)
        answer = await bus.request(
            ask(stack.workers[0].id, "logs"), question.model_dump_json().encode(), timeout_seconds=10
        )
        assert LogLines.model_validate_json(answer.data).lines


async def test_a_workers_services_tell_their_own_lines(stack: Stack) -> None:
    await stack.start_scheduler(**SHORT)
    downloader = await stack.spawn("downloader")
    agent = await stack.spawn("agent", **QUICK)
    await stack.start_api()
    client = stack.client()
    await client.deploy("chat")
    await running(client)
    agent.kill()
    await agent.wait()
    agent = await stack.spawn("agent", **QUICK)  # it says so when it adopts an engine

    await client.until("/v2/workers/worker-0/logs?service=agent", lambda told: "adopted" in str(told["lines"]))
    (line,) = [line for line in (await client.get("/v2/workers/worker-0/logs"))["lines"] if "adopted" in line]
    assert re.fullmatch(r"\S+T\S+ agent INFO services.agent.process: adopted i-\S+ attempt 1", line)

    async with followed(client, "/v2/workers/worker-0/logs?tail=1") as log:
        await log.line()
        await stack.nats.restart()
        told = await log.until(" downloader ")
        told += await log.until(" agent ") if not any(" agent " in each for each in told) else []
    assert any("NATS" in each for each in told)
    assert downloader.returncode is None
    seeds = [stack.workers[0].agent_seed, stack.workers[0].downloader_seed]
    assert not any(seed in line for seed in seeds for line in told)


async def test_the_command_follows_both(stack: Stack) -> None:
    await stack.start_scheduler(**SHORT)
    await stack.start_worker(0, **QUICK)
    await stack.start_api()
    client = stack.client()
    await client.deploy("chat")
    await running(client)
    environment = {**os.environ, "MUSTER_URL": client.url, "MUSTER_API_KEY": KEY}

    async def muster(*arguments: str) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            MUSTER, *arguments, env=environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )

    follow = await muster("logs", "chat", "-f", "--tail", "100")
    assert follow.stdout is not None
    assert await follow.stdout.readline() == b"engine of chat starts\n"
    (pid,) = stack.engines().values()
    os.kill(pid, signal.SIGKILL)
    begun: list[str] = []
    async with asyncio.timeout(GUARD_SECONDS):
        while len(begun) < 2:
            begun += beginnings([(await follow.stdout.readline()).decode().rstrip()])
    assert begun == ["… attempt 2 begins", "engine of chat starts"]
    follow.send_signal(signal.SIGINT)
    await follow.communicate()

    previous = await muster("logs", "chat", "--previous")
    assert beginnings((await previous.communicate())[0].decode().splitlines()) == ["engine of chat starts"]
    wrong = await muster("logs", "worker/worker-0", "--previous")
    assert (await wrong.communicate())[1] == b"muster: a worker's services have no attempts\n"
    of_worker = await muster("logs", "worker/worker-0")
    await of_worker.communicate()
    assert of_worker.returncode == 0
    unknown = await muster("logs", "worker/nobody", "-f")
    assert (await unknown.communicate())[1] == b"muster: not_found: there is no worker nobody\n"


@pytest.mark.parametrize("query", ["follow=maybe", "tail=0", "attempt=0"])
async def test_a_question_that_can_not_be_meant_is_refused(stack: Stack, query: str) -> None:
    await stack.start_scheduler()
    await stack.start_api()
    client = stack.client()
    status, problem, _ = await client.request("GET", f"/v2/model-instances/x/logs?{query}")
    assert (status, problem["field"]) == (422, query.partition("=")[0])

"""From a chat to an engine: byte for byte, and to another engine when one is gone, but never after the first byte."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio

from services.api.process import ApiProcess
from tests.e2e.an_engine import CHUNKS
from tests.e2e.machines import MIB, QUICK, a_machine
from tests.support.stack import Client, Stack


@pytest_asyncio.fixture(loop_scope="session")
async def client(stack: Stack) -> AsyncIterator[Client]:
    """Two workers, one instance of `chat` on each. A crashed engine is not restarted while a test lasts."""
    await stack.start_scheduler(restart_base_seconds=60)
    small = a_machine(stack.directory, "small", ram=400 * MIB)  # room for one instance
    await stack.start_worker(0, inventory=small, **QUICK)
    await stack.start_worker(1, inventory=small, **QUICK)
    await stack.start_api()
    client = stack.client()
    await client.deploy("chat", replicas=2)
    await client.until("/v2/models/chat", lambda model: model["ready_replicas"] == 2)
    assert [len(stack.engines(number)) for number in (0, 1)] == [1, 1]
    yield client
    api = stack.services["api"]
    assert isinstance(api, ApiProcess)
    for _ in range(200):
        if not api.routes.in_flight.total():
            return
        await asyncio.sleep(0.05)
    raise AssertionError(f"requests that are over are still counted: {api.routes.picture('here')}")


def chat(content: str, **more: object) -> dict[str, object]:
    return {"model": "chat", "messages": [{"role": "user", "content": content}]} | more


async def test_a_stream_is_passed_on_byte_for_byte_and_piece_by_piece(client: Client) -> None:
    async with client.session.post(client.url + "/v1/chat/completions", json=chat("slowly", stream=True)) as answer:
        assert (answer.status, answer.headers["content-type"]) == (200, "text/event-stream")
        pieces = [piece async for piece in answer.content.iter_any()]
    assert b"".join(pieces) == b"".join(CHUNKS)
    assert len(pieces) > 1, "nothing is held back until the end"


async def test_requests_are_spread_over_the_instances(client: Client, stack: Stack) -> None:
    async def stream() -> None:
        async with client.session.post(client.url + "/v1/chat/completions", json=chat("slowly", stream=True)) as answer:
            await answer.read()

    streaming = asyncio.create_task(stream())
    api = stack.services["api"]
    assert isinstance(api, ApiProcess)
    endpoints = [endpoint for of in api.routes.endpoints.values() for endpoint in of.values()]
    for _ in range(1000):
        if api.routes.in_flight.total():
            break
        await asyncio.sleep(0.01)
    busy = next(endpoint.port for endpoint in endpoints if api.routes.in_flight.of(endpoint.instance_id))
    _, answer = await client.ask("chat")
    ports = {pid: port for number in (0, 1) for pid, port in listening(stack, number)}
    assert ports[answer["pid"]] != busy
    await streaming


def listening(stack: Stack, number: int) -> list[tuple[int, int]]:
    """Process id and port of this worker's engines."""
    found: list[tuple[int, int]] = []
    for pid in stack.engines(number).values():
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
        found.append((pid, int(arguments[arguments.index("--port") + 1])))
    return found


async def test_an_engine_that_was_killed_costs_nobody_an_answer(client: Client, stack: Stack) -> None:
    (killed,) = stack.engines(0).values()
    (lives,) = stack.engines(1).values()
    os.killpg(killed, signal.SIGKILL)
    answers = await asyncio.gather(*(client.ask("chat") for _ in range(20)))
    assert {(status, answer["pid"]) for status, answer in answers} == {(200, lives)}


async def test_an_engine_that_dies_before_its_first_byte_is_answered_for_by_another(
    client: Client, stack: Stack
) -> None:
    body = chat(f"die once {stack.directory / 'died'}")
    status, answer, _ = await client.request("POST", "/v1/chat/completions", body)
    assert (stack.directory / "died").exists()
    assert (status, answer["choices"][0]["message"]["content"]) == (200, "chat")


async def test_an_engine_that_dies_after_its_first_byte_is_not_asked_for_again(client: Client, stack: Stack) -> None:
    async with client.session.post(client.url + "/v1/chat/completions", json=chat("die later", stream=True)) as answer:
        assert await answer.content.readexactly(len(CHUNKS[0])) == CHUNKS[0]
        with pytest.raises(aiohttp.ClientPayloadError):
            await answer.content.read()
    assert len(stack.engines(0)) + len(stack.engines(1)) == 1, "the other one was never asked"


async def test_when_no_engine_answers_the_answer_is_an_error_of_the_gateway(client: Client) -> None:
    status, answer, headers = await client.request("POST", "/v1/chat/completions", chat("die"))
    assert (status, answer["error"]["code"]) == (502, "engine_unreachable")
    assert answer["error"]["request_id"] == headers["x-request-id"]


async def test_a_client_that_leaves_in_the_middle_is_no_longer_counted(client: Client) -> None:
    for read in (True, False):
        answer = await client.session.post(client.url + "/v1/chat/completions", json=chat("slowly", stream=True))
        if read:
            await answer.content.readany()
        answer.close()
    # the fixture looks at what is counted


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves_before_the_first_byte_is_no_longer_counted(client: Client, stream: bool) -> None:
    leaving = asyncio.create_task(
        client.session.post(client.url + "/v1/chat/completions", json=chat("think", stream=stream))
    )
    await asyncio.sleep(0.2)
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    await asyncio.sleep(0.5)
    # the fixture looks at what is counted


async def test_a_renamed_model_answers_to_its_new_name_alone(client: Client) -> None:
    status, _, _ = await client.request("PATCH", "/v2/models/chat", {"name": "renamed"})
    assert status == 200
    assert (await client.ask("renamed"))[0] == 200
    status, answer = await client.ask("chat")
    assert (status, answer["error"]["code"]) == (404, "model_not_found")

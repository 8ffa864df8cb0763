"""What simulated engines answer, over real sockets."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from services.simulator.adapters.answers import WORDS, Answers, Served

QUICK = Served("chat", 0.0, 0.0)
SENTENCE = " ".join(WORDS)


@pytest_asyncio.fixture(loop_scope="session")
async def answers() -> AsyncIterator[Answers]:
    made = Answers()
    await made.start()
    yield made
    await made.stop()


@pytest_asyncio.fixture(loop_scope="session")
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


async def stream(http: aiohttp.ClientSession, url: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    async with http.post(url, json=body | {"stream": True}) as answer:
        assert (answer.status, answer.headers["content-type"]) == (200, "text/event-stream")
        lines = (await answer.text()).split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]


async def test_each_engine_answers_for_its_own_model(answers: Answers, http: aiohttp.ClientSession) -> None:
    first = await answers.open("a", "127.64.0.1", QUICK)
    second = await answers.open("b", "127.64.0.2", Served("other", 0.0, 0.0))

    for address, port, model in (("127.64.0.1", first, "chat"), ("127.64.0.2", second, "other")):
        url = f"http://{address}:{port}"
        async with http.get(f"{url}/health") as answer:
            assert answer.status == 200
        async with http.get(f"{url}/v1/models") as answer:
            assert [each["id"] for each in (await answer.json())["data"]] == [model]
        async with http.post(f"{url}/v1/chat/completions", json={"model": "x", "messages": []}) as answer:
            said = await answer.json()
        assert (said["object"], said["model"]) == ("chat.completion", model)
        assert said["choices"][0]["message"] == {"role": "assistant", "content": SENTENCE}
        assert said["usage"]["completion_tokens"] == len(WORDS)


async def test_a_stream_says_the_same_in_pieces(answers: Answers, http: aiohttp.ClientSession) -> None:
    url = f"http://127.0.0.1:{await answers.open('a', '127.0.0.1', QUICK)}"
    chat = await stream(http, f"{url}/v1/chat/completions", {})
    assert "".join(event["choices"][0]["delta"].get("content", "") for event in chat) == SENTENCE
    assert {event["object"] for event in chat} == {"chat.completion.chunk"}
    text = await stream(http, f"{url}/v1/completions", {"max_tokens": 2})
    assert "".join(event["choices"][0]["text"] for event in text) == "I am"
    assert text[-1]["choices"][0]["finish_reason"] == "stop"


async def test_a_slow_engine_takes_its_time(answers: Answers, http: aiohttp.ClientSession) -> None:
    url = f"http://127.0.0.1:{await answers.open('a', '127.0.0.1', Served('chat', 0.2, 0.05))}"
    started = time.monotonic()
    async with http.post(f"{url}/v1/chat/completions", json={"max_tokens": 4}) as answer:
        await answer.read()
    assert time.monotonic() - started >= 0.4


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null"])
async def test_what_is_no_request_is_refused(answers: Answers, http: aiohttp.ClientSession, body: bytes) -> None:
    url = f"http://127.0.0.1:{await answers.open('a', '127.0.0.1', QUICK)}"
    async with http.post(f"{url}/v1/chat/completions", data=body) as answer:
        assert (answer.status, (await answer.json())["error"]["code"]) == (400, "invalid_request")


async def test_an_engine_that_has_ended_refuses_and_breaks_what_it_was_saying(
    answers: Answers, http: aiohttp.ClientSession
) -> None:
    port = await answers.open("a", "127.0.0.1", Served("chat", 0.0, 0.05))
    url = f"http://127.0.0.1:{port}"
    async with http.post(f"{url}/v1/chat/completions", json={"stream": True}) as answer:
        await answer.content.readany()
        answers.close("a")
        with pytest.raises(aiohttp.ClientPayloadError):
            await answer.read()
    with pytest.raises(aiohttp.ClientConnectorError):
        await http.get(f"{url}/health")
    answers.close("a")


async def test_a_connection_that_outlives_its_engine_is_hung_up(answers: Answers) -> None:
    port = await answers.open("a", "127.0.0.1", QUICK)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
    assert (await reader.readuntil(b"}")).startswith(b"HTTP/1.1 200")
    answers.close("a")
    writer.write(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
    with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
        await reader.readexactly(1)
    writer.close()


async def test_an_address_that_is_not_ours_is_an_error(answers: Answers) -> None:
    with pytest.raises(OSError, match="address"):
        await answers.open("a", "192.0.2.1", QUICK)

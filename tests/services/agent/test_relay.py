"""What gateways may reach through an agent, on a real bus with the credentials that both have, and a real HTTP server."""

import asyncio
import tempfile
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
import pytest
import pytest_asyncio
from aiohttp import web

from kernel import relay
from kernel.accounts import inbox_prefix
from kernel.bus import Bus
from kernel.flow import StreamBroken
from kernel.settings import BusSettings
from schemas.ids import InstanceId, WorkerId
from schemas.relay import Frame, RelayBroken, RelayRequest, Said, decode, encode
from schemas.subjects import ask
from services.agent.adapters.relay import EngineRelay, Target
from services.agent.domain.runtime import EngineId
from services.api.adapters.gateway.relay import Relay
from services.api.adapters.gateway.ways import NotReached, Ways
from services.api.domain.routing import Endpoint, Routes
from tests.support.stack import Stack, free_port

ENGINE = EngineId(InstanceId("i-1"), 2)
KEY = "mek_its_own"


@dataclass
class Engine:
    """Answers with what it was asked."""

    port: int
    asked: list[str] = field(default_factory=list[str])

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(request.path_qs)
        if request.path == "/elsewhere":
            raise web.HTTPFound("/v1/secret")
        if request.path == "/drop" and request.transport is not None:
            request.transport.abort()
        if request.path == "/for-ever":
            return await self.go_on(request)
        body = await request.read()
        if request.path == "/binary":
            return web.Response(body=body, headers={"content-type": "image/png", "x-request-id": "r-1"})
        return web.json_response({"headers": {k.lower(): v for k, v in request.headers.items()}, "bytes": len(body)})

    async def go_on(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"first")
        await asyncio.sleep(600)
        return response


@dataclass
class There:
    """A gateway's end, and what the agent knows."""

    stack: Stack
    bus: Bus
    gateway: Relay
    agent: EngineRelay
    engine: Engine
    targets: dict[EngineId, Target]

    @property
    def worker(self) -> WorkerId:
        return self.stack.workers[0].id

    async def ask(self, path: str = "/v1/x", body: bytes = b"", **more: Any) -> tuple[int, dict[str, str], bytes]:
        request = RelayRequest.model_validate(
            {
                "instance_id": ENGINE.instance_id,
                "attempt": ENGINE.attempt,
                "method": "POST",
                "path": path,
                "headers": {},
                "body_bytes": len(body),
            }
            | more
        )
        answer = await self.gateway.ask(self.worker, request, body)
        try:
            return answer.status, dict(answer.headers), b"".join([part async for part in answer.parts()])
        finally:
            answer.close()

    async def refusal(self, **more: Any) -> str:
        with pytest.raises(StreamBroken) as broken:
            await self.ask(**more)
        return broken.value.code

    async def until_idle(self) -> None:
        async with asyncio.timeout(20):
            while self.agent.streams:  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0.01)


@pytest_asyncio.fixture(loop_scope="session")
async def there() -> AsyncIterator[There]:
    with tempfile.TemporaryDirectory(prefix="muster-relay-") as directory:
        async with Stack(Path(directory) / "stack", "postgresql+asyncpg://nobody@/nothing?host=/nowhere") as stack:
            engine = Engine(free_port())
            app = web.Application(client_max_size=2**30)
            app.router.add_route("*", "/{path:.*}", engine.answer)
            runner = web.AppRunner(app, shutdown_timeout=0.1)
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", engine.port).start()
            keys = stack.workers[0]
            targets = {ENGINE: Target(f"http://127.0.0.1:{engine.port}", KEY)}
            agent = EngineRelay(keys.id, targets.get, most_requests=4)
            prefix = inbox_prefix("agent", keys.id)
            settings = BusSettings(servers=(stack.nats.url,), nkey_seed=keys.agent_seed, inbox_prefix=prefix)  # pyright: ignore[reportArgumentType] - pydantic takes text
            bus = await stack.bus("api")
            gateway = Relay(bus)
            await gateway.start()
            tasks = [asyncio.create_task(agent.run(settings)), asyncio.create_task(gateway.run())]
            made = There(stack, bus, gateway, agent, engine, targets)
            await until_it_listens(made)
            yield made
            await made.until_idle()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await runner.cleanup()


async def until_it_listens(there: There) -> None:
    async with asyncio.timeout(20):
        while await there.refusal(attempt=99) == "nobody_answers":  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.05)


async def test_an_engine_gets_what_was_sent_and_its_own_key(there: There) -> None:
    status, headers, body = await there.ask(
        "/v1/x?a=%2F", b"hello", headers={"x-request-id": "r", "authorization": "Bearer mine"}
    )
    told = orjson.loads(body)
    assert (status, headers["content-type"], told["bytes"]) == (200, "application/json; charset=utf-8", 5)
    assert told["headers"]["x-request-id"] == "r"
    assert told["headers"]["authorization"] == f"Bearer {KEY}"
    assert told["headers"]["content-length"] == "5"
    assert there.engine.asked == ["/v1/x?a=%2F"]


async def test_an_engine_without_a_key_is_shown_nobody_elses(there: There) -> None:
    there.targets[ENGINE] = Target(f"http://127.0.0.1:{there.engine.port}")
    _, _, body = await there.ask(headers={"Authorization": "Bearer mine"})
    assert "authorization" not in orjson.loads(body)["headers"]


async def test_who_hangs_up_tells_the_agent_which_does_not_wait_for_a_silence(
    there: There, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay, "SILENCE_SECONDS", 1000.0)
    answer = await there.gateway.ask(there.worker, a_request("/for-ever"), b"")
    assert await anext(answer.parts()) == b"first"
    answer.close()
    await there.until_idle()


async def test_a_request_that_may_have_reached_the_engine_goes_no_second_way(there: There) -> None:
    ways = Ways(Routes(), there.gateway)
    endpoint = Endpoint(ENGINE.instance_id, ENGINE.attempt, "127.0.0.1", there.engine.port, "m", there.worker)
    with pytest.raises(NotReached):
        await ways.post(endpoint, "/drop", b"{}", {}, {})
    assert there.engine.asked == ["/drop"]

    endpoint.port = free_port()
    answer = await ways.post(endpoint, "/v1/x", b"{}", {}, {})
    assert (answer.status, there.engine.asked) == (200, ["/drop", "/v1/x"]), (
        "where nobody could be connected to, it does"
    )
    answer.close()
    await ways.close()


def a_request(path: str, body_bytes: int = 0) -> RelayRequest:
    return RelayRequest(
        instance_id=ENGINE.instance_id,
        attempt=ENGINE.attempt,
        method="POST",
        path=path,
        headers={},
        body_bytes=body_bytes,
    )


async def test_an_answer_that_nobody_reads_waits_at_the_engine(there: There) -> None:
    body = bytes(20 * 2**20)
    answer = await there.gateway.ask(there.worker, a_request("/binary", len(body)), body)
    held = await until_it_stays(lambda: there.gateway.held_bytes)
    assert 0 < held <= 512 * 1024
    assert sum([len(part) async for part in answer.parts()]) == len(body)
    answer.close()


async def test_a_request_that_an_engine_does_not_read_waits_at_the_gateway(there: There) -> None:
    body = bytes(50 * 2**20)
    answer = await there.gateway.ask(there.worker, a_request("/for-ever", len(body)), body)
    held = await until_it_stays(lambda: there.agent.held_bytes)
    assert 0 < held <= 512 * 1024
    answer.close()


async def until_it_stays(value: Callable[[], int]) -> int:
    """What a number comes to that is above 0 and does not change for half a second."""
    before, since = 0, 0
    async with asyncio.timeout(60):
        while since < 10:
            await asyncio.sleep(0.05)
            now = value()
            before, since = now, since + 1 if now and now == before else 0
    return before


@pytest.mark.parametrize("size", [0, 1, 64 * 1024, 512 * 1024, 512 * 1024 + 1, 5 * 2**20])
async def test_bodies_of_any_size_come_back_byte_for_byte(there: There, size: int) -> None:
    body = bytes(n % 251 for n in range(size))
    status, headers, answer = await there.ask("/binary", body)
    assert (status, headers["content-type"], headers["x-request-id"]) == (200, "image/png", "r-1")
    assert answer == body


@pytest.mark.parametrize("which", [{"attempt": 1}, {"attempt": 3}, {"instance_id": "i-2"}], ids=str)
async def test_what_does_not_run_here_is_not_reached(there: There, which: dict[str, Any]) -> None:
    assert await there.refusal(**which) == "attempt_not_here"
    assert there.engine.asked == []


async def test_where_nothing_listens_is_told(there: There) -> None:
    there.targets[ENGINE] = Target(f"http://127.0.0.1:{free_port()}")
    assert await there.refusal() == "engine_refuses"


async def test_an_engine_that_sends_its_asker_elsewhere_is_not_followed(there: There) -> None:
    status, headers, _ = await there.ask("/elsewhere")
    assert (status, headers["location"]) == (302, "/v1/secret")
    assert there.engine.asked == ["/elsewhere"]


@pytest.mark.parametrize("path", ["@169.254.169.254/", "http://other/", "", "x", "/a b", "/a\r\nhost: x"])
async def test_a_path_can_not_name_another_host(there: There, path: str) -> None:
    """The gateway's own check is passed by: these are the bytes of a gateway that was taken over."""
    asked = {"instance_id": "i-1", "attempt": 2, "method": "POST", "path": path, "headers": {}, "body_bytes": 0}
    assert await answered(there, Said(Frame.OPEN, bytes(16), 0, orjson.dumps(asked))) == "attempt_not_here"
    assert there.engine.asked == []


async def answered(there: There, said: Said) -> str:
    """How the agent breaks a stream that begins with this frame."""
    inbox = there.bus.client.new_inbox()
    broken: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def hear(message: Any) -> None:
        frame = decode(message.data)
        if frame.kind is Frame.BROKEN and not broken.done():
            broken.set_result(RelayBroken.model_validate_json(frame.content).code)

    subscription = await there.bus.subscribe(inbox, hear)
    await there.bus.publish(ask(there.worker, "relay"), encode(said), reply=inbox)
    async with asyncio.timeout(20):
        code = await broken
    await subscription.unsubscribe()
    return code


async def test_a_stream_that_an_agent_does_not_know_is_ended(there: There) -> None:
    """It was started anew in the middle."""
    assert await answered(there, Said(Frame.BEAT, bytes(16), 7)) == "unknown_stream"


async def test_a_lost_frame_of_a_request_breaks_it(there: There) -> None:
    request = a_request("/v1/x", 10)
    stream = bytes(15) + b"1"
    opening = Said(Frame.OPEN, stream, 0, request.model_dump_json().encode())
    await there.bus.publish(ask(there.worker, "relay"), encode(opening), reply=there.bus.client.new_inbox())
    async with asyncio.timeout(20):
        while there.agent.streams != 1:  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.01)
    await there.bus.publish(ask(there.worker, "relay"), encode(Said(Frame.DATA, stream, 2, b"second")))
    await there.until_idle()


async def test_an_agent_that_does_not_run_is_known_at_once(there: There) -> None:
    request = RelayRequest(
        instance_id=ENGINE.instance_id, attempt=1, method="POST", path="/v1/x", headers={}, body_bytes=0
    )
    with pytest.raises(StreamBroken) as broken:
        await there.gateway.ask(WorkerId("w-nobody"), request, b"")
    assert broken.value.code == "nobody_answers"


async def test_nothing_of_it_is_stored(there: There) -> None:
    before = await stored(there)
    await there.ask("/binary", bytes(10_000))
    assert await stored(there) == before


async def stored(there: There) -> dict[str, int]:
    names = (await there.stack.operator.js_api("STREAM.NAMES"))["streams"]
    return {name: (await there.stack.operator.js_api(f"STREAM.INFO.{name}"))["state"]["last_seq"] for name in names}

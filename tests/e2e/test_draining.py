"""A long stream outlives the place of its instance among the routes: its engine is stopped after its end, or after the deadline."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from services.scheduler.process import SchedulerProcess
from tests.e2e.an_engine import CHUNKS
from tests.e2e.machines import GIB, QUICK, a_machine
from tests.support.stack import Client, Stack


async def started(stack: Stack, **scheduler: Any) -> Client:
    """One worker with room for several instances."""
    await stack.start_scheduler(**scheduler)
    await stack.start_worker(0, inventory=a_machine(stack.directory, "large", ram=4 * GIB), **QUICK)
    await stack.start_api()
    return stack.client()


@asynccontextmanager
async def stream(client: Client, until: Path) -> AsyncGenerator[aiohttp.ClientResponse]:
    """Of `chat`; its first chunk was read, and the others come when the file is there."""
    message = {"role": "user", "content": f"until {until}"}
    body = {"model": "chat", "messages": [message], "stream": True}
    async with client.session.post(client.url + "/v1/chat/completions", json=body) as answer:
        assert await answer.content.readexactly(len(CHUNKS[0])) == CHUNKS[0]
        yield answer


async def of_instance(client: Client, instance_id: str) -> list[str]:
    """The facts of its life, in order."""
    of = [e["type"] for e in await client.events() if e["data"].get("instance_id") == instance_id]
    return [kind for kind in of if kind.startswith("Instance")]


async def until_stated(client: Client, instance_id: str, fact: str) -> dict[str, Any]:
    for _ in range(600):
        for event in await client.events():
            if event["type"] == fact and event["data"].get("instance_id") == instance_id:
                return event["data"]
        await asyncio.sleep(0.1)
    raise AssertionError(f"{fact} of {instance_id} was never stated: {await of_instance(client, instance_id)}")


async def test_a_stream_that_runs_while_its_model_is_edited_ends_before_its_engine_is_stopped(stack: Stack) -> None:
    client = await started(stack)
    await client.deploy("chat")
    await client.deploy("idle")
    await client.until_state("/v2/models/chat", "ready")
    await client.until_state("/v2/models/idle", "ready")
    (idle,) = [i["id"] for i in (await client.get("/v2/model-instances"))["items"] if i["name"].startswith("idle")]
    end = stack.directory / "end"
    async with stream(client, end) as answer:
        old = answer.headers["x-muster-instance"]
        assert (await client.request("PATCH", "/v2/models/chat", {"env": {"EDITED": "1"}}))[0] == 200
        stopping = await until_stated(client, old, "InstanceStopping")
        assert (stopping["cause"], stopping["drain_seconds"]) == ("replaced", 60.0)
        shown = await client.until_state(f"/v2/model-instances/{old}", "stopping")
        assert [reason["code"] for reason in shown["reasons"]] == ["finishing_requests"]

        for _ in range(5):
            status, _, headers = await client.request(
                "POST", "/v1/chat/completions", {"model": "chat", "messages": [{"role": "user", "content": "hello"}]}
            )
            assert status == 200
            assert headers["x-muster-instance"] != old
        assert (await client.request("PATCH", "/v2/models/idle", {"replicas": 0}))[0] == 200
        await until_stated(client, idle, "InstanceDeleted")  # what has no requests goes meanwhile
        assert old in {instance for instance, _ in stack.engines()}
        assert "InstanceDrained" not in await of_instance(client, old)

        end.touch()
        assert await answer.content.read() == b"".join(CHUNKS[1:])
    assert await until_stated(client, old, "InstanceDrained") == {"instance_id": old, "requests_left": 0}
    await until_stated(client, old, "InstanceDeleted")
    assert (await of_instance(client, old))[-4:] == [
        "InstanceStopping",
        "InstanceDrained",
        "InstanceAttemptEnded",
        "InstanceDeleted",
    ]
    assert old not in {instance for instance, _ in stack.engines()}


async def test_a_stream_that_does_not_end_is_cut_off_at_the_deadline(stack: Stack) -> None:
    client = await started(stack, drain_seconds=2.0)
    await client.deploy("chat")
    await client.until_state("/v2/models/chat", "ready")
    async with stream(client, stack.directory / "never") as answer:
        old = answer.headers["x-muster-instance"]
        assert (await client.request("PATCH", "/v2/models/chat", {"env": {"EDITED": "1"}}))[0] == 200
        assert await until_stated(client, old, "InstanceDrained") == {"instance_id": old, "requests_left": 1}
        with pytest.raises(aiohttp.ClientPayloadError):
            await answer.content.read()
    await until_stated(client, old, "InstanceDeleted")
    assert (await client.ask("chat"))[0] == 200


async def test_scaling_down_stops_the_instance_without_requests(stack: Stack) -> None:
    client = await started(stack)
    await client.deploy("chat", replicas=2)
    await client.until("/v2/models/chat", lambda model: model["ready_replicas"] == 2)
    scheduler = stack.services["scheduler"]
    assert isinstance(scheduler, SchedulerProcess)
    assert scheduler.reign is not None
    assert scheduler.reign.core is not None
    requests_of = scheduler.reign.core.traffic.requests_of
    ends = [stack.directory / "first", stack.directory / "second"]
    async with stream(client, ends[0]) as first, stream(client, ends[1]) as second:
        busy, idle = second.headers["x-muster-instance"], first.headers["x-muster-instance"]
        assert busy > idle, "the newest one would be stopped first"
        ends[0].touch()
        await first.content.read()
        for _ in range(600):
            if (requests_of(idle), requests_of(busy)) == (0, 1):  # pyright: ignore[reportArgumentType] - an id
                break
            await asyncio.sleep(0.05)
        assert (await client.request("PATCH", "/v2/models/chat", {"replicas": 1}))[0] == 200
        await until_stated(client, idle, "InstanceDeleted")
        assert "InstanceStopping" not in await of_instance(client, busy)
        ends[1].touch()
        assert await second.content.read() == b"".join(CHUNKS[1:])

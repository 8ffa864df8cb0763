"""Silence, return, another name, another address, removal, lies: what they do to a worker, its engines and their routes."""

import asyncio
import os
import signal
from typing import Any

import orjson
import pytest

from kernel.bus import Bus
from schemas.envelope import Envelope, dataschema
from tests.chaos.what_must_hold import attempts_of, facts_of, of_type
from tests.e2e.machines import MIB, QUICK, a_machine
from tests.support.stack import Client, Stack

SHORT: dict[str, Any] = {"lease_seconds": 2.5, "eviction_seconds": 1.0, "restart_base_seconds": 0.2}
"""Beats come every 2 s."""


async def until_ready(client: Client, count: int) -> None:
    await client.until(
        "/v2/workers", lambda workers: sum(w["state"] == "ready" for w in workers["items"]) == count, seconds=60
    )


async def the_instance(client: Client) -> dict[str, Any]:
    (instance,) = (await client.get("/v2/model-instances"))["items"]
    return instance


async def until_no_engine(stack: Stack, number: int, *, of_attempt: int) -> None:
    for _ in range(400):
        if of_attempt not in (attempt for _, attempt in stack.engines(number)):
            return
        await asyncio.sleep(0.05)
    raise AssertionError("an engine that is assigned to nobody runs on")


# -- silence ----------------------------------------------------------------------------------------------------------


async def test_a_silent_worker_is_unreachable_with_a_reason_and_its_engine_still_answers(stack: Stack) -> None:
    await stack.start_scheduler(**SHORT)
    await stack.start_downloader(0)
    agent = await stack.spawn("agent", **QUICK)
    await stack.start_api()
    client = stack.client()
    await client.deploy("chat")
    await client.until_state("/v2/models/chat", "ready", seconds=60)
    engines = stack.engines()

    agent.send_signal(signal.SIGSTOP)

    worker = await client.until_state("/v2/workers/worker-0", "unreachable")
    (reason,) = worker["reasons"]
    assert (reason["code"], reason["who"], reason["worker"]) == ("worker_silent", "operator", "worker-0")
    assert 2.5 <= reason["numbers"]["silent_seconds"] < 20
    instance = await the_instance(client)
    assert instance["state"] == "unreachable"
    assert [reason["code"] for reason in instance["reasons"]] == ["worker_silent"]
    assert (await client.ask("chat"))[0] == 200

    # Nowhere else to go: whatever the time, it stays where it is, and is the same when its worker is heard again.
    await until_fact(stack, "DeadlinePassed")
    assert (await client.ask("chat"))[0] == 200
    agent.send_signal(signal.SIGCONT)
    await client.until_state("/v2/models/chat", "ready", seconds=20)
    assert (await client.get("/v2/workers/worker-0"))["state"] == "ready"
    assert stack.engines() == engines
    assert attempts_of(await facts_of(stack), instance["id"]) == [1]
    assert (await client.ask("chat"))[0] == 200


async def until_fact(stack: Stack, type_: str, count: int = 1) -> None:
    for _ in range(600):
        if len(of_type(await facts_of(stack), type_)) >= count:
            return
        await asyncio.sleep(0.05)
    raise AssertionError(f"{type_} never happened")


async def test_an_evicted_instance_runs_elsewhere_and_its_former_engine_ends_when_its_agent_is_back(
    stack: Stack,
) -> None:
    await stack.start_scheduler(**SHORT)
    await stack.start_downloader(0)
    agent = await stack.spawn("agent", **QUICK)
    await stack.start_api()
    client = stack.client()
    await until_ready(client, 1)
    await client.deploy("chat")
    await client.until_state("/v2/models/chat", "ready", seconds=60)
    instance = await the_instance(client)
    await stack.start_worker(1, **QUICK)
    await until_ready(client, 2)

    agent.send_signal(signal.SIGSTOP)
    moved = await client.until(
        f"/v2/model-instances/{instance['id']}", lambda i: (i["state"], i["attempt"]) == ("running", 2), seconds=60
    )
    assert moved["worker_name"] == "worker-1"
    _, answer = await client.ask("chat")
    assert answer["pid"] in stack.engines(1).values(), "the newest attempt answers"
    assert len(stack.engines(0)) == 1, "nobody could tell the former one"
    assert not of_type(await facts_of(stack), "InstanceAttemptEnded"), "its memory stays promised to it"

    agent.send_signal(signal.SIGCONT)
    await until_no_engine(stack, 0, of_attempt=1)
    await until_ready(client, 2)
    found = of_type(await facts_of(stack), "InstanceAttemptEnded")
    for _ in range(600):  # the report of its end is on its way
        if found:
            break
        await asyncio.sleep(0.05)
        found = of_type(await facts_of(stack), "InstanceAttemptEnded")
    (ended,) = found
    assert (ended.envelope.data["attempt"], ended.envelope.data["worker_id"]) == (1, stack.workers[0].id)
    assert list(stack.engines(1)) == [(instance["id"], 2)]
    assert {(await client.ask("chat"))[1]["pid"] for _ in range(5)} == {answer["pid"]}
    assert (await the_instance(client))["state"] == "running"


# -- identity ---------------------------------------------------------------------------------------------------------


async def test_a_renamed_worker_with_another_address_is_the_same_worker_and_keeps_its_engines(stack: Stack) -> None:
    await stack.start_scheduler()
    await stack.start_worker(0, **QUICK)
    await stack.start_api()
    client = stack.client()
    await client.deploy("chat")
    await client.until_state("/v2/models/chat", "ready", seconds=60)
    instance, engines = await the_instance(client), stack.engines()

    await stack.stop("agent-0")
    stopped = await client.until_state("/v2/workers/worker-0", "unreachable")
    assert [reason["code"] for reason in stopped["reasons"]] == ["agent_stopped"]
    await stack.start_agent(0, worker_name="another", worker_ip="localhost", **QUICK)

    renamed = await client.until_state("/v2/workers/another", "ready")
    assert (renamed["id"], renamed["ip"]) == (stack.workers[0].id, "localhost")
    assert len((await client.get("/v2/workers"))["items"]) == 1
    now = await client.until_state(f"/v2/model-instances/{instance['id']}", "running")
    assert (now["attempt"], now["worker_name"], now["worker_ip"]) == (1, "another", "localhost")
    assert stack.engines() == engines
    assert (await client.ask("chat"))[0] == 200


async def test_an_engine_that_hung_while_its_agent_was_away_is_replaced(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.agent.domain.health.LOOK_SECONDS", 1.0)
    await stack.start_scheduler(restart_base_seconds=0.2)
    await stack.start_worker(0, **QUICK)
    await stack.start_api()
    client = stack.client()
    await client.deploy("chat")
    await client.until_state("/v2/models/chat", "ready", seconds=60)
    instance = await the_instance(client)
    ((_, engine),) = stack.engines().items()

    await stack.stop("agent-0")
    os.kill(engine, signal.SIGSTOP)
    await stack.start_agent(0, **QUICK)

    await client.until(
        f"/v2/model-instances/{instance['id']}", lambda i: (i["state"], i["attempt"]) == ("running", 2), seconds=40
    )
    (failed,) = of_type(await facts_of(stack), "InstanceFailed")
    assert [reason["code"] for reason in failed.envelope.data["reasons"]] == ["engine_unhealthy"]
    await until_no_engine(stack, 0, of_attempt=1)
    assert (await client.ask("chat"))[0] == 200


# -- removal ----------------------------------------------------------------------------------------------------------


async def test_a_ready_worker_is_not_removed(stack: Stack) -> None:
    await stack.start_scheduler()
    await stack.start_worker(0, **QUICK)
    await stack.start_api()
    client = stack.client()
    await until_ready(client, 1)
    before = [event.subject for event in await facts_of(stack)]
    status, answer, _ = await client.request("DELETE", "/v2/workers/worker-0")
    assert (status, answer["code"]) == (409, "worker_is_ready")
    assert [event.subject for event in await facts_of(stack)] == before


async def test_removing_a_dead_worker_frees_its_instances_and_when_it_comes_back_it_is_a_new_one(stack: Stack) -> None:
    """Two models where there is room for one: what the removed worker held is free when it is back."""
    small = a_machine(stack.directory, "small", ram=400 * MIB)
    await stack.start_scheduler(**SHORT)
    await stack.start_downloader(0)
    agent = await stack.spawn("agent", inventory=small, **QUICK)
    await stack.start_api()
    client = stack.client()
    await client.deploy("first")
    await client.until_state("/v2/models/first", "ready", seconds=60)
    agent.kill()
    await agent.wait()
    stack.end_engines()
    await client.until_state("/v2/workers/worker-0", "unreachable")

    status, _, _ = await client.request("DELETE", "/v2/workers/worker-0")
    assert status == 200
    await client.until("/v2/workers", lambda workers: workers["items"] == [])
    waiting = await client.until_state("/v2/models/first", "pending")
    assert [reason["code"] for reason in waiting["reasons"]] in (["no_workers"], ["engine_vanished"])

    await stack.spawn("agent", inventory=small, **QUICK)
    await until_ready(client, 1)
    await client.until_state("/v2/models/first", "ready", seconds=60)
    assert (await client.ask("first"))[0] == 200


async def test_a_removal_that_was_acknowledged_while_nobody_decided_is_done_by_the_next_scheduler(stack: Stack) -> None:
    await stack.start_scheduler(**SHORT)
    await stack.start_worker(0, **QUICK)
    await stack.start_api()
    client = stack.client()
    await until_ready(client, 1)
    await stack.stop("agent-0")
    await client.until_state("/v2/workers/worker-0", "unreachable")
    await stack.stop("scheduler")
    assert (await client.request("DELETE", "/v2/workers/worker-0"))[0] == 200
    await stack.start_scheduler(**SHORT)
    await client.until("/v2/workers", lambda workers: workers["items"] == [], seconds=3)


# -- lies -------------------------------------------------------------------------------------------------------------


async def test_forged_reports_change_nothing(stack: Stack) -> None:
    """Agent 0 speaks of worker 1, of worker 1's instance, of an attempt that is over, and of one that never was."""
    small = a_machine(stack.directory, "small", ram=400 * MIB)
    await stack.start_scheduler(restart_base_seconds=0.2)
    await stack.start_worker(0, inventory=small, **QUICK)
    await stack.start_worker(1, inventory=small, **QUICK)
    await stack.start_api()
    client = stack.client()
    await client.deploy("chat", replicas=2)
    await client.until("/v2/models/chat", lambda model: model["ready_replicas"] == 2, seconds=60)
    instances = (await client.get("/v2/model-instances"))["items"]
    mine = next(instance for instance in instances if instance["worker_name"] == "worker-0")
    theirs = next(instance for instance in instances if instance["worker_name"] == "worker-1")
    me, other = stack.workers[0].id, stack.workers[1].id
    before = [event.subject for event in await facts_of(stack)]
    agent = await stack.bus("agent", 0)

    def report(worker: str, instance: dict[str, Any], attempt: int, phase: str, **more: Any) -> bytes:
        engine = {"instance_id": instance["id"], "attempt": attempt, "phase": phase} | more
        return forged(worker, "EngineReported", {"engine": engine})

    def subject(worker: str, instance: dict[str, Any]) -> str:
        return f"muster.reports.{worker}.instance.{instance['id']}.EngineReported"

    await told(agent, subject(me, theirs), report(me, theirs, 1, "exited", exit_code=1))
    await told(agent, subject(me, theirs), report(me, theirs, 1, "healthy", ports=[1]))
    await told(agent, subject(me, theirs), report(other, theirs, 1, "exited", exit_code=1))
    await told(agent, subject(me, mine), report(other, mine, 1, "exited", exit_code=1))
    await told(agent, subject(me, mine), report(me, mine, 7, "healthy", ports=[1]))
    await told(agent, subject(me, mine), report(me, mine, 7, "exited", exit_code=1))
    empty = {"name": "x", "address": "x", "agent_version": "x", "inventory": INVENTORY}
    await told(agent, f"muster.reports.{me}.worker.{other}.WorkerObserved", forged(other, "WorkerObserved", empty))
    await told(agent, f"muster.reports.{me}.worker.{me}.WorkerObserved", forged(other, "WorkerObserved", empty))
    leaving = forged(other, "WorkerLeaving", {"engines_stopped": True})
    await told(agent, f"muster.reports.{me}.worker.{other}.WorkerLeaving", leaving)
    for where, body in (
        (subject(other, theirs), report(other, theirs, 1, "exited", exit_code=1)),
        (f"muster.reports.{other}.worker.{other}.WorkerLeaving", leaving),
        (f"muster.beat.{other}.agent", b"{}"),
        (f"muster.assigned.{other}", b"{}"),
    ):
        await agent.publish(where, body)
    await agent.flush()
    await asyncio.wait_for(until_violations(agent, 4), 10)

    made = await client.deploy("after", "/nowhere.gguf")
    await client.until(f"/v2/models/{made['id']}", lambda model: model["state"] == "pending")
    after = [event.subject for event in await facts_of(stack)][len(before) :]
    assert not [about for about in after if ".instance." in about and made["id"].removeprefix("m-") not in about]
    assert not [about for about in after if ".worker." in about]
    assert (await client.get("/v2/models/chat"))["ready_replicas"] == 2


async def test_a_report_about_an_attempt_that_is_over_changes_nothing(stack: Stack) -> None:
    await stack.start_scheduler(restart_base_seconds=0.2)
    await stack.start_worker(0, **QUICK)
    await stack.start_api()
    client = stack.client()
    await client.deploy("chat")
    await client.until_state("/v2/models/chat", "ready", seconds=60)
    instance = await the_instance(client)
    stack.end_engines()
    await client.until(f"/v2/model-instances/{instance['id']}", lambda i: (i["state"], i["attempt"]) == ("running", 2))
    before = len(await facts_of(stack))
    agent = await stack.bus("agent", 0)
    where = f"muster.reports.{stack.workers[0].id}.instance.{instance['id']}.EngineReported"
    for phase, more in (("healthy", {"ports": [1]}), ("exited", {"exit_code": 1}), ("loading", {}), ("stopped", {})):
        engine = {"instance_id": instance["id"], "attempt": 1, "phase": phase} | more
        await told(agent, where, forged(stack.workers[0].id, "EngineReported", {"engine": engine}))
    made = await client.deploy("after", "/nowhere.gguf")
    await client.until(f"/v2/models/{made['id']}", lambda model: model["state"] == "pending")
    after = (await facts_of(stack))[before:]
    assert not [event.subject for event in after if instance["id"] in event.subject]
    assert (await client.ask("chat"))[0] == 200


INVENTORY = {"os": "linux", "arch": "amd64", "cpu_count": 1, "memory_total": 2**40}
_counter = iter(range(1, 10_000))


def forged(worker_id: str, type_: str, fields: dict[str, Any]) -> bytes:
    number = next(_counter)
    identity = {"worker_id": worker_id, "boot_id": "forged", "counter": number, "observed_at": "2026-11-23T00:00:00Z"}
    return orjson.dumps(
        Envelope(
            id=f"forged{number}",
            source="/muster/agent/test",
            type=type_,
            subject="instance/x",
            time="2026-11-23T00:00:00Z",  # pyright: ignore[reportArgumentType] - pydantic reads it
            dataschema=dataschema(type_, 1),
            data=identity | fields,
        ).model_dump(mode="json")
    )


async def told(agent: Bus, subject: str, body: bytes) -> None:
    """In the stream: the server's permissions let it through."""
    answer = orjson.loads((await agent.request(subject, body, timeout_seconds=5)).data)
    assert "error" not in answer, answer


async def until_violations(agent: Bus, count: int) -> None:
    while len(agent.permission_violations) < count:  # noqa: ASYNC110 - told by a callback of the client
        await asyncio.sleep(0.02)

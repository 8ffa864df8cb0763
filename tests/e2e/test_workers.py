"""Workers fall silent, return, change their names, are forgotten; what serves goes on serving."""

import asyncio
import os
import signal
from typing import Any

from kernel.bus import Bus
from kernel.clock import SystemClock
from kernel.log.jetstream import JetStreamLog
from kernel.log.seal import seal_report
from schemas.ids import InstanceId
from schemas.reports import EngineReported, EngineSeen
from schemas.subjects import ALL_FACTS
from tests.e2e.machines import QUICK
from tests.support.stack import Stack

SHORT: dict[str, Any] = {"lease_seconds": 3.0, "eviction_seconds": 2.0}


async def test_a_silent_worker_is_unreachable_and_what_it_runs_goes_on_serving(stack: Stack) -> None:
    """The only worker: there is nowhere else to go, so nothing is evicted, and nothing is restarted when it is back."""
    await stack.start_scheduler(**SHORT)
    await stack.start_downloader(0)
    agent = await stack.spawn("agent", number=0, **QUICK)
    await stack.start_api()
    client = stack.client()
    await client.deploy("model")
    before = await client.until_state("/v2/model-instances/model-0", "running")
    pid = (await client.ask("model"))[1]["pid"]

    agent.send_signal(signal.SIGSTOP)
    silent = await client.until_state("/v2/workers/worker-0", "unreachable")
    assert [(r["code"], r["who"]) for r in silent["reasons"]] == [("worker_silent", "operator")]
    unreachable = await client.until_state("/v2/model-instances/model-0", "unreachable")
    assert [r["code"] for r in unreachable["reasons"]] == ["worker_silent"]
    status, answer = await client.ask("model")
    assert (status, answer["pid"]) == (200, pid)
    await client.until(
        "/v2/model-instances/model-0/timeline", lambda t: any(e["type"] == "DeadlinePassed" for e in t["items"])
    )

    agent.send_signal(signal.SIGCONT)
    await client.until_state("/v2/workers/worker-0", "ready")
    after = await client.until_state("/v2/model-instances/model-0", "running")
    assert (after["attempt"], after["port"]) == (before["attempt"], before["port"])
    assert (await client.ask("model"))[1]["pid"] == pid


async def test_an_instance_of_a_lost_worker_moves_and_the_old_engine_ends_when_the_worker_is_back(stack: Stack) -> None:
    await stack.start_scheduler(**SHORT)
    await stack.start_downloader(0)
    agent = await stack.spawn("agent", number=0, **QUICK)
    await stack.start_api()
    client = stack.client()
    await client.deploy("model")
    await client.until_state("/v2/model-instances/model-0", "running")
    old = (await client.ask("model"))[1]["pid"]
    await stack.start_worker(1, **QUICK)
    await client.until("/v2/workers", lambda body: [w["state"] for w in body["items"]] == ["ready", "ready"])

    agent.send_signal(signal.SIGSTOP)
    moved = await client.until("/v2/model-instances/model-0", lambda i: i["state"] == "running" and i["attempt"] == 2)
    assert moved["worker_name"] == "worker-1"
    new = (await client.ask("model"))[1]["pid"]
    assert new != old

    agent.send_signal(signal.SIGCONT)
    await client.until(
        "/v2/model-instances/model-0/timeline",
        lambda t: any(e["type"] == "InstanceAttemptEnded" and e["data"]["attempt"] == 1 for e in t["items"]),
    )
    assert not is_alive(old)
    assert (await client.ask("model"))[1]["pid"] == new
    async with asyncio.timeout(10):
        connection = await stack.sql()
        rows = await connection.fetch("SELECT attempt FROM muster.endpoints")
        await connection.close()
    assert [row["attempt"] for row in rows] == [2]


async def test_a_worker_that_is_renamed_or_moves_is_the_same_worker_with_the_same_engines(stack: Stack) -> None:
    await stack.start_scheduler()
    await stack.start_worker(0, engine_bind="0.0.0.0", **QUICK)
    await stack.start_api()
    client = stack.client()
    await client.deploy("model")
    await client.until_state("/v2/model-instances/model-0", "running")
    pid = (await client.ask("model"))[1]["pid"]
    worker = await client.get("/v2/workers/worker-0")

    await stack.stop("agent-0")
    await stack.start_agent(0, worker_name="renamed", worker_ip="127.0.0.2", engine_bind="0.0.0.0", **QUICK)
    renamed = await client.until("/v2/workers/renamed", lambda w: w["state"] == "ready")
    assert (renamed["id"], renamed["ip"]) == (worker["id"], "127.0.0.2")
    instance = await client.until_state("/v2/model-instances/model-0", "running")
    assert instance["attempt"] == 1
    assert is_alive(pid)
    types = [e["type"] for e in await client.events()]
    assert types.count("WorkerRegistered") == 1
    assert {"WorkerRenamed", "WorkerAddressChanged"} <= set(types)


async def test_a_worker_that_is_ready_is_not_forgotten_and_one_that_is_gone_is(stack: Stack) -> None:
    await stack.start_scheduler(**SHORT)
    await stack.start_worker(0, **QUICK)
    await stack.start_api()
    client = stack.client()
    await client.deploy("model")
    await client.until_state("/v2/model-instances/model-0", "running")
    status, body, _ = await client.request("DELETE", "/v2/workers/worker-0")
    assert (status, body["code"]) == (409, "worker_is_ready")

    await stack.stop("agent-0")
    await stack.stop("downloader-0")
    await client.until_state("/v2/workers/worker-0", "unreachable")
    status, _, _ = await client.request("DELETE", "/v2/workers/worker-0")
    assert status == 200
    pending = await client.until("/v2/models/model", lambda m: [r["code"] for r in m["reasons"]] == ["no_workers"])
    assert pending["state"] == "pending"
    assert (await client.get("/v2/workers"))["items"] == []
    assert (await client.get("/v2/model-files"))["items"] == []


async def test_a_forged_or_late_report_changes_nothing(stack: Stack) -> None:
    await stack.start_scheduler()
    await stack.start_worker(0, **QUICK)
    await stack.start_api()
    client = stack.client()
    await client.deploy("model")
    running = await client.until_state("/v2/model-instances/model-0", "running")
    event_log = JetStreamLog(await stack.bus("operator"))
    before = await event_log.last_sequence_of(ALL_FACTS)
    stranger = await stack.bus("agent", 1)
    instance = InstanceId(running["id"])

    await forge(stranger, stack, instance, sender=1, claims_to_be=0, attempt=1)  # subject of 1, body of 0
    await forge(stranger, stack, instance, sender=1, claims_to_be=1, attempt=1)  # an instance that 1 does not run
    agent = await stack.bus("agent", 0)
    await forge(agent, stack, instance, sender=0, claims_to_be=0, attempt=7)  # an attempt that never was

    await client.deploy("another")  # the scheduler has read all of them when this one has been decided
    await client.until_state("/v2/model-instances/another-0", "running")
    assert (await client.get("/v2/model-instances/model-0"))["since"] == running["since"]
    about = await event_log.read(f"muster.facts.*.instance.*.{instance}.>", after=before)
    assert about == []


async def forge(bus: Bus, stack: Stack, instance: InstanceId, *, sender: int, claims_to_be: int, attempt: int) -> None:
    report = EngineReported(
        worker_id=stack.workers[claims_to_be].id,
        boot_id="forged",
        counter=1,
        observed_at=SystemClock().now(),
        engine=EngineSeen(instance_id=instance, attempt=attempt, phase="exited", exit_code=1),
    )
    envelope = seal_report(report, event_id=SystemClock().new_id(), source="/muster/forged")
    subject = report.subject.replace(stack.workers[claims_to_be].id, stack.workers[sender].id)
    await bus.request(subject, envelope.to_json(), timeout_seconds=5)


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True

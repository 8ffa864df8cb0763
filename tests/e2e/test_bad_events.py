"""Events that are none, reports that can't be true: they are noted, and everything goes on. Only a newer type stops a decider."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import orjson
import pytest_asyncio

from kernel.bus import Bus
from kernel.errors import Corrupt
from kernel.log.port import Stored
from schemas.envelope import Envelope, dataschema
from schemas.ids import WorkerId
from tests.chaos.what_must_hold import facts_of, last_sequence, of_type, the_stores_agree
from tests.e2e.machines import QUICK
from tests.support.stack import TINYCHAT, Client, Stack

NOWHERE = "/nowhere/model.gguf"
ID = "01JDCHAN0000000000000000{:02}"


@pytest_asyncio.fixture(loop_scope="session")
async def client(stack: Stack) -> AsyncIterator[Client]:
    await stack.start_scheduler()
    await stack.start_api(behind_seconds=60)
    yield stack.client()


def an_envelope(number: int, type_: str, data: dict[str, Any], *, version: int = 1, **more: Any) -> dict[str, Any]:
    return (
        Envelope(
            id=ID.format(number),
            source="/muster/api/test",
            type=type_,
            subject="model/m-x",
            time="2026-11-23T00:00:00Z",  # pyright: ignore[reportArgumentType] - pydantic reads it
            dataschema=dataschema(type_, version),
            data=data,
        ).model_dump(mode="json")
        | more
    )


async def stored(bus: Bus, subject: str, body: bytes) -> int:
    """Its sequence, once the server has it on disk."""
    answer = orjson.loads((await bus.request(subject, body, timeout_seconds=5)).data)
    assert "error" not in answer, answer
    return answer["seq"]


async def everything_goes_on(stack: Stack, client: Client, name: str) -> None:
    """A write is taken, projected and decided on."""
    assert stack.failure_of("scheduler") is None
    assert stack.failure_of("api") is None
    made = await client.deploy(name, NOWHERE)
    assert made["projected"], "the projector is at rest"
    await client.until(f"/v2/models/{made['id']}", lambda model: model["state"] == "pending")


# -- facts ------------------------------------------------------------------------------------------------------------


async def test_events_that_are_none_are_recorded_with_their_problem_and_passed_over(
    stack: Stack, client: Client
) -> None:
    subject = "muster.facts.api.model.-.m-x.ModelCreated"
    good = {"model_id": "m-x", "spec": {"name": "x", "source": {"type": "local_path", "path": NOWHERE}}}
    bodies: list[tuple[str, bytes]] = [
        (subject, b""),
        (subject, b"\x00\xff garbage \xfe"),
        (subject, b"null"),
        (subject, b"[]"),
        (subject, b"{}"),
        (subject, b"[" * 100_000),
        (subject, b'{"a":' * 5_000 + b"1" + b"}" * 5_000),
        (subject, orjson.dumps(an_envelope(1, "ModelCreated", {}))),
        (subject, orjson.dumps(an_envelope(2, "ModelCreated", {"model_id": 5, "spec": None}))),
        (subject, orjson.dumps(an_envelope(3, "ModelCreated", good, specversion="2.0"))),
        (subject, orjson.dumps(an_envelope(4, "ModelCreated", good, time="yesterday"))),
        (subject, orjson.dumps(an_envelope(5, "ModelCreated", good, id="not a token"))),
        (subject, orjson.dumps(an_envelope(6, "ModelCreated", good, dataschema="muster:ModelCreated:v0"))),
        ("muster.facts.x", b"{}"),
        ("muster.facts.api.model.-.m-x.ModelCreated.and.more", b"{}"),
    ]
    sequences = [await stored(stack.operator, where, body) for where, body in bodies]

    await everything_goes_on(stack, client, "after")

    connection = await stack.sql()
    try:
        rows = await connection.fetch(
            "SELECT seq, problem FROM muster.event_log WHERE problem IS NOT NULL ORDER BY seq"
        )
    finally:
        await connection.close()
    assert [row["seq"] for row in rows] == sequences
    assert (await client.request("GET", "/v2/models/m-x"))[0] == 404
    await stack.stop("scheduler")
    await stack.start_scheduler()  # it folds them all
    await everything_goes_on(stack, client, "and-after-a-restart")
    await the_stores_agree(stack)


async def test_events_that_a_database_can_not_hold_do_not_stop_the_projection(stack: Stack, client: Client) -> None:
    """They are whole as facts: NUL in a text, a number beyond every column, an id that was there before."""

    def created(number: int, name: str, **more: Any) -> bytes:
        spec = {"name": name, "description": "a\0b", "source": {"type": "local_path", "path": NOWHERE}}
        return orjson.dumps(an_envelope(number, "ModelCreated", {"model_id": f"m-{number}", "spec": spec}, **more))

    for number, more in ((10, {}), (11, {"actor": "a\0b"}), (12, {"correlationid": "\0"}), (13, {"commandid": "\0"})):
        await stored(
            stack.operator, f"muster.facts.api.model.-.m-{number}.ModelCreated", created(number, f"n{number}", **more)
        )
    await everything_goes_on(stack, client, "after-nul")

    again = (await facts_of(stack))[-1]
    await stored(stack.operator, "muster.facts.api.model.-.m-10.ModelCreated", again.body)
    await everything_goes_on(stack, client, "after-an-id-twice")
    await the_stores_agree(stack)


async def test_an_unknown_type_is_passed_over_by_the_projection_and_stops_the_scheduler(
    stack: Stack, client: Client
) -> None:
    await client.deploy("before", NOWHERE)
    await client.until_state("/v2/models/before", "pending")
    body = orjson.dumps(an_envelope(20, "ModelExploded", {"model_id": "m-x", "loudly": True}))
    await stored(stack.operator, "muster.facts.api.model.-.m-x.ModelExploded", body)

    await until_failed(stack, "scheduler", "log_newer_than_me: the log holds ModelExploded")
    made = await client.deploy("after", NOWHERE)
    assert made["projected"]
    assert [event["type"] for event in await client.events()][-2:] == ["ModelExploded", "ModelCreated"]
    decided = await last_sequence(stack)

    await stack.stop("scheduler")
    await stack.start_scheduler()  # another start folds the same log
    await until_failed(stack, "scheduler", "log_newer_than_me: the log holds ModelExploded")
    facts = await facts_of(stack, after=decided)
    assert [event.subject.rpartition(".")[2] for event in facts] == ["SchedulerElected"]


async def test_a_newer_version_of_a_known_type_stops_the_scheduler_too(stack: Stack, client: Client) -> None:
    body = orjson.dumps(an_envelope(21, "ModelDeleted", {"model_id": "m-x"}, dataschema="muster:ModelDeleted:v2"))
    await stored(stack.operator, "muster.facts.api.model.-.m-x.ModelDeleted", body)
    await until_failed(stack, "scheduler", "log_newer_than_me: the log holds ModelDeleted")
    assert (await client.deploy("after", NOWHERE))["projected"]


async def until_failed(stack: Stack, name: str, sentence: str) -> None:
    for _ in range(600):
        if (error := stack.failure_of(name)) is not None:
            assert isinstance(error, Corrupt)
            assert sentence in str(error)
            return
        await asyncio.sleep(0.05)
    raise AssertionError(f"{name} goes on")


# -- reports ----------------------------------------------------------------------------------------------------------


async def test_reports_that_are_none_change_nothing(stack: Stack, client: Client) -> None:
    worker_id = await stack.start_worker(0, **QUICK)
    await client.deploy("tinychat")
    await client.until_state("/v2/models/tinychat", "ready")
    (instance,) = (await client.get("/v2/model-instances"))["items"]
    await asyncio.sleep(0)
    before = await facts_of(stack)
    agent = await stack.bus("agent", 0)

    def engine(**fields: Any) -> dict[str, Any]:
        return {"instance_id": instance["id"], "attempt": 1, "phase": "exited", "exit_code": 1} | fields

    on_instance = f"muster.reports.{worker_id}.instance.{instance['id']}.EngineReported"
    on_worker = f"muster.reports.{worker_id}.worker.{worker_id}.WorkerObserved"
    bodies: list[tuple[str, bytes]] = [
        (on_instance, b""),
        (on_instance, b"\xff garbage"),
        (on_instance, b"[" * 100_000),
        (on_instance, b'{"a":' * 5_000 + b"1" + b"}" * 5_000),
        (on_instance, orjson.dumps({"type": "EngineReported"})),
        (on_instance, a_report(worker_id, "EngineReported", {"engine": engine(exit_code=2**40)})),
        (on_instance, a_report(worker_id, "EngineReported", {"engine": engine(exit_code=-(2**40))})),
        (on_instance, a_report(worker_id, "EngineReported", {"engine": engine(phase="exploded")})),
        (on_instance, a_report(worker_id, "EngineReported", {"engine": engine(attempt=0)})),
        (on_instance, a_report(worker_id, "EngineReported", {"engine": engine(phase="healthy", ports=[0])})),
        (on_instance, a_report(worker_id, "EngineReported", {"engine": engine(log_tail=["a"] * 201)})),
        (on_instance, a_report(worker_id, "EngineReported", {"engine": engine(instance_id="i-another")})),
        (on_instance, a_report(worker_id, "ModelCreated", {"engine": engine()})),
        (on_instance, a_report(worker_id, "WorkerObserved", a_picture())),
        (on_worker, a_report(worker_id, "WorkerObserved", a_picture(memory_total=-1))),
        (on_worker, a_report(worker_id, "WorkerObserved", a_picture(memory_total=2**62))),
        (on_worker, a_report(worker_id, "WorkerObserved", a_picture(cpu_count=2**40))),
        (on_worker, a_report(worker_id, "WorkerObserved", a_picture(gpus=[a_made_up_gpu(0), a_made_up_gpu(0)]))),
        (on_worker, a_report(worker_id, "WorkerObserved", a_picture(gpus=[a_made_up_gpu(300)]))),
    ]
    for subject, body in bodies:
        await stored(agent, subject, body)
    await everything_goes_on(stack, client, "after")

    assert about(worker_id, await facts_of(stack)) == about(worker_id, before)
    assert (await client.ask("tinychat"))[0] == 200


async def test_what_an_agent_says_that_a_database_can_not_hold_does_not_stop_the_projection(
    stack: Stack, client: Client
) -> None:
    worker_id = await stack.start_worker(0, **QUICK)
    await client.deploy("tinychat", TINYCHAT, restart_on_error=False)
    await client.until_state("/v2/models/tinychat", "ready")
    (instance,) = (await client.get("/v2/model-instances"))["items"]
    agent = await stack.bus("agent", 0)
    engine = {
        "instance_id": instance["id"],
        "attempt": 1,
        "phase": "exited",
        "exit_code": 1,
        "log_tail": ["a\0b"],
        "reasons": [{"code": "unknown_parameter", "parameter": "\0"}, {"code": "engine_killed", "signal": 2**62}],
    }
    subject = f"muster.reports.{worker_id}.instance.{instance['id']}.EngineReported"
    await stored(agent, subject, a_report(worker_id, "EngineReported", {"engine": engine}))
    failed = await client.until(f"/v2/model-instances/{instance['id']}", lambda found: found["state"] == "error")
    assert len(failed["reasons"]) == 2
    timeline = (await client.get(f"/v2/model-instances/{instance['id']}/timeline"))["items"]
    assert timeline[-1]["type"] == "InstanceFailed"

    picture = a_picture() | {"name": "a\0b", "address": "\0"}
    subject = f"muster.reports.{worker_id}.worker.{worker_id}.WorkerObserved"
    await stored(agent, subject, a_report(worker_id, "WorkerObserved", picture))
    await everything_goes_on(stack, client, "after")
    assert len(of_type(await facts_of(stack), "WorkerRenamed")) <= 1
    await the_stores_agree(stack)


def a_report(worker_id: WorkerId, type_: str, fields: dict[str, Any]) -> bytes:
    """As an agent that was started later than the true one would send it."""
    identity = {"worker_id": worker_id, "boot_id": "another", "counter": 1, "observed_at": datetime.now(UTC)}
    return orjson.dumps(an_envelope(30, type_, identity | fields))


def a_picture(**machine: Any) -> dict[str, Any]:
    inventory = {"os": "linux", "arch": "amd64", "cpu_count": 2, "memory_total": 2**34} | machine
    return {"name": "worker-0", "address": "127.0.0.1", "agent_version": "9", "inventory": inventory}


def a_made_up_gpu(index: int) -> dict[str, Any]:
    return {"index": index, "vendor": "nvidia", "type": "cuda", "name": "x", "memory_total": 2**30}


def about(worker_id: WorkerId, events: list[Stored]) -> list[str]:
    """What was stated of this worker's instances, and of itself."""
    kinds = ("Worker", "Instance")
    return [
        event.subject
        for event in events
        if f".{worker_id}." in event.subject and event.subject.rpartition(".")[2].startswith(kinds)
    ]

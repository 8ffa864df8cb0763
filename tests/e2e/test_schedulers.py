"""Any number of schedulers: one decides, and the log refuses whoever wrongly believes that it does."""

import asyncio
import random
import signal
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import Any

import pytest
from nats.js.errors import KeyNotFoundError

from kernel.clock import SystemClock
from kernel.errors import Unavailable
from kernel.log.jetstream import JetStreamLog
from kernel.log.port import Draft
from services.scheduler.adapters.lease import BUCKET as LEASE
from services.scheduler.adapters.lease import KEY, Lease
from services.scheduler.adapters.snapshots import BUCKET as SNAPSHOTS
from services.scheduler.adapters.snapshots import NAME, SnapshotStore
from services.scheduler.domain.fleet import Fleet
from services.scheduler.domain.policy import Policy
from services.scheduler.process import Reign, fold
from services.scheduler.settings import SchedulerSettings
from tests.chaos.what_must_hold import (
    attempts_of,
    facts_of,
    folded,
    last_sequence,
    no_memory_was_promised_twice,
    of_type,
    snapshot_of,
    the_snapshot_is_what_the_log_adds_up_to,
    whoever_was_elected_decided,
)
from tests.chaos.writers import Writer, writing
from tests.e2e.machines import GIB, QUICK, a_gpu, a_machine, takes
from tests.support.stack import TINYCHAT, Client, Stack

SLOTS = 6
"""Instances of tinychat that the small fleet has room for: three in the RAM of one machine, three on the other's GPU."""


async def a_small_fleet(stack: Stack) -> None:
    assert GIB // 4 < takes(TINYCHAT) < GIB // 3, "three fit into a GiB, and not four"
    small = a_machine(stack.directory, "small", ram=GIB)
    with_gpu = a_machine(stack.directory, "with-gpu", ram=64 * GIB, gpus=(a_gpu(0, GIB),))
    await stack.start_worker(0, inventory=small, **QUICK)
    await stack.start_worker(1, inventory=with_gpu, **QUICK)


@asynccontextmanager
async def coming_and_going(client: Client) -> AsyncGenerator[None]:
    """Models are created and deleted without end, always some more than have room: whatever is freed is wanted at once."""
    stop = asyncio.Event()

    async def come_and_go() -> None:
        names: list[str] = []
        number = 0
        while not stop.is_set():
            number += 1
            names.append(f"guest-{number}")
            await client.until_written("POST", "/v2/models", {"name": names[-1], "local_path": str(TINYCHAT)})
            if len(names) > SLOTS + 2:
                await client.until_written("DELETE", f"/v2/models/{names.pop(0)}")

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(come_and_go())
        try:
            yield
        finally:
            stop.set()


async def until_elected(stack: Stack, replica: str, *, seconds: float = 60.0) -> None:
    """Until the newest election is this replica's."""
    for _ in range(int(seconds / 0.05)):
        elections = of_type(await facts_of(stack), "SchedulerElected")
        if elections and elections[-1].envelope.data["replica"] == replica:
            return
        await asyncio.sleep(0.05)
    raise AssertionError(f"{replica} was never elected")


async def until_it_has_decided(stack: Stack, scheduled: int, *, seconds: float = 60.0) -> None:
    """Until so many more instances were given a place."""
    goal = len(of_type(await facts_of(stack), "InstanceScheduled")) + scheduled
    for _ in range(int(seconds / 0.1)):
        if len(of_type(await facts_of(stack), "InstanceScheduled")) >= goal:
            return
        await asyncio.sleep(0.1)
    raise AssertionError("nothing is decided any more")


async def no_gpu_and_no_ram_was_promised_twice(stack: Stack) -> None:
    await the_snapshot_is_what_the_log_adds_up_to(stack)
    events = await facts_of(stack)
    most = no_memory_was_promised_twice(events)
    assert most["worker-0"].ram > GIB * 3 // 4, "the RAM was never contended for, so this shows nothing"
    assert most["worker-1"].vram[0] > GIB * 3 // 4, "the GPU was never contended for, so this shows nothing"


async def test_of_two_schedulers_one_decides_and_the_other_takes_over_when_it_is_killed(stack: Stack) -> None:
    first = await stack.spawn("scheduler", replica="a")
    await until_elected(stack, "a")
    second = await stack.spawn("scheduler", replica="b")
    await stack.start_worker(0)
    await stack.start_api()
    client = stack.client()
    await client.deploy("before")
    await client.until_state("/v2/models/before", "ready", seconds=60)
    (instance,) = (await client.get("/v2/model-instances"))["items"]
    engines = stack.engines()
    assert second.returncode is None
    assert whoever_was_elected_decided(await facts_of(stack)) == ["a"]

    first.kill()
    await until_elected(stack, "b")
    await client.deploy("after", "/nowhere/model.gguf")
    await client.until_state("/v2/models/after", "pending", seconds=60)

    assert whoever_was_elected_decided(await facts_of(stack)) == ["a", "b"]
    assert (await client.get("/v2/models/before"))["state"] == "ready"
    assert stack.engines() == engines
    assert attempts_of(await facts_of(stack), instance["id"]) == [1]
    assert (await client.ask("before"))[0] == 200


async def test_a_scheduler_whose_lease_was_broken_is_refused_by_the_log_and_steps_down(stack: Stack) -> None:
    first = await stack.spawn(
        "scheduler", replica="a", scheduler_lease_seconds=60, snapshot_every=20
    )  # it looks every 15 s only
    await until_elected(stack, "a")
    second = await stack.spawn("scheduler", replica="b", scheduler_lease_seconds=2, snapshot_every=20)
    await a_small_fleet(stack)
    await stack.start_api()
    async with coming_and_going(stack.client()):
        await until_it_has_decided(stack, SLOTS + 2)
        bucket = await stack.operator.client.jetstream().key_value(LEASE)
        await bucket.delete(KEY)
        await until_elected(stack, "b")
        await until_it_has_decided(stack, 5)
        assert (first.returncode, second.returncode) == (None, None)
        second.send_signal(signal.SIGTERM)  # in order: it gives the lease back
        await until_elected(stack, "a")
        await until_it_has_decided(stack, 5)

    assert whoever_was_elected_decided(await facts_of(stack)) == ["a", "b", "a"]
    await no_gpu_and_no_ram_was_promised_twice(stack)


async def test_a_lease_that_ran_out_is_taken_again_unless_another_took_it(stack: Stack) -> None:
    busy, other = Lease(stack.operator, "busy", 1.0), Lease(stack.operator, "other", 1.0)
    bucket = await stack.operator.client.jetstream().create_key_value(bucket=LEASE, ttl=1.0, history=1)
    await busy.acquire()
    while True:  # it was too busy to renew it
        try:
            await bucket.get(KEY)
        except KeyNotFoundError:
            break
        await asyncio.sleep(0.05)

    keeping = asyncio.create_task(busy.keep())
    for _ in range(600):
        with suppress(KeyNotFoundError):
            if (await bucket.get(KEY)).value == b"busy":
                break
        await asyncio.sleep(0.05)
    else:
        raise AssertionError("it was not taken again")
    assert not keeping.done()

    await bucket.delete(KEY)
    await other.acquire()
    await asyncio.wait_for(keeping, 60)
    assert (await bucket.get(KEY)).value == b"other"


async def test_a_scheduler_that_stood_still_while_another_was_elected_promises_nothing_twice(stack: Stack) -> None:
    schedulers = {"a": await stack.spawn("scheduler", replica="a", snapshot_every=20)}
    await until_elected(stack, "a")
    schedulers["b"] = await stack.spawn("scheduler", replica="b", snapshot_every=20)
    await a_small_fleet(stack)
    await stack.start_api()
    async with coming_and_going(stack.client()):
        await until_it_has_decided(stack, SLOTS + 2)
        for decides, stands_by in (("a", "b"), ("b", "a"), ("a", "b")):
            schedulers[decides].send_signal(signal.SIGSTOP)
            await until_elected(stack, stands_by)
            await until_it_has_decided(stack, 3)
            schedulers[decides].send_signal(signal.SIGCONT)
            await until_it_has_decided(stack, 3)
            assert [process.returncode for process in schedulers.values()] == [None, None]

    assert whoever_was_elected_decided(await facts_of(stack)) == ["a", "b", "a", "b"]
    await no_gpu_and_no_ram_was_promised_twice(stack)


async def test_a_start_from_a_snapshot_equals_a_full_replay_and_what_was_in_memory(stack: Stack) -> None:
    scheduler = await stack.start_scheduler(snapshot_every=5)
    await a_small_fleet(stack)
    await stack.start_api()
    client = stack.client()
    for number in range(SLOTS + 2):
        await client.deploy(f"guest-{number}")
    for number in range(SLOTS):
        await client.until_state(f"/v2/models/guest-{number}", "ready", seconds=60)
    await client.until_written("DELETE", "/v2/models/guest-0")
    await client.until(
        "/v2/models", lambda models: sum(model["state"] == "ready" for model in models["items"]) == SLOTS, seconds=60
    )
    assert scheduler.reign is not None
    assert scheduler.reign.core is not None
    in_memory = scheduler.reign.core.fleet
    await stack.stop("scheduler")
    decided_until = await last_sequence(stack)
    await client.deploy("while-nobody-decides")

    bus = await stack.bus("scheduler")
    end = await last_sequence(stack)
    store = await bus.client.jetstream().object_store(SNAPSHOTS)
    snapshot = await snapshot_of(stack)
    assert snapshot is not None
    assert 0 < snapshot.seq < end

    async def as_started(sequence: int) -> Fleet:
        return await Reign(bus, SchedulerSettings(), SystemClock()).fold_up_to(sequence)

    from_snapshot = await as_started(end)
    await store.put(NAME, b"no snapshot at all")
    from_garbage = await as_started(end)
    await store.delete(NAME)
    from_event_1 = await as_started(end)
    assert from_event_1.seq == end
    assert from_snapshot == from_event_1
    assert from_garbage == from_event_1
    assert await as_started(decided_until) == in_memory

    await stack.start_scheduler()
    await client.until_state("/v2/models/while-nobody-decides", "pending", seconds=60)


async def test_a_snapshot_that_is_made_under_writes_is_what_the_log_adds_up_to(stack: Stack) -> None:
    """Wishes that lie in the log and are not yet decided on are not in it, whatever the scheduler has appended since."""
    await stack.start_scheduler(snapshot_every=1)
    await stack.start_worker(0, inventory=a_machine(stack.directory, "small", ram=GIB), **QUICK)
    await stack.start_api()
    dice, url = random.Random(7), stack.client().url
    writers = [Writer(f"writer{n}", lambda: url, random.Random(dice.random())) for n in range(2)]
    seen: dict[int, Fleet] = {}
    async with writing(writers):
        while min(writer.acknowledged for writer in writers) < 40:
            if (snapshot := await snapshot_of(stack)) is not None:
                seen[snapshot.seq] = snapshot
            await asyncio.sleep(0.1)
    assert len(seen) > 3, "hardly any snapshot was seen"
    replayed = Fleet()
    for event in await facts_of(stack):
        fold(replayed, event)
        if (snapshot := seen.get(event.sequence)) is not None:
            assert snapshot == replayed, f"the snapshot at {event.sequence} is another fleet"


async def test_a_snapshot_that_is_replaced_while_it_is_read_is_read_anew(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    bus = await stack.bus("scheduler")
    state = replace(await JetStreamLog(bus).state(), last_sequence=2)
    reader, writer = SnapshotStore(bus), SnapshotStore(await stack.bus("scheduler"))
    assert await reader.load(state) is None
    await writer.save(Fleet(seq=1), state)
    ask, asked = bus.js_api, 0

    async def replaced_before_the_first_part(subject: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        nonlocal asked
        asked += 1
        if asked == 1:
            await writer.save(Fleet(seq=2), state)
        return await ask(subject, body)

    monkeypatch.setattr(bus, "js_api", replaced_before_the_first_part)
    async with asyncio.timeout(20):
        assert await reader.load(state) == Fleet(seq=2)
    assert asked == 2


async def test_a_snapshot_whose_parts_are_gone_means_a_full_replay(
    stack: Stack, caplog: pytest.LogCaptureFixture
) -> None:
    bus = await stack.bus("scheduler")
    state = await JetStreamLog(bus).state()
    store = SnapshotStore(bus)
    await store.save(Fleet(), state)
    assert await store.load(state) == Fleet()
    await stack.operator.js_api(f"STREAM.PURGE.OBJ_{SNAPSHOTS}", {"filter": f"$O.{SNAPSHOTS}.C.>"})

    async with asyncio.timeout(20):
        assert await store.load(state) is None

    assert "replaced again and again" in caplog.text


async def test_what_was_decided_and_could_not_be_appended_is_forgotten(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the next reign nor a snapshot holds what is not in the log."""
    refused: list[str] = []
    append = JetStreamLog.append

    async def append_with_an_outage(log: JetStreamLog, drafts: Sequence[Draft]) -> tuple[int, ...]:
        types = [draft.envelope.type for draft in drafts]
        if "InstanceScheduled" in types and not refused:
            refused.extend(types)
            raise Unavailable("the log is away")
        return await append(log, drafts)

    monkeypatch.setattr(JetStreamLog, "append", append_with_an_outage)
    scheduler = await stack.start_scheduler()
    await stack.start_worker(0, **QUICK)
    await stack.start_api()
    client = stack.client()
    await client.deploy("guest")
    await client.until_state("/v2/models/guest", "ready", seconds=60)

    assert refused
    assert scheduler.reigns > 1
    events = await facts_of(stack)
    assert folded(events, up_to=events[-1].sequence).seq == events[-1].sequence, "the log contradicts itself"
    await stack.stop("scheduler")
    assert await the_snapshot_is_what_the_log_adds_up_to(stack)


async def test_an_assignment_that_no_message_can_hold_does_not_stop_the_scheduler(
    stack: Stack, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("services.scheduler.adapters.board.MOST_BYTES", 4000)
    impatient: Callable[[SchedulerSettings], Policy] = lambda _settings: Policy(accept_seconds=2.0)  # noqa: E731
    monkeypatch.setattr(SchedulerSettings, "policy", impatient)
    await stack.start_scheduler()
    small = a_machine(stack.directory, "small", ram=GIB)
    for number in (0, 1):
        await stack.start_worker(number, inventory=small, **QUICK)
    await stack.start_api()
    client = stack.client()
    await client.until("/v2/workers", lambda workers: [w["state"] for w in workers["items"]] == ["ready", "ready"])

    await client.deploy("fat", backend_parameters=["--fat=" + "x" * 4000])
    await client.until_state("/v2/model-instances/fat-0", "scheduled")
    await client.deploy("thin")  # at the latest when the other one is given up here and tried elsewhere
    await client.until_state("/v2/models/thin", "ready")
    assert "not published: the assignment of w-" in caplog.text

    await client.request("DELETE", "/v2/models/fat")
    await client.deploy("wide", replicas=3)
    await client.until_state("/v2/models/wide", "ready")
    assert len(of_type(await facts_of(stack), "SchedulerElected")) == 1, "nobody had to take over"

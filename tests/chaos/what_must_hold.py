"""Checks that hold after any fault: the two stores agree, no memory was promised twice, an answer was true."""

import asyncio
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import asyncpg
import orjson

from kernel.log.jetstream import JetStreamLog
from kernel.log.port import Stored
from kernel.projections.projector import read_checkpoint, rebuild, verify_chain
from kernel.projections.schemas import canonical_rows
from schemas.facts import SchedulerElected, read
from schemas.facts.base import Fact
from schemas.models import Claim
from schemas.subjects import ALL_FACTS, parse_fact_subject
from services.api.projections.fleet import FleetProjection
from services.scheduler.adapters.snapshots import SnapshotStore
from services.scheduler.domain.fleet import Fleet, evolve
from services.scheduler.process import fold
from tests.chaos.writers import Write
from tests.support.stack import Stack


async def last_sequence(stack: Stack) -> int:
    """The last fact of the log, as the server says: a trace of anything would raise it."""
    return (await JetStreamLog(stack.operator).state()).last_sequence


async def facts_of(stack: Stack, *, after: int = 0) -> list[Stored]:
    """The log itself, as of now."""
    log = JetStreamLog(stack.operator)
    last = (await log.state()).last_sequence
    found: list[Stored] = []
    if last <= after:
        return found
    tail = log.tail([ALL_FACTS], after=after)
    try:
        async for events in tail:
            found.extend(events)
            if found[-1].sequence >= last:
                return [event for event in found if event.sequence <= last]
    finally:
        await tail.close()
    return found


def of_type(events: Iterable[Stored], *types: str) -> list[Stored]:
    return [event for event in events if event.subject.rpartition(".")[2] in types]


def facts(events: Iterable[Stored]) -> list[Fact]:
    return [read(event.envelope) for event in events]


# -- the two stores ---------------------------------------------------------------------------------------------------


async def the_stores_agree(stack: Stack) -> int:
    """`event_log` is FACTS byte for byte, its chain holds, and a rebuild from event 1 gives the same rows.

    Returns how many events there are. Nothing may be writing any more, or it is tried again.
    """
    connection = await stack.sql()
    try:
        for _ in range(50):
            before = await facts_of(stack)
            await _until_projected(connection, before[-1].sequence)
            checkpoint = await read_checkpoint(connection)
            assert checkpoint is not None
            projection = FleetProjection()
            live = await canonical_rows(connection, checkpoint.read_schema, projection.tables)
            rebuilt = await rebuild(connection, projection)
            if {before[-1].sequence, rebuilt.sequence, await last_sequence(stack)} != {checkpoint.sequence}:
                continue
            assert live == await canonical_rows(connection, rebuilt.read_schema, projection.tables)
            rows = await connection.fetch("SELECT seq, subject, body FROM muster.event_log ORDER BY seq")
            assert [Stored(row["seq"], row["subject"], row["body"]) for row in rows] == before
            assert await verify_chain(connection) == len(before)
            return len(before)
    finally:
        await connection.close()
    raise AssertionError("something writes without end")


async def _until_projected(connection: asyncpg.Connection, sequence: int) -> None:
    for _ in range(600):
        checkpoint = await read_checkpoint(connection)
        if checkpoint is not None and checkpoint.sequence >= sequence:
            return
        await asyncio.sleep(0.05)
    raise AssertionError(f"event {sequence} was never projected")


# -- writes -----------------------------------------------------------------------------------------------------------


async def every_answer_was_true(stack: Stack, writes: Sequence[Write]) -> None:
    """What was acknowledged is in `event_log` exactly once and at the position that was told; what was refused is not there."""
    connection = await stack.sql()
    try:
        rows = await connection.fetch(
            "SELECT seq, type, resource_id, command_id, correlation_id FROM muster.event_log WHERE owner = 'api'"
            " AND type IN ('ModelCreated', 'ModelUpdated', 'ModelScaled', 'ModelDeleted') ORDER BY seq"
        )
    finally:
        await connection.close()
    by_sequence = {row["seq"]: row for row in rows}
    by_command = Counter(row["command_id"].partition(".")[0] for row in rows if row["command_id"])
    by_request = {row["correlation_id"] for row in rows}
    deletions = Counter(row["resource_id"] for row in rows if row["type"] == "ModelDeleted")
    for write in writes:
        assert by_command[write.command] <= 1, ("doubled", write)
        for request_id in write.refused:
            assert request_id not in by_request, ("refused, and yet written", write)
        if write.acknowledged is None:
            continue
        row = by_sequence.get(write.acknowledged.sequence)
        assert row is not None, ("acknowledged and lost", write)
        assert (row["type"] in write.types, row["resource_id"]) == (True, write.acknowledged.id), write
        assert row["command_id"] is None or row["command_id"].startswith(write.command), write
    assert not deletions or max(deletions.values()) == 1, "a model was deleted twice"


# -- promises ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Promised:
    """The most that was ever promised of one worker."""

    ram: int
    vram: dict[int, int]


def no_memory_was_promised_twice(events: Sequence[Stored]) -> dict[str, Promised]:
    """At every prefix of the log, what is promised of each worker is at most what it has. Returns the most that was."""
    fleet = Fleet()
    most: dict[str, Promised] = {}
    for event in events:
        envelope = event.envelope
        evolve(fleet, read(envelope), event.sequence, envelope.time)
        for worker in fleet.workers.values():
            promised = _sum([claim.claim for claim in fleet.claims_on(worker.id)])
            where = f"event {event.sequence} {envelope.type}: {worker.name}"
            assert promised.ram <= worker.inventory.memory_total - worker.inventory.memory_reserved, where
            for gpu in worker.inventory.gpus:
                assert promised.vram.get(gpu.index, 0) <= gpu.memory_total, f"{where}, GPU {gpu.index}"
            before = most.get(worker.name, Promised(0, {}))
            indexes = before.vram.keys() | promised.vram.keys()
            most[worker.name] = Promised(
                max(before.ram, promised.ram),
                {i: max(before.vram.get(i, 0), promised.vram.get(i, 0)) for i in indexes},
            )
    return most


def _sum(claims: Iterable[Claim]) -> Promised:
    ram, vram = 0, Counter[int]()
    for claim in claims:
        ram += claim.ram
        vram.update(claim.vram)
    return Promised(ram, dict(vram))


def whoever_was_elected_decided(events: Sequence[Stored]) -> list[str]:
    """Between two elections only the scheduler that won the first one stated anything. Returns the winners in order."""
    winners: list[str] = []
    for event in events:
        if parse_fact_subject(event.subject).owner != "scheduler":
            continue
        envelope = event.envelope
        if envelope.type == SchedulerElected.type:
            winners.append(envelope.data["replica"])
        assert envelope.source == f"/muster/scheduler/{winners[-1]}", (
            f"event {event.sequence} is of a deposed scheduler"
        )
    return winners


def folded(events: Sequence[Stored], *, up_to: int) -> Fleet:
    """What the log adds up to at this sequence, from event 1."""
    fleet = Fleet()
    for event in events:
        if event.sequence <= up_to:
            fold(fleet, event)
    return fleet


async def snapshot_of(stack: Stack) -> Fleet | None:
    """The scheduler's snapshot as it lies in the store."""
    return await SnapshotStore(stack.operator).load(await JetStreamLog(stack.operator).state())


async def the_snapshot_is_what_the_log_adds_up_to(stack: Stack) -> bool:
    """False when there is none."""
    snapshot = await snapshot_of(stack)
    if snapshot is None:
        return False
    same = snapshot == folded(await facts_of(stack), up_to=snapshot.seq)
    assert same, f"the snapshot at {snapshot.seq} is another fleet"
    return True


def attempts_of(events: Iterable[Stored], instance_id: str) -> list[int]:
    return [
        orjson.loads(event.body)["data"]["attempt"]
        for event in of_type(events, "InstanceScheduled")
        if parse_fact_subject(event.subject).id == instance_id
    ]

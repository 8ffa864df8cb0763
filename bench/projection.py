"""How fast a backlog is projected, and the read models are rebuilt from event 1 with the hash chain verified."""

import asyncio
import os
import statistics
import time
from dataclasses import dataclass

from bench.figures import Figure
from bench.life import drafts, fleet_life
from bench.processes import CpuMeter
from bench.servers import Servers, servers
from kernel.log.jetstream import JetStreamLog
from kernel.projections.marks import HighWater
from kernel.projections.projector import Projector, read_checkpoint, rebuild, verify_chain
from kernel.projections.schemas import canonical_rows
from services.api.adapters.database import make_engine, raw_connect, wait_until_prepared
from services.api.projections.fleet import FleetProjection


@dataclass(frozen=True, slots=True)
class Round:
    projected_seconds: float
    rebuilt_seconds: float
    verified_seconds: float
    cpu: dict[str, float]
    """Of projecting, by process; this one is the projector."""


async def run(*, quick: bool) -> list[Figure]:
    rounds, wanted = (1, 5_000) if quick else (5, 50_000)
    events = drafts(fleet_life(wanted))
    async with servers() as these:
        await these.append(events)
        done = [await _round(these, len(events)) for _ in range(rounds)]
    sizes = [len(event.envelope.to_json()) for event in events]
    how = f"{len(events):,} events of {statistics.mean(sizes):.0f} bytes, median of {rounds}"
    middle = sorted(done, key=lambda each: each.projected_seconds)[len(done) // 2]
    cpu = {name: seconds / len(events) * 1e6 for name, seconds in middle.cpu.items()}

    def rate(seconds: list[float]) -> float:
        return len(events) / statistics.median(seconds)

    return [
        Figure("backlog projected", rate([r.projected_seconds for r in done]), "events/s", how, at_least=10_000),
        Figure(
            "rebuild, chain verified too",
            rate([r.rebuilt_seconds + r.verified_seconds for r in done]),
            "events/s",
            f"{how}; 20,000 wanted",
            at_least=12_000,
        ),
        Figure("rebuild alone", rate([r.rebuilt_seconds for r in done]), "events/s", how),
        Figure("hash chain verified", rate([r.verified_seconds for r in done]), "events/s", how),
        Figure(
            "processor time of projecting an event",
            sum(cpu.values()),
            "µs",
            ", ".join(f"{name} {each:.0f}" for name, each in cpu.items()),
        ),
    ]


async def _round(these: Servers, last: int) -> Round:
    """In a fresh database. Raises AssertionError when a rebuild gives other rows."""
    url = await these.databases.new_database()
    engine = make_engine(url)
    await wait_until_prepared(engine)
    await engine.dispose()
    meter = CpuMeter(these.pids() | {"projector": os.getpid()})
    high_water, projection = HighWater(), FleetProjection()
    projector = Projector(JetStreamLog(await these.stack.bus("api")), projection, raw_connect(url), high_water)
    started = time.perf_counter()
    projecting = asyncio.create_task(projector.run())
    arrived = await high_water.wait_for(last, timeout_seconds=600)
    projected_seconds = time.perf_counter() - started
    cpu = meter.spent()
    projecting.cancel()
    await asyncio.gather(projecting, return_exceptions=True)
    assert arrived, "the backlog was not projected in ten minutes"

    connection = await raw_connect(url)()
    try:
        before = await read_checkpoint(connection)
        assert before is not None
        rows = await canonical_rows(connection, before.read_schema, projection.tables)
        started = time.perf_counter()
        after = await rebuild(connection, projection)
        rebuilt_seconds = time.perf_counter() - started
        assert await canonical_rows(connection, after.read_schema, projection.tables) == rows
        started = time.perf_counter()
        assert await verify_chain(connection) == last
        verified_seconds = time.perf_counter() - started
    finally:
        await connection.close()
    return Round(projected_seconds, rebuilt_seconds, verified_seconds, cpu)

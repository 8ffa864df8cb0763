"""The deciding scheduler is killed (SIGKILL): how soon does the standby decide in its place?"""

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

from bench.figures import Figure, percentile
from bench.life import Lived, drafts, fleet_life
from bench.servers import Servers, Spawned, servers
from kernel.clock import SystemClock
from kernel.log.jetstream import JetStreamLog
from kernel.log.port import Stored
from kernel.log.seal import Cause, seal_fact
from schemas.facts import ModelCreated
from schemas.ids import ModelId
from schemas.models import ModelSpec
from schemas.sources import LocalPath
from schemas.subjects import parse_fact_subject
from services.scheduler.adapters.snapshots import SnapshotStore
from services.scheduler.domain.fleet import Fleet, evolve

TIMEOUT_SECONDS: Final = 120.0
SETTINGS: Final = {"lease_seconds": 86400, "snapshot_every": 10**9}
"""The fleet's workers are memories: nobody misses their beats. Snapshots are ours alone."""
SETTLED_SECONDS: Final = 1.0


@dataclass(slots=True)
class Times:
    """Seconds from the kill."""

    elected: list[float] = field(default_factory=list[float])
    decided: list[float] = field(default_factory=list[float])


async def run(*, quick: bool) -> list[Figure]:
    rounds, wanted = (1, 3_000) if quick else (7, 20_000)
    lived = fleet_life(wanted)
    fleet = Fleet()
    for sequence, each in enumerate(lived, start=1):
        evolve(fleet, each.fact, sequence, each.at, each.correlation_id)
    figures: list[Figure] = []
    for how, snapshot in (("with a snapshot", fleet), ("by full replay", None)):
        times = await _take_over(lived, snapshot, rounds)
        conditions = f"worst of {rounds}; {len(lived):,} facts, {len(fleet.instances)} instances, lease 2 s"
        elected, decided = max(times.elected), max(times.decided)
        figures += [
            Figure(f"kill -9 → SchedulerElected, {how}", elected, "s", conditions, at_most=3),
            Figure(f"kill -9 → first decision, {how}", decided, "s", conditions, at_most=3),
            Figure(
                f"SchedulerElected → first decision, {how}",
                percentile([d - e for e, d in zip(times.elected, times.decided, strict=True)], 0.5),
                "s",
                f"median of {rounds}",
            ),
        ]
    return figures


async def _take_over(lived: tuple[Lived, ...], snapshot: Fleet | None, rounds: int) -> Times:
    times = Times()
    async with servers(workers=0) as these:
        await these.append(drafts(lived))
        if snapshot is not None:
            bus = await these.stack.bus("scheduler")
            await SnapshotStore(bus).save(snapshot, await JetStreamLog(bus).state())
        async with _Followed.log(these, after=len(lived)) as log:
            deciding = await _spawn(these, "0")
            await log.wish(0)
            await log.first_decision_of("0")
            for number in range(1, rounds + 1):
                standby = await _spawn(these, str(number))
                await asyncio.sleep(SETTLED_SECONDS)
                killed = time.perf_counter()
                deciding.process.kill()
                await log.wish(number)
                elected, decided = await log.first_decision_of(str(number))
                times.elected.append(elected - killed)
                times.decided.append(decided - killed)
                deciding = standby
    return times


async def _spawn(these: Servers, replica: str) -> Spawned:
    return await these.spawn("scheduler", replica=replica, **SETTINGS)


class _Followed:
    """The log as it grows: when was who elected, and when did they first state anything else?"""

    def __init__(self, api_log: JetStreamLog) -> None:
        self._log = api_log
        self._elected: dict[str, float] = {}
        self._decided: dict[str, asyncio.Future[float]] = {}

    @staticmethod
    @asynccontextmanager
    async def log(these: Servers, *, after: int) -> AsyncGenerator["_Followed"]:
        followed = _Followed(JetStreamLog(await these.stack.bus("api")))
        reading = asyncio.create_task(followed._read(JetStreamLog(await these.stack.bus("observer")), after))
        try:
            yield followed
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)

    async def wish(self, number: int) -> None:
        """Something to decide about."""
        clock = SystemClock()
        spec = ModelSpec(name=f"wish-{number}", source=LocalPath(path="/models/wish.gguf"))
        fact = ModelCreated(model_id=ModelId(f"m-{clock.new_id().lower()}"), spec=spec)
        draft = seal_fact(
            fact, event_id=clock.new_id(), at=clock.now(), source="/muster/api/0", cause=Cause(actor="key/bootstrap")
        )
        await self._log.append([draft])

    async def first_decision_of(self, replica: str) -> tuple[float, float]:
        """When it was elected, and when its first fact was stored."""
        decided = await asyncio.wait_for(self._when(replica), TIMEOUT_SECONDS)
        return self._elected[replica], decided

    async def _read(self, log: JetStreamLog, after: int) -> None:
        async for events in log.tail(["muster.facts.scheduler.>"], after=after):
            at = time.perf_counter()
            for event in events:
                self._take(event, at)

    def _take(self, event: Stored, at: float) -> None:
        envelope = event.envelope
        replica = envelope.source.rpartition("/")[2]
        if parse_fact_subject(event.subject).type == "SchedulerElected":
            self._elected[replica] = at
        elif not (decided := self._when(replica)).done():
            decided.set_result(at)

    def _when(self, replica: str) -> "asyncio.Future[float]":
        if replica not in self._decided:
            self._decided[replica] = asyncio.get_running_loop().create_future()
        return self._decided[replica]

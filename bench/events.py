"""From the append of an event (fsync on) to the moment a watcher of `/v2/events` has it, at a steady 100 events a second."""

import asyncio
import time
from typing import Final

from bench.figures import Figure, milliseconds
from bench.life import drafts, fleet_life
from bench.processes import CpuMeter
from bench.servers import servers
from bench.watcher import Watcher
from kernel.log.jetstream import JetStreamLog
from kernel.log.port import Draft

EVENTS_A_SECOND: Final = 100
WARM_UP: Final = 200


async def run(*, quick: bool) -> list[Figure]:
    samples = 500 if quick else 3000
    events = drafts(fleet_life(samples + WARM_UP))[: samples + WARM_UP]
    async with servers() as these:
        api = await these.spawn("api")
        logs = {owner: JetStreamLog(await these.stack.bus(owner)) for owner in ("api", "scheduler")}
        async with Watcher(these.client(api)) as watcher:
            await _offer(events[:WARM_UP], logs)
            meter = CpuMeter(these.pids(api=api))
            started = time.perf_counter()
            appends = await _offer(events[WARM_UP:], logs)
            offered = samples / (time.perf_counter() - started)
            await asyncio.wait_for(watcher.caught_up(max(sequence for sequence, _, _ in appends)), 30)
            cpu = {name: seconds / samples * 1e6 for name, seconds in meter.spent().items()}
            seen = [watcher.arrived[sequence] - begun for sequence, begun, _ in appends]
    stored = [acknowledged - begun for _, begun, acknowledged in appends]
    how = f"open loop, {offered:.0f} events/s"
    peer = {"peer_p50": "24.8 ms (a POST → watch event)", "peer_p99": "40 ms"}
    return [
        *milliseconds("append begun → seen by a watcher", seen, p50=4, p99=15, conditions=how, **peer),
        *milliseconds("append begun → acknowledged by the log (fsync)", stored, conditions=how),
        Figure(
            "processor time of an event, log to watcher",
            sum(cpu.values()),
            "µs",
            ", ".join(f"{name} {each:.0f}" for name, each in cpu.items()),
        ),
    ]


async def _offer(events: list[Draft], logs: dict[str, JetStreamLog]) -> list[tuple[int, float, float]]:
    """Append each at its time, whether or not the ones before are through: sequence, begun, acknowledged."""

    async def append(event: Draft) -> tuple[int, float, float]:
        log = logs[event.subject.split(".")[2]]
        begun = time.perf_counter()
        (sequence,) = await log.append([event])
        return sequence, begun, time.perf_counter()

    start = time.perf_counter()
    async with asyncio.TaskGroup() as tasks:
        appends: list[asyncio.Task[tuple[int, float, float]]] = []
        for number, event in enumerate(events):
            await asyncio.sleep(max(0.0, start + number / EVENTS_A_SECOND - time.perf_counter()))
            appends.append(tasks.create_task(append(event)))
    return [each.result() for each in appends]

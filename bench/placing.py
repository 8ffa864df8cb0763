"""A model waits, a worker that fits joins: how soon is the instance Scheduled, as a watcher sees it?"""

import asyncio
import time
from dataclasses import dataclass, field
from typing import Any, Final

from bench.figures import Figure, milliseconds
from bench.pretend_worker import PretendWorker, pretend_worker
from bench.processes import CpuMeter
from bench.servers import servers
from bench.watcher import Watcher
from tests.support.stack import Client

WARM_UP: Final = 10
TIMEOUT_SECONDS: Final = 30.0


@dataclass(slots=True)
class Times:
    """Seconds to `InstanceScheduled` on the watch."""

    since_report: list[float] = field(default_factory=list[float])
    """From the moment the agent's picture was sent."""
    since_ready: list[float] = field(default_factory=list[float])
    """From `WorkerReady` on the same watch; 0 when both came in one piece."""


async def run(*, quick: bool) -> list[Figure]:
    samples = 50 if quick else 500
    known, unknown = Times(), Times()
    async with servers() as these:
        api, scheduler = await these.spawn("api"), await these.spawn("scheduler")
        client = these.client(api)
        async with Watcher(client) as watcher, pretend_worker(these.stack) as worker:
            await create(client, watcher, "waiting", "/models/waiting.gguf", wait="ModelPending")
            for _ in range(WARM_UP):
                await join_and_leave(watcher, worker, Times())
            meter = CpuMeter(these.pids(api=api, scheduler=scheduler))
            for _ in range(samples):
                await join_and_leave(watcher, worker, known)
            cpu = {name: seconds / samples * 1e3 for name, seconds in meter.spent().items()}
            await _delete(client, watcher, "waiting")
            for number in range(samples):
                await create(client, watcher, f"new-{number}", f"/models/new-{number}.gguf", wait="ModelPending")
                await join_and_leave(watcher, worker, unknown)
                await _delete(client, watcher, f"new-{number}")
    peer = {"peer_p50": "168–370 ms (POST → scheduled)", "peer_p99": "90–180 s once Pending (its rescans)"}
    return [
        *milliseconds("worker's report sent → Scheduled, model known", known.since_report, p50=10, p99=50, **peer),
        *milliseconds("WorkerReady seen → Scheduled, model known", known.since_ready, p50=10, p99=50),
        *milliseconds(
            "worker's report sent → Scheduled, model not looked at yet", unknown.since_report, p50=10, p99=50
        ),
        *milliseconds("WorkerReady seen → Scheduled, model not looked at yet", unknown.since_ready, p50=10, p99=50),
        Figure(
            "processor time of a worker's joining and leaving",
            sum(cpu.values()),
            "ms",
            ", ".join(f"{name} {each:.1f}" for name, each in cpu.items()),
            peer="130–160 ms (a placement)",
        ),
    ]


async def join_and_leave(watcher: Watcher, worker: PretendWorker, times: Times) -> None:
    ready, scheduled = watcher.expect_one("WorkerReady"), watcher.expect_one("InstanceScheduled")
    begun = time.perf_counter()
    await worker.join()
    at = (await asyncio.wait_for(scheduled, TIMEOUT_SECONDS)).at
    times.since_report.append(at - begun)
    times.since_ready.append(at - (await ready).at)
    pending = watcher.expect_one("InstancePending")
    await worker.leave()
    await asyncio.wait_for(pending, TIMEOUT_SECONDS)


async def create(client: Client, watcher: Watcher, name: str, path: str, *, wait: str, **fields: Any) -> None:
    """A model; returns when an event of the type `wait` has been seen."""
    seen = watcher.expect_one(wait)
    status, answer, _ = await client.request("POST", "/v2/models", {"name": name, "local_path": path} | fields)
    assert status in (201, 202), (status, answer)
    await asyncio.wait_for(seen, TIMEOUT_SECONDS)


async def _delete(client: Client, watcher: Watcher, name: str) -> None:
    deleted = watcher.expect_one("InstanceDeleted")
    status, answer, _ = await client.request("DELETE", f"/v2/models/{name}")
    assert status == 200, (status, answer)
    await asyncio.wait_for(deleted, TIMEOUT_SECONDS)

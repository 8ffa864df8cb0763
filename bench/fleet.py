"""A fleet of 1,000 simulated workers on the real bus: how soon something is placed, and 10,000 instances at once."""

import asyncio
import time
from typing import Any, Final

import psutil

from bench.figures import Figure, milliseconds
from bench.placing import Times, create, join_and_leave
from bench.pretend_worker import pretend_worker
from bench.servers import Servers, servers
from bench.watcher import Seen, Watcher
from tests.support.stack import Client

GIB: Final = 2**30
WAIT_SECONDS: Final = 300.0


def a_fleet(workers: int, name: str = "gpu-{n}", **fields: Any) -> dict[str, Any]:
    """Workers with 8 GPUs; their engines never get ready, so that nothing but placing is measured."""
    gpu = {"vendor": "nvidia", "type": "cuda", "name": "NVIDIA H100 80GB HBM3", "memory_total": 80 * GIB, "count": 8}
    worker = {
        "name": name,
        "count": workers,
        "cpu_count": 64,
        "memory_total": 1024 * GIB,
        "gpus": [gpu],
        "backends": {"llama.cpp": None},
        "engines": {"start_seconds": 100_000},
    } | fields
    weights = {
        "format": "gguf",
        "weight_bytes": 8 * GIB,
        "layers": 32,
        "kv_heads": 8,
        "head_size": 128,
        "context_length": 8192,
    }
    whole = weights | {"weight_bytes": 60 * GIB}
    return {"seed": 7, "workers": [worker], "models": {"/models/whole": whole}, "other_models": weights}


async def run(*, quick: bool) -> list[Figure]:
    workers, instances, samples = (50, 500, 10) if quick else (1000, 10_000, 100)
    figures: list[Figure] = []
    async with servers(workers=1, simulator=True) as these:
        api, scheduler = await these.spawn("api"), await these.spawn("scheduler")
        client = these.client(api)
        async with Watcher(client) as watcher:
            begun = time.perf_counter()
            ready = _count(watcher, "WorkerReady", workers + 1)
            special = a_fleet(1, "special", gpus=[a_fleet(1)["workers"][0]["gpus"][0] | {"count": 1}])["workers"]
            fleet = a_fleet(workers)
            await these.stack.spawn("simulator", described=fleet | {"workers": fleet["workers"] + special})
            await asyncio.wait_for(ready, WAIT_SECONDS)
            figures.append(
                Figure(
                    f"{workers:,} simulated workers joined and ready",
                    time.perf_counter() - begun,
                    "s",
                    "with the start of the simulator",
                )
            )
            figures += await _freed(client, watcher, samples)
            figures += await _edited(client, watcher, samples)
            async with pretend_worker(these.stack) as pretended:
                await create(
                    client,
                    watcher,
                    "waits",
                    "/models/joined",
                    worker_selector={"worker-name": "pretended"},
                    wait="ModelPending",
                )
                times = Times()
                for _ in range(samples):
                    await join_and_leave(watcher, pretended, times)
                figures += milliseconds(
                    f"worker's report sent → Scheduled, {workers:,} workers", times.since_report, p50=10, p99=50
                )
            figures += await _at_once(client, watcher, instances)
            memory = psutil.Process(scheduler.pid).memory_info().rss / 2**20
            figures.append(
                Figure(
                    "memory of the scheduler with them",
                    memory,
                    "MB",
                    f"{workers:,} workers, {instances:,} instances",
                    at_most=200,
                )
            )
            figures.append(await _restart(these, client, watcher, scheduler.process))
    figures.append(await _dead("default settings", 25.0))
    figures.append(await _dead("lease 2 s", 5.0, lease_seconds=2.0, eviction_seconds=2.0))
    return figures


async def _freed(client: Client, watcher: Watcher, samples: int) -> list[Figure]:
    """Two models want the one GPU of one worker; the one that has it is deleted again and again."""
    where = {"worker-name": "special"}
    freed: list[float] = []
    deleted: list[float] = []
    await create(client, watcher, "one-0", "/models/whole", worker_selector=where, wait="InstanceStarting")
    for number in range(samples):
        await create(client, watcher, f"one-{number + 1}", "/models/whole", worker_selector=where, wait="ModelPending")
        await asyncio.sleep(0.05)
        ended, scheduled = watcher.expect_one("InstanceAttemptEnded"), watcher.expect_one("InstanceScheduled")
        starting = watcher.expect_one("InstanceStarting")
        begun = time.perf_counter()
        await client.request("DELETE", f"/v2/models/one-{number}")
        at = (await asyncio.wait_for(scheduled, WAIT_SECONDS)).at
        freed.append(max(at - (await ended).at, 0.0))
        deleted.append(at - begun)
        await asyncio.wait_for(starting, WAIT_SECONDS)
    await client.request("DELETE", f"/v2/models/one-{samples}")
    return [
        *milliseconds("claim seen freed → Scheduled", freed, p50=10, p99=50),
        *milliseconds("DELETE of a model sent → the one that waits is Scheduled", deleted),
    ]


async def _edited(client: Client, watcher: Watcher, samples: int) -> list[Figure]:
    """A model that waits for a worker that is not there is told to go anywhere, and back, again and again."""
    nowhere = {"worker-name": "nowhere"}
    edited: list[float] = []
    await create(client, watcher, "edited", "/models/edited", worker_selector=nowhere, wait="ModelPending")
    for _ in range(samples + 1):
        scheduled = watcher.expect_one("InstanceScheduled")
        begun = time.perf_counter()
        await _patch(client, {})
        edited.append((await asyncio.wait_for(scheduled, WAIT_SECONDS)).at - begun)
        pending = watcher.expect_one("ModelPending")
        await _patch(client, nowhere)
        await asyncio.wait_for(pending, WAIT_SECONDS)
        await asyncio.sleep(0.5)
    deleted = watcher.expect_one("InstanceDeleted")
    await client.request("DELETE", "/v2/models/edited")
    await asyncio.wait_for(deleted, WAIT_SECONDS)
    return [
        Figure("PATCH that makes it fit sent → Scheduled, its files not looked at yet", edited[0] * 1000, "ms", "one"),
        *milliseconds("PATCH that makes it fit sent → Scheduled, its files known", edited[1:], p50=10, p99=50),
    ]


async def _patch(client: Client, worker_selector: dict[str, str]) -> None:
    status, answer, _ = await client.request("PATCH", "/v2/models/edited", {"worker_selector": worker_selector})
    assert status == 200, answer


async def _at_once(client: Client, watcher: Watcher, instances: int) -> list[Figure]:
    models = max(instances // 500, 1)
    each = instances // models
    scheduled = _count(watcher, "InstanceScheduled", instances)
    begun = time.perf_counter()
    for number in range(models):
        status, answer, _ = await client.request(
            "POST",
            "/v2/models",
            {"name": f"many-{number}", "local_path": f"/models/many-{number}", "replicas": each},
        )
        assert status in (201, 202), answer
    last = await asyncio.wait_for(scheduled, WAIT_SECONDS)
    seconds = last.at - begun
    return [
        Figure(
            f"{instances:,} instances asked for at once → all scheduled, durable, projected and watched", seconds, "s",
            f"{models} models; their files are looked at on the way", at_most=5, peer="~30 min (5.5 placements/s)",
        )
    ]  # fmt: skip


async def _restart(these: Servers, client: Client, watcher: Watcher, scheduler: asyncio.subprocess.Process) -> Figure:
    """Stopped in order; the next one reads the snapshot and decides."""
    scheduler.terminate()
    await scheduler.wait()
    pending = watcher.expect_one("ModelPending")
    await client.request(
        "POST",
        "/v2/models",
        {"name": "probe", "local_path": "/models/probe", "worker_selector": {"worker-name": "nowhere"}},
    )
    begun = time.perf_counter()
    again = await these.stack.spawn("scheduler")
    seconds = (await asyncio.wait_for(pending, WAIT_SECONDS)).at - begun
    assert again.returncode is None
    return Figure(
        "restart of the scheduler to its first decision", seconds, "s", "with all of them, from a snapshot", at_most=3
    )


async def _dead(how: str, at_most: float, **settings: Any) -> Figure:
    """The only worker of a simulator is killed; the others, of another one, are well."""
    async with servers(workers=0, simulator=True) as these:
        api = await these.spawn("api")
        await these.spawn("scheduler", **settings)
        client = these.client(api)
        async with Watcher(client) as watcher:
            ready = _count(watcher, "WorkerReady", 4)
            await these.stack.spawn("simulator", described=a_fleet(3, "safe-{n}"))
            await asyncio.sleep(2)  # it reads its file
            doomed = await these.stack.spawn("simulator", described=a_fleet(1, "a-doomed"))
            await asyncio.wait_for(ready, WAIT_SECONDS)
            await create(client, watcher, "moves", "/models/moves", wait="InstanceStarting")
            scheduled = watcher.expect_one("InstanceScheduled")
            begun = time.perf_counter()
            doomed.kill()
            seconds = (await asyncio.wait_for(scheduled, WAIT_SECONDS)).at - begun
    return Figure(f"dead worker → replacement scheduled, {how}", seconds, "s", "kill -9; one sample", at_most=at_most)


def _count(watcher: Watcher, kind: str, count: int) -> "asyncio.Future[Seen]":
    """The how-manieth of its kind from now on."""
    left = [count]

    def is_last(seen: Seen) -> bool:
        if seen.type == kind:
            left[0] -= 1
        return left[0] == 0

    return watcher.expect(is_last)

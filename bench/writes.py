"""`POST /v2/models`: until it is acknowledged, and until a watcher sees why the model is Pending."""

import asyncio
import json
import time
from dataclasses import dataclass, field
from typing import Any, Final

from bench.figures import Figure, milliseconds
from bench.processes import CpuMeter
from bench.servers import servers
from bench.watcher import Seen, Watcher
from tests.support.stack import TINYCHAT, Client

WARM_UP: Final = 20
TOO_LITTLE: Final = {"memory_total": 64 * 2**20}
"""The only worker: the tiny model needs more for its working buffers alone."""
TIMEOUT_SECONDS: Final = 30.0


@dataclass(slots=True)
class Times:
    """Seconds from the request."""

    acknowledged: list[float] = field(default_factory=list[float])
    first: list[float] = field(default_factory=list[float])
    final: list[float] = field(default_factory=list[float])


async def run(*, quick: bool) -> list[Figure]:
    samples = 60 if quick else 1000
    times = Times()
    async with servers() as these:
        inventory = these.stack.directory / "inventory.json"
        inventory.write_text(json.dumps(TOO_LITTLE))
        services = {
            "api": await these.spawn("api"),
            "scheduler": await these.spawn("scheduler"),
            "downloader": await these.spawn("downloader"),
            "agent": await these.spawn("agent", inventory=inventory),
        }
        client = these.client(services["api"])
        await client.until("/v2/workers", lambda body: any(item["state"] == "ready" for item in body["items"]))
        async with Watcher(client) as watcher:
            for number in range(WARM_UP):
                await _create_and_delete(client, watcher, f"warm-up-{number}", Times())
            meter = CpuMeter(these.pids(**services))
            for number in range(samples):
                await _create_and_delete(client, watcher, f"model-{number}", times)
            cpu = {name: seconds / samples * 1e3 for name, seconds in meter.spent().items()}
    how = "one at a time"
    watched = "POST → ModelPending on the watch"
    return [
        *milliseconds(
            "POST /v2/models acknowledged (both stores)",
            times.acknowledged,
            p50=6,
            peer_p50="28–40 ms",
            peer_p99="155 ms",
            conditions=how,
        ),
        *milliseconds(
            f"{watched}, first (files being looked at)",
            times.first,
            p50=12,
            p99=40,
            peer_p50="124–134 ms (Pending, 0 workers)",
            conditions=how,
        ),
        *milliseconds(
            f"{watched}, final (with numbers)",
            times.final,
            p50=12,
            p99=40,
            peer_p50="157–263 ms (1 worker, too big)",
            conditions=how,
        ),
        Figure(
            "processor time of create → Pending → delete",
            sum(cpu.values()),
            "ms",
            ", ".join(f"{name} {each:.1f}" for name, each in cpu.items()),
            peer="27 ms (the create alone)",
        ),
    ]


async def _create_and_delete(client: Client, watcher: Watcher, name: str, times: Times) -> None:
    first = watcher.expect(lambda seen: _is_pending(seen, name, "being_inspected"))
    final = watcher.expect(lambda seen: _is_pending(seen, name, "not_enough_ram"))
    begun = time.perf_counter()
    body: dict[str, Any] = {"name": name, "local_path": str(TINYCHAT)}
    status, model, _ = await client.request("POST", "/v2/models", body, {"x-request-id": name})
    times.acknowledged.append(time.perf_counter() - begun)
    assert status == 201, (status, model)
    times.first.append((await asyncio.wait_for(first, TIMEOUT_SECONDS)).at - begun)
    times.final.append((await asyncio.wait_for(final, TIMEOUT_SECONDS)).at - begun)
    instances = f"i-{model['id'].removeprefix('m-')}-"
    deleted = watcher.expect(
        lambda seen: seen.type == "InstanceDeleted" and seen.data["instance_id"].startswith(instances)
    )
    status, answer, _ = await client.request("DELETE", f"/v2/models/{name}")
    assert status == 200, (status, answer)
    await asyncio.wait_for(deleted, TIMEOUT_SECONDS)


def _is_pending(seen: Seen, request_id: str, code: str) -> bool:
    """Whatever follows from a request bears its id."""
    if seen.type != "ModelPending" or (envelope := seen.envelope)["correlationid"] != request_id:
        return False
    return any(reason["code"] == code for reason in envelope["data"]["reasons"])

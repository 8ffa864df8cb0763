"""Resident memory of each service in a process of its own: just started, and after it has worked."""

import asyncio
from typing import Final

from bench.figures import Figure
from bench.processes import family, pss_mib, rss_mib
from bench.servers import Spawned, servers
from bench.watcher import Watcher
from tests.support.stack import Client

MOST_MIB: Final = {"api": 110, "scheduler": 75, "downloader": 75, "agent": 80}
SETTLED_SECONDS: Final = 2.0
PEER: Final = "434–630 MB PSS (its server)"


async def run(*, quick: bool) -> list[Figure]:
    models, chats = (10, 20) if quick else (200, 500)
    async with servers() as these:
        services = {name: await these.spawn(name) for name in ("api", "scheduler", "downloader")}
        services["agent"] = await these.spawn("agent", stop_engines_on_exit=True)
        await asyncio.sleep(SETTLED_SECONDS)
        figures = _figures(services, "just started", "")
        await _work(these.client(services["api"]), models, chats)
        await asyncio.sleep(SETTLED_SECONDS)
        work = f"; {models} models made and deleted, {chats} chats, 2 watchers"
        figures += _figures(services, "after some work", work)
        _, *engine = family(services["agent"].pid)
        figures.append(
            Figure("engine: llama.cpp with tinychat", sum(map(rss_mib, engine)), "MiB", "RSS, not the agent's")
        )
    return figures


def _figures(services: dict[str, Spawned], when: str, work: str) -> list[Figure]:
    return [
        Figure(
            f"{name} alone, {when}",
            rss_mib(spawned.pid),
            "MiB",
            f"RSS; PSS {pss_mib(spawned.pid):.0f} MiB{work}",
            at_most=MOST_MIB[name],
            peer=PEER if name == "api" else "",
        )
        for name, spawned in services.items()
    ]


async def _work(client: Client, models: int, chats: int) -> None:
    await client.deploy("tinychat")
    await client.until_state("/v2/models/tinychat", "ready")
    async with Watcher(client), Watcher(client):
        for number in range(models):
            await client.deploy(f"model-{number}", "/nowhere/model.gguf")
        for _ in range(chats):
            status, answer = await client.ask("tinychat")
            assert status == 200, answer
        for number in range(models):
            await client.request("DELETE", f"/v2/models/model-{number}")
        await client.until("/v2/models", lambda body: len(body["items"]) == 1)

"""What it adds that a worker is reached through the bus: the same engine behind the same gateway, dialled and relayed."""

import asyncio
import time
from dataclasses import dataclass, field
from typing import Any, Final

from bench.figures import Figure, percentile
from bench.processes import cpu_seconds
from bench.servers import servers
from tests.support.stack import Client

WARM_UP: Final = 10
BLOCK: Final = 10
"""Requests the one way before the other's turn, so that both see the same machine."""
STREAMS: Final = 8
QUESTION: Final = [{"role": "user", "content": "Who are you?"}]


@dataclass(slots=True)
class Way:
    model: str
    client: Client
    first_byte: list[float] = field(default_factory=list[float])
    chunks_per_second: list[float] = field(default_factory=list[float])
    failed: int = 0

    async def stream(self) -> int:
        """Chunks."""
        body = {"model": self.model, "messages": QUESTION, "temperature": 0, "stream": True}
        begun = time.perf_counter()
        async with self.client.session.post(f"{self.client.url}/v1/chat/completions", json=body) as answer:
            received = await answer.content.readany()
            self.first_byte.append(time.perf_counter() - begun)
            received += await answer.content.read()
        if answer.status != 200 or not received.rstrip().endswith(b"[DONE]"):
            self.failed += 1
        return received.count(b"data: ")

    async def streams_at_once(self) -> None:
        begun = time.perf_counter()
        chunks = sum(await asyncio.gather(*(self.stream() for _ in range(STREAMS))))
        self.chunks_per_second.append(chunks / (time.perf_counter() - begun))

    def forget(self) -> None:
        """The warm-up, or what was measured under other conditions."""
        self.first_byte.clear()
        self.chunks_per_second.clear()


async def run(*, quick: bool) -> list[Figure]:
    requests, rounds = (50, 5) if quick else (500, 50)
    async with servers(workers=2) as these:
        api = await these.spawn("api")
        await these.spawn("scheduler")
        client = these.client(api)
        agents: list[int] = []
        ways: list[Way] = []
        for number, reach in enumerate(("direct", "relay")):
            await these.spawn("downloader", number=number)
            agents.append((await these.spawn("agent", number=number, reach=reach, stop_engines_on_exit=True)).pid)
            where: dict[str, Any] = {"worker_selector": {"worker-name": f"worker-{number}"}}
            await client.deploy(reach, **where)
            await client.until_state(f"/v2/models/{reach}", "ready")
            ways.append(Way(reach, client))
        dialled, relayed = ways
        for way in ways:
            for _ in range(WARM_UP):
                await way.stream()
            way.forget()
        before = cpu_seconds(agents[1])
        for _ in range(requests // BLOCK):
            for way in ways:
                for _ in range(BLOCK):
                    await way.stream()
        processor = (cpu_seconds(agents[1]) - before) / requests
        first = [(percentile(way.first_byte, 0.5), percentile(way.first_byte, 0.99)) for way in ways]
        for way in ways:
            way.forget()
        for _ in range(rounds):
            for way in ways:
                await way.streams_at_once()
    rates = [percentile(way.chunks_per_second, 0.5) for way in ways]
    failed = dialled.failed + relayed.failed
    return [
        Figure("streams that failed", failed, "", f"of {2 * (requests + WARM_UP + rounds * STREAMS)}", at_most=0),
        *(
            Figure(
                f"relaying adds to the first byte, {which}",
                (first[1][place] - first[0][place]) * 1e3,
                "ms",
                f"{requests} streams each way; dialled {first[0][place] * 1e3:.1f} ms",
            )
            for place, which in enumerate(("p50", "p99"))
        ),
        Figure(
            f"{STREAMS} streams at once, relayed",
            rates[1],
            "chunks/s",
            f"median of {rounds} rounds; dialled {rates[0]:,.0f} chunks/s",
        ),
        Figure("agent's processor time of a relayed stream", processor * 1e3, "ms", "its probes and beats included"),
    ]

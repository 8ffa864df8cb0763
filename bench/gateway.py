"""What `/v1/chat/completions` adds to the engine behind it: latency and processor time, streamed and not."""

import time
from dataclasses import dataclass, field
from typing import Any, Final

import aiohttp

from bench.figures import Figure, percentile
from bench.processes import cpu_seconds, family
from bench.servers import servers

WARM_UP: Final = 10
BLOCK: Final = 10
"""Requests to one before the other's turn, so that both see the same machine."""
QUESTION: Final = [{"role": "user", "content": "Who are you?"}]
STREAMED: Final = "streamed"
ASKED: Final[tuple[tuple[str, dict[str, Any]], ...]] = (("one token", {"max_tokens": 1}), (STREAMED, {"stream": True}))


@dataclass(slots=True)
class Way:
    """One of two ways to the same engine."""

    url: str
    session: aiohttp.ClientSession
    pids: tuple[int, ...]
    """Whose processor time counts."""
    seconds: list[float] = field(default_factory=list[float])
    cpu_seconds: float = 0.0
    chunks: int = 0
    failed: int = 0

    async def ask(self, body: dict[str, Any], requests: int) -> None:
        before = sum(cpu_seconds(pid) for pid in self.pids)
        for _ in range(requests):
            begun = time.perf_counter()
            async with self.session.post(f"{self.url}/v1/chat/completions", json=body) as answer:
                received = await answer.read()
            if answer.status == 200:
                self.seconds.append(time.perf_counter() - begun)
                self.chunks += received.count(b"data: ")
            else:
                self.failed += 1
        self.cpu_seconds += sum(cpu_seconds(pid) for pid in self.pids) - before

    def forget(self) -> None:
        """The warm-up."""
        self.seconds.clear()
        self.cpu_seconds, self.chunks, self.failed = 0.0, 0, 0


async def run(*, quick: bool) -> list[Figure]:
    requests = 50 if quick else 500
    figures: list[Figure] = []
    async with servers() as these, _to_the_engine() as to_engine:
        api = await these.spawn("api")
        await these.spawn("scheduler")
        await these.spawn("downloader")
        agent = await these.spawn("agent", stop_engines_on_exit=True)
        client = these.client(api)
        await client.deploy("tinychat")
        await client.until_state("/v2/models/tinychat", "ready")
        (instance,) = (await client.get("/v2/model-instances"))["items"]
        _, *engine = family(agent.pid)
        for what, more in ASKED:
            direct = Way(f"http://{instance['worker_ip']}:{instance['port']}", to_engine, tuple(engine))
            gateway = Way(client.url, client.session, (api.pid,))
            body = {"model": "tinychat", "messages": QUESTION, "temperature": 0} | more
            for way in (direct, gateway):
                await way.ask(body, WARM_UP)
                way.forget()
            for _ in range(requests // BLOCK):
                for way in (direct, gateway):
                    await way.ask(body, BLOCK)
            figures += _compare(what, direct, gateway)
    return figures


def _to_the_engine() -> aiohttp.ClientSession:
    """A connection a request: llama.cpp's server closes one that it has streamed on, without saying so."""
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True))


def _compare(what: str, direct: Way, gateway: Way) -> list[Figure]:
    requests = len(gateway.seconds)
    added = [percentile(gateway.seconds, share) - percentile(direct.seconds, share) for share in (0.5, 0.99)]
    ratio = percentile(gateway.seconds, 0.5) / percentile(direct.seconds, 0.5)
    streamed = what == STREAMED
    how = f"{requests} samples, {gateway.chunks / requests:.0f} chunks each" if streamed else f"{requests} samples"
    return [
        Figure(f"requests that failed, {what}", gateway.failed, "", f"of {requests + gateway.failed}", at_most=0),
        Figure(
            f"gateway adds, {what}, p50",
            added[0] * 1e3,
            "ms",
            f"{how}; {ratio:.2f} × the engine's {percentile(direct.seconds, 0.5) * 1e3:.1f} ms",
            peer="" if streamed else "4.5 ms",
        ),
        Figure(f"gateway adds, {what}, p99", added[1] * 1e3, "ms", how, peer="" if streamed else "9–15 ms"),
        Figure(
            f"gateway's processor time of a request, {what}",
            gateway.cpu_seconds / (requests + gateway.failed) * 1e3,
            "ms",
            f"{gateway.cpu_seconds / direct.cpu_seconds:.2f} × the engine's own",
            peer="15.6–19.4 ms (64 chunks)" if streamed else "3.8–4.0 ms",
        ),
    ]

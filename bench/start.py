"""`muster up`: until it is ready, until a first token, until it is gone after Ctrl-C, and what its Python holds in memory."""

import asyncio
import os
import signal
import sys
import tempfile
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import aiohttp
import psutil

from bench.figures import Figure, percentile
from bench.processes import family, is_python, pss_mib, rss_mib
from bench.servers import until_ready
from tests.support.stack import KEY, free_port

PAUSE_SECONDS: Final = 0.02
"""Between two looks from outside; the figures are no finer than that."""
SETTLED_SECONDS: Final = 2.0
TIMEOUT_SECONDS: Final = 60.0
MUSTER: Final = Path(sys.executable).with_name("muster")


@dataclass(slots=True)
class Measured:
    """Seconds and MiB, one a start."""

    ready: list[float] = field(default_factory=list[float])
    gone: list[float] = field(default_factory=list[float])
    rss: list[float] = field(default_factory=list[float])
    pss: list[float] = field(default_factory=list[float])
    first_token: list[float] = field(default_factory=list[float])


async def run(*, quick: bool) -> list[Figure]:
    fresh, again, demo = Measured(), Measured(), Measured()
    for _ in range(1 if quick else 5):
        with tempfile.TemporaryDirectory(prefix="muster-bench-") as directory:
            await _start_and_stop(directory, fresh)
            for _ in range(1 if quick else 2):
                await _start_and_stop(directory, again)
        with tempfile.TemporaryDirectory(prefix="muster-bench-") as directory:
            await _start_and_ask(directory, demo)
    return [
        _median("`muster up` to ready, first time in an empty directory", fresh.ready, at_most=6, peer="15–22 s"),
        _median("`muster up` to ready, later", again.ready, at_most=3, peer="15–22 s"),
        _median("`muster up --demo` to the first streamed token, first time", demo.first_token, at_most=10),
        _median("Ctrl-C to everything gone", fresh.gone + again.gone, at_most=5),
        _median("Ctrl-C to everything gone, with an engine", demo.gone, at_most=5),
        Figure(
            "all Python of `muster up`",
            max(fresh.rss + again.rss),
            "MiB",
            f"RSS, the largest of {len(fresh.rss + again.rss)}; PSS {max(fresh.pss + again.pss):.0f} MiB",
            at_most=250,
            peer="434–630 MB PSS",
        ),
    ]


def _median(what: str, seconds: list[float], *, at_most: float, peer: str = "") -> Figure:
    conditions = f"median of {len(seconds)}, worst {max(seconds):.2f} s"
    return Figure(what, percentile(seconds, 0.5), "s", conditions, at_most=at_most, peer=peer)


async def _start_and_stop(directory: str, measured: Measured) -> None:
    async with _up(directory) as up:
        await up.until_worker_ready()
        measured.ready.append(time.perf_counter() - up.begun)
        await asyncio.sleep(SETTLED_SECONDS)
        python = [pid for pid in family(up.process.pid) if is_python(pid)]
        measured.rss.append(sum(map(rss_mib, python)))
        measured.pss.append(sum(map(pss_mib, python)))
        measured.gone.append(await up.interrupt())


async def _start_and_ask(directory: str, measured: Measured) -> None:
    async with _up(directory, "--demo") as up:
        await up.until_first_token()
        measured.first_token.append(time.perf_counter() - up.begun)
        measured.gone.append(await up.interrupt())


@dataclass(frozen=True, slots=True)
class Up:
    process: asyncio.subprocess.Process
    url: str
    session: aiohttp.ClientSession
    begun: float

    async def until_worker_ready(self) -> None:
        """The api answers, and this machine takes instances: every service has done its part."""
        await until_ready(self.url, self.process, pause_seconds=PAUSE_SECONDS)
        async with asyncio.timeout(TIMEOUT_SECONDS):
            while True:
                async with self.session.get(f"{self.url}/v2/workers") as answer:
                    workers = (await answer.json())["items"] if answer.status == 200 else []
                if any(worker["state"] == "ready" for worker in workers):
                    return
                await asyncio.sleep(PAUSE_SECONDS)

    async def until_first_token(self) -> None:
        """Ask until the answer begins with text."""
        await until_ready(self.url, self.process, pause_seconds=PAUSE_SECONDS)
        body = {"model": "tinychat", "stream": True, "messages": [{"role": "user", "content": "Who are you?"}]}
        async with asyncio.timeout(TIMEOUT_SECONDS):
            while True:
                async with self.session.post(f"{self.url}/v1/chat/completions", json=body) as answer:
                    if answer.status == 200:
                        async for line in answer.content:
                            if b'"content":"' in line and b'"content":""' not in line:
                                return
                await asyncio.sleep(PAUSE_SECONDS)

    async def interrupt(self) -> float:
        """Ctrl-C; seconds until nothing of it is left. Raises TimeoutError."""
        everyone = [psutil.Process(pid) for pid in family(self.process.pid)]
        begun = time.perf_counter()
        self.process.send_signal(signal.SIGINT)
        async with asyncio.timeout(TIMEOUT_SECONDS):
            await self.process.wait()
            while any(map(_lives, everyone)):  # noqa: ASYNC110 - other processes set no event
                await asyncio.sleep(PAUSE_SECONDS)
        return time.perf_counter() - begun


@asynccontextmanager
async def _up(directory: str, *flags: str) -> AsyncGenerator[Up]:
    """Started, in a session of its own; ended with all its children whatever happens."""
    port = free_port()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MUSTER_")}
    command = [MUSTER, "up", "--data-dir", f"{directory}/data", "--port", str(port), *flags]
    begun = time.perf_counter()
    process = await asyncio.create_subprocess_exec(
        *command,
        env=environment | {"MUSTER_API_KEY": KEY},
        stdout=asyncio.subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        async with aiohttp.ClientSession(headers={"authorization": f"Bearer {KEY}"}) as session:
            yield Up(process, f"http://127.0.0.1:{port}", session, begun)
    finally:
        if process.returncode is None:
            for pid in reversed(family(process.pid)):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            await process.wait()


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False

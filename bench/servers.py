"""A Muster to be measured: real servers in a temporary directory, each service a process of its own."""

import asyncio
import tempfile
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import aiohttp

from kernel.log.jetstream import JetStreamLog
from kernel.log.port import Draft
from services.up.embedded_postgres import EmbeddedPostgres
from tests.support.stack import Bench, Client, Stack, free_port

READY_SECONDS: Final = 60.0
STOP_SECONDS: Final = 10.0
MOST_IN_AN_APPEND: Final = 500


@dataclass(frozen=True, slots=True)
class Spawned:
    """A service that runs and is ready."""

    process: asyncio.subprocess.Process
    port: int
    """Where it answers /readyz; for the api also everything else."""

    @property
    def pid(self) -> int:
        return self.process.pid


@dataclass(frozen=True, slots=True)
class Servers:
    stack: Stack
    postgres: EmbeddedPostgres
    databases: Bench
    spawned: list[Spawned] = field(default_factory=list[Spawned])

    async def spawn(self, service: str, **settings: Any) -> Spawned:
        """`python -m services.<service>`, ready."""
        port = free_port()
        where = {"port": port} if service == "api" else {"health_port": port}
        process = await self.stack.spawn(service, **where, **settings)
        self.spawned.append(Spawned(process, port))
        await until_ready(f"http://127.0.0.1:{port}", process)
        return self.spawned[-1]

    async def stop(self) -> None:
        """In order, so that an agent takes its engines with it; what takes too long is killed with the servers."""
        running = [each.process for each in self.spawned if each.process.returncode is None]
        for process in running:
            process.terminate()
        with suppress(TimeoutError):
            async with asyncio.timeout(STOP_SECONDS):
                await asyncio.gather(*(process.wait() for process in running))

    def client(self, api: Spawned) -> Client:
        return self.stack.client(api.port)

    def pids(self, **services: Spawned) -> dict[str, int]:
        """For a CpuMeter: these services and both servers."""
        return {name: spawned.pid for name, spawned in services.items()} | {
            "nats-server": self.stack.nats.pid,
            "postgres": self.postgres.pid,
        }

    async def append(self, drafts: Sequence[Draft]) -> None:
        """Store many facts as fast as the server takes them, in order."""
        log = JetStreamLog(await self.stack.bus("operator"))
        for start in range(0, len(drafts), MOST_IN_AN_APPEND):
            await log.append(drafts[start : start + MOST_IN_AN_APPEND])


@asynccontextmanager
async def servers(*, workers: int = 1, simulator: bool = False) -> AsyncGenerator[Servers]:
    """An empty log and an empty database."""
    with tempfile.TemporaryDirectory(prefix="muster-bench-") as name:
        directory = Path(name)
        async with EmbeddedPostgres(directory / "postgres") as postgres:
            databases = Bench(directory, postgres)
            async with Stack(
                directory / "stack", await databases.new_database(), workers=workers, simulator=simulator
            ) as stack:
                these = Servers(stack, postgres, databases)
                try:
                    yield these
                finally:
                    await these.stop()


async def until_ready(url: str, process: asyncio.subprocess.Process, *, pause_seconds: float = 0.02) -> None:
    """Raises RuntimeError when the process ends first, TimeoutError when it takes too long."""
    async with asyncio.timeout(READY_SECONDS), aiohttp.ClientSession() as session:
        while True:
            try:
                async with session.get(f"{url}/readyz") as answer:
                    if answer.status == 200:
                        return
            except aiohttp.ClientError:
                pass
            if process.returncode is not None:
                raise RuntimeError(f"the process at {url} ended with {process.returncode} before it was ready")
            await asyncio.sleep(pause_seconds)

"""A whole Muster of which every part is a process that can be killed: services, nats-server, PostgreSQL."""

import asyncio
import os
import random
import signal
from typing import Any, Final, Literal

from services.up.embedded_postgres import EmbeddedPostgres
from tests.chaos.writers import Writer
from tests.support.stack import Client, Stack, free_port

Part = Literal["api", "scheduler", "agent", "downloader", "nats", "postgres"]
SERVICES: Final[tuple[Part, ...]] = ("scheduler", "downloader", "agent", "api")


class Deployment:
    """`stack` has started its nats-server; `postgres` is given when it may be killed."""

    def __init__(self, stack: Stack, postgres: EmbeddedPostgres | None = None, **settings: dict[str, Any]) -> None:
        self.stack = stack
        self.postgres = postgres
        self.port = free_port()
        self._settings = settings
        self._processes: dict[Part, asyncio.subprocess.Process] = {}
        self._down: set[Part] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def parts(self) -> tuple[Part, ...]:
        return (*SERVICES, "nats", "postgres") if self.postgres is not None else (*SERVICES, "nats")

    def client(self) -> Client:
        return self.stack.client(self.port)

    async def start(self) -> None:
        for service in SERVICES:
            await self._start(service)

    def process(self, part: Part) -> asyncio.subprocess.Process:
        return self._processes[part]

    async def kill(self, part: Part) -> None:
        """As the kernel does when memory is short: without a word."""
        self._down.add(part)
        match part:
            case "nats":
                os.kill(self.stack.nats.pid, signal.SIGKILL)
                await asyncio.wait({self.stack.nats.exited})
            case "postgres":
                assert self.postgres is not None
                os.kill(self.postgres.pid, signal.SIGKILL)
                await asyncio.wait({self.postgres.exited})
            case _:
                self._processes[part].kill()
                await self._processes[part].wait()

    async def bring_back(self, part: Part) -> None:
        self._down.discard(part)
        match part:
            case "nats":
                await self.stack.nats.restart()
            case "postgres":
                assert self.postgres is not None
                await self.postgres.stop()
                await self.postgres.start()
            case _:
                await self._start(part)

    async def bring_all_back(self) -> None:
        for part in sorted(self._down, key=("nats", "postgres", *SERVICES).index):
            await self.bring_back(part)

    def writers(self, count: int, dice: random.Random) -> list[Writer]:
        return [Writer(f"writer{n}", lambda: self.url, random.Random(dice.random())) for n in range(count)]

    async def _start(self, service: Part) -> None:
        settings = self._settings.get(service, {})
        if service == "api":
            if "postgres" in self._down or "nats" in self._down:
                self._processes[service] = await self.stack.spawn("api", port=self.port, **settings)
            else:
                self._processes[service], _ = await self.stack.spawn_api(port=self.port, **settings)
        else:
            self._processes[service] = await self.stack.spawn(service, **settings)

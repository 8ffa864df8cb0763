"""The command as a process of its own, against a whole Muster in this one."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import orjson
import pytest_asyncio

from tests.support.stack import KEY, Bench, Client, Stack

MUSTER = Path(sys.executable).with_name("muster")
MACHINE = {"cpu_count": 4, "memory_total": 8 * 2**30, "backends": {"llama.cpp": "1.2.3"}}
"""What the worker says that it has, wherever the tests run."""


class Done(NamedTuple):
    code: int
    said: str
    trouble: str

    @property
    def json(self) -> Any:
        return orjson.loads(self.said)


@dataclass(frozen=True, slots=True)
class Fleet:
    """A worker; `tinychat` runs, `huge` fits nowhere, `broken` ends as soon as it starts."""

    stack: Stack
    client: Client

    @property
    def environment(self) -> dict[str, str]:
        return {"MUSTER_URL": self.client.url, "MUSTER_API_KEY": KEY, "COLUMNS": "200", "NO_COLOR": "1", "TZ": "UTC"}

    async def start(self, *arguments: str, **environment: str) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            MUSTER,
            *arguments,
            env={**os.environ, **self.environment, **environment},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            cwd=self.stack.directory,
            limit=2**24,
        )

    async def run(self, *arguments: str, **environment: str) -> Done:
        process = await self.start(*arguments, **environment)
        said, trouble = await process.communicate()
        assert process.returncode is not None
        return Done(process.returncode, said.decode(), trouble.decode())


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def fleet(bench: Bench) -> AsyncIterator[Fleet]:
    async with Stack(bench.directory / "cli", await bench.new_database()) as stack:
        (stack.directory / "machine.json").write_bytes(orjson.dumps(MACHINE))
        await stack.start_all(inventory=stack.directory / "machine.json")
        client = stack.client()
        await client.until("/v2/workers", lambda workers: [w["state"] for w in workers["items"]] == ["ready"])
        await client.deploy("tinychat")
        await client.until_state("/v2/models/tinychat", "ready")
        await client.deploy("huge", backend_parameters=["--ctx-size=16777216"])
        await client.deploy("broken", backend_parameters=["--nonsense"], restart_on_error=False)
        huge = (await client.get("/v2/model-instances?model=huge"))["items"][0]["id"]
        await client.until(f"/v2/model-instances/{huge}", lambda i: bool(i["suggestions"]))
        await client.until_state("/v2/model-instances/broken-0", "error")
        yield Fleet(stack, client)

"""Agents that come and go, and engines that are a few lines of Python."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

from schemas.ids import InstanceId
from services.agent.adapters.local_process import LocalProcessRuntime
from services.agent.domain.runtime import ContainerRuntime, EngineCommand, EngineExit, EngineId, RunningEngine

REPOSITORY = Path(__file__).parents[3]
GUARD_SECONDS = 30.0
"""Only a broken machine makes a test wait this long."""

AGENT = """
import asyncio, json, sys
from pathlib import Path
from services.agent.domain.runtime import EngineCommand, EngineId
{how}

async def main():
    directory, instance_id, attempt, command, details = json.loads(sys.argv[1])
    runtime = a_runtime(Path(directory))
    command["argv"] = tuple(command["argv"])
    engine = await runtime.start(EngineId(instance_id, attempt), EngineCommand(**command), details)
    print(engine.handle, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


PROCESSES = "from services.agent.adapters.local_process import LocalProcessRuntime as a_runtime"


@dataclass
class Agents:
    """Runtimes on one machine: agents that come and go, and one directory in which they find each other's engines."""

    directory: Path
    binds_to: str = "127.0.0.1"
    """Where engines listen to be reached."""
    how: str = PROCESSES
    """Lines of Python that give another process its `a_runtime(directory)`."""
    _open: list[ContainerRuntime] = field(default_factory=list[ContainerRuntime])

    def a_runtime(self) -> ContainerRuntime:
        runtime = self._make()
        self._open.append(runtime)
        return runtime

    def _make(self) -> ContainerRuntime:
        return LocalProcessRuntime(self.directory)

    def start_and_be_killed(self, engine: EngineId, command: EngineCommand, details: Mapping[str, object]) -> int | str:
        """Another agent process starts the engine and is killed with SIGKILL; the engine's handle."""
        parts = [
            str(self.directory),
            engine.instance_id,
            engine.attempt,
            {
                "argv": command.argv,
                "env": dict(command.env),
                "program": command.program,
                "health_path": command.health_path,
                "port": command.port,
            },
            dict(details),
        ]
        script = AGENT.replace("{how}", self.how)
        agent = subprocess.Popen(
            [sys.executable, "-c", script, json.dumps(parts)],
            stdout=subprocess.PIPE,
            text=True,
            cwd=REPOSITORY,
        )
        with agent:
            assert agent.stdout is not None
            handle = agent.stdout.readline().strip()
            agent.kill()
        return int(handle) if handle.isdecimal() else handle

    def lives(self, handle: int | str) -> bool:
        return alive(int(handle))

    def lives_in(self, engine: RunningEngine, pid: int) -> bool:
        """A process of the engine, with the number that it knows itself by."""
        del engine
        return alive(pid)

    def kill(self, handle: int | str) -> None:
        kill(handle)

    def http(self) -> aiohttp.ClientSession:
        """To talk to its engines."""
        return aiohttp.ClientSession()

    async def end(self) -> None:
        last = self.a_runtime()
        for running in await last.list():
            await last.stop(running.id, 0)
        for runtime in self._open:
            await runtime.close()


def an_id(attempt: int = 1, instance: str = "i-1") -> EngineId:
    return EngineId(InstanceId(instance), attempt)


def a_script(script: str, *arguments: str, port: int = 9, **env: str) -> EngineCommand:
    """An engine that is a few lines of Python. It says what it has to say in its log."""
    argv = (sys.executable, "-u", "-c", script, *arguments)
    return EngineCommand(argv=argv, env=env, program="script", health_path="/health", port=port)


SLEEPER = "import time; print('ready'); time.sleep(600)"


async def log_of(runtime: ContainerRuntime, engine: EngineId, lines: int) -> tuple[str, ...]:
    """The log, once it has that many lines."""
    async with asyncio.timeout(GUARD_SECONDS):
        while True:
            if len(log := await runtime.log_tail(engine, 200)) >= lines:
                return log
            await asyncio.sleep(0.005)


async def next_exit(runtime: ContainerRuntime) -> EngineExit:
    async with asyncio.timeout(GUARD_SECONDS):
        return await anext(aiter(runtime.exits()))


def alive(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


def kill(handle: int | str, number: signal.Signals = signal.SIGKILL) -> None:
    os.kill(int(handle), number)

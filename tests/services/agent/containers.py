"""Agents that run engines in containers of the tests' own Docker Engine."""

import ctypes
import os
import socket
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import aiohttp
from docker.errors import NotFound

from services.agent.adapters.docker import DockerRuntime, connect
from services.agent.domain.runtime import Container, ContainerRuntime, EngineCommand, EngineId, Mount, RunningEngine
from tests.services.agent.engines import REPOSITORY, Agents
from tests.support.docker_engine import IMAGE, DockerEngine

WORKER: Final = "w-test"
CLONE_NEWNET: Final = 0x40000000
"""`man 2 setns`."""


def mounts() -> tuple[Mount, ...]:
    """What the engines of the tests are made of: the machine's programs, its Python, this repository."""
    python = Path(sys.base_prefix)
    paths = {Path("/usr"), REPOSITORY, Path(sys.prefix).resolve()} | (
        {python} if not python.is_relative_to("/usr") else set()
    )
    return tuple(Mount(str(path)) for path in sorted(paths))


class TestedRuntime(DockerRuntime):
    """Commands without an image get the tests' own."""

    __test__ = False

    async def start(self, engine: EngineId, command: EngineCommand, details: Mapping[str, object]) -> RunningEngine:
        if command.container is None:
            command = replace(command, container=Container(image=IMAGE, mounts=mounts()))
        return await super().start(engine, command, details)


HOW: Final = """
from tests.services.agent.containers import TestedRuntime, WORKER
a_runtime = lambda directory: TestedRuntime(directory, WORKER, base_url="{url}")
"""


@dataclass
class Containers(Agents):
    engine: DockerEngine = field(kw_only=True)

    def __post_init__(self) -> None:
        self.binds_to = "0.0.0.0"
        self.how = HOW.replace("{url}", self.engine.url)

    def _make(self) -> ContainerRuntime:
        return TestedRuntime(self.directory, WORKER, base_url=self.engine.url)

    def lives(self, handle: int | str) -> bool:
        return bool(self._state(handle).get("Running"))

    def lives_in(self, engine: RunningEngine, pid: int) -> bool:
        """They all end with the container, whose first process is not theirs."""
        del pid
        return self.lives(engine.handle)

    def kill(self, handle: int | str) -> None:
        os.kill(self._state(handle)["Pid"], 9)

    def http(self) -> aiohttp.ClientSession:
        def in_their_network(address: Any) -> socket.socket:
            family, kind, protocol, _, _ = address
            made: list[socket.socket] = []

            def make() -> None:
                with Path(f"/proc/{self.engine.holder}/ns/net").open("rb") as namespace:
                    if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), CLONE_NEWNET):
                        raise OSError(ctypes.get_errno(), "setns")
                made.append(socket.socket(family, kind, protocol))

            thread = threading.Thread(target=make)  # only it leaves our network
            thread.start()
            thread.join()
            made[0].settimeout(0)
            return made[0]

        return aiohttp.ClientSession(connector=aiohttp.TCPConnector(socket_factory=in_their_network))

    async def end(self) -> None:
        await super().end()
        client = connect(self.engine.url)
        for each in client.containers(all=True):
            client.remove_container(each["Id"], force=True)
        client.close()

    def _state(self, handle: int | str) -> dict[str, Any]:
        client = connect(self.engine.url)
        try:
            return client.inspect_container(str(handle))["State"]
        except NotFound:
            return {}
        finally:
            client.close()

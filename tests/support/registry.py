"""A real registry in the network of the tests' Docker Engine, and a door to it that lets through only so much a second."""

import asyncio
import subprocess
import time
from collections.abc import AsyncGenerator, Generator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from docker.errors import ImageNotFound

from services.agent.adapters.docker import connect
from tests.support.docker_engine import DockerEngine

PORT: Final = 5005
SLOW_PORT: Final = 5006
START_SECONDS: Final = 10
CONFIG: Final = """
version: 0.1
storage: {filesystem: {rootdirectory: %s}}
http: {addr: "127.0.0.1:%d"}
"""


@dataclass(frozen=True)
class Registry:
    engine: DockerEngine
    port: int = PORT

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def holds(self, name: str, files: Mapping[str, bytes]) -> str:
        """An image `name` (with its tag) of these files is in it, and in no Docker Engine; what it is called there."""
        repository, _, tag = name.partition(":")
        self.engine.make_image(name, files)
        return self.push(name, repository, tag)

    def push(self, image: str, repository: str, tag: str) -> str:
        client = connect(self.engine.url)
        there = f"{self.address}/{repository}"
        try:
            client.tag(image, there, tag)
            ends = time.monotonic() + START_SECONDS
            while "digest:" not in (said := client.push(there, tag)):
                assert time.monotonic() < ends, said
                time.sleep(0.1)
        finally:
            client.close()
        self.forget(image, f"{there}:{tag}")
        return f"{there}:{tag}"

    def forget(self, *images: str) -> None:
        """By the Docker Engine."""
        client = connect(self.engine.url)
        for image in images:
            with suppress(ImageNotFound):
                client.remove_image(image, force=True)
        client.close()


@contextmanager
def registry_of(engine: DockerEngine, directory: Path, port: int = PORT) -> Generator[Registry]:
    """Raises FileNotFoundError where `docker-registry` is not installed."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.yml").write_text(CONFIG % (directory / "data", port), encoding="utf-8")
    with (directory / "log").open("wb") as log:
        server = subprocess.Popen(
            [
                "nsenter",
                f"--net=/proc/{engine.holder}/ns/net",
                "docker-registry",
                "serve",
                str(directory / "config.yml"),
            ],
            stdout=log,
            stderr=log,
        )
    try:
        yield Registry(engine, port)
    finally:
        server.terminate()
        server.wait()


@asynccontextmanager
async def slow_door(registry: Registry, bytes_per_second: int, port: int = SLOW_PORT) -> AsyncGenerator[str]:
    """The same registry under another address; for tests that are in the Docker Engine's network."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            inside, out = await asyncio.open_connection("127.0.0.1", registry.port)
            try:
                await asyncio.gather(_carry(reader, out, None), _carry(inside, writer, bytes_per_second))
            finally:
                out.close()
                writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", port)
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.close()


async def _carry(source: asyncio.StreamReader, sink: asyncio.StreamWriter, bytes_per_second: int | None) -> None:
    with suppress(OSError):
        while block := await source.read(64 * 1024):
            sink.write(block)
            await sink.drain()
            if bytes_per_second is not None:
                await asyncio.sleep(len(block) / bytes_per_second)
    with suppress(OSError):
        sink.write_eof()

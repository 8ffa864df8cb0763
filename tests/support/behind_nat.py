"""A machine that can be dialled by nobody: a network namespace of its own, from which NATS is reached and nothing else.

As a program (in the namespace): `behind_nat.py SOCKET PORT ADDRESS COMMAND …` brings up the loopback device with this address,
takes connections to 127.0.0.1:PORT to the Unix socket, and becomes the command.
"""

import asyncio
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

UNSHARE: Final = ("unshare", "--net") if os.getuid() == 0 else ("unshare", "--user", "--map-root-user", "--net")
IP: Final = shutil.which("ip", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin") or "ip"
BLOCK: Final = 65536


def why_not() -> str | None:
    """Why no namespace can be made here."""
    try:
        subprocess.run([*UNSHARE, IP, "link", "set", "lo", "up"], check=True, capture_output=True, timeout=20)
    except (OSError, subprocess.SubprocessError) as error:
        return f"no network namespace: {error}"
    return None


@asynccontextmanager
async def way_to(nats_url: str, socket: Path, address: str) -> AsyncGenerator[tuple[str, ...]]:
    """What starts a command in such a namespace, with NATS at the address and port that it has here."""
    where = urlsplit(nats_url)

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await _join(reader, writer, *await asyncio.open_connection(where.hostname, where.port))

    server = await asyncio.start_unix_server(connected, socket)
    try:
        yield (*UNSHARE, sys.executable, "-I", str(Path(__file__)), str(socket), str(where.port), address)
    finally:
        server.close()


async def _join(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    other_reader: asyncio.StreamReader,
    other_writer: asyncio.StreamWriter,
) -> None:
    async def copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while block := await source.read(BLOCK):
                target.write(block)
                await target.drain()
        target.close()

    await asyncio.gather(copy(reader, other_writer), copy(other_reader, writer))


async def _serve(socket: str, port: int, ready: int) -> None:
    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await _join(reader, writer, *await asyncio.open_unix_connection(socket))

    async with await asyncio.start_server(connected, "127.0.0.1", port) as server:
        os.write(ready, b".")
        await server.serve_forever()


def main(socket: str, port: str, address: str, *command: str) -> None:
    subprocess.run([IP, "link", "set", "lo", "up"], check=True)
    subprocess.run([IP, "address", "add", f"{address}/32", "dev", "lo"], check=False, capture_output=True)
    agent = os.getpid()
    reading, ready = os.pipe()
    if os.fork() == 0:
        os.close(reading)

        async def until_it_ends() -> None:
            serving = asyncio.create_task(_serve(socket, int(port), ready))
            while os.getppid() == agent:  # noqa: ASYNC110 - the system tells nobody
                await asyncio.sleep(0.1)
            serving.cancel()

        with suppress(asyncio.CancelledError):
            asyncio.run(until_it_ends())
        os._exit(0)
    os.close(ready)
    os.read(reading, 1)
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Against the real nats-server."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import nats
import pytest
from nats.js import JetStreamContext

from services.up.child import ServerFailed, command_of
from services.up.embedded_nats import EmbeddedNats

REPOSITORY = Path(__file__).parents[3]
PARENT = """
import asyncio, sys
from pathlib import Path
from services.up.embedded_nats import EmbeddedNats

async def main():
    server = EmbeddedNats(Path(sys.argv[1]), log_file=Path(sys.argv[2]))
    await server.start()
    print(server.pid, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


def a_server(directory: Path, *, more: str = "", jetstream: bool = True) -> EmbeddedNats:
    config = directory / "nats.conf"
    store = f'jetstream {{ store_dir: "{directory}/jetstream" }}' if jetstream else ""
    config.write_text(f'listen: "127.0.0.1:-1"\nhttp: "127.0.0.1:-1"\n{store}\n{more}\n')
    return EmbeddedNats(config, log_file=directory / "nats.log")


@asynccontextmanager
async def jetstream(server: EmbeddedNats) -> AsyncGenerator[JetStreamContext]:
    connection = await nats.connect(server.url, allow_reconnect=False)
    try:
        yield connection.jetstream()
    finally:
        await connection.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 - another process sets no event
            await asyncio.sleep(0.01)


async def greeting(server: EmbeddedNats) -> str:
    reader, writer = await asyncio.open_connection("127.0.0.1", int(server.url.rpartition(":")[2]))
    try:
        return (await reader.readline()).decode()
    finally:
        writer.close()
        await writer.wait_closed()


async def test_a_started_server_keeps_streams(tmp_path: Path) -> None:
    async with a_server(tmp_path) as server, jetstream(server) as js:
        await js.add_stream(name="FACTS", subjects=["facts.>"])
        assert (await js.publish("facts.one", b"1")).seq == 1
        assert server.monitoring_url is not None
        assert server.websocket_url is None


async def test_what_was_stored_is_there_at_the_next_start(tmp_path: Path) -> None:
    server = a_server(tmp_path)
    async with server, jetstream(server) as js:
        await js.add_stream(name="FACTS", subjects=["facts.>"])
        await js.publish("facts.one", b"1")
    async with server, jetstream(server) as js:
        assert (await js.get_msg("FACTS", 1)).data == b"1"


@pytest.mark.parametrize("kill", [False, True])
async def test_a_restart_keeps_the_port_and_what_was_stored(tmp_path: Path, *, kill: bool) -> None:
    async with a_server(tmp_path) as server:
        async with jetstream(server) as js:
            await js.add_stream(name="FACTS", subjects=["facts.>"])
            await js.publish("facts.one", b"1")
        pid, url = server.pid, server.url
        await server.restart(kill=kill)
        assert (server.pid != pid, server.url) == (True, url)
        async with jetstream(server) as js:
            assert (await js.get_msg("FACTS", 1)).data == b"1"


async def test_stopping_ends_the_server_properly(tmp_path: Path) -> None:
    server = a_server(tmp_path)
    await server.start()
    pid, exited = server.pid, server.exited
    await server.stop()
    assert (exited.result(), command_of(pid)) == (0, [])
    with pytest.raises(RuntimeError, match="doesn't run"):
        _ = server.url


async def test_a_server_that_ends_by_itself_is_noticed(tmp_path: Path) -> None:
    async with a_server(tmp_path) as server:
        os.kill(server.pid, signal.SIGKILL)
        assert await server.exited == -signal.SIGKILL


async def test_a_changed_configuration_is_in_force_after_a_reload(tmp_path: Path) -> None:
    async with a_server(tmp_path) as server:
        url = server.url
        assert "auth_required" not in await greeting(server)
        a_server(tmp_path, more="authorization { token: secret }")
        await server.reload()
        assert '"auth_required":true' in await greeting(server)
        connection = await nats.connect(url, token="secret", allow_reconnect=False)
        await connection.close()
        await server.restart()
        await server.reload()
        assert server.url == url


async def test_a_refused_configuration_says_why_and_the_server_goes_on(tmp_path: Path) -> None:
    async with a_server(tmp_path) as server:
        a_server(tmp_path, more="accounts {")
        with pytest.raises(ServerFailed, match=r"refused .*nats\.conf: Parse error"):
            await server.reload()
        async with jetstream(server) as js:
            assert await js.streams_info() == []


async def test_a_configuration_that_cannot_be_read_is_explained_by_the_log(tmp_path: Path) -> None:
    server = a_server(tmp_path, more="accounts {")
    with pytest.raises(ServerFailed) as failure:
        await server.start()
    assert failure.value.sentence.startswith("nats-server ended before it was ready (exit status 1).")
    assert "Parse error" in failure.value.log_tail


async def test_a_server_without_jetstream_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ServerFailed, match="without JetStream"):
        await a_server(tmp_path, jetstream=False).start()


async def test_a_second_server_on_the_same_directory_is_refused_and_the_first_goes_on(tmp_path: Path) -> None:
    async with a_server(tmp_path) as server:
        with pytest.raises(ServerFailed, match="Another `muster up` runs on"):
            await a_server(tmp_path).start()
        async with jetstream(server) as js:
            assert await js.streams_info() == []


async def test_no_server_outlives_a_parent_that_was_killed(tmp_path: Path) -> None:
    server = a_server(tmp_path)
    command = [sys.executable, "-c", PARENT, str(server.config_file), str(server.log_file)]
    parent = await asyncio.create_subprocess_exec(*command, cwd=REPOSITORY, stdout=subprocess.PIPE)
    assert parent.stdout is not None
    pid = int(await parent.stdout.readline())
    assert command_of(pid)
    parent.kill()
    await parent.wait()
    await until(lambda: not command_of(pid))


async def test_a_server_that_a_killed_run_left_behind_is_ended_first(tmp_path: Path) -> None:
    former, later = a_server(tmp_path), a_server(tmp_path)
    await former.start()
    (tmp_path / "nats-server.lock").unlink()  # as if the process that held it had ended
    async with later:
        assert former.exited.done()
        assert later.pid != former.pid
    await former.stop()

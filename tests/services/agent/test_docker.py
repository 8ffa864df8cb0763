"""What only engines in containers have: images, a Docker Engine that comes and goes, a locked-down world."""

import asyncio
import gc
import json
import os
import signal
import tempfile
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from docker.errors import APIError

from schemas.reasons import ContainerNotStarted, DevicesNotAvailable, ImageForAnotherPlatform, ImageNotFound, PortInUse
from services.agent.adapters.docker import DockerRuntime, connect
from services.agent.domain.runtime import (
    Container,
    ContainerRuntime,
    DeviceRequest,
    EngineCommand,
    EngineNotStarted,
    GpuAccess,
    Mount,
    Needs,
)
from tests.services.agent.containers import Containers, mounts
from tests.services.agent.engines import GUARD_SECONDS, SLEEPER, a_script, an_id, log_of, next_exit
from tests.support.docker_engine import IMAGE, DockerEngine

pytestmark = pytest.mark.docker

TELL = """
import json, os, sys
def tried(what):
    try:
        what()
    except OSError as error:
        return os.strerror(error.errno)
    return "done"
status = dict(line.split(":\\t", 1) for line in open("/proc/self/status").read().splitlines() if ":\\t" in line)
print(json.dumps({
    "capabilities": int(status["CapEff"], 16),
    "no_new_privileges": status["NoNewPrivs"],
    "root": tried(lambda: open("/written", "w")),
    "tmp": tried(lambda: open("/tmp/written", "w")),
    "weights": tried(lambda: open(sys.argv[1] + "/written", "w")),
    "read": open(sys.argv[1] + "/weights").read(),
    "shm": os.statvfs("/dev/shm").f_blocks * os.statvfs("/dev/shm").f_frsize,
    "sock": os.path.exists("/var/run/docker.sock"),
    "processes": len([name for name in os.listdir("/proc") if name.isdecimal()]),
}))
"""


@pytest.fixture
async def agents(docker_engine: DockerEngine, tmp_path: Path) -> AsyncIterator[Containers]:
    agents = Containers(tmp_path / "engines", engine=docker_engine)
    yield agents
    await agents.end()


def a_container(**changes: Any) -> Container:
    return replace(Container(image=IMAGE, mounts=mounts()), **changes)


def in_container(script: str, *arguments: str, port: int = 4711, **changes: Any) -> EngineCommand:
    return replace(a_script(script, *arguments, port=port), container=a_container(**changes))


# -- a locked-down world ----------------------------------------------------------------------------------------------


async def test_an_engine_can_read_its_weights_and_write_where_nobody_else_reads(
    runtime: ContainerRuntime, tmp_path: Path
) -> None:
    weights = tmp_path / "models"
    weights.mkdir()
    (weights / "weights").write_text("1 2 3", encoding="utf-8")
    command = in_container(TELL, str(weights), mounts=(*mounts(), Mount(str(weights))), shm_bytes=64 * 2**20)
    await runtime.start(an_id(), command, {})
    (line,) = (await next_exit(runtime)).log_tail

    assert json.loads(line) == {
        "capabilities": 0,
        "no_new_privileges": "1",
        "root": "Read-only file system",
        "tmp": "done",
        "weights": "Read-only file system",
        "read": "1 2 3",
        "shm": 64 * 2**20,
        "sock": False,
        "processes": 2,  # it, and the first one, which takes up orphans
    }


async def test_an_engine_gets_what_its_backend_declares_and_nothing_else(
    runtime: ContainerRuntime, tmp_path: Path
) -> None:
    (tmp_path / "weights").touch()
    needs = Needs(capabilities=("IPC_LOCK",), writable_root=True)
    command = in_container(TELL, str(tmp_path), mounts=(*mounts(), Mount(str(tmp_path))), needs=needs)
    await runtime.start(an_id(), command, {})
    told = json.loads((await next_exit(runtime)).log_tail[0])
    assert (told["capabilities"], told["root"], told["weights"]) == (1 << 14, "done", "Read-only file system")


async def test_an_engine_that_takes_more_memory_than_it_may_is_killed_and_it_is_known_why(
    runtime: ContainerRuntime,
) -> None:
    greedy = "print('before', flush=True); held = [bytearray(2**20) for _ in range(200)]; print('after')"
    await runtime.start(an_id(), in_container(greedy, memory_bytes=64 * 2**20), {})
    ended = await next_exit(runtime)
    assert (ended.ended_by, ended.log_tail) == ("memory", ("before",))


async def test_an_engine_that_forks_without_end_is_held(runtime: ContainerRuntime) -> None:
    forks = """
import os, time
made = 0
try:
    while made < 1000:
        if os.fork() == 0:
            time.sleep(600)
        made += 1
except BlockingIOError:
    print(made < 100)
"""
    await runtime.start(an_id(), in_container(forks, pids=50), {})
    assert (await next_exit(runtime)).log_tail == ("True",)


# -- what is refused --------------------------------------------------------------------------------------------------


async def test_an_image_that_is_not_there_is_a_reason(runtime: ContainerRuntime) -> None:
    with pytest.raises(EngineNotStarted) as refusal:
        await runtime.start(an_id(), in_container(SLEEPER, image="nobody/made-this:1"), {})
    assert refusal.value.reasons == (ImageNotFound(image="nobody/made-this:1"),)


async def test_an_image_for_other_processors_is_a_reason_and_leaves_nothing_behind(
    agents: Containers, runtime: ContainerRuntime
) -> None:
    agents.engine.make_foreign_image("foreign:1", "s390x")
    with pytest.raises(EngineNotStarted) as refusal:
        await runtime.start(an_id(), in_container(SLEEPER, image="foreign:1"), {})
    (reason,) = refusal.value.reasons
    assert isinstance(reason, ImageForAnotherPlatform)
    assert reason.image == "foreign:1"
    assert reason.platform.startswith("linux/")
    assert containers(agents) == []


async def test_a_port_that_another_container_has_is_a_reason_and_leaves_nothing_behind(
    agents: Containers, runtime: ContainerRuntime
) -> None:
    await runtime.start(an_id(instance="i-first"), in_container(SLEEPER, port=4712), {})
    with pytest.raises(EngineNotStarted) as refusal:
        await runtime.start(an_id(), in_container(SLEEPER, port=4712), {})
    assert refusal.value.reasons == (PortInUse(port=4712),)
    assert [each["Names"] for each in containers(agents)] == [["/muster-w-test-i-first-1"]]


async def test_gpus_that_nobody_can_hand_out_are_a_reason(runtime: ContainerRuntime) -> None:
    access = GpuAccess(requests=(DeviceRequest("nvidia", ("GPU-1",)),))
    with pytest.raises(EngineNotStarted) as refusal:
        await runtime.start(an_id(), in_container(SLEEPER, access=access), {})
    assert isinstance(refusal.value.reasons[0], DevicesNotAvailable)

    missing = GpuAccess(devices=("/dev/davinci7",))
    with pytest.raises(EngineNotStarted) as refusal:
        await runtime.start(an_id(), in_container(SLEEPER, access=missing), {})
    assert isinstance(refusal.value.reasons[0], DevicesNotAvailable)


async def test_what_the_docker_engine_alone_objects_to_is_told_in_its_words(
    runtime: ContainerRuntime, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    mount = Mount(str(tmp_path / "file" / "below"))
    with pytest.raises(EngineNotStarted) as refusal:
        await runtime.start(an_id(), in_container(SLEEPER, mounts=(*mounts(), mount)), {})
    (reason,) = refusal.value.reasons
    assert isinstance(reason, ContainerNotStarted)
    assert "not a directory" in reason.problem


# -- others -----------------------------------------------------------------------------------------------------------


async def test_containers_of_others_are_neither_listed_nor_told_of_nor_removed(agents: Containers) -> None:
    client = connect(agents.engine.url)
    binds = [f"{mount.path}:{mount.path}:ro" for mount in mounts()]
    host = client.create_host_config(binds=binds)
    stranger = client.create_container(IMAGE, ["/usr/bin/sleep", "600"], host_config=host, name="muster-w-other-i-1-1")
    client.start(stranger["Id"])
    other = client.create_container(
        IMAGE, ["/usr/bin/true"], host_config=host, labels={"muster.worker": "w-other", "muster.instance": "i-1"}
    )
    client.start(other["Id"])
    runtime = agents.a_runtime()
    await runtime.start(an_id(), in_container("raise SystemExit(3)"), {})
    assert (await next_exit(runtime)).exit_code == 3
    assert await runtime.list() == ()
    await runtime.stop(an_id(), 0)
    assert agents.lives(stranger["Id"])
    client.close()


async def test_the_containers_of_the_last_five_attempts_are_kept_with_their_logs(agents: Containers) -> None:
    runtime = agents.a_runtime()
    for attempt in range(1, 8):
        await runtime.start(an_id(attempt), in_container(f"print({attempt})"), {})
        await next_exit(runtime)
    assert [await runtime.log_tail(an_id(attempt), 5) for attempt in (1, 2, 3, 7)] == [(), (), ("3",), ("7",)]
    assert len(containers(agents)) == 5


async def test_an_error_of_the_docker_engine_keeps_nobody_from_being_told_what_ends(
    runtime: ContainerRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    tell, failed = DockerRuntime._tell_ends, list[str]()  # pyright: ignore[reportPrivateUsage] - what meets the error

    async def fails_once(self: DockerRuntime) -> None:
        if not failed:
            failed.append("once")
            raise APIError("500 Server Error")
        await tell(self)

    monkeypatch.setattr(DockerRuntime, "_tell_ends", fails_once)
    await runtime.start(an_id(), in_container("raise SystemExit(3)"), {})
    assert (await next_exit(runtime)).exit_code == 3
    assert failed


# -- a Docker Engine that comes and goes ------------------------------------------------------------------------------


@pytest.fixture
async def own(tmp_path: Path) -> AsyncIterator[Containers]:
    """With a Docker Engine that the test may end."""
    with tempfile.TemporaryDirectory(prefix="m") as directory:  # sockets have short names
        engine = DockerEngine(Path(directory))
        engine.start()
        engine.make_image()
        agents = Containers(tmp_path / "engines", engine=engine)
        yield agents
        if not engine.runs:
            await asyncio.to_thread(engine.start)
        await agents.end()
        await asyncio.to_thread(engine.remove)
        gc.collect()  # so that what the SDK left open is this test's


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_engines_survive_their_docker_engine_and_their_ends_meanwhile_are_told(
    own: Containers, number: signal.Signals
) -> None:
    runtime = own.a_runtime()
    lives = await runtime.start(an_id(instance="i-lives"), in_container(SLEEPER, port=4711), {"model": "tiny"})
    dies = await runtime.start(an_id(instance="i-dies"), in_container(SLEEPER, port=4712), {})
    await log_of(runtime, an_id(instance="i-dies"), lines=1)
    pids = {each.id: state_of(own, each.handle)["Pid"] for each in (lives, dies)}

    await asyncio.to_thread(own.engine.end, number)
    asking = asyncio.create_task(runtime.list())
    os.kill(pids[dies.id], signal.SIGKILL)
    await asyncio.sleep(0.5)
    assert not asking.done(), "it waits for the Docker Engine"
    await asyncio.to_thread(own.engine.start)

    assert lives in await asyncio.wait_for(asking, GUARD_SECONDS)
    ended = await next_exit(runtime)
    assert (ended.id, ended.ended_by) == (dies.id, "itself")
    assert await runtime.list() == (lives,)
    assert state_of(own, lives.handle)["Pid"] == pids[lives.id]
    await runtime.start(an_id(instance="i-new"), in_container("raise SystemExit(3)", port=4713), {})
    assert (await next_exit(runtime)).exit_code == 3, "ends are heard of again"


def state_of(agents: Containers, handle: int | str) -> dict[str, Any]:
    client = connect(agents.engine.url)
    try:
        return client.inspect_container(str(handle))["State"]
    finally:
        client.close()


def containers(agents: Containers) -> list[dict[str, Any]]:
    client = connect(agents.engine.url)
    try:
        return client.containers(all=True)
    finally:
        client.close()

"""What an agent needs: from an assignment to a process, to notice an end and a hang, to tell of a change, and while nothing happens.

Measured on the bus, from outside: every figure has two hops over it, and the report's way.
"""

import asyncio
import json
import os
import signal
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import orjson
from docker.errors import APIError
from nats.aio.msg import Msg

from bench.figures import Figure, percentile
from bench.processes import pss_mib, rss_mib
from bench.servers import Servers, Spawned, servers
from schemas.subjects import ReportSubject, assigned
from services.agent.adapters.docker import connect
from tests.e2e.an_engine import COMMAND
from tests.support.docker_engine import DockerEngine, why_not
from tests.support.stack import Client, free_port

GUARD_SECONDS: Final = 60.0
SETTLED_SECONDS: Final = 5.0
GIB: Final = 2**30
IMAGE: Final = "llama-cpp-bench:1"


@dataclass(slots=True)
class Heard:
    """What was said on the bus of one worker, and when it arrived here."""

    said: list[tuple[float, str, dict[str, Any]]] = field(default_factory=list[tuple[float, str, dict[str, Any]]])
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    async def hear(self, message: Msg) -> None:
        try:
            document = orjson.loads(message.data)
        except ValueError:
            return
        self.said.append((time.perf_counter(), message.subject, document))
        self.changed.set()

    async def first(self, since: float, is_it: Callable[[str, dict[str, Any]], bool]) -> float:
        """Seconds from `since` until that was heard. Raises TimeoutError."""
        async with asyncio.timeout(GUARD_SECONDS):
            while True:
                for at, subject, document in self.said:
                    if at >= since and is_it(subject, document):
                        return at - since
                self.changed.clear()
                await self.changed.wait()

    def last(self, before: float, is_it: Callable[[str, dict[str, Any]], bool]) -> float:
        return max(at for at, subject, document in self.said if at < before and is_it(subject, document))


def engine_is(phase: str) -> Callable[[str, dict[str, Any]], bool]:
    def is_it(_: str, document: dict[str, Any]) -> bool:
        engine = document.get("data", {}).get("engine")
        return engine is not None and engine["phase"] == phase

    return is_it


def is_assigned_to_run(_: str, document: dict[str, Any]) -> bool:
    return any(instance.get("want", "running") == "running" for instance in document.get("instances", ()))


async def run(*, quick: bool) -> list[Figure]:
    times, idle_seconds = (2, 10) if quick else (10, 60)
    async with servers() as these:
        inventory = these.stack.directory / "inventory.json"
        _describe(inventory, 64 * GIB)
        for service in ("scheduler", "downloader"):
            await these.spawn(service)
        api = await these.spawn("api")
        agent = await these.spawn("agent", llama_cpp_command=COMMAND, inventory=inventory, stop_engines_on_exit=True)
        heard = await _listen(these)
        client = these.client(api)
        idle = await _idle(agent, idle_seconds, "idle, no engine")
        starts, exits, hangs = await _engines(these, client, heard, times)
        changes = [await _change(inventory, heard, number) for number in range(times // 2)]
        await client.deploy("tinychat")
        await client.until_state("/v2/models/tinychat", "ready")
        with_engine = await _idle(agent, idle_seconds, "idle, one healthy engine")
    return [
        *await _in_containers(max(times // 2, 2)),
        _worst("assignment on the bus → process runs, as reported", starts, "ms", 200),
        _worst("kill -9 of an engine → its end reported", exits, "s", 1),
        _worst("SIGSTOP of an engine → reported unhealthy", hangs, "s", 3),
        _worst("the machine changes → reported", changes, "s", 5),
        *idle,
        *with_engine,
    ]


def _worst(what: str, seconds: list[float], unit: str, at_most: float) -> Figure:
    factor = 1e3 if unit == "ms" else 1
    conditions = f"worst of {len(seconds)}, median {percentile(seconds, 0.5) * factor:.3g} {unit}"
    return Figure(what, max(seconds) * factor, unit, conditions, at_most=at_most)


async def _listen(these: Servers) -> Heard:
    heard, worker = Heard(), these.stack.workers[0].id
    client = these.stack.operator.client
    await client.subscribe(str(assigned(worker)), cb=heard.hear)
    await client.subscribe(str(ReportSubject(worker, "*", "*", "*")), cb=heard.hear)
    await client.flush()
    return heard


async def _engines(
    these: Servers, client: Client, heard: Heard, times: int
) -> tuple[list[float], list[float], list[float]]:
    """One at a time: started, killed or stopped in its tracks, and gone."""
    starts: list[float] = []
    exits: list[float] = []
    hangs: list[float] = []
    for number in range(2 * times):
        name = f"model-{number}"
        began = time.perf_counter()
        await client.deploy(name, restart_on_error=False)
        loads = began + await heard.first(began, engine_is("loading"))
        starts.append(loads - heard.last(loads, is_assigned_to_run))
        await client.until_state(f"/v2/models/{name}", "ready")
        (pid,) = these.stack.engines().values()
        began = time.perf_counter()
        if number % 2:
            os.kill(pid, signal.SIGKILL)
            exits.append(await heard.first(began, engine_is("exited")))
        else:
            os.killpg(pid, signal.SIGSTOP)
            hangs.append(await heard.first(began, engine_is("unhealthy")))
            os.killpg(pid, signal.SIGKILL)
        await client.request("DELETE", f"/v2/models/{name}")
        await client.until("/v2/model-instances", lambda found: not found["items"])
    return starts, exits, hangs


async def _in_containers(times: int) -> list[Figure]:
    """Nothing where no Docker Engine can be started: the bench starts one of its own."""
    if why_not() is not None:
        return []
    with tempfile.TemporaryDirectory(prefix="m") as directory:  # sockets have short names
        docker = DockerEngine(Path(directory))
        await asyncio.to_thread(docker.start)
        try:
            program = await asyncio.to_thread(docker.make_llama_cpp_image, IMAGE)
            async with servers() as these:
                for service in ("scheduler", "downloader"):
                    await these.spawn(service)
                api = await these.spawn("api")
                await these.spawn("agent", runtime="docker", docker_host=docker.url, stop_engines_on_exit=True)
                whole, bare = await _containers(these.client(api), await _listen(these), program, docker.url, times)
        finally:
            await asyncio.to_thread(docker.remove)
    beyond = [(both - engine) * 1e3 for both, engine in zip(whole, bare, strict=True)]
    taken = f"{times} pairs, in turns; worst {max(beyond):.0f} ms; in all {percentile(whole, 0.5) * 1e3:.0f} ms"
    return [
        Figure(
            "assignment on the bus → container runs, as reported, beyond the Docker Engine's own time, median",
            percentile(beyond, 0.5),
            "ms",
            f"{taken}, of which the Docker Engine takes {percentile(bare, 0.5) * 1e3:.0f} ms",
            at_most=200,
        )
    ]


async def _containers(
    client: Client, heard: Heard, program: str, url: str, times: int
) -> tuple[list[float], list[float]]:
    """Through an agent, and by the Docker Engine alone; seconds."""
    starts: list[float] = []
    bare: list[float] = []
    for number in range(times):
        began = time.perf_counter()
        await client.deploy(
            f"model-{number}", image_name=IMAGE, entrypoint=[program, "-c", "import time; time.sleep(600)"]
        )
        loads = began + await heard.first(began, engine_is("loading"))
        starts.append(loads - heard.last(loads, is_assigned_to_run))
        await client.request("DELETE", f"/v2/models/model-{number}")
        await client.until("/v2/model-instances", lambda found: not found["items"])
        bare.append(await asyncio.to_thread(_start_bare, url, number))
    return starts, bare


def _start_bare(url: str, number: int) -> float:
    """The Docker Engine alone: a container of the same image is made and started; seconds."""
    client = connect(url)
    try:
        host = client.create_host_config(port_bindings={"4000/tcp": ("127.0.0.1", free_port())}, init=True)
        began = time.perf_counter()
        name = f"bare-{number}"
        client.create_container(IMAGE, ["sleep", "600"], name=name, host_config=host, ports=[4000], entrypoint=[])
        with suppress(APIError):  # the image has no `sleep`: the way until that shows is what is measured
            client.start(name)
        taken = time.perf_counter() - began
        client.remove_container(name, force=True)
        return taken
    finally:
        client.close()


async def _change(inventory: Path, heard: Heard, number: int) -> float:
    total = (65 + number) * GIB
    await asyncio.sleep(1.3)  # not in step with the agent
    began = time.perf_counter()
    _describe(inventory, total)

    def tells(_: str, document: dict[str, Any]) -> bool:
        return document.get("data", {}).get("inventory", {}).get("memory_total") == total

    return await heard.first(began, tells)


def _describe(inventory: Path, memory: int) -> None:
    part = inventory.with_suffix(".part")
    part.write_text(json.dumps({"memory_total": memory, "gpus": []}))
    part.replace(inventory)


async def _idle(agent: Spawned, seconds: float, what: str) -> list[Figure]:
    await asyncio.sleep(SETTLED_SECONDS)
    own = _own_seconds(agent)
    await asyncio.sleep(seconds)
    share = (_own_seconds(agent) - own) / seconds * 100
    return [
        Figure(f"agent {what}: of a core", share, "%", f"{seconds:g} s, the agent's process alone", at_most=1),
        Figure(f"agent {what}: RSS", rss_mib(agent.pid), "MiB", f"PSS {pss_mib(agent.pid):.0f} MiB", at_most=80),
    ]


def _own_seconds(agent: Spawned) -> float:
    """User and system time, threads that ended included (fields 14 and 15 of /proc/<pid>/stat)."""
    fields = Path(f"/proc/{agent.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

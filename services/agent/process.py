"""The agent's shell: makes its machine look like its assignment says, and reports what it sees. Decides nothing for the fleet."""

import asyncio
import contextlib
import logging
import shlex
import socket
import time
from collections.abc import Awaitable
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Final

import aiohttp
from faststream.nats import NatsBroker

from kernel.accounts import inbox_prefix, public_key, worker_id_of
from kernel.bus import Bus
from kernel.clock import Clock, SystemClock
from kernel.edge import Edge
from kernel.errors import Unavailable
from kernel.inbox import make_broker
from kernel.process import retry_until_connected
from kernel.settings import BadSettings
from kernel.trail import Trail, Trailing
from schemas.asks import LogLines, TailLog
from schemas.assignment import Assigned, AssignedInstance
from schemas.ids import WorkerId
from schemas.models import Inventory
from schemas.reasons import BackendNotAvailable, MachineRestarted, OutOfMemory, Reason, WorkerShutDown
from schemas.reports import EnginePhase, EngineReported, EngineSeen, WorkerLeaving, WorkerObserved, has_risen
from schemas.subjects import ask
from services.agent.adapters.inventory import no_gpus, read_inventory
from services.agent.adapters.local_process import LocalProcessRuntime
from services.agent.adapters.log_answers import READERS, LogAnswers
from services.agent.adapters.ports import free_port
from services.agent.adapters.probes.detection import Detector
from services.agent.domain.containers import contained
from services.agent.domain.diagnosis import diagnose, evidence
from services.agent.domain.engines.command import command_of
from services.agent.domain.engines.start import Start
from services.agent.domain.gpu_access import AssignedGpu, as_process, gpu_access
from services.agent.domain.plan import plan, worker_ports
from services.agent.domain.runtime import (
    Container,
    ContainerRuntime,
    EngineCommand,
    EngineExit,
    EngineId,
    EngineNotStarted,
    ImageNotPulled,
    RunningEngine,
)
from services.agent.settings import BUILT_IN_LLAMA_CPP, AgentSettings

log = logging.getLogger(__name__)

PROBE_STARTING_SECONDS: Final = 0.05
PROBE_SECONDS: Final = 1.0
PROBE_TIMEOUT_SECONDS: Final = 1.0
PROBES_UNTIL_UNHEALTHY: Final = 3
LOADING_AGAIN_SECONDS: Final = 10.0
LINES_OF_PROGRESS: Final = 20
ANY_ADDRESS: Final = "0.0.0.0"  # noqa: S104 - in a container, whose port is published on one address
PROGRESS_SECONDS: Final = 1.0
"""Between two reports about the same image."""
PEAK_SECONDS: Final = 5.0
"""Between two looks at what an engine holds. The kernel keeps the peak of each process: only processes that come and go
between them are missed.
"""


@dataclass(slots=True)
class Watched:
    """An engine that the agent knows of."""

    id: EngineId
    rank: int = 0
    phase: EnginePhase = "accepted"
    port: int | None = None
    program: str = ""
    health_path: str | None = "/health"
    """None: it answers no requests, and is well as long as it runs."""
    progress: float | None = None
    """Of pulling its image; 0 to 1."""
    peak_ram: int | None = None
    """The most RAM that it was seen to hold since it first answered; bytes."""
    told_peak_ram: int | None = None
    """… as the last report says."""
    ended: EngineSeen | None = None
    probing: asyncio.Task[None] | None = field(default=None, repr=False)

    def seen(self) -> EngineSeen:
        if self.ended is not None:
            return self.ended
        ports = (self.port,) if self.port is not None else ()
        return EngineSeen(
            instance_id=self.id.instance_id,
            attempt=self.id.attempt,
            rank=self.rank,
            phase=self.phase,
            progress=self.progress,
            ports=ports,
            peak_ram=self.peak_ram,
        )

    @property
    def has_a_new_peak(self) -> bool:
        """One that is worth a report of its own."""
        return has_risen(self.told_peak_ram, self.peak_ram)


class AgentProcess:
    name = "agent"

    def __init__(
        self, settings: AgentSettings, *, clock: Clock | None = None, runtime: ContainerRuntime | None = None
    ) -> None:
        self._settings = settings
        self._clock = clock or SystemClock()
        self._why_not_ready: str | None = "connecting"
        self._seed = settings.agent_nkey_seed or settings.nats_nkey_seed
        if self._seed is None:
            raise BadSettings(
                "MUSTER_AGENT_NKEY_SEED (or MUSTER_AGENT_NKEY_SEED_FILE) is missing: it is the worker's identity"
            )
        self.worker_id: WorkerId = worker_id_of(public_key(self._seed.get_secret_value()))
        try:
            self._ports = worker_ports(settings.engine_ports)
        except ValueError as error:
            raise BadSettings(f"MUSTER_ENGINE_PORTS is wrong: {error}") from error
        self._runtime = runtime or self._make_runtime()
        self._detector = Detector()
        self._engines: dict[EngineId, Watched] = {}
        self._stopping: set[EngineId] = set()
        self._pulling: dict[EngineId, asyncio.Task[None]] = {}
        self._pulled: set[str] = set()
        """Images that are here, as far as this agent knows."""
        self._document: Assigned | None = None
        self._reconciling = asyncio.Lock()
        self._edge: Edge | None = None
        self._http: aiohttp.ClientSession | None = None
        self._tasks: asyncio.TaskGroup | None = None
        self._address = settings.worker_ip or detect_address()

    def _make_runtime(self) -> ContainerRuntime:
        directory = self._settings.data_dir / "engines"
        if self._settings.runtime == "process":
            return LocalProcessRuntime(directory, segment_bytes=self._settings.engine_log_segment_bytes)
        from services.agent.adapters.docker import DockerRuntime  # noqa: PLC0415 - the SDK takes 0.3 s and 29 MB

        return DockerRuntime(directory, self.worker_id, base_url=self._settings.docker_host)

    def not_ready(self) -> str | None:
        return self._why_not_ready

    async def run(self) -> None:
        with Trailing(self.name, self._settings) as trail:
            await self._run(trail)

    async def _run(self, trail: Trail) -> None:
        settings = self._settings.model_copy(update={"nats_nkey_seed": self._seed})
        bus_settings = settings.bus(inbox_prefix=inbox_prefix("agent", self.worker_id))
        buses: list[Bus] = []

        async def connect() -> None:
            buses.append(await Bus.connect(f"agent {self.worker_id}", bus_settings, timeout_seconds=3))

        await retry_until_connected("NATS", connect)
        bus = buses[0]
        state_file = self._settings.data_dir / "agent" / "assigned.json"
        edge = self._edge = Edge(bus, self.worker_id, "agent", self._clock, state_file, self._picture)
        broker = make_broker(f"agent {self.worker_id} asks", bus_settings)
        self._answer_questions(broker)
        trail.answer(broker, self.worker_id)
        self._http = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=PROBE_TIMEOUT_SECONDS))
        try:
            async with asyncio.TaskGroup() as tasks:
                self._tasks = tasks
                for engine in await self._runtime.list():
                    self._adopt(engine)
                await broker.start()
                tasks.create_task(self._watch_exits())
                tasks.create_task(self._watch_inventory(edge))
                self._why_not_ready = None
                tasks.create_task(edge.run(self._assigned))
        finally:
            await self._leave(edge)
            with contextlib.suppress(Exception):
                await broker.stop()
            await self._http.close()
            await self._runtime.close()
            self._detector.close()
            await bus.close()

    # -- the assignment -----------------------------------------------------------------------------------------------

    async def _assigned(self, document: Assigned) -> None:
        async with self._reconciling:
            self._document = document
            running = [engine.id for engine in await self._runtime.list()]
            known = self._engines.values()
            todo = plan(
                document,
                running,
                accepted=[w.id for w in known if w.ended is None and w.id not in running],
                ended=[w.id for w in known if w.ended is not None],
            )
            for engine in todo.forget:
                watched = self._engines.get(engine)
                self._forget(engine)
                await self._runtime.forget(engine)
                if watched is not None and watched.ended is None:  # it waited for its files: what it claims is free
                    watched.phase = "stopped"
                    self._report(watched)
            for engine in todo.stop:
                self._spawn(self._stop(engine))
            for instance in todo.accept:
                watched = Watched(EngineId(instance.instance_id, instance.attempt), rank=instance.rank)
                self._engines[watched.id] = watched
                self._report(watched)
            paths = {file.file_id: file.paths for file in document.files}
            for instance in todo.start:
                files = tuple(path for file_id in instance.files for path in paths.get(file_id, ()))
                await self._start(instance, files)

    async def _start(self, instance: AssignedInstance, files: tuple[str, ...]) -> None:
        engine = EngineId(instance.instance_id, instance.attempt)
        watched = self._engines.setdefault(engine, Watched(engine, rank=instance.rank))
        try:
            command = await self._command(instance, files)
            if command.container is not None and command.container.image not in self._pulled:
                self._pull_soon(watched, command.container)
                return
            watched.port, watched.program, watched.health_path = command.port, command.program, command.health_path
            details = {"rank": instance.rank, "program": command.program, "health_path": command.health_path}
            await self._runtime.start(engine, command, details)
        except EngineNotStarted as error:
            self._pulled.clear()  # one may have been removed under our hands
            self._ended(watched, EngineExit(engine, None, None, (str(error),)), error.reasons)
            return
        watched.phase = "loading"
        self._report(watched)
        self._probe(watched)

    async def _command(self, instance: AssignedInstance, files: tuple[str, ...]) -> EngineCommand:
        """Raises EngineNotStarted."""
        settings, launch = self._settings, instance.launch
        in_container = settings.runtime == "docker"
        inside = in_container and instance.world_size == 1  # with a network of its own
        address = settings.engine_bind or self._address
        taken = {w.port for w in self._engines.values() if w.port is not None}
        port = instance.ports[0] if instance.ports else free_port(address, self._ports, taken)
        directory = settings.data_dir / "engines" / f"{instance.instance_id}.{instance.attempt}"
        begin = Start(
            assigned=instance,
            host=ANY_ADDRESS if inside else address,
            address=self._address,
            port=port,
            weights=files,
            program=() if in_container and launch.image is not None else self._program(launch.backend),
            directory=str(directory.absolute()),
        )
        command = command_of(begin)
        present = {gpu.index: gpu for gpu in (await self._inventory()).gpus if gpu.type == instance.accelerator}
        gpus = tuple(
            AssignedGpu(index, present[index].uuid if index in present else None) for index in instance.gpu_indexes
        )
        if not in_container:
            return as_process(command, gpu_access(instance.accelerator, gpus, "process"))
        if launch.image is None:
            reason = BackendNotAvailable(backend=launch.backend, available=())
            raise EngineNotStarted((reason,), f"there is no image for {launch.backend}: name one (image_name)")
        return contained(begin, command, launch.image, gpu_access(instance.accelerator, gpus, settings.gpu_handover))

    def _pull_soon(self, watched: Watched, container: Container) -> None:
        """Beside everything else: an image may take an hour."""
        if watched.id not in self._pulling:
            task = self._pulling[watched.id] = self._spawn(self._pull(watched, container))
            task.add_done_callback(lambda _: self._pulling.pop(watched.id, None))

    async def _pull(self, watched: Watched, container: Container) -> None:
        told_at = float("-inf")
        try:
            async for progress in self._runtime.pull(container):
                if time.monotonic() - told_at >= PROGRESS_SECONDS:
                    told_at = time.monotonic()
                    watched.phase = "pulling"
                    watched.progress = progress.done_bytes / max(progress.total_bytes, 1)
                    self._report(watched)
        except ImageNotPulled as error:
            self._ended(watched, EngineExit(watched.id, None, None, (str(error),)), error.reasons)
            return
        watched.progress = None
        self._pulled.add(container.image)
        self._pulling.pop(watched.id, None)
        if self._document is not None:  # what is wanted now, which may be something else
            await self._assigned(self._document)

    def _program(self, backend: str) -> tuple[str, ...]:
        """The operator's, where there is a setting for it."""
        return tuple(shlex.split(self._settings.llama_cpp_command)) if backend == "llama.cpp" else ()

    async def _stop(self, engine: EngineId) -> None:
        """Report it stopped when nothing of it is left."""
        if engine in self._stopping:
            return
        self._stopping.add(engine)
        try:
            watched = self._engines.get(engine, Watched(engine))
            if watched.probing is not None:
                watched.probing.cancel()
            if watched.peak_ram is not None:
                await self._measure(watched)
            await self._runtime.stop(engine, self._settings.stop_grace_seconds)
            watched.phase, watched.port = "stopped", None
            self._report(watched)
            self._forget(engine)
            await self._runtime.forget(engine)
        finally:
            self._stopping.discard(engine)

    def _adopt(self, running: RunningEngine) -> None:
        """An engine that a former agent started: watched again, untouched."""
        details = running.details
        path = details.get("health_path", "/health")
        watched = Watched(
            running.id,
            rank=int(str(details.get("rank", 0))),
            phase="loading",
            port=running.port,
            program=str(details.get("program", "")),
            health_path=None if path is None else str(path),
        )
        self._engines[running.id] = watched
        self._probe(watched)
        log.info("adopted %s attempt %d", running.id.instance_id, running.id.attempt)

    # -- what is seen -------------------------------------------------------------------------------------------------

    async def _watch_exits(self) -> None:
        async for ended in self._runtime.exits():
            if ended.id in self._stopping:
                continue
            watched = self._engines.setdefault(ended.id, Watched(ended.id))
            if watched.ended is None:
                self._ended(watched, ended, why_ended(watched, ended))

    def _ended(self, watched: Watched, exit_: EngineExit, reasons: tuple[object, ...]) -> None:
        if watched.probing is not None:
            watched.probing.cancel()
        watched.port = None
        code = exit_.exit_code if exit_.signal is None else 128 + exit_.signal
        watched.ended = EngineSeen.model_validate(
            {
                "instance_id": watched.id.instance_id,
                "attempt": watched.id.attempt,
                "rank": watched.rank,
                "phase": phase_of_end(exit_),
                "exit_code": code,
                "reasons": reasons,
                "log_tail": evidence(exit_.log_tail),
                "peak_ram": watched.peak_ram,
            }
        )
        self._report(watched)

    def _probe(self, watched: Watched) -> None:
        watched.probing = self._spawn(self._keep_probing(watched))

    async def _keep_probing(self, watched: Watched) -> None:
        """Healthy as soon as it answers; unhealthy after three probes in a row without an answer.

        One that has not answered yet is loading as long as it writes to its log: that is told as progress. One that
        does not even write (it hung before it was adopted, say) is unhealthy.
        """
        misses, has_answered = 0, False
        measured_at = float("-inf")
        looked_at, wrote = time.monotonic(), await self._runtime.log_tail(watched.id, LINES_OF_PROGRESS)
        while True:
            if await self._answers(watched):
                misses, has_answered = 0, True
                if time.monotonic() - measured_at >= PEAK_SECONDS:
                    measured_at = time.monotonic()
                    await self._measure(watched)
                if watched.phase != "healthy" or watched.has_a_new_peak:
                    watched.phase = "healthy"
                    self._report(watched)
            elif has_answered:
                misses += 1
                if misses >= PROBES_UNTIL_UNHEALTHY and watched.phase == "healthy":
                    watched.phase = "unhealthy"
                    self._report(watched)
            elif time.monotonic() - looked_at > LOADING_AGAIN_SECONDS:
                before, wrote = wrote, await self._runtime.log_tail(watched.id, LINES_OF_PROGRESS)
                looked_at = time.monotonic()
                if wrote != before or watched.phase == "loading":
                    watched.phase = "loading" if wrote != before else "unhealthy"
                    self._report(watched)
            await asyncio.sleep(PROBE_STARTING_SECONDS if watched.phase == "loading" else PROBE_SECONDS)

    async def _measure(self, watched: Watched) -> None:
        peak = await self._runtime.peak_ram(watched.id)
        if peak is not None:
            watched.peak_ram = max(peak, watched.peak_ram or 0)

    async def _answers(self, watched: Watched) -> bool:
        if watched.health_path is None:
            return True
        if self._http is None:
            return False
        try:
            async with self._http.get(f"http://{self._address}:{watched.port}{watched.health_path}") as response:
                return response.status == 200
        except (aiohttp.ClientError, TimeoutError, OSError):
            return False

    async def _watch_inventory(self, edge: Edge) -> None:
        """A machine that changed is told within seconds; one that did not is not."""
        known = await self._inventory()
        while True:
            await asyncio.sleep(5)
            now = await self._inventory()
            if now != known:
                known = now
                edge.want_picture()

    async def _inventory(self) -> Inventory:
        backends: dict[str, str | None] = {"llama.cpp": _llama_cpp_version()}
        handles = [engine.handle for engine in await self._runtime.list()]
        detect = (lambda: self._detector.gpus(handles)) if self._can_use_gpus else no_gpus
        found = await asyncio.to_thread(read_inventory, self._settings.inventory, backends, detect)
        return found if self._settings.runtime == "process" else found.model_copy(update={"runtime": "docker"})

    @property
    def _can_use_gpus(self) -> bool:
        """The built-in llama.cpp knows none: a GPU that is offered to it would be promised and never used."""
        return self._settings.runtime == "docker" or self._settings.llama_cpp_command != BUILT_IN_LLAMA_CPP

    async def _picture(self) -> WorkerObserved:
        edge = self._line()
        inventory = await self._inventory()
        return WorkerObserved(
            **edge.identity(),
            name=self._settings.worker_name,
            address=self._address,
            agent_version=version("muster"),
            inventory=inventory,
            engines=tuple(watched.seen() for watched in self._engines.values()),
            assigned_election=edge.election,
            assigned_seq=edge.seq,
        )

    def _report(self, watched: Watched) -> None:
        watched.told_peak_ram = watched.peak_ram
        edge = self._line()
        edge.report(EngineReported(**edge.identity(), engine=watched.seen()))

    # -- questions ----------------------------------------------------------------------------------------------------

    def _answer_questions(self, broker: NatsBroker) -> None:
        answers = LogAnswers(self._runtime, self._lives)

        @broker.subscriber(ask(self.worker_id, "look"), title="look")
        async def look() -> None:  # pyright: ignore[reportUnusedFunction] - the broker calls it
            """Somebody lost sight of this worker: send the complete picture."""
            self._line().want_picture()

        @broker.subscriber(ask(self.worker_id, "logs"), title="logs", max_workers=READERS)
        async def tail_log(question: TailLog) -> LogLines:  # pyright: ignore[reportUnusedFunction] - the broker calls it
            known = [e.attempt for e in self._engines if e.instance_id == question.instance_id]
            return await answers.answer(question, known)

    def _lives(self, engine: EngineId) -> bool:
        watched = self._engines.get(engine)
        return watched is not None and watched.ended is None

    # -- the end ------------------------------------------------------------------------------------------------------

    async def _leave(self, edge: Edge) -> None:
        stop = self._settings.stop_engines_on_exit
        if stop:
            for engine in await self._runtime.list():
                self._stopping.add(engine.id)
            grace = self._settings.stop_grace_seconds
            await asyncio.gather(*(self._runtime.stop(engine, grace) for engine in list(self._stopping)))
        with contextlib.suppress(Unavailable, TimeoutError):
            async with asyncio.timeout(1):
                await edge.send(WorkerLeaving(**edge.identity(), engines_stopped=stop))

    def _forget(self, engine: EngineId) -> None:
        watched = self._engines.pop(engine, None)
        if watched is not None and watched.probing is not None:
            watched.probing.cancel()
        if (pulling := self._pulling.pop(engine, None)) is not None and pulling is not asyncio.current_task():
            pulling.cancel()

    def _line(self) -> Edge:
        if self._edge is None:
            raise Unavailable("the agent is not connected")
        return self._edge

    def _spawn(self, work: Awaitable[None]) -> asyncio.Task[None]:
        if self._tasks is None:
            raise Unavailable("the agent is not running")
        return self._tasks.create_task(_as_coroutine(work))


def phase_of_end(ended: EngineExit) -> EnginePhase:
    """`stopped`: nothing is wrong with the engine. One that took more memory than it may has ended by its own fault."""
    return "exited" if ended.ended_by in ("itself", "memory") else "stopped"


def why_ended(watched: Watched, ended: EngineExit) -> tuple[Reason, ...]:
    match ended.ended_by:
        case "itself":
            port = watched.port or 0
            return diagnose(ended.exit_code, ended.signal, ended.log_tail, program=watched.program, port=port)
        case "memory":
            return (OutOfMemory(),)
        case "a_stop":  # by an agent that took its engines with it
            return (WorkerShutDown(),)
        case "the_machine":
            return (MachineRestarted(),)


async def _as_coroutine(work: Awaitable[None]) -> None:
    await work


def detect_address() -> str:
    """The address that this machine is reached at: the one it would talk to others from; loopback without a network."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # TEST-NET-1 (RFC 5737): a datagram socket sends nothing by connecting
            return str(probe.getsockname()[0])
        except OSError:
            return "127.0.0.1"


def _llama_cpp_version() -> str | None:
    try:
        return version("xllamacpp")
    except ModuleNotFoundError:
        return None

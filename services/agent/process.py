"""The agent's shell: makes its machine look like its assignment says, and reports what it sees. Decides nothing for the fleet."""

import asyncio
import contextlib
import logging
import os
import shlex
import time
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Final

import aiohttp
import psutil
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
from schemas.asks import ImagesSeen, LogLines, LookForImages, PullImages, TailLog
from schemas.assignment import Assigned, AssignedFile, AssignedInstance
from schemas.ids import WorkerId
from schemas.models import Inventory
from schemas.reasons import BackendNotAvailable, MachineRestarted, NeedNotAllowed, OutOfMemory, Reason, WorkerShutDown
from schemas.reports import EnginePhase, EngineReported, EngineSeen, PullSeen, WorkerLeaving, WorkerObserved, has_risen
from schemas.subjects import ask
from schemas.versions import is_for_processors
from services.agent.adapters.bundled_llama_cpp import bundled_version
from services.agent.adapters.control_groups import ControlGroups
from services.agent.adapters.engine_caches import EngineCaches
from services.agent.adapters.engine_door import EngineDoor
from services.agent.adapters.engine_keys import EngineKeys, attempt_directory
from services.agent.adapters.engine_metrics import EngineMetrics
from services.agent.adapters.installed import vllm_version
from services.agent.adapters.interfaces import address_of, detect_address, interface_of
from services.agent.adapters.inventory import no_gpus, read_inventory
from services.agent.adapters.local_process import LocalProcessRuntime
from services.agent.adapters.log_answers import READERS, LogAnswers
from services.agent.adapters.ports import free_port
from services.agent.adapters.probes.detection import Detector
from services.agent.adapters.relay import EngineRelay, Target
from services.agent.domain.about import About
from services.agent.domain.accelerators.gpus import GpuKey
from services.agent.domain.bounds import Ram, bounded
from services.agent.domain.containers import contained, not_allowed
from services.agent.domain.diagnosis import LINES_OF_EVIDENCE, diagnose, evidence
from services.agent.domain.engine_metrics import normalised
from services.agent.domain.engines.command import command_of
from services.agent.domain.engines.keys import asks_for
from services.agent.domain.engines.local import local
from services.agent.domain.engines.start import Start
from services.agent.domain.gpu_access import AssignedGpu, as_process, gpu_access
from services.agent.domain.health import Health, IllReport, ill_report
from services.agent.domain.plan import plan, worker_ports
from services.agent.domain.proxies import by_proxies
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
from services.agent.images import Images
from services.agent.settings import BUILT_IN_LLAMA_CPP, AgentSettings
from services.agent.watching import Watch

log = logging.getLogger(__name__)

KEEP_WHAT_THEY_COMPILE: Final = frozenset({"vLLM", "SGLang"})
ANY_ADDRESS: Final = "0.0.0.0"  # noqa: S104 - in a container, whose port is published on one address
PROGRESS_SECONDS: Final = 1.0
"""Between two reports about the same image."""
PEAK_SECONDS: Final = 5.0
"""Between two looks at what an engine holds. The kernel keeps the peak of each process: only processes that come and go
between them are missed.
"""
INVENTORY_SECONDS: Final = 2.0
"""Between two looks at the machine. With the time that drivers are given between two questions, a change is told within 5 s."""
METRICS_SECONDS: Final = 5.0
"""Between two looks at what an engine counts."""


@dataclass(slots=True)
class Watched:
    """An engine that the agent knows of."""

    id: EngineId
    rank: int = 0
    phase: EnginePhase = "accepted"
    port: int | None = None
    program: str = ""
    sealed_key: str | None = None
    """The key that it asks for, as gateways get it."""
    key: str | None = field(default=None, repr=False)
    health_path: str | None = "/health"
    """None: it answers no requests, and is well as long as it runs."""
    image_digest: str | None = None
    pull: PullSeen | None = None
    """How far its image is."""
    peak_ram: int | None = None
    """The most RAM that it was seen to hold since it first answered; bytes."""
    told_peak_ram: int | None = None
    """… as the last report says."""
    peak_vram: dict[int, int] = field(default_factory=dict[int, int])
    """GPU index → the most that it was seen to hold there since it first answered; bytes."""
    told_peak_vram: Mapping[int, int] = field(default_factory=dict[int, int])
    about: About = field(default_factory=About)
    ill: IllReport = field(default_factory=IllReport)
    """Why it is unhealthy, as far as that is known."""
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
            progress=self.pull.bytes / max(self.pull.total or 0, 1) if self.pull is not None else None,
            pull=self.pull,
            ports=ports,
            image_digest=self.image_digest,
            peak_vram=dict(self.peak_vram),
            peak_ram=self.peak_ram,
            sealed_key=self.sealed_key,
            reasons=self.ill.reasons,
            log_tail=self.ill.log_tail,
        )

    def held(self, gpus: Mapping[GpuKey, int]) -> None:
        """What it was seen to hold of its GPUs just now."""
        for (type_, index), size in gpus.items():
            if self.about.accelerator in (None, type_):
                self.peak_vram[index] = max(size, self.peak_vram.get(index, 0))

    @property
    def has_a_new_peak(self) -> bool:
        """One that is worth a report of its own."""
        return has_risen(self.told_peak_ram, self.peak_ram) or any(
            has_risen(self.told_peak_vram.get(index), size) for index, size in self.peak_vram.items()
        )


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
        self._keys = EngineKeys(settings.data_dir / "engines", self.worker_id)
        self._detector = Detector()
        self._engines: dict[EngineId, Watched] = {}
        self._stopping: set[EngineId] = set()
        self._images = Images(self._runtime, settings.data_dir / "agent" / "images.json", self._spawn)
        self._pulling: dict[EngineId, asyncio.Task[None]] = {}
        self._pulled: set[str] = set()
        """Images that are here, as far as this agent knows."""
        self._document: Assigned | None = None
        self._reconciling = asyncio.Lock()
        self._edge: Edge | None = None
        self._http: aiohttp.ClientSession | None = None
        self._metrics: EngineMetrics | None = None
        self._tasks: asyncio.TaskGroup | None = None
        self._address = settings.worker_ip or (
            address_of(settings.worker_ifname) if settings.worker_ifname else detect_address()
        )
        self._caches = EngineCaches(settings.data_dir / "engine-caches", for_others=settings.runtime == "docker")
        self._installed: dict[str, str | None] = {}
        """What this machine's engines are, beside llama.cpp."""
        self._relay = EngineRelay(self.worker_id, self._reached, most_requests=settings.relayed_requests)

    def _make_runtime(self) -> ContainerRuntime:
        directory = self._settings.data_dir / "engines"
        if self._settings.runtime == "process":
            parents = [Path(each) for each in self._settings.engine_cgroups.split(",") if each]
            bytes_ = self._settings.engine_log_segment_bytes
            return LocalProcessRuntime(directory, ControlGroups(parents), segment_bytes=bytes_)
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

        await self._look_for_engines()
        await retry_until_connected("the Docker Engine", self._check_paths)
        await retry_until_connected("NATS", connect)
        bus = buses[0]
        state_file = self._settings.data_dir / "agent" / "assigned.json"
        edge = self._edge = Edge(bus, self.worker_id, "agent", self._clock, state_file, self._picture)
        broker = make_broker(f"agent {self.worker_id} asks", bus_settings)
        self._answer_questions(broker)
        trail.answer(broker, self.worker_id)
        self._http = aiohttp.ClientSession()
        metrics = self._metrics = EngineMetrics(self._settings.worker_name)
        try:
            async with asyncio.TaskGroup() as tasks:
                self._tasks = tasks
                for engine in await self._runtime.list():
                    self._adopt(engine)
                self._images.resume()
                await broker.start()
                tasks.create_task(self._relay.run(bus_settings))
                tasks.create_task(self._watch_exits())
                tasks.create_task(self._watch_inventory(edge))
                tasks.create_task(self._watch_metrics(metrics))
                self._why_not_ready = None
                tasks.create_task(edge.run(self._assigned))
        finally:
            await self._leave(edge)
            with contextlib.suppress(Exception):
                await broker.stop()
            metrics.close()
            await self._http.close()
            await self._runtime.close()
            self._detector.close()
            await bus.close()

    async def _look_for_engines(self) -> None:
        """Raises BadSettings."""
        if self._settings.runtime == "process" and self._settings.vllm_command:
            command = shlex.split(self._settings.vllm_command)
            try:
                self._installed["vLLM"] = await asyncio.to_thread(vllm_version, command)
            except BadSettings as error:
                raise BadSettings(f"MUSTER_VLLM_COMMAND is wrong: {error}") from error

    async def _check_paths(self) -> None:
        """Raises BadSettings (cache_path_not_shared), Unavailable."""
        if self._settings.runtime == "docker":
            from services.agent.adapters.own_container import check_shared  # noqa: PLC0415 - the SDK, as above

            for path in dict.fromkeys((self._settings.data_dir, self._settings.cache)):
                await asyncio.to_thread(check_shared, path.absolute(), self._settings.docker_host)

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
            there = {file.file_id: file for file in document.files}
            for instance in todo.start:
                await self._start(instance, [there[file_id] for file_id in instance.files if file_id in there])

    async def _start(self, instance: AssignedInstance, there: Sequence[AssignedFile]) -> None:
        """`there`: the instance's files, the model's first."""
        engine = EngineId(instance.instance_id, instance.attempt)
        watched = self._engines.setdefault(engine, Watched(engine, rank=instance.rank))
        try:
            instance = instance.model_copy(update={"launch": local(instance.launch, there)})
            files = there[0].paths if there else ()
            key = self._keys.of_attempt(instance)
            command = await self._command(instance, files, key)
            if self._settings.engine_memory_limit:
                command = bounded(command, Ram(instance.claim.ram, psutil.virtual_memory().total))
            if command.container is not None and command.container.image not in self._pulled:
                self._pull_soon(watched, command.container)
                return
            watched.port, watched.program, watched.health_path = command.port, command.program, command.health_path
            watched.about = About.of(instance)
            details: dict[str, object] = {
                "rank": instance.rank,
                "program": command.program,
                "health_path": command.health_path,
                **watched.about.as_details(),
            }
            if key is not None and asks_for(command, key):
                details["sealed_key"] = self._keys.sealed(instance, key)
            started = await self._runtime.start(engine, command, details)
            watched.image_digest = started.image_digest
            self._knows_key(watched, started.details)
        except EngineNotStarted as error:
            self._pulled.clear()  # one may have been removed under our hands
            self._ended(watched, EngineExit(engine, None, None, (str(error),)), error.reasons)
            return
        watched.phase = "loading"
        self._report(watched)
        self._probe(watched)

    async def _command(self, instance: AssignedInstance, files: tuple[str, ...], key: str | None) -> EngineCommand:
        """Raises EngineNotStarted."""
        settings, launch = self._settings, instance.launch
        in_container = settings.runtime == "docker"
        inside = in_container and instance.world_size == 1  # with a network of its own
        address = settings.engine_bind or self._address
        taken = {w.port for w in self._engines.values() if w.port is not None}
        port = instance.ports[0] if instance.ports else free_port(address, self._ports, taken)
        directory = attempt_directory(settings.data_dir / "engines", EngineId(instance.instance_id, instance.attempt))
        engine = launch.engine or launch.backend
        present = {gpu.index: gpu for gpu in (await self._inventory()).gpus if gpu.type == instance.accelerator}
        begin = Start(
            assigned=instance,
            host=ANY_ADDRESS if inside else address,
            address=self._address,
            port=port,
            weights=files,
            program=() if in_container and launch.image is not None else self._program(engine),
            interface=self._settings.worker_ifname or interface_of(self._address),
            family=next((present[index].name for index in instance.gpu_indexes if index in present), None),
            cache=await self._cache(instance, engine),
            processors=tuple(sorted(os.sched_getaffinity(0))),
            directory=str(directory.absolute()),
            engine_key=key,
        )
        near = self._document.near if self._document is not None else ()
        command = by_proxies(begin, command_of(begin), os.environ, settings.nats_servers, near)
        gpus = tuple(
            AssignedGpu(index, present[index].uuid if index in present else None) for index in instance.gpu_indexes
        )
        if not in_container:
            access = gpu_access(instance.accelerator, gpus, "process")
            return as_process(command, access, launch, may_name_programs=settings.programs_of_authors)
        if launch.image is None:
            reason = BackendNotAvailable(backend=launch.backend, available=())
            raise EngineNotStarted((reason,), f"there is no image for {launch.backend}: name one (image_name)")
        if needs := not_allowed(launch, [name.strip() for name in settings.allowed_needs.split(",")]):
            raise EngineNotStarted((NeedNotAllowed(needs=needs),), f"{launch.backend} needs {', '.join(needs)}")
        return contained(begin, command, launch.image, gpu_access(instance.accelerator, gpus, settings.gpu_handover))

    def _pull_soon(self, watched: Watched, container: Container) -> None:
        """Beside everything else: an image may take an hour."""
        if watched.id not in self._pulling:
            task = self._pulling[watched.id] = self._spawn(self._pull(watched, container))
            task.add_done_callback(lambda _: self._pulling.pop(watched.id, None))

    async def _pull(self, watched: Watched, container: Container) -> None:
        told_at = float("-inf")
        try:
            async for pull in self._images.pull(container):
                watched.phase, watched.pull = "pulling", pull
                if time.monotonic() - told_at >= PROGRESS_SECONDS:
                    told_at = time.monotonic()
                    self._report(watched)
        except ImageNotPulled as error:
            self._ended(watched, EngineExit(watched.id, None, None, (str(error),)), error.reasons)
            return
        watched.pull = None
        self._pulled.add(container.image)
        self._pulling.pop(watched.id, None)
        if self._document is not None:  # what is wanted now, which may be something else
            await self._assigned(self._document)

    async def _cache(self, instance: AssignedInstance, engine: str) -> str | None:
        """In a thread: old ones are removed. Raises EngineNotStarted."""
        if engine not in KEEP_WHAT_THEY_COMPILE:
            return None
        return await asyncio.to_thread(self._caches.of, instance.model_id)

    def _program(self, backend: str) -> tuple[str, ...]:
        """The operator's, where there is a setting for it."""
        named = {"llama.cpp": self._settings.llama_cpp_command, "vLLM": self._settings.vllm_command}
        return tuple(shlex.split(named.get(backend, "")))

    async def _stop(self, engine: EngineId) -> None:
        """Report it stopped when nothing of it is left."""
        if engine in self._stopping:
            return
        self._stopping.add(engine)
        try:
            watched = self._engines.get(engine, Watched(engine))
            self._probe_no_more(watched)
            if watched.peak_ram is not None:
                await self._measure(watched)
            await self._runtime.stop(engine, self._settings.stop_grace_seconds)
            watched.phase, watched.port, watched.ill = "stopped", None, IllReport()
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
            image_digest=running.image_digest,
            program=str(details.get("program", "")),
            health_path=None if path is None else str(path),
            about=About.told_by(details),
        )
        self._knows_key(watched, details)
        self._engines[running.id] = watched
        self._probe(watched)
        log.info("adopted %s attempt %d", running.id.instance_id, running.id.attempt)

    def _knows_key(self, watched: Watched, details: Mapping[str, object]) -> None:
        """Of an engine that an older agent started there is none."""
        sealed = details.get("sealed_key")
        if isinstance(sealed, str):
            watched.sealed_key, watched.key = sealed, self._keys.kept(watched.id)

    # -- what is seen -------------------------------------------------------------------------------------------------

    async def _watch_exits(self) -> None:
        async for ended in self._runtime.exits():
            if ended.id in self._stopping:
                continue
            watched = self._engines.setdefault(ended.id, Watched(ended.id))
            if watched.ended is None:
                self._ended(watched, ended, why_ended(watched, ended))

    def _ended(self, watched: Watched, exit_: EngineExit, reasons: tuple[object, ...]) -> None:
        self._probe_no_more(watched)
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
                "peak_vram": watched.peak_vram,
                "peak_ram": watched.peak_ram,
            }
        )
        self._report(watched)

    def _probe(self, watched: Watched) -> None:
        watched.probing = self._spawn(self._keep_probing(watched))

    def _probe_no_more(self, watched: Watched) -> None:
        if watched.probing is not None:
            watched.probing.cancel()
        if self._metrics is not None:
            self._metrics.forget(watched.id)

    async def _keep_probing(self, watched: Watched) -> None:
        """Tells how it is whenever that changes, and progress as long as it loads."""
        told = ("loading", False)
        every = self._settings.liveness_inference_seconds
        watch = Watch(watched.id, watched.about, self._door(watched), self._runtime, every)
        measured_at = float("-inf")
        async with contextlib.aclosing(watch.healths()) as healths:
            async for health in healths:
                if health.phase == "healthy" and time.monotonic() - measured_at >= PEAK_SECONDS:
                    measured_at = time.monotonic()
                    await self._measure(watched)
                if (health.phase, health.gave_up) != told or health.progressed or watched.has_a_new_peak:
                    told = (health.phase, health.gave_up)
                    watched.phase, watched.ill = health.phase, await self._ill(watched, health)
                    self._report(watched)

    def _door(self, watched: Watched) -> EngineDoor:
        if self._http is None:
            raise Unavailable("the agent is not running")
        return EngineDoor(self._http, f"http://{self._address}:{watched.port}", watched.health_path, key=watched.key)

    def _reached(self, engine: EngineId) -> Target | None:
        """Where a relayed request goes."""
        watched = self._engines.get(engine)
        if watched is None or watched.ended is not None or watched.port is None:
            return None
        return Target(f"http://{self._address}:{watched.port}", watched.key)

    async def _ill(self, watched: Watched, health: Health) -> IllReport:
        if health.phase != "unhealthy":
            return IllReport()
        return ill_report(health, await self._runtime.log_tail(watched.id, LINES_OF_EVIDENCE))

    async def _watch_metrics(self, metrics: EngineMetrics) -> None:
        """What healthy engines count. Of one that does not tell it any more, nothing old is shown."""
        while True:
            await asyncio.sleep(METRICS_SECONDS)
            await asyncio.gather(*(self._scrape(watched, metrics) for watched in list(self._engines.values())))

    async def _scrape(self, watched: Watched, metrics: EngineMetrics) -> None:
        text = await self._door(watched).metrics() if watched.phase == "healthy" else None
        samples = () if text is None else await asyncio.to_thread(normalised, text)
        if watched.id in self._engines and watched.ended is None:
            metrics.tell(watched.id, watched.about.model, samples)

    async def _measure(self, watched: Watched) -> None:
        peak = await self._runtime.peak_ram(watched.id)
        if peak is not None:
            watched.peak_ram = max(peak, watched.peak_ram or 0)

    async def _watch_inventory(self, edge: Edge) -> None:
        """A machine that changed is told within seconds; one that did not is not."""
        known = await self._inventory()
        while True:
            await asyncio.sleep(INVENTORY_SECONDS)
            now = await self._inventory()
            await self._measure_gpus()
            if now != known:
                known = now
                edge.want_picture()

    async def _measure_gpus(self) -> None:
        """What engines that have answered hold of their GPUs, as the drivers said when the inventory was read."""
        if not self._detector.tells_processes:
            return
        running = await self._runtime.list()
        held = await asyncio.to_thread(self._detector.held, [engine.handle for engine in running])
        for engine in running:
            watched = self._engines.get(engine.id)
            if watched is not None and watched.phase in ("healthy", "unhealthy"):
                watched.held(held.get(engine.handle, {}))

    async def _inventory(self) -> Inventory:
        backends = self._installed.copy()
        if (
            not self._installed
            or self._settings.llama_cpp_command != BUILT_IN_LLAMA_CPP
            or self._installed_for_processors
        ):
            backends["llama.cpp"] = bundled_version()
        handles = [engine.handle for engine in await self._runtime.list()]
        detect = (lambda: self._detector.gpus(handles)) if self._can_use_gpus else no_gpus
        found = await asyncio.to_thread(
            read_inventory, self._settings.inventory, backends, detect, self._settings.cache
        )
        told = {"reach": self._settings.reach} if self._settings.reach != "auto" else {}
        return found.model_copy(update=told if self._settings.runtime == "process" else {**told, "runtime": "docker"})

    @property
    def _can_use_gpus(self) -> bool:
        """The built-in llama.cpp knows none: a GPU that is offered to it would be promised and never used. So it is not offered
        beside another engine, unless that is one for processors.
        """
        if self._settings.runtime == "docker" or self._settings.llama_cpp_command != BUILT_IN_LLAMA_CPP:
            return True
        return bool(self._installed) and not self._installed_for_processors

    @property
    def _installed_for_processors(self) -> bool:
        return bool(self._installed) and all(map(is_for_processors, self._installed.values()))

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
        watched.told_peak_ram, watched.told_peak_vram = watched.peak_ram, dict(watched.peak_vram)
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

        @broker.subscriber(ask(self.worker_id, "images"), title="images")
        async def look_for_images(question: LookForImages) -> ImagesSeen:  # pyright: ignore[reportUnusedFunction] - the broker calls it
            return await self._images.look(question)

        @broker.subscriber(ask(self.worker_id, "pull"), title="pull")
        async def pull_images(question: PullImages) -> ImagesSeen:  # pyright: ignore[reportUnusedFunction] - the broker calls it
            return await self._images.pull_ahead(question)

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
        self._keys.forget(engine)
        if watched is not None:
            self._probe_no_more(watched)
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

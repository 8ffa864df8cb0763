"""Machines, and what runs on them. An agent's decisions are the real ones (`plan`, `Edge._take`, `Watched.seen`); mirrored from
`services/agent/process.py` and `services/downloader/process.py` is what they do with processes, probes and files.
"""

import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal, cast

from kernel.bus import Bus
from kernel.edge import AGAIN_SECONDS, BEAT_SECONDS, PICTURE_SECONDS, REREAD_SECONDS, Edge
from kernel.errors import Unavailable
from kernel.log.port import Stored
from schemas.asks import ModelInspection
from schemas.assignment import Assigned, AssignedFile, AssignedInstance
from schemas.ids import FileId, WorkerId
from schemas.models import Claim, Inventory, ModelWeights
from schemas.reasons import ModelNotFound
from schemas.reports import (
    EngineReported,
    EngineSeen,
    FileReported,
    FileSeen,
    FilesObserved,
    Report,
    WorkerLeaving,
    WorkerObserved,
)
from schemas.sources import LocalPath, Source
from services.agent.domain import plan as planning
from services.agent.domain.health import Health, after, at_first, ill_report
from services.agent.domain.runtime import Activity, EngineExit, EngineId
from services.agent.process import Watched, phase_of_end, why_ended
from services.simulator.domain.dice import draw
from tests.simulation.clock import VirtualClock, finish
from tests.simulation.hubs import Fetches, Hub
from tests.simulation.lines import Answer

Temper = Literal["good", "crashes", "hangs"]
"""How an engine behaves once it is started: serves, ends before it serves, never answers."""


IDLE: Final = Activity(busy_seconds=0, read_bytes=0, log_mark=0)


@dataclass(slots=True)
class Engine:
    """A process on a machine, as it is, whoever knows of it."""

    id: EngineId
    claim: Claim
    port: int
    temper: Temper
    serves_at: float
    serves: bool = False
    deaf: bool = False
    """Lives and no longer answers."""
    ends_at: float | None = None
    """It was told to stop."""
    disowned: bool = False
    """Its worker was removed from the fleet while it ran: nothing is promised to it any more."""
    unassigned_since: float | None = None
    held: float = 0.0
    """The most of its claim that it was seen to hold."""
    rank: int = 0
    members: tuple[WorkerId, ...] = ()
    """All workers that run it together; the first leads."""
    peers: tuple["Engine", ...] = ()
    """The members that the leader has joined."""
    start_timeout_seconds: float = 900.0
    over_since: float | None = None
    """Its attempt has ended, and its agent could know."""
    files: tuple[str, ...] = ()
    """What it reads."""

    @property
    def is_member(self) -> bool:
        return len(self.members) > 1


@dataclass(slots=True)
class Link:
    """A worker's way to the core. `kernel.bus.Bus` as far as `Edge` uses it."""

    carry: Callable[[str, bytes], None]
    up: bool = True
    boot: str = ""
    """Of whoever is at its end now."""
    rough: bool = False
    """Reports come late, twice, in another order, or not at all."""
    reconnected: list[Callable[[], None]] = field(default_factory=list[Callable[[], None]])

    def on_reconnect(self, callback: Callable[[], None]) -> None:
        self.reconnected.append(callback)

    async def request(self, subject: str, payload: bytes, *, headers: object, timeout_seconds: float) -> Answer:
        del headers, timeout_seconds
        if not self.up:
            raise Unavailable("no answer")
        self.carry(subject, payload)
        return Answer(b"{}")


class SimulatedEdge(Edge):
    """The real edge; its state file is the machine's disk, and what it hands over is sent by `Role.send`."""

    def __init__(self, machine: "Machine", link: Link, role: str, clock: VirtualClock) -> None:
        self._disk = machine.disk

        async def nothing() -> Report:
            raise AssertionError

        super().__init__(cast("Bus", link), machine.id, role, clock, Path(role), nothing)

    @property
    def unsent(self) -> int:
        return self._unsent.qsize()

    @property
    def picture_is_wanted(self) -> bool:
        return self._picture_wanted.is_set()

    def picture_is_made(self) -> None:
        self._picture_wanted.clear()

    def next_unsent(self) -> Report:
        return self._unsent.get_nowait()

    def take(self, body: bytes, on_assigned: Callable[[Assigned], None], *, again: bool = False) -> None:
        async def assigned(document: Assigned) -> None:
            on_assigned(document)

        finish(self._take(body, assigned, again=again))

    def _read_state(self) -> tuple[int, int]:
        return self._disk.get(self._state_file.name, (0, 0))

    def _write_state(self) -> None:
        self._disk[self._state_file.name] = self.newest


class Role:
    """What agent and downloader have in common: `Edge.run`, without its tasks."""

    def __init__(self, machine: "Machine", role: str) -> None:
        self.machine = machine
        self.world = machine.world
        self.role = role
        self.link = machine.links[role]
        self.link.reconnected.clear()
        self.edge = SimulatedEdge(machine, self.link, role, machine.world.clock)
        self.link.boot = self.edge.boot_id
        self.link.on_reconnect(self._reread)
        self.edge.want_picture()
        self.arrived: deque[bytes] = deque()
        self._in_hand: Report | None = None
        self._send_at = 0.0
        self._beat_at = 0.0
        self._picture_at = 0.0
        self._reread_at = 0.0

    def pump(self) -> None:
        now = self.world.clock.seconds
        self.notice()
        if self.link.up:
            if now >= self._reread_at:
                body = self.world.assignment(self.machine.id)
                self._reread_at = now + (1.0 if body is None else REREAD_SECONDS)
                if body is not None:
                    self.edge.take(body, self.assigned, again=True)
            while self.arrived:
                self.edge.take(self.arrived.popleft(), self.assigned)
        self.look(now)
        if self.edge.picture_is_wanted or now >= self._picture_at:
            self.edge.picture_is_made()
            self._picture_at = now + PICTURE_SECONDS
            self.edge.report(self.picture())
        if now >= self._send_at:
            self._send(now)
        if now >= self._beat_at:
            self._beat_at = now + BEAT_SECONDS
            if self.link.up:
                self.world.beat(self.machine.id, self.role, self.edge.boot_id)

    def _reread(self) -> None:
        self._reread_at = 0.0

    def _send(self, now: float) -> None:
        while True:
            if self._in_hand is None:
                if not self.edge.unsent:
                    return
                self._in_hand = self.edge.next_unsent()
            try:
                finish(self.edge.send(self._in_hand))
            except Unavailable:
                self._send_at = now + AGAIN_SECONDS
                return
            self._in_hand = None

    def assigned(self, document: Assigned) -> None:
        raise NotImplementedError

    def notice(self) -> None:
        """What has ended by itself is known before anything is decided: its end is waited for, not asked for."""

    def look(self, now: float) -> None:
        raise NotImplementedError

    def picture(self) -> Report:
        raise NotImplementedError


class Agent(Role):
    def __init__(self, machine: "Machine") -> None:
        super().__init__(machine, "agent")
        self._engines: dict[EngineId, Watched] = {}
        self._healths: dict[EngineId, Health] = {}
        for engine in machine.engines.values():
            self._engines[engine.id] = Watched(engine.id, engine.rank, phase="loading", port=engine.port)
            self._probe(engine.id, engine.start_timeout_seconds)
        machine.untold = deque(machine.ends)
        machine.stopped.clear()

    def assigned(self, document: Assigned) -> None:
        """`AgentProcess._assigned`."""
        machine = self.machine
        running = list(machine.engines)
        known = self._engines.values()
        todo = planning.plan(
            document,
            running,
            accepted=[w.id for w in known if w.ended is None and w.id not in machine.engines],
            ended=[w.id for w in known if w.ended is not None],
        )
        for engine in todo.forget:
            forgotten = self._engines.pop(engine, None)
            machine.forget_end(engine)
            if forgotten is not None and forgotten.ended is None:
                forgotten.phase = "stopped"
                self._report(forgotten)
        for engine in todo.stop:
            if machine.engines[engine].ends_at is None:
                self.world.stops(machine, engine)
                machine.engines[engine].ends_at = self.world.clock.seconds + self.world.dice.choice((0.1, 0.5, 3.0))
        for instance in todo.accept:
            watched = Watched(EngineId(instance.instance_id, instance.attempt), rank=instance.rank)
            machine.accepted.add(watched.id)
            self._engines[watched.id] = watched
            self._report(watched)
        paths = {file.file_id: file.paths for file in document.files}
        for instance in todo.start:
            files = tuple(path for file_id in instance.files for path in paths.get(file_id, ()))
            self._start(instance, files)

    def _start(self, instance: AssignedInstance, files: tuple[str, ...]) -> None:
        engine = EngineId(instance.instance_id, instance.attempt)
        watched = self._engines.setdefault(engine, Watched(engine, rank=instance.rank))
        there = self.machine.paths.keys() | self.machine.store.keys()
        if not files or not all(path in there for path in files):
            self._ended(watched, EngineExit(engine, 1, None, ()))
            return
        watched.port = self.machine.start(engine, instance, files)
        watched.phase = "loading"
        self._report(watched)
        self._probe(engine, instance.launch.start_timeout_seconds)

    def _probe(self, engine: EngineId, start_timeout_seconds: float) -> None:
        self._healths[engine] = at_first(self.world.clock.seconds, start_timeout_seconds, IDLE)

    def notice(self) -> None:
        """`_watch_exits`, and the end of `_stop`."""
        machine = self.machine
        while machine.untold:
            ended = machine.untold.popleft()
            watched = self._engines.setdefault(ended.id, Watched(ended.id))
            if watched.ended is None:
                self._ended(watched, ended)
        for engine_id in machine.stopped:
            watched = self._engines.pop(engine_id, Watched(engine_id))
            watched.phase, watched.port = "stopped", None
            self._report(watched)
            machine.forget_end(engine_id)
        machine.stopped.clear()

    def look(self, now: float) -> None:
        """`_keep_probing`."""
        machine = self.machine
        for engine in machine.engines.values():
            watched = self._engines.get(engine.id)
            before = self._healths.get(engine.id)
            if watched is None or before is None or engine.ends_at is not None:
                continue
            hangs = engine.deaf or engine.temper == "hangs"
            doing = IDLE if hangs else Activity(busy_seconds=now, read_bytes=0, log_mark=int(now))
            answer = "well" if engine.serves and not engine.deaf else "late"
            health = self._healths[engine.id] = after(before, answer, doing, now, now)
            if answer == "well":
                watched.peak_ram = machine.peak_of(engine, now)
            changed = (health.phase, health.gave_up) != (watched.phase, before.gave_up)
            if changed or health.progressed or watched.has_a_new_peak:
                watched.phase, watched.ill = health.phase, ill_report(health, ())
                self._report(watched)

    def picture(self) -> Report:
        machine = self.machine
        election, seq = self.edge.election, self.edge.seq
        return WorkerObserved(
            **self.edge.identity(),
            name=machine.name,
            address=machine.address,
            agent_version="1",
            inventory=machine.inventory,
            engines=tuple(map(self._seen, self._engines.values())),
            assigned_election=election,
            assigned_seq=seq,
        )

    def leave(self, *, stop: bool) -> None:
        """`_leave`."""
        if stop:
            for engine in list(self.machine.engines):
                self.machine.ends_by(engine, "a_stop")
        if self.link.up:
            finish(self.edge.send(WorkerLeaving(**self.edge.identity(), engines_stopped=stop)))

    def lie(self, engine: EngineSeen) -> None:
        self.edge.report(EngineReported(**self.edge.identity(), engine=engine))

    def _ended(self, watched: Watched, ended: EngineExit) -> None:
        watched.port = None
        watched.ended = EngineSeen(
            instance_id=watched.id.instance_id,
            attempt=watched.id.attempt,
            phase=phase_of_end(ended),
            exit_code=ended.exit_code,
            reasons=why_ended(watched, ended),
            peak_ram=watched.peak_ram,
        )
        self._report(watched)

    def _report(self, watched: Watched) -> None:
        watched.told_peak_ram = watched.peak_ram
        self.edge.report(EngineReported(**self.edge.identity(), engine=self._seen(watched)))

    def _seen(self, watched: Watched) -> EngineSeen:
        """With what a probe of the GPUs would say."""
        seen, engine = watched.seen(), self.machine.engines.get(watched.id)
        if seen.peak_ram is None or engine is None:
            return seen
        vram = {index: int(size * engine.held) for index, size in engine.claim.vram.items()}
        return seen.model_copy(update={"peak_vram": vram})


class Downloader(Role):
    def __init__(self, machine: "Machine") -> None:
        super().__init__(machine, "downloader")
        self._files: dict[FileId, FileSeen] = {}
        self._verifying: dict[FileId, tuple[float, AssignedFile]] = {}
        hub = machine.world.hub
        self.fetches = None if hub is None else Fetches(self, hub)

    @property
    def is_up_to_date(self) -> bool:
        """It has read the newest assignment that there is."""
        body = self.world.assignment(self.machine.id)
        if body is None:
            return False
        document = Assigned.model_validate_json(body)
        return (document.election, document.seq) == self.edge.newest

    def assigned(self, document: Assigned) -> None:
        """`Downloads.wanted`."""
        if self.fetches is not None:
            self.fetches.assigned(document.files)
        wanted = {file.file_id: file for file in document.files if isinstance(file.source, LocalPath)}
        for file_id in self._files.keys() - wanted.keys():
            del self._files[file_id]
        for file in wanted.values():
            known = self._files.get(file.file_id)
            if known is None or known.wanted < file.wanted:
                self._note(FileSeen(file_id=file.file_id, wanted=file.wanted, commit=file.commit, phase="verifying"))
                done = self.world.clock.seconds + self.world.dice.choice((0.1, 0.4, 2.0))
                self._verifying[file.file_id] = (done, file)

    def look(self, now: float) -> None:
        if self.fetches is not None:
            self.fetches.look(now)
        for file_id, (done, file) in list(self._verifying.items()):
            if now < done:
                continue
            del self._verifying[file_id]
            found = self.inspect(file.source)
            seen = FileSeen(file_id=file_id, wanted=file.wanted, commit=file.commit, phase="failed")
            if found.weights is None:
                self.machine.missed.add((file_id, file.wanted))
                self._note(seen.model_copy(update={"reasons": found.reasons}))
            else:
                size, paths = found.weights.weight_bytes, found.weights.files
                ready = {"phase": "ready", "bytes": size, "total": size, "paths": paths}
                self.machine.verified.add((file_id, file.wanted))
                self._note(seen.model_copy(update=ready))

    def inspect(self, source: Source) -> ModelInspection:
        if not isinstance(source, LocalPath) and self.world.hub is not None:
            return self.world.hub.inspect(self.machine.id, source)
        size = self.machine.paths.get(source.label)
        if size is None:
            return ModelInspection(reasons=(ModelNotFound(path=source.label),))
        return ModelInspection(weights=self.world.weights(source.label, size))

    def lie(self, seen: FileSeen) -> None:
        self.edge.report(FileReported(**self.edge.identity(), file=seen))

    def picture(self) -> Report:
        fetched = () if self.fetches is None else tuple(self.fetches.seen())
        return FilesObserved(**self.edge.identity(), files=(*self._files.values(), *fetched))

    def _note(self, seen: FileSeen) -> None:
        self._files[seen.file_id] = seen
        self.tell(seen)

    def tell(self, seen: FileSeen) -> None:
        self.edge.report(FileReported(**self.edge.identity(), file=seen))


class Surroundings:
    """What a machine needs of the world."""

    clock: VirtualClock
    dice: random.Random
    calm: bool
    hub: Hub | None

    def neighbour(self, worker_id: WorkerId) -> "Machine":
        """Another machine, of which something is asked."""
        raise NotImplementedError

    def assignment(self, worker_id: WorkerId) -> bytes | None:
        """The newest document, as read directly."""
        raise NotImplementedError

    def beat(self, worker_id: WorkerId, role: str, boot_id: str) -> None:
        raise NotImplementedError

    def report(self, link: Link, event: Stored) -> None:
        """A report is on its way to the stream REPORTS."""
        raise NotImplementedError

    def stops(self, machine: "Machine", engine: EngineId) -> None:
        """An agent is about to stop an engine."""
        raise NotImplementedError

    def removes(self, machine: "Machine", path: str) -> None:
        """A downloader is about to remove files."""
        raise NotImplementedError

    def temper(self) -> Temper:
        """Of the engine that is being started."""
        raise NotImplementedError

    def weights(self, path: str, size: int) -> ModelWeights:
        """What a downloader reads there."""
        return ModelWeights(format="gguf", weight_bytes=size, files=(path,))

    def joined(self, leader: Engine) -> bool:
        """Have all members of its gang started?"""
        raise NotImplementedError


class Machine:
    """One worker: hardware, processes, disk; and, when they run, an agent and a downloader."""

    def __init__(
        self, world: Surroundings, worker_id: WorkerId, inventory: Inventory, paths: dict[str, int], address: str
    ) -> None:
        self.world = world
        self.id = worker_id
        self.name = str(worker_id)
        self.address = address
        self.inventory = inventory
        self.paths = dict(paths)
        self.store: dict[str, int] = {}
        """What was fetched, and is whole."""
        self.removed: set[tuple[FileId, int]] = set()
        """Every wish for a file whose files it has removed since."""
        self.disk: dict[str, tuple[int, int]] = {}
        self.engines: dict[EngineId, Engine] = {}
        self.ends: deque[EngineExit] = deque()
        """Ends that nobody has answered yet, on the disk: told again to an agent that starts."""
        self.untold: deque[EngineExit] = deque()
        self.stopped: list[EngineId] = []
        self.verified: set[tuple[FileId, int]] = set()
        """Every wish for a file that its downloader has found fulfilled, over all time."""
        self.missed: set[tuple[FileId, int]] = set()
        """Every wish that it could not fulfil."""
        self.accepted: set[EngineId] = set()
        """Every engine that its agent ever took up."""
        self.started: dict[EngineId, list[int]] = {}
        """The ports of every engine that ever ran here."""
        self.has_lied = False
        self.is_on = True
        self._port = 4000
        self.links = {role: Link(self._carry(role)) for role in ("agent", "downloader")}
        self.agent: Agent | None = None
        self.downloader: Downloader | None = None
        self.boot()

    def boot(self) -> None:
        self.is_on = True
        self.agent = self.agent or Agent(self)
        self.downloader = self.downloader or Downloader(self)

    def lose_power(self) -> None:
        self.is_on = False
        self.agent = self.downloader = None
        for engine in list(self.engines):
            self.ends_by(engine, "the_machine")

    def start(self, engine: EngineId, instance: AssignedInstance, files: tuple[str, ...]) -> int:
        self._port += 1
        self.started.setdefault(engine, []).append(self._port)
        now, dice = self.world.clock.seconds, self.world.dice
        self.engines[engine] = Engine(
            engine,
            instance.claim,
            self._port,
            self.world.temper(),
            now + dice.choice((0.2, 0.5, 1.0, 4.0)),
            rank=instance.rank,
            members=tuple(member.worker_id for member in instance.members),
            start_timeout_seconds=instance.launch.start_timeout_seconds,
            files=files,
        )
        return self._port

    def peak_of(self, engine: Engine, now: float) -> int | None:
        """Bytes of RAM; rises now and then, and half of the engines are not measured at all. Takes nothing from the dice."""
        if not self.world.calm and draw(self.id, engine.id) < 0.5:
            engine.held = max(engine.held, 0.3 + 0.6 * draw(self.id, engine.id, now // 10))
        return int(engine.claim.ram * engine.held) or None

    def crash(self, engine: EngineId, code: int) -> None:
        self.untold.append(self.ends_by(engine, "itself", code))

    def ends_by(
        self, engine: EngineId, what: Literal["itself", "a_stop", "the_machine"], code: int | None = None
    ) -> EngineExit:
        del self.engines[engine]
        ended = EngineExit(engine, code, None, (), what)
        self.ends.append(ended)
        return ended

    def forget_end(self, engine: EngineId) -> None:
        self.ends = deque(ended for ended in self.ends if ended.id != engine)

    def pump(self) -> None:
        now = self.world.clock.seconds
        for engine in list(self.engines.values()):
            if engine.ends_at is not None:
                if now >= engine.ends_at:
                    self.ends_by(engine.id, "a_stop")
                    self.stopped.append(engine.id)
            elif not engine.serves and now >= engine.serves_at:
                if engine.temper == "crashes":
                    self.crash(engine.id, 1)
                leads = engine.is_member and engine.rank == 0
                engine.serves = engine.temper == "good" and (not leads or self.world.joined(engine))
        if self.agent is not None:
            self.agent.pump()
        if self.downloader is not None:
            self.downloader.pump()

    def told(self, document: bytes) -> None:
        """The newest assignment, live; whoever is not there misses it."""
        for role in (self.agent, self.downloader):
            if role is not None and role.link.up:
                role.arrived.append(document)

    def reach(self, *, up: bool) -> None:
        """Cut the machine's network, or mend it."""
        for link in self.links.values():
            was, link.up = link.up, up
            if up and not was:
                for callback in link.reconnected:
                    callback()

    def _carry(self, role: str) -> Callable[[str, bytes], None]:
        return lambda subject, body: self.world.report(self.links[role], Stored(0, subject, body))

"""One simulated worker: what its agent and its downloader would do and say. Pure; seconds of the simulation come with each call.

What happens is drawn from the seed, the worker's name and the how-manieth engine of a model it is there: the same fleet
that is assigned the same does the same.
"""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

from schemas.asks import InspectModel
from schemas.assignment import Assigned, AssignedFile, AssignedInstance
from schemas.ids import FileId, InstanceId
from schemas.reasons import EngineExited, MachineRestarted
from schemas.reports import EnginePhase, EngineSeen, FilePhase, FileSeen
from schemas.sources import LocalPath
from services.simulator.domain.files import inspect
from services.simulator.domain.fleet import Crash, Described, Fleet

PROGRESS_SECONDS: Final = 10.0
"""An engine that still starts says so this often."""
NO_PORT: Final = 9
"""Where an engine that does not serve says that it listens: discard (RFC 863)."""

Key = tuple[InstanceId, int]
"""Instance and attempt."""


@dataclass(frozen=True, slots=True)
class Tell:
    """A report of the agent or of the downloader."""

    seen: EngineSeen | FileSeen


@dataclass(frozen=True, slots=True)
class Look:
    """The complete picture is wanted."""


@dataclass(frozen=True, slots=True)
class Join:
    """The machine has started: beats and pictures, under a new boot id."""


@dataclass(frozen=True, slots=True)
class Leave:
    """No more beats. What waits to be told is lost."""

    says_goodbye: bool


@dataclass(frozen=True, slots=True)
class Serve:
    """Answer for this engine from now on; `opened` is to be called with the port."""

    key: Key
    model: str
    first_token_seconds: float
    token_seconds: float


@dataclass(frozen=True, slots=True)
class ServeNoMore:
    key: Key


Step = Tell | Look | Join | Leave | Serve | ServeNoMore


@dataclass(slots=True)
class Engine:
    key: Key
    rank: int
    model: str
    gpu_indexes: tuple[int, ...] = ()
    phase: EnginePhase = "accepted"
    started_at: float = 0.0
    healthy_at: float | None = None
    crash_at: float | None = None
    crash: Crash | None = None
    stopped_at: float | None = None
    progress_at: float | None = None
    first_token_seconds: float = 0.0
    token_seconds: float = 0.0
    stop_seconds: float = 0.0
    serves: bool = True
    peak_ram: int | None = None
    peak_vram: int | None = None
    """On each of its GPUs."""
    has_answered: bool = False
    port: int | None = None
    end: EngineSeen | None = None
    log: list[str] = field(default_factory=list[str])

    @property
    def next_at(self) -> float | None:
        times = (self.healthy_at, self.crash_at, self.stopped_at, self.progress_at)
        return min((at for at in times if at is not None), default=None)

    def seen(self, progress: float | None = None) -> EngineSeen:
        if self.end is not None:
            return self.end
        instance_id, attempt = self.key
        ports = () if self.port is None else (self.port,)
        return EngineSeen.model_validate(
            {
                "instance_id": instance_id,
                "attempt": attempt,
                "rank": self.rank,
                "phase": self.phase,
                "progress": progress,
                "ports": ports,
                **self._peaks(),
            }
        )

    def _peaks(self) -> dict[str, object]:
        """As an agent tells them: of an engine that has answered."""
        if not self.has_answered:
            return {}
        vram = {} if self.peak_vram is None else dict.fromkeys(self.gpu_indexes, self.peak_vram)
        return {"peak_ram": self.peak_ram, "peak_vram": vram}

    def ends(
        self, reason: object, exit_code: int | None, log: Iterable[str], phase: EnginePhase = "exited"
    ) -> EngineSeen:
        self.healthy_at = self.crash_at = self.progress_at = self.port = None
        self.phase = phase
        self.log.extend(log)
        self.end = EngineSeen.model_validate(
            {
                "instance_id": self.key[0],
                "attempt": self.key[1],
                "rank": self.rank,
                "phase": phase,
                "exit_code": exit_code,
                "reasons": (reason,),
                "log_tail": tuple(self.log[-50:]),
                **self._peaks(),
            }
        )
        return self.end


@dataclass(slots=True)
class File:
    wish: AssignedFile
    seen: FileSeen
    done_at: float | None


class Worker:
    def __init__(self, described: Described, fleet: Fleet) -> None:
        self.described = described
        self._fleet = fleet
        self.is_here = False
        self.election = 0
        self.seq = 0
        self._engines: dict[Key, Engine] = {}
        self._files: dict[FileId, File] = {}
        self._started: dict[str, int] = {}
        """Model → how many engines of it were started here."""
        self._lost: frozenset[Key] | None = None
        """Engines that ran before the machine started again; None: any, since nobody noted which did."""
        life = described.group.life
        leaves = life.leaves_at_seconds if life else None
        returns = life.returns_at_seconds if life else None
        self._leaves_at = described.draw(leaves, "leaves") if leaves else None
        self._returns_at = described.draw(returns, "returns") if returns else None

    # -- what there is ------------------------------------------------------------------------------------------------

    def engines(self) -> tuple[EngineSeen, ...]:
        """Of the complete picture."""
        return tuple(engine.seen() for engine in self._engines.values())

    def files(self) -> tuple[FileSeen, ...]:
        return tuple(file.seen for file in self._files.values())

    def phases(self) -> Iterator[EnginePhase]:
        return (engine.phase for engine in self._engines.values())

    def log_of(self, instance_id: InstanceId, attempt: int | None) -> tuple[int, tuple[str, ...]] | None:
        """The attempt (the newest unless one is named) and its log; None when there is none."""
        found = [e for e in self._engines.values() if e.key[0] == instance_id and attempt in (None, e.key[1])]
        newest = max(found, key=lambda engine: engine.key[1], default=None)
        return None if newest is None else (newest.key[1], tuple(newest.log))

    def next_at(self) -> float | None:
        """When `time_passed` has something to do, unless something else happens before."""
        times = [self._leaves_at if self.is_here else self._returns_at]
        times += [engine.next_at for engine in self._engines.values()]
        times += [file.done_at for file in self._files.values()]
        return min((at for at in times if at is not None), default=None)

    # -- what happens -------------------------------------------------------------------------------------------------

    def joins(self) -> list[Step]:
        """The machine starts; nothing runs on it, and what it was told before it does not know."""
        self.is_here, self.election, self.seq = True, 0, 0
        return [Join()]

    def assigned(self, document: Assigned, now: float) -> list[Step]:
        if not self.is_here or not document.is_newer_than(self.election, self.seq):
            return []
        is_first, is_elected = self.election == 0, document.election > self.election
        self.election, self.seq = document.election, document.seq
        wanted = {(instance.instance_id, instance.attempt): instance for instance in document.instances}
        steps = list(self._lost_engines(wanted)) if is_first else []
        steps += [*self._assigned_files(document.files, now), *self._no_longer_wanted(wanted, now)]
        for key, instance in wanted.items():
            engine = self._engines.get(key)
            if engine is None:
                engine = self._engines[key] = Engine(
                    key, instance.rank, instance.launch.model_name, instance.gpu_indexes
                )
                steps.append(Tell(engine.seen()))
            if instance.want == "running" and engine.phase == "accepted":
                self._start(engine, now)
                steps.append(Tell(engine.seen()))
        return [*steps, Look()] if is_elected else steps

    def time_passed(self, now: float) -> list[Step]:
        if not self.is_here:
            if self._returns_at is not None and self._returns_at <= now:
                self._returns_at = None
                return self.joins()
            return []
        if self._leaves_at is not None and self._leaves_at <= now:
            self._leaves_at = None
            return self._leaves()
        steps: list[Step] = []
        for engine in list(self._engines.values()):
            steps += self._engine_later(engine, now)
        for file in self._files.values():
            if file.done_at is not None and file.done_at <= now:
                file.done_at = None
                file.seen = self._looked_at(file.wish)
                steps.append(Tell(file.seen))
        return steps

    def opened(self, key: Key, port: int) -> list[Step]:
        """The engine that was to be served is reached at this port."""
        engine = self._engines.get(key)
        if engine is None or engine.phase != "loading" or engine.stopped_at is not None:
            return [ServeNoMore(key)]
        return [self._healthy(engine, port)]

    def not_opened(self, key: Key, why: str) -> list[Step]:
        """There is no port for the engine that was to be served."""
        engine = self._engines.get(key)
        if engine is None or engine.phase != "loading" or engine.stopped_at is not None:
            return []
        return [Tell(engine.ends(EngineExited(exit_code=1), 1, (why,)))]

    # -- engines ------------------------------------------------------------------------------------------------------

    def _start(self, engine: Engine, now: float) -> None:
        described, behaviour = self.described, self.described.group.engines
        number = self._started[engine.model] = self._started.get(engine.model, 0) + 1
        what = (engine.model, number)
        slow, crash = behaviour.slow, behaviour.crash
        factor = slow.factor if slow and described.happens(slow.probability, "slow", *what) else 1.0
        seconds = described.draw(behaviour.start_seconds, "start", *what) * factor
        engine.phase, engine.started_at = "loading", now
        engine.healthy_at = now + seconds
        engine.progress_at = now + PROGRESS_SECONDS
        engine.first_token_seconds = described.draw(behaviour.first_token_seconds, "first token", *what) * factor
        engine.token_seconds = described.draw(behaviour.token_seconds, "token", *what) * factor
        engine.stop_seconds = described.draw(behaviour.stop_seconds, "stop", *what)
        engine.serves = behaviour.serves
        if behaviour.peak_ram is not None:
            engine.peak_ram = round(described.draw(behaviour.peak_ram, "peak ram", *what))
        if behaviour.peak_vram is not None:
            engine.peak_vram = round(described.draw(behaviour.peak_vram, "peak vram", *what))
        if crash and described.happens(crash.probability, "crash", *what):
            engine.crash = crash
            engine.crash_at = now + described.draw(crash.after_seconds, "crash after", *what)
        engine.log.append(f"simulated engine {number} of {engine.model} on {described.name}: ready in {seconds:.1f} s")

    def _engine_later(self, engine: Engine, now: float) -> Iterator[Step]:
        if engine.stopped_at is not None:
            if engine.stopped_at <= now:
                yield self._stopped(engine)
        elif engine.crash is not None and engine.crash_at is not None and engine.crash_at <= now:
            crash = engine.crash
            yield ServeNoMore(engine.key)
            reason = crash.reason or EngineExited(exit_code=crash.exit_code)
            yield Tell(engine.ends(reason, crash.exit_code, crash.log))
        elif engine.healthy_at is not None and engine.healthy_at <= now:
            engine.healthy_at = engine.progress_at = None
            if engine.serves:
                yield Serve(engine.key, engine.model, engine.first_token_seconds, engine.token_seconds)
            else:
                yield self._healthy(engine, NO_PORT)
        elif engine.progress_at is not None and engine.healthy_at is not None and engine.progress_at <= now:
            engine.progress_at = now + PROGRESS_SECONDS
            yield Tell(engine.seen(progress=(now - engine.started_at) / (engine.healthy_at - engine.started_at)))

    def _healthy(self, engine: Engine, port: int) -> Tell:
        engine.phase, engine.port, engine.has_answered = "healthy", port, True
        engine.log.append(f"listening on port {port}")
        return Tell(engine.seen())

    def _no_longer_wanted(self, wanted: dict[Key, AssignedInstance], now: float) -> list[Step]:
        steps: list[Step] = []
        for engine in [engine for key, engine in self._engines.items() if key not in wanted]:
            if engine.end is not None:
                del self._engines[engine.key]
            elif engine.stopped_at is None:
                steps.append(ServeNoMore(engine.key))
                engine.healthy_at = engine.crash_at = engine.progress_at = engine.port = None
                engine.stopped_at = now + engine.stop_seconds
                if engine.stopped_at <= now:
                    steps.append(self._stopped(engine))
        return steps

    def _stopped(self, engine: Engine) -> Tell:
        del self._engines[engine.key]
        engine.phase = "stopped"
        return Tell(engine.seen())

    def _lost_engines(self, wanted: dict[Key, AssignedInstance]) -> Iterator[Step]:
        """Whatever ran before is gone with it, and does not start again as the same attempt."""
        for key, instance in wanted.items():
            if instance.want == "running" and (self._lost is None or key in self._lost):
                engine = self._engines[key] = Engine(key, instance.rank, instance.launch.model_name)
                yield Tell(engine.ends(MachineRestarted(), None, (), "stopped"))

    def _leaves(self) -> list[Step]:
        life = self.described.group.life
        says_goodbye = life is None or life.says_goodbye
        steps: list[Step] = [ServeNoMore(key) for key in self._engines]
        self._lost = frozenset() if says_goodbye else frozenset(self._engines)
        self._engines.clear()
        self._files.clear()
        self.is_here = False
        return [*steps, Leave(says_goodbye)]

    # -- files --------------------------------------------------------------------------------------------------------

    def _assigned_files(self, wishes: tuple[AssignedFile, ...], now: float) -> list[Step]:
        wanted = {wish.file_id: wish for wish in wishes}
        for file_id in self._files.keys() - wanted.keys():
            del self._files[file_id]
        steps: list[Step] = []
        for wish in wanted.values():
            known = self._files.get(wish.file_id)
            if known is not None and (known.wish.wanted, known.wish.want) == (wish.wanted, wish.want):
                known.wish = wish
                continue
            is_wanted = wish.want == "ready"
            phase: FilePhase = "verifying" if is_wanted else "deleted"
            seen = FileSeen(file_id=wish.file_id, wanted=wish.wanted, commit=wish.commit, phase=phase)
            seconds = self.described.draw(self.described.group.files.verify_seconds, "verify", wish.source.label)
            self._files[wish.file_id] = File(wish, seen, now + seconds if is_wanted else None)
            steps.append(Tell(seen))
        return steps

    def _looked_at(self, wish: AssignedFile) -> FileSeen:
        has_neighbour = any(neighbour.ready for neighbour in wish.neighbours)
        question = InspectModel(source=wish.source)
        found = inspect(self._fleet, self.described.name, question, has_neighbour=has_neighbour)
        seen = FileSeen(
            file_id=wish.file_id, wanted=wish.wanted, commit=wish.commit, phase="failed", reasons=found.reasons
        )
        if found.weights is None:
            return seen
        size, paths = found.weights.weight_bytes, found.weights.files
        ready = seen.model_copy(update={"phase": "ready", "bytes": size, "total": size, "paths": paths})
        if isinstance(wish.source, LocalPath):
            return ready
        digest = hashlib.sha256(wish.source.label.encode()).hexdigest()
        return ready.model_copy(update={"model_path": paths[0], "digest": digest})

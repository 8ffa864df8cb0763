"""What must hold, always (DESIGN §10), looked at from outside: computed from the facts in the log and from how the machines
really are, not from what the scheduler believes. Whatever does not hold raises `Broken`.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final

from schemas.facts import (
    DeadlinePassed,
    InstanceAttemptEnded,
    InstanceCreated,
    InstanceDeleted,
    InstanceDeletionRequested,
    InstanceDrained,
    InstanceFailed,
    InstanceReachable,
    InstanceRestartPlanned,
    InstanceRunning,
    InstanceScheduled,
    InstanceStopping,
    InstanceUnreachable,
    ModelCreated,
    ModelDeleted,
    ModelEnded,
    ModelFileFailed,
    ModelFileReady,
    ModelFileWanted,
    ModelPeakMeasured,
    ModelRenamed,
    ModelScaled,
    ModelUpdated,
    SchedulerElected,
    WorkerAddressChanged,
    WorkerInventoryChanged,
    WorkerReady,
    WorkerRegistered,
    WorkerRemoved,
    WorkerUnreachable,
)
from schemas.facts.base import Fact
from schemas.facts.instance import InstanceFact
from schemas.facts.model import ModelWish
from schemas.ids import InstanceId, ModelId, WorkerId
from schemas.models import Claim, Inventory, ModelSpec
from schemas.reasons import Reason
from services.agent.domain.runtime import EngineId
from services.scheduler.domain import fleet, peaks
from services.scheduler.domain.draining import GENTLE
from services.scheduler.domain.fleet import Contradiction, Fleet
from services.scheduler.domain.policy import Policy
from tests.simulation.api import Api, Tables, Write
from tests.simulation.lines import Entry
from tests.simulation.worker import Machine


class Invariant(Enum):
    """The numbers are those of DESIGN §10; the letters are other sentences of it."""

    WRITES = "1 an acknowledged write is never lost; a refused write leaves no trace"
    MEMORY = "2 no memory is promised twice, with any number of schedulers alive"
    ROUTES = "3 at most one attempt is routable: the newest one that runs"
    REASONS = "4 what does not run has a reason with code, numbers, since when and by which event"
    REPLAY = "5 replaying gives the same state, whatever the batch sizes, restarts, duplicates"
    GANGS = "g an instance on several workers is one: placed, started, lost, ended and freed with all its members"
    ENGINES = "6 no engine is stopped without a recorded cause, none outlives its assignment by more than 15 s"
    CONVERGES = "7 within 60 s everything placeable runs, nothing sits in a state past its deadline"
    WATCHERS = "9 every watcher sees every transition in order and resumes where it stopped"
    FILES = (
        "h what runs has its files; one worker asks the hub for all; a user is answered once, a model is of one commit"
    )
    STREAMS = "s an engine that others stand in for finishes its requests, up to the deadline"
    QUIET = "q no news is no event"
    REPORTS = "r a late or forged report never becomes history"
    FENCE = "f the log and the board take nothing from a scheduler that was replaced"
    ALIVE = "a nothing that comes from outside makes a process fail"


Claims = dict[tuple[InstanceId, int, WorkerId], Claim]
"""Instance, attempt and worker → what is promised there."""


def promised(claims: Claims, worker_id: WorkerId) -> tuple[int, dict[int, int]]:
    """RAM, and memory of each GPU; bytes."""
    ram, vram = 0, dict[int, int]()
    for (_, _, where), claim in claims.items():
        if where == worker_id:
            ram += claim.ram
            for index, size in claim.vram.items():
                vram[index] = vram.get(index, 0) + size
    return ram, vram


class Broken(Exception):
    def __init__(self, invariant: Invariant, what: str) -> None:
        super().__init__(f"[{invariant.name}] {invariant.value}: {what}")
        self.invariant = invariant


OUTLIVES_SECONDS: Final = 15.0
UNEXPLAINED: Final = frozenset({"pending", "error", "unreachable"})


@dataclass(slots=True)
class Life:
    """One instance, as the log tells it."""

    model_id: ModelId
    state: str = "pending"
    since: float = 0.0
    attempt: int = 0
    workers: tuple[WorkerId, ...] = ()
    running: InstanceRunning | None = None
    """The attempt whose engine answers, as far as was stated."""
    stop: str | None = None
    drains: float = 0.0
    """While it drains: for how long at most."""
    finishes_until: float = 0.0
    """What it had in flight when it was to stop has so long."""
    failed: set[int] = field(default_factory=set[int])
    overdue: set[int] = field(default_factory=set[int])
    """Attempts that were moved away from because a deadline had passed."""
    on: dict[int, tuple[WorkerId, ...]] = field(default_factory=dict[int, tuple[WorkerId, ...]])
    reasons: tuple[Reason, ...] = ()
    restart_seconds: float | None = None
    final: bool = False
    start_timeout: float = 900.0


class Ledger:
    """Every fact once, in the order of the log, the moment it is stored."""

    def __init__(self) -> None:
        self.fleet = Fleet()
        """Folded by the scheduler's own `evolve`: what its fleet is compared with."""
        self.now = 0.0
        self.replica: str | None = None
        self.specs: dict[ModelId, ModelSpec] = {}
        self.names: dict[str, ModelId] = {}
        self.lives: dict[InstanceId, Life] = {}
        self.ended: dict[InstanceId, Life] = {}
        self.capacity: dict[WorkerId, Inventory] = {}
        self.addresses: dict[WorkerId, str] = {}
        self.worker_states: dict[WorkerId, str] = {}
        self.claims: Claims = {}
        self.wanted: dict[str, int] = {}
        self.left: set[WorkerId] = set()
        """Workers that said goodbye and were not ready since."""
        self.removed: set[WorkerId] = set()
        self.requests: dict[str, list[Entry]] = {}
        """The api's facts by the request that they follow from."""
        self.generations: dict[ModelId, list[int]] = {}
        self.api_sequences: set[int] = set()
        self.last_of_api = 0

    # -- one fact -----------------------------------------------------------------------------------------------------

    def take(self, entry: Entry, machines: dict[WorkerId, Machine]) -> None:
        fact = entry.fact
        if isinstance(fact, SchedulerElected):
            self.replica = fact.replica
        elif fact.owner == "scheduler" and entry.envelope.source != f"/muster/scheduler/{self.replica}":
            raise Broken(
                Invariant.FENCE, f"{entry.envelope.source} stated {fact.type} while {self.replica} was elected"
            )
        if fact.owner == "api":
            self.requests.setdefault(entry.envelope.correlationid or "", []).append(entry)
            self.api_sequences.add(entry.sequence)
            self.last_of_api = entry.sequence
        match fact:
            case ModelWish():
                self._wish(fact, entry.sequence)
            case InstanceFact():
                self._instance(fact)
                match fact:
                    case InstanceRunning():
                        _check_was_started(fact, machines[fact.worker_id])
                    case InstanceFailed(engine_gone=True) | InstanceAttemptEnded():
                        requests = self.fleet.removal_requests.get(fact.worker_id, 0)
                        if requests <= self.fleet.removals.get(
                            fact.worker_id, 0
                        ):  # else it is the operator who says so
                            _check_is_gone(fact, machines[fact.worker_id])
                    case _:
                        pass
            case WorkerRegistered() | WorkerInventoryChanged():
                self.capacity[fact.worker_id] = fact.inventory
                if isinstance(fact, WorkerRegistered):
                    self.addresses[fact.worker_id] = fact.address
                    self.worker_states[fact.worker_id] = "registered"
            case WorkerAddressChanged():
                self.addresses[fact.worker_id] = fact.address
            case WorkerReady():
                self.worker_states[fact.worker_id] = "ready"
                self.left.discard(fact.worker_id)
            case WorkerUnreachable():
                self.worker_states[fact.worker_id] = "unreachable"
            case WorkerRemoved():
                self.worker_states.pop(fact.worker_id, None)
                self.removed.add(fact.worker_id)
                self._release(worker_id=fact.worker_id)
                for engine in machines[fact.worker_id].engines.values():
                    engine.disowned = True
            case ModelPeakMeasured():
                self._peak(fact, machines[fact.worker_id])
            case ModelFileWanted():
                self.wanted[fact.file_id] = self.wanted.get(fact.file_id, 0) + 1
            case ModelFileReady():
                machine = machines[fact.worker_id]
                wish = (fact.file_id, self.fleet.files[fact.file_id].wanted)
                if wish not in machine.verified and not machine.has_lied:
                    raise Broken(Invariant.REPORTS, f"{fact.file_id} is ready, but nobody has verified wish {wish[1]}")
            case ModelFileFailed():
                machine = machines[fact.worker_id]
                wish = (fact.file_id, self.fleet.files[fact.file_id].wanted)
                if wish not in machine.missed and not machine.has_lied:
                    raise Broken(Invariant.REPORTS, f"{fact.file_id} failed, but nobody said so of wish {wish[1]}")
            case _:
                pass
        try:
            fleet.evolve(
                self.fleet,
                fact,
                entry.sequence,
                entry.envelope.time,
                entry.envelope.correlationid,
                entry.envelope.traceparent,
            )
        except Contradiction as error:
            raise Broken(Invariant.REPLAY, f"event {entry.sequence} contradicts what was before: {error}") from error

    def _wish(self, fact: ModelWish, sequence: int) -> None:
        model_id = fact.model_id
        self.generations.setdefault(model_id, []).append(sequence)
        match fact:
            case ModelCreated(spec=spec) | ModelUpdated(spec=spec):
                bearer = self.names.setdefault(spec.name.casefold(), model_id)
                if bearer != model_id:
                    raise Broken(Invariant.WRITES, f"{spec.name} is the name of {bearer} and of {model_id}")
                self.specs[model_id] = spec
            case ModelScaled(replicas=replicas):
                self.specs[model_id] = self.specs[model_id].model_copy(update={"replicas": replicas})
            case ModelRenamed(name=name):
                self.names.pop(name.casefold(), None)
            case ModelDeleted(name=name):
                self.names.pop(name.casefold(), None)
                self.specs.pop(model_id, None)
            case _:
                pass

    def _peak(self, fact: ModelPeakMeasured, machine: Machine) -> None:
        if EngineId(fact.instance_id, fact.attempt) not in machine.started and not machine.has_lied:
            raise Broken(
                Invariant.REPORTS, f"{machine.id} measured {fact.instance_id}/{fact.attempt}, which never ran there"
            )
        told, model = peaks.peak_in(fact), self.fleet.models.get(fact.model_id, fleet.Model())
        if peaks.news(model.peaks, told) != told:
            raise Broken(Invariant.QUIET, f"{told} of {fact.model_id} is no news after {model.peaks}")

    def _instance(self, fact: InstanceFact) -> None:
        if isinstance(fact, InstanceCreated):
            self.lives[fact.instance_id] = Life(fact.model_id, since=self.now)
            return
        if isinstance(fact, InstanceDeletionRequested):
            return
        life = self.lives.get(fact.instance_id)
        if life is None:
            raise Broken(Invariant.REPLAY, f"{fact.type} of {fact.instance_id}, which is not there")
        before = life.state
        self._live(life, fact)
        if life.state != before or isinstance(fact, InstanceScheduled):
            life.since = self.now

    def _live(self, life: Life, fact: InstanceFact) -> None:
        instance_id = fact.instance_id
        if life.stop is not None and not isinstance(
            fact, InstanceDrained | InstanceAttemptEnded | InstanceDeleted | DeadlinePassed
        ):
            raise Broken(Invariant.REPORTS, f"{fact.type} of {instance_id}, which is being stopped")
        match fact:
            case InstanceScheduled():
                if fact.attempt <= life.attempt:
                    raise Broken(Invariant.REPORTS, f"attempt {fact.attempt} of {instance_id} after {life.attempt}")
                life.attempt, life.state = fact.attempt, "scheduled"
                life.start_timeout = fact.launch.start_timeout_seconds
                life.workers = life.on[fact.attempt] = tuple(member.worker_id for member in fact.members)
                for member in fact.members:
                    self.claims[instance_id, fact.attempt, member.worker_id] = member.claim
                for member in fact.members:
                    self._check_promises(member.worker_id, member.claim)
            case InstanceRunning():
                self._current(life, fact)
                if fact.address != self.addresses.get(fact.worker_id):
                    raise Broken(Invariant.ROUTES, f"{instance_id} runs at {fact.address}, not where its worker is")
                life.state, life.running = "running", fact
            case InstanceFailed():
                if fact.attempt != life.attempt:
                    raise Broken(Invariant.REPORTS, f"attempt {fact.attempt} of {instance_id} failed, not the newest")
                life.state, life.reasons, life.final, life.restart_seconds = "error", fact.reasons, fact.final, None
                life.failed.add(fact.attempt)
                if life.running is not None and life.running.attempt == fact.attempt:
                    life.running = None
                if fact.engine_gone:
                    self._release(instance_id, fact.attempt, fact.worker_id)
            case InstanceRestartPlanned():
                life.restart_seconds = fact.delay_seconds
            case InstanceUnreachable():
                self._current(life, fact)
                life.state, life.reasons = "unreachable", fact.reasons
            case InstanceReachable():
                self._current(life, fact)
                life.state = "running"
            case InstanceStopping():
                if life.state == "running" and fact.cause in GENTLE and not fact.drain_seconds:
                    raise Broken(
                        Invariant.STREAMS, f"{instance_id} is {fact.cause}, and its requests have no time to end"
                    )
                life.state, life.stop, life.running = "stopping", fact.cause, None
                life.drains, life.finishes_until = fact.drain_seconds, self.now + fact.drain_seconds
            case InstanceDrained():
                life.drains, life.since = 0.0, self.now
            case InstanceAttemptEnded():
                self._release(instance_id, fact.attempt, fact.worker_id)
                if life.running is not None and life.running.attempt == fact.attempt:
                    life.running = None
            case InstanceDeleted():
                self._release(instance_id)
                self.ended[instance_id] = self.lives.pop(instance_id)
            case DeadlinePassed():
                self._deadline(life, fact)
            case _:
                state = {"InstancePending": "pending", "InstanceDownloading": "downloading"}
                if fact.type in ("InstanceDownloading", "InstanceStarting"):
                    self._current(life, fact)
                life.state = state.get(fact.type, "starting")

    def _current(self, life: Life, fact: Any) -> None:
        if fact.attempt != life.attempt or fact.worker_id not in life.workers or life.attempt in life.failed:
            raise Broken(
                Invariant.REPORTS,
                f"{fact.type} of attempt {fact.attempt} on {fact.worker_id}, but {fact.instance_id} is at attempt"
                f" {life.attempt} on {', '.join(life.workers)}",
            )

    def _deadline(self, life: Life, fact: DeadlinePassed) -> None:
        life.overdue.add(fact.attempt)
        if fact.state != "unreachable":
            return
        silent = [w for w, state in self.worker_states.items() if state == "unreachable" and w not in self.left]
        if len(silent) > 1 and len(silent) >= Policy().brake_share * len(self.worker_states):
            raise Broken(Invariant.ENGINES, f"{fact.instance_id} was evicted while {len(silent)} workers were silent")

    def _release(
        self, instance_id: InstanceId | None = None, attempt: int | None = None, worker_id: WorkerId | None = None
    ) -> None:
        for key in list(self.claims):
            if instance_id in (None, key[0]) and attempt in (None, key[1]) and worker_id in (None, key[2]):
                del self.claims[key]

    def _check_promises(self, worker_id: WorkerId, new: Claim) -> None:
        """Of what the new claim takes from: others may have come to hold memory that was promised before."""
        has = self.capacity[worker_id]
        ram, vram = promised(self.claims, worker_id)
        if new.ram and ram > has.memory_total - has.memory_reserved:
            raise Broken(Invariant.MEMORY, f"{ram} bytes of RAM of {worker_id} are promised, it has {has.memory_total}")
        gpus = {gpu.index: gpu.memory_total - gpu.memory_used_by_others for gpu in has.gpus}
        for index in new.vram:
            if (size := vram[index]) > gpus.get(index, 0):
                raise Broken(Invariant.MEMORY, f"{size} bytes of GPU {index} of {worker_id} are promised, of {gpus}")

    # -- what an agent does -------------------------------------------------------------------------------------------

    def check_stop(self, machine: Machine, engine: EngineId) -> None:
        """Is there a fact that says why this engine is stopped?"""
        life = self.lives.get(engine.instance_id)
        if life is None or life.stop is not None or machine.id in self.removed or machine.has_lied:
            return
        if engine.attempt in life.failed or engine.attempt in life.overdue:
            return
        raise Broken(
            Invariant.ENGINES,
            f"{machine.id} stops attempt {engine.attempt} of {engine.instance_id} ({life.state}, attempt {life.attempt}),"
            " and no fact says why",
        )


def check_same_claims(ledger: Ledger) -> None:
    """What the scheduler's fleet holds promised is what the facts say, read by themselves."""
    have = {(claim.instance_id, claim.attempt, claim.worker_id) for claim in ledger.fleet.claims.values()}
    if have != ledger.claims.keys():
        raise Broken(
            Invariant.MEMORY,
            f"promised and not in the fleet: {sorted(ledger.claims.keys() - have)};"
            f" in the fleet and not promised: {sorted(have - ledger.claims.keys())}",
        )


def _check_is_gone(fact: InstanceFailed | InstanceAttemptEnded, machine: Machine) -> None:
    """Memory is free when the engine was seen gone."""
    engine = machine.engines.get(EngineId(fact.instance_id, fact.attempt))
    if engine is not None and not (engine.disowned or machine.has_lied):
        raise Broken(
            Invariant.MEMORY,
            f"{fact.type} frees what attempt {fact.attempt} of {fact.instance_id} claims on {machine.id}, where it still runs",
        )


def _check_was_started(fact: InstanceRunning, machine: Machine) -> None:
    ports = machine.started.get(EngineId(fact.instance_id, fact.attempt), [])
    if fact.port not in ports and not machine.has_lied:
        raise Broken(
            Invariant.REPORTS,
            f"attempt {fact.attempt} of {fact.instance_id} is said to run on {machine.id}:{fact.port}, which started it on {ports}",
        )


def check_deadlines(ledger: Ledger, decides_since: float, heard: dict[InstanceId, float], slack: float) -> None:
    """Nothing stays in a state past its deadline while one scheduler decides without interruption."""
    policy, now = Policy(), ledger.now
    for instance_id, life in ledger.lives.items():
        since, allowed = max(life.since, decides_since), None
        match life.state:
            case "scheduled" if life.attempt not in life.overdue:
                allowed = policy.accept_seconds
            case "downloading":
                allowed = policy.download_stall_seconds
                since = max(since, heard.get(instance_id, 0.0))
            case "starting":
                allowed = life.start_timeout + policy.start_report_seconds
                since = max(since, heard.get(instance_id, 0.0))
            case "error" if not life.final:
                allowed = life.restart_seconds or 0.0
            case "stopping" if life.drains:
                allowed = life.drains
            case _:
                pass
        if allowed is not None and now - since > allowed + slack:
            raise Broken(
                Invariant.CONVERGES,
                f"{instance_id} has been {life.state} for {now - since:.1f} s, which may last {allowed:.1f} s",
            )


def check_machines(machines: Iterable[Machine], assigned: Any, now: float) -> None:
    """How the machines really are: memory in use, engines that nobody wants any more."""
    for machine in machines:
        if not machine.engines:
            continue
        if not machine.has_lied:
            _check_memory_in_use(machine)
        wanted = assigned(machine.id)
        there = machine.agent is not None and machine.links["agent"].up
        for engine in machine.engines.values():
            if wanted is None or engine.id in wanted or not there:
                engine.unassigned_since = None
            elif engine.unassigned_since is None:
                engine.unassigned_since = now
            elif now - engine.unassigned_since > OUTLIVES_SECONDS:
                raise Broken(
                    Invariant.ENGINES,
                    f"attempt {engine.id.attempt} of {engine.id.instance_id} still runs on {machine.id},"
                    f" {now - engine.unassigned_since:.1f} s after it was last assigned",
                )


def _check_memory_in_use(machine: Machine) -> None:
    engines = [engine for engine in machine.engines.values() if not engine.disowned]
    ram = sum(engine.claim.ram for engine in engines)
    if ram > machine.inventory.memory_total:
        raise Broken(Invariant.MEMORY, f"the engines on {machine.id} use {ram} bytes of RAM")
    for gpu in machine.inventory.gpus:
        used = sum(engine.claim.vram.get(gpu.index, 0) for engine in engines)
        if used > gpu.memory_total:
            names = ", ".join(f"{e.id.instance_id}/{e.id.attempt}" for e in engines)
            raise Broken(Invariant.MEMORY, f"{names} use {used} bytes of GPU {gpu.index} of {machine.id}")


def check_routes(api: Api, ledger: Ledger) -> None:
    """Call when the gateway has folded the whole log."""
    routable: dict[InstanceId, tuple[int, str, int]] = {}
    for spec in ledger.specs.values():
        for endpoint in api.routes.candidates(spec.name, 0.0):
            if endpoint.instance_id in routable:
                raise Broken(Invariant.ROUTES, f"two endpoints of {endpoint.instance_id} are routable")
            routable[endpoint.instance_id] = (endpoint.attempt, endpoint.address, endpoint.port)
    expected = {
        instance_id: (life.running.attempt, life.running.address, life.running.port)
        for instance_id, life in ledger.lives.items()
        if life.running is not None and life.model_id in ledger.specs
    }
    if routable != expected:
        raise Broken(Invariant.ROUTES, f"requests go to {routable}, but what runs is {expected}")


def check_endpoints(tables: Tables, ledger: Ledger) -> None:
    """The read models' newest endpoint of each instance is the one that runs."""
    newest: dict[str, Any] = {}
    for (instance_id, attempt), row in sorted(tables.rows["endpoints"].items()):
        newest[instance_id] = (attempt, row["address"], row["port"])
    expected = {
        instance_id: (life.running.attempt, life.running.address, life.running.port)
        for instance_id, life in ledger.lives.items()
        if life.running is not None
    }
    if newest != expected:
        raise Broken(Invariant.ROUTES, f"the read models route to {newest}, but what runs is {expected}")


def check_reasons(tables: Tables, entries: list[Entry]) -> None:
    """Call when everything that was decided is projected."""
    found: dict[tuple[str, str], list[Any]] = {}
    for row in tables.rows["reasons"].values():
        found.setdefault((row["kind"], row["resource_id"]), []).append(row)
    for kind, table, states in (
        ("instance", "instances", UNEXPLAINED),
        ("model", "models", frozenset({"pending", "degraded"})),
        ("worker", "workers", frozenset({"unreachable"})),
        ("file", "files", frozenset({"error"})),
    ):
        for (resource_id,), row in tables.rows[table].items():
            reasons = found.pop((kind, resource_id), [])
            if row["state"] in states and not reasons:
                raise Broken(Invariant.REASONS, f"{kind} {resource_id} is {row['state']}, and nothing says why")
            if any(reason["cause_seq"] < row["cause_seq"] for reason in reasons):
                raise Broken(Invariant.REASONS, f"{kind} {resource_id} is {row['state']} for reasons of a former state")
            for reason in (row, *reasons):
                cause = entries[reason["cause_seq"] - 1]
                if cause.fact.resource_id != resource_id or cause.envelope.time.isoformat() != reason["since"]:
                    raise Broken(
                        Invariant.REASONS, f"{kind} {resource_id} is {row['state']} by {cause.fact.type}, not its own"
                    )
            for reason in reasons:
                _check_reason(reason, entries[reason["cause_seq"] - 1].fact, f"{kind} {resource_id}")
    ended = {entry.fact.model_id for entry in entries if isinstance(entry.fact, ModelEnded)}
    left = sorted(
        key for key in found if key[0] != "model" or key[1] in ended
    )  # a model ends a moment after it is deleted
    if left:
        raise Broken(Invariant.REASONS, f"there are reasons of what is not there: {left}")


def _check_reason(row: Any, cause: Fact, what: str) -> None:
    stated = [reason.code for reason in getattr(cause, "reasons", ())]
    if row["code"] not in stated or not row["text"] or row["who"] not in ("wait", "operator", "author"):
        raise Broken(Invariant.REASONS, f"{what} says {row['code']}, its cause {cause.type} says {stated}")


def check_writes(writes: Iterable[Write], ledger: Ledger) -> None:
    commands: dict[str, set[str]] = {}
    for write in writes:
        stored = ledger.requests.get(write.request_id, [])
        if write.command is not None:
            commands.setdefault(write.command, set()).update({write.request_id} if stored else ())
        if write.outcome == "refused" and stored:
            raise Broken(
                Invariant.WRITES, f"{write.request_id}, {write.what}, was refused and left {stored[0].fact.type}"
            )
        if write.outcome == "acknowledged":
            _check_acknowledged(write, ledger)
    for command, requests in commands.items():
        if len(requests) > 1:
            raise Broken(Invariant.WRITES, f"the command {command} was written by {sorted(requests)}")


def _check_acknowledged(write: Write, ledger: Ledger) -> None:
    if write.over is None and write.sequence in ledger.api_sequences:
        return
    own = [entry.sequence for entry in ledger.requests.get(write.request_id, [])]
    if write.over is None or write.sequence not in own:
        raise Broken(Invariant.WRITES, f"{write.request_id}, {write.what}, was acknowledged and is not in the log")
    model_id, generation = write.over
    between = [s for s in ledger.generations[ModelId(model_id)] if generation < s < own[0]]
    if between:
        raise Broken(Invariant.WRITES, f"{write.what} was made over {generation}, but {between} had been written since")


def check_watchers(api: Api, entries: list[Entry]) -> None:
    for watcher in api.watchers:
        expected = [
            entry.sequence
            for entry in entries[watcher.started_after : watcher.at.sequence]
            if watcher.takes.takes(entry.stored)
        ]
        if watcher.seen != expected:
            missed = sorted(set(expected) - set(watcher.seen))
            raise Broken(
                Invariant.WATCHERS,
                f"{watcher.name} saw {len(watcher.seen)} events up to {watcher.at} instead of {len(expected)};"
                f" missed {missed[:5]}",
            )


def check_same_fleet(have: Fleet, expected: Fleet, what: str) -> None:
    if have == expected:
        return
    for name in Fleet.__slots__:  # pyright: ignore[reportUnknownVariableType] - a dataclass with slots
        mine, other = getattr(have, str(name)), getattr(expected, str(name))
        if mine != other:
            raise Broken(Invariant.REPLAY, f"{what}: {name} is {_difference(mine, other)}")


def _difference(mine: Any, other: Any) -> str:
    if isinstance(mine, dict) and isinstance(other, dict):
        keys = [key for key in {**mine, **other} if mine.get(key) != other.get(key)]
        return "; ".join(f"{key}: {mine.get(key)!r:.300} instead of {other.get(key)!r:.300}" for key in keys[:2])
    return f"{mine!r:.300} instead of {other!r:.300}"

"""One world: a log, schedulers, an api, machines, and the time between them. Everything follows from the seed."""

import heapq
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import orjson

from kernel.errors import Conflict, Corrupt, Unavailable
from kernel.log.port import Stored
from schemas.facts.instance import InstanceFact
from schemas.ids import InstanceId, ModelId, WorkerId
from schemas.models import Gpu, Inventory, ModelWeights
from schemas.reports import FileReported, RequestsInFlight, WorkerLeaving
from schemas.sources import LocalPath
from schemas.subjects import parse_report_subject
from services.agent.domain.runtime import EngineId
from services.api.adapters.feed import Filter
from services.scheduler.domain.core import Question
from services.scheduler.domain.fleet import Contradiction, Fleet
from services.scheduler.domain.instance import placement_of
from services.scheduler.domain.rollout import revision_of
from services.scheduler.process import fold
from tests.simulation import files, gangs, hubs
from tests.simulation.api import Api, Tables
from tests.simulation.clock import START, VirtualClock
from tests.simulation.gateways import Gateway, Gateways
from tests.simulation.hubs import Hub
from tests.simulation.invariants import (
    Broken,
    Claims,
    Invariant,
    Ledger,
    Life,
    check_deadlines,
    check_endpoints,
    check_machines,
    check_reasons,
    check_routes,
    check_same_claims,
    check_same_fleet,
    check_watchers,
    check_writes,
    promised,
)
from tests.simulation.lines import Assignments, Died, Entry, Line, SchedulerBus, WatchedLog
from tests.simulation.scheduler import INTERRUPTED, SimulatedReign, Snapshots
from tests.simulation.worker import Engine, Link, Machine, Surroundings, Temper

GIB: Final = 2**30
PULSE_SECONDS: Final = 1.0
"""The longest time in which nobody does anything."""
SIZES: Final = {"/models/a.gguf": GIB, "/models/b.gguf": 3 * GIB, "/models/c.gguf": 6 * GIB, "/models/d.gguf": 11 * GIB}
INSPECTION_SECONDS: Final = 15.0
SLACK_SECONDS: Final = 3.0
FACTS_SHOWN: Final = 12


class World(Surroundings):
    def __init__(self, seed: int, machines: int | None = None) -> None:
        self.seed = seed
        self.dice = random.Random(seed)
        self.clock = VirtualClock()
        self.calm = False
        """Nothing goes wrong by itself any more."""
        self.trace: list[str | Noted] = []
        self.ledger = Ledger()
        self.machines: dict[WorkerId, Machine] = {}
        self.log = WatchedLog(START, self._stored)
        self.assignments = Assignments(on_published=self._published)
        self._board: dict[WorkerId, tuple[tuple[int, int], frozenset[EngineId]]] = {}
        self.store = Snapshots(self._saved)
        self.reigns: list[SimulatedReign] = []
        self.elected: SimulatedReign | None = None
        self.decides_since = 0.0
        self.stand_by_at = 0.0
        self._haste = random.Random(f"haste of {seed}")
        """How soon the scheduler goes on with what it did not get to."""
        self.most_facts = random.Random(f"most facts of {seed}").choice((1, 12, 30, 1000, 1000))
        self.snapshot_every = self.dice.choice((15, 30, 60, 60, 100_000))
        self._wire: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._names = itertools.count(1)
        self._in_order: dict[int, float] = {}
        self._heard: dict[InstanceId, float] = {}
        self._checked_writes = 0
        self._checked = {"routes": 0, "reasons": 0}
        self.api = Api(Line(self.log), self.clock, self.dice)
        self.gateways = Gateways(
            seed, self.clock, self.log.entries, self.ledger, self.machines.values(), self._requests
        )
        self.has_gangs = machines is None and gangs.has_gangs(seed)
        self.hub = Hub(seed) if machines is None and not self.has_gangs and hubs.has_hub(seed) else None
        self.files = files.Files()
        others = machines or self.dice.choice((1, 2, 3, 3, 4))
        for number in range(1, (1 if self.has_gangs else others) + 1):
            self._add_machine(number)
        if self.has_gangs:
            for number in range(2, 2 + self.dice.choice((2, 3, 4, 5))):
                self._add_member(number)
        for name, takes in (
            ("all", Filter()),
            ("pendings", Filter(types=frozenset({"ModelPending", "InstancePending"}))),
            ("one worker", Filter(subjects=("muster.facts.*.*.w-1.>",))),
        ):
            self.api.watch(name, takes)

    def _add_machine(self, number: int) -> None:
        dice = self.dice
        gpus = tuple(
            Gpu(index=index, vendor="nvidia", type="cuda", name="A GPU", memory_total=dice.choice((4, 8, 8, 16)) * GIB)
            for index in range(dice.choice((0, 1, 1, 2)))
        )
        ram = dice.choice((6, 10, 16)) * GIB
        inventory = Inventory(
            os="linux", arch="amd64", cpu_count=8, memory_total=ram, gpus=gpus, backends={"llama.cpp": "1"}
        )
        paths = {path: size for path, size in SIZES.items() if dice.random() < 0.9}
        worker_id = WorkerId(f"w-{number}")
        self.machines[worker_id] = Machine(self, worker_id, inventory, paths, f"10.0.0.{number}")

    def _add_member(self, number: int) -> None:
        worker_id = WorkerId(f"w-{number}")
        has, paths = gangs.a_member(self.dice), gangs.paths(self.dice)
        self.machines[worker_id] = Machine(self, worker_id, has, paths, f"10.0.0.{number}")

    # -- what is said between them ------------------------------------------------------------------------------------

    def later(self, seconds: float, what: Callable[[], None]) -> None:
        heapq.heappush(self._wire, (self.clock.seconds + seconds, next(self._order), what))

    def _orderly(self, of: object, seconds: float, what: Callable[[], None]) -> None:
        """Like `later`, but never before what was sent on the same way."""
        at = max(self._in_order.get(id(of), 0.0), self.clock.seconds + seconds)
        self._in_order[id(of)] = at
        heapq.heappush(self._wire, (at, next(self._order), what))

    def report(self, link: Link, event: Stored) -> None:
        dice = self.dice

        def arrives() -> None:
            self.arrives(event)

        if link.rough:
            roll = dice.random()
            if roll < 0.25:
                return
            if roll < 0.5:
                self.later(dice.uniform(0.0, 25.0), arrives)
            self.later(dice.uniform(0.0, 3.0), arrives)
            return
        self._orderly(link, dice.choice((0.0, 0.0, 0.05, 0.2)), arrives)
        if not self.calm and dice.random() < 0.04:
            self.later(dice.uniform(0.0, 30.0), arrives)

    def arrives(self, event: Stored) -> None:
        """In the stream REPORTS: whoever decides reads it, nobody else ever will."""
        subject = parse_report_subject(event.subject)
        if subject.kind == "instance":
            self._heard[InstanceId(subject.id)] = self.clock.seconds
        elif subject.type == FileReported.type:
            for instance_id, life in self.ledger.lives.items():
                if WorkerId(subject.worker) in life.workers:
                    self._heard[instance_id] = self.clock.seconds
        elif subject.type == WorkerLeaving.type:
            self.ledger.left.add(WorkerId(subject.worker))
        for reign in self.reigns:
            reign.hear_report(event)

    def beat(self, worker_id: WorkerId, role: str, boot_id: str) -> None:
        if not self.calm and self.dice.random() < 0.02:
            return
        for reign in self.reigns:
            if reign.core is not None:
                reign.hear_beat(worker_id, role, boot_id)

    def _requests(self, gateway: Gateway, told: RequestsInFlight, at_once: bool) -> None:
        def heard() -> None:
            for reign in self.reigns:
                reign.hear_requests(told)

        self._orderly(gateway, 0.0 if at_once else 0.1, heard)

    def neighbour(self, worker_id: WorkerId) -> Machine:
        return self.machines[worker_id]

    def assignment(self, worker_id: WorkerId) -> bytes | None:
        return self.assignments.newest(worker_id)

    def _published(self, worker_id: WorkerId, body: bytes) -> None:
        document = orjson.loads(body)
        version = (document["election"], document["seq"])
        if worker_id in self._board and version < self._board[worker_id][0]:
            raise Broken(Invariant.FENCE, f"{version} was published for {worker_id} after {self._board[worker_id][0]}")
        engines = frozenset(EngineId(i["instance_id"], i["attempt"]) for i in document["instances"])
        self._board[worker_id] = (version, engines)
        machine = self.machines[worker_id]
        if machine.links["agent"].rough:
            self.later(self.dice.choice((0.0, 2.0, 6.0)), lambda: machine.told(body))
        else:
            self._orderly(machine, self.dice.choice((0.0, 0.02, 0.1)), lambda: machine.told(body))

    def assigned(self, worker_id: WorkerId) -> frozenset[EngineId] | None:
        found = self._board.get(worker_id)
        return found[1] if found else None

    def stops(self, machine: Machine, engine: EngineId) -> None:
        self.ledger.check_stop(machine, engine)
        life = self.ledger.lives.get(engine.instance_id)
        is_former = life is not None and engine.attempt < life.attempt  # its requests went with it
        if not (is_former or machine.has_lied or machine.id in self.ledger.removed):
            self.gateways.check_may_end(engine.instance_id, f"is stopped on {machine.id}")

    def removes(self, machine: Machine, path: str) -> None:
        files.check_removal(machine, path)

    def temper(self) -> Temper:
        roll = 1.0 if self.calm else self.dice.random()
        return "crashes" if roll < 0.08 else "hangs" if roll < 0.14 else "good"

    def weights(self, path: str, size: int) -> ModelWeights:
        return gangs.weights(path, size) if path in gangs.SIZES else super().weights(path, size)

    def joined(self, leader: Engine) -> bool:
        return gangs.join(leader, self.machines)

    def _look(self, worker_id: WorkerId) -> None:
        """`muster.ask.<worker>.look`."""

        def looked() -> None:
            agent = self.machines[worker_id].agent
            if agent is not None and agent.link.up:
                agent.edge.want_picture()

        self.later(0.05, looked)

    def _inspect(self, reign: SimulatedReign, question: Question) -> None:
        """`muster.ask.<worker>.inspect`."""
        machine = self.machines[question.worker_id]
        source = question.about.source
        downloader = machine.downloader
        if downloader is None or not downloader.link.up:
            self.later(INSPECTION_SECONDS, lambda: reign.answered(question, None))
        else:
            self.later(self.dice.choice((0.05, 0.3)), lambda: reign.answered(question, downloader.inspect(source)))

    # -- time ---------------------------------------------------------------------------------------------------------

    def advance(self, seconds: float, pulse_seconds: float = PULSE_SECONDS) -> None:
        end = self.clock.seconds + seconds
        while self.clock.seconds < end:
            self.clock.seconds = min(end, self.clock.seconds + pulse_seconds)
            self.ledger.now = self.clock.seconds
            self.pulse()

    def pulse(self) -> None:
        """Everybody does what is due."""
        self._deliver()
        for machine in self.machines.values():
            machine.pump()
        if self.has_gangs:
            gangs.break_apart(self.machines, self.dice)
        self._deliver()
        for reign in list(self.reigns):
            if not reign.paused:
                self._run(reign)
        if not any(not reign.paused for reign in self.reigns) and self.clock.seconds >= self.stand_by_at:
            self.take_over()
        self.api.pump()
        self.gateways.pump()
        check_machines(self.machines.values(), self.assigned, self.clock.seconds)
        if self.has_gangs:
            gangs.check_engines(self.ledger, self.machines.values(), self.decides_since if self.settled else None)

    def _deliver(self) -> None:
        while self._wire and self._wire[0][0] <= self.clock.seconds:
            heapq.heappop(self._wire)[2]()

    # -- schedulers ---------------------------------------------------------------------------------------------------

    def take_over(self) -> None:
        """A replica stands for election; it begins to decide a little later."""
        name = f"s{next(self._names)}"
        bus = SchedulerBus(self.assignments)
        reign = SimulatedReign(
            name,
            Line(self.log),
            bus,
            self.store,
            self.clock,
            self._look,
            self._inspect,
            snapshot_every=self.snapshot_every,
            claims_from_peak=self.seed % 2 == 1,
            most_facts=self.most_facts,
        )
        try:
            reign.stand()
        except (Conflict, Unavailable):
            return
        self.reigns.append(reign)
        self.elected = reign
        self.decides_since = self.clock.seconds

    def _run(self, reign: SimulatedReign) -> None:
        try:
            if reign.ends_at is not None and self.clock.seconds >= reign.ends_at:
                self._ended(reign, "lost its lease")
            elif reign.core is None:
                if self.calm or self.dice.random() < 0.8:
                    reign.begin()
                    self.decides_since = self.clock.seconds
                    self._check_fleet_of(reign, "that has just begun")
            else:
                if self.calm or self.dice.random() < 0.85:
                    reign.hear_api()
                reign.decide()
                while reign.has_inputs and (self.calm or self._haste.random() < 0.97):
                    reign.decide()
        except INTERRUPTED as error:
            self._ended(reign, str(error))
        except Died:
            self.note(f"  {reign.name} died")
            self._gone(reign)
        except (Corrupt, Contradiction) as error:
            raise Broken(Invariant.REPLAY, f"{reign.name}: {error}") from error
        for report, decision in reign.again:
            if decision.facts:
                told = ", ".join(fact.type for fact in decision.facts)
                raise Broken(Invariant.REPLAY, f"{report} was no news, and {reign.name} stated {told}")
        reign.again.clear()

    def _check_fleet_of(self, reign: SimulatedReign, which: str) -> None:
        if reign is self.settled and reign.core is not None:
            check_same_fleet(reign.core.fleet, self.ledger.fleet, f"the fleet of {reign.name}, {which},")

    def _ended(self, reign: SimulatedReign, why: str) -> None:
        self.note(f"  {reign.name} no longer decides: {why}")
        self._gone(reign)
        reign.line.fault = None
        reign.end()

    def _gone(self, reign: SimulatedReign) -> None:
        self.reigns.remove(reign)
        self.stand_by_at = max(self.stand_by_at, self.clock.seconds + self.dice.choice((0.1, 1.0, 2.0)))

    @property
    def settled(self) -> SimulatedReign | None:
        """The scheduler that decides, when it has nothing left to say about what is in the log."""
        reign = self.elected
        if reign is None or reign not in self.reigns or reign.paused or not reign.is_settled:
            return None
        return reign if reign.followed >= self.ledger.last_of_api else None

    # -- what is seen -------------------------------------------------------------------------------------------------

    def note(self, text: str) -> None:
        self.trace.append(f"{self.clock.seconds:8.2f} {text}")

    def _stored(self, entry: Entry) -> None:
        self.trace.append(Noted(self.clock.seconds, entry))
        self.gateways.check_fact(entry)
        fact, ledger = entry.fact, self.ledger
        if isinstance(fact, InstanceFact) and (life := ledger.lives.get(fact.instance_id)) is not None:
            gangs.check_fact(fact, life, ledger.fleet, self.machines)
        self.files.take(fact, entry.sequence, ledger, self.machines)
        ledger.take(entry, self.machines)
        if isinstance(fact, InstanceFact) and (life := ledger.lives.get(fact.instance_id)) is not None:
            gangs.check_claims(fact.instance_id, life, ledger)

    def _saved(self, fleet: Fleet) -> None:
        check_same_fleet(fleet, self.ledger.fleet, "the snapshot and what the log adds up to")

    def check(self, step: int) -> None:
        """After every step."""
        api, entries = self.api, self.log.entries
        if api.routed == len(entries) > self._checked["routes"]:
            self._checked["routes"] = len(entries)
            check_routes(api, self.ledger)
        check_same_claims(self.ledger)
        check_writes(api.writes[self._checked_writes :], self.ledger)
        self._checked_writes = len(api.writes)
        reign = self.settled
        if reign is not None and reign.core is not None:
            check_deadlines(self.ledger, self.decides_since, self._heard, SLACK_SECONDS)
            gangs.check_lost(self.ledger)
            if self.hub is not None:
                self.files.check_assignments(self.ledger, self.assignments.documents, _heard(reign.core.fleet))
            if api.position == len(entries) > self._checked["reasons"]:
                self._checked["reasons"] = len(entries)
                check_reasons(api.tables, entries)
                check_endpoints(api.tables, self.ledger)
            if step % 8 == 0:
                self._check_fleet_of(reign, f"after step {step}")
        if step % 64 == 0:
            check_watchers(api, entries)

    def check_at_the_end(self) -> None:
        """What is too slow for every step: the whole log once more, in other portions."""
        api, entries = self.api, self.log.entries
        api.project(len(entries))
        for watcher in api.watchers:
            api.serve(watcher, 100_000)
            if watcher.at.sequence != len(entries):
                raise Broken(Invariant.WATCHERS, f"{watcher.name} is at {watcher.at} of {len(entries)}")
        check_watchers(api, entries)
        check_writes(api.writes, self.ledger)
        replayed = Fleet()
        try:
            for entry in entries:
                fold(replayed, entry.stored)
        except (Contradiction, Corrupt) as error:
            raise Broken(Invariant.REPLAY, f"the log can't be replayed: {error}") from error
        check_same_fleet(replayed, self.ledger.fleet, "a replay of the log")
        reign = self.settled
        if reign is not None and reign.core is not None:
            check_same_fleet(reign.core.fleet, replayed, f"the fleet of {reign.name}")
        size = self.dice.choice((1, 7, len(entries)))
        tables = Tables()
        for start in range(0, len(entries), size):
            tables.project(entries[start : start + size])
        if tables.rows != api.tables.rows:
            names = [name for name, rows in tables.rows.items() if rows != api.tables.rows[name]]
            raise Broken(Invariant.REPLAY, f"in batches of {size}, these read models are others: {names}")

    # -- the end of all faults ----------------------------------------------------------------------------------------

    def heal(self) -> None:
        self.calm = True
        self.gateways.heal()
        if self.hub is not None:
            self.hub.heal()
        self.api.stalled = False
        self.api.writer.postgres_is_there = True
        self.api.line.fault = None
        for reign in self.reigns:
            reign.paused = False
            reign.line.fault = reign.bus.fault = None
        for machine in self.machines.values():
            machine.reach(up=True)
            machine.boot()
            for link in machine.links.values():
                if link.rough:
                    link.rough = False
                    for callback in link.reconnected:
                        callback()

    def check_converged(self) -> None:
        ledger, now = self.ledger, self.clock.seconds
        gangs.check_freed(ledger, self.machines)
        self.files.check_ended(ledger)
        for worker_id in self.machines:
            if (state := ledger.worker_states.get(worker_id)) != "ready":
                raise Broken(Invariant.CONVERGES, f"{worker_id} is {state}, though it is there")
        for model_id, spec in ledger.specs.items():
            alive = [i for i, life in ledger.lives.items() if life.model_id == model_id and life.stop is None]
            surge = self._waits_to_replace(model_id)
            if not spec.replicas <= len(alive) <= spec.replicas + surge:
                raise Broken(Invariant.CONVERGES, f"{model_id} has {alive}, wanted are {spec.replicas}")
        for instance_id, life in ledger.lives.items():
            if life.model_id not in ledger.specs and now - life.since > 10.0:
                raise Broken(Invariant.CONVERGES, f"{instance_id} of a deleted model is still {life.state}")
            match life.state:
                case "running":
                    self._check_runs(instance_id, life.attempt)
                case "pending":
                    self._check_fits_nowhere(instance_id, life.model_id, self.ledger.claims)
                    for other in self._could_make_room(life.model_id):
                        left = {key: claim for key, claim in self.ledger.claims.items() if key[0] != other}
                        self._check_fits_nowhere(instance_id, life.model_id, left)
                case "error" if life.final or self._backs_off(life, now):
                    pass
                case "scheduled" | "downloading" | "starting" | "stopping" if now - life.since <= 10.0 + life.drains:
                    pass
                case state:
                    raise Broken(
                        Invariant.CONVERGES,
                        f"{instance_id} has been {state} since {life.since:.1f}, and all faults healed long ago",
                    )

    def _waits_to_replace(self, model_id: ModelId) -> int:
        """One more may be there, as long as it does not run yet and those that it is to replace go on."""
        alive = [life for life in self.ledger.lives.values() if life.model_id == model_id and life.stop is None]
        replaced = [i for i, life in self.ledger.lives.items() if life in alive and self._is_to_be_replaced(i, life)]
        waiting = [life for life in alive if life.state != "running"]
        running = len(alive) - len(waiting)
        return int(bool(replaced and waiting) and running <= self.ledger.specs[model_id].replicas)

    def _is_to_be_replaced(self, instance_id: InstanceId, life: Life) -> bool:
        """It serves, with another engine than is wanted, or from where nothing is to be left."""
        drained = any(self.ledger.fleet.operator_of(worker_id).draining for worker_id in life.workers)
        return life.state == "running" and (drained or self._is_outdated(instance_id))

    def _is_outdated(self, instance_id: InstanceId) -> bool:
        instance = self.ledger.fleet.instances[instance_id]
        placement = placement_of(instance.state)
        wanted = revision_of(self.ledger.fleet, instance.model_id)[1]
        return placement is not None and placement.launch.revision != wanted

    def _backs_off(self, life: Life, now: float) -> bool:
        """A take-over grants the time once more."""
        return max(life.since, self.decides_since) + (life.restart_seconds or 0.0) + SLACK_SECONDS >= now

    def _check_runs(self, instance_id: InstanceId, attempt: int) -> None:
        running = self.ledger.lives[instance_id].running
        if running is None:
            raise Broken(Invariant.CONVERGES, f"{instance_id} is running nowhere")
        engine = self.machines[running.worker_id].engines.get(EngineId(instance_id, attempt))
        if engine is None or engine.port != running.port or not engine.serves or engine.deaf:
            raise Broken(
                Invariant.CONVERGES, f"{instance_id} is said to run on {running.worker_id}:{running.port}: {engine}"
            )
        gangs.check_runs(instance_id, self.ledger.lives[instance_id], self.machines)

    def _could_make_room(self, model_id: ModelId) -> list[InstanceId]:
        """Outdated instances, of which one would be stopped for one that waits: nothing else is on its way."""
        lives = {i: life for i, life in self.ledger.lives.items() if life.model_id == model_id}
        if any(life.state not in ("running", "pending") for life in lives.values()):
            return []
        return [i for i, life in lives.items() if life.state == "running" and self._is_outdated(i)]

    def _check_fits_nowhere(self, instance_id: InstanceId, model_id: ModelId, claims: Claims) -> None:
        """No worker has clearly more than it takes, when this is promised."""
        spec, _ = revision_of(self.ledger.fleet, model_id)
        if spec.backend == gangs.VLLM:
            if (workers := gangs.fits(instance_id, self.ledger, claims, self.machines)) is not None:
                raise Broken(Invariant.CONVERGES, f"{instance_id} is pending, and there is place on {workers}")
            return
        model = self.ledger.fleet.models.get(model_id)
        quarantined = model.quarantined if model is not None else {}
        for worker_id, machine in self.machines.items():
            operator = self.ledger.fleet.operator_of(worker_id)
            source = spec.source
            size = machine.paths.get(source.label) if isinstance(source, LocalPath) else hubs.SIZES[source.repo_id]
            if (
                size is None
                or operator.cordoned
                or operator.draining
                or spec.backend not in machine.inventory.backends
                or worker_id in quarantined
                or not spec.worker_selector.items() <= operator.labels.items()
            ):
                continue
            has = self.ledger.capacity[worker_id]
            ram, vram = promised(claims, worker_id)
            free_ram = has.memory_total - has.memory_reserved - ram
            needed = int(size * 1.2) + GIB
            if has.gpus:
                free = max(gpu.memory_total - gpu.memory_used_by_others - vram.get(gpu.index, 0) for gpu in has.gpus)
                fits = free >= needed and free_ram >= GIB
            else:
                fits = free_ram >= needed
            if fits:
                raise Broken(Invariant.CONVERGES, f"{instance_id} is pending, and {worker_id} has place for it")

    def is_still(self) -> bool:
        """Nothing is on its way and no restart is due: from here on nothing should happen."""
        return all(
            life.state in ("running", "pending") or (life.state == "error" and life.final)
            for life in self.ledger.lives.values()
        ) and all(file.state not in ("wanted", "deleting") for file in self.ledger.fleet.files.values())


def _heard(fleet: Fleet) -> set[WorkerId]:
    """Workers that others may fetch from: with a downloader that beats."""
    return {machine.id for machine in fleet.machines if machine.state == "ready" and machine.downloader_alive}


@dataclass(frozen=True, slots=True)
class Noted:
    """A fact in the trace: made readable only when somebody reads it."""

    seconds: float
    entry: Entry

    def __str__(self) -> str:
        entry = self.entry
        return f"{self.seconds:8.2f}     {entry.sequence} {entry.fact.type} {entry.fact.resource_id} {_numbers(entry)}"


def _numbers(entry: Entry) -> str:
    fact = entry.fact
    shown = [
        f"{name}={getattr(fact, name)}"
        for name in (
            "worker_id",
            "attempt",
            "state",
            "replicas",
            "cause",
            "delay_seconds",
            "engine_gone",
            "port",
            "to",
            "drain_seconds",
            "requests_left",
            "commit",
            "request",
        )
        if hasattr(fact, name)
    ]
    if reasons := getattr(fact, "reasons", ()):
        shown.append("(" + ", ".join(reason.code for reason in reasons) + ")")
    if members := getattr(fact, "members", ()):
        shown.append("on " + ", ".join(f"{m.worker_id}{list(m.gpu_indexes)}" for m in members))
    return " ".join(shown)

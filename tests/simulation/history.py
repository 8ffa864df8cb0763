"""What happens in a world: users who want things, operators who do things, and everything that goes wrong."""

import hashlib
import random
from collections import deque
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final
from unittest.mock import patch

from kernel.log.port import Guard
from schemas.facts import (
    ModelFileDeletionRequested,
    ModelFileRequested,
    WorkerCordoned,
    WorkerDrainRequested,
    WorkerLabelled,
    WorkerUncordoned,
)
from schemas.facts.worker import WorkerFact
from schemas.ids import InstanceId, ModelId, WorkerId
from schemas.models import ModelSpec
from schemas.reasons import ModelNotFound
from schemas.reports import EnginePhase, EngineSeen, FilePhase, FileSeen
from schemas.sources import LocalPath, Source, file_id_of
from schemas.subjects import api_part_of
from services.agent.domain.runtime import EngineId
from services.api.adapters import feed
from services.api.adapters.writer import Caller, Written
from services.scheduler import process as scheduler_process
from tests.simulation import gangs, hubs
from tests.simulation.invariants import Broken, Invariant
from tests.simulation.lines import Fault
from tests.simulation.worker import Machine
from tests.simulation.world import GIB, SIZES, World

STEPS_SHOWN: Final = 40
HEALS_WITHIN_SECONDS: Final = 60.0
IDLE_SECONDS: Final = 60.0
Action = Callable[[World], str]


# -- users ----------------------------------------------------------------------------------------------------------------


def _spec(dice: random.Random, name: str) -> ModelSpec:
    return ModelSpec(
        name=name,
        replicas=dice.choice((0, 1, 1, 2, 3)),
        source=LocalPath(path=dice.choice(tuple(SIZES))),
        worker_selector={"zone": "a"} if dice.random() < 0.1 else {},
        restart_on_error=dice.random() < 0.85,
        start_timeout_seconds=dice.choice((15.0, 25.0)),
        placement_strategy=dice.choice(("spread", "spread", "binpack")),
    )


def create(world: World) -> str:
    dice = world.dice
    key = f"k{dice.randrange(1000)}" if dice.random() < 0.5 else None
    if world.has_gangs and dice.random() < 0.7:
        return world.api.create(gangs.a_spec(dice, dice.choice("ABCDE")), key)
    if world.hub is not None and dice.random() < 0.7:
        return world.api.create(hubs.a_spec(dice, dice.choice("ABCDE")), key)
    return world.api.create(_spec(dice, dice.choice("ABCDE")), key)


def a_model(world: World) -> ModelId | None:
    known = sorted(world.api.tables.rows["models"])
    return ModelId(world.dice.choice(known)[0]) if known else None


def scale(world: World) -> str:
    replicas = world.dice.choice((0, 1, 1, 2, 4))
    return _change(world, lambda spec: spec.model_copy(update={"replicas": replicas}), f"scale to {replicas}")


def update(world: World) -> str:
    source: Source = LocalPath(path=world.dice.choice(tuple(SIZES)))
    other = source
    if world.has_gangs:
        other = LocalPath(path=world.dice.choice(tuple(gangs.SIZES)))
    if world.hub is not None and world.dice.random() < 0.7:
        source = hubs.a_source(world.dice)

    def over(spec: ModelSpec) -> ModelSpec:
        return spec.model_copy(update={"source": other if spec.backend == gangs.VLLM else source})

    return _change(world, over, f"update to {source.label}, {other.label}")


def rename(world: World) -> str:
    name = world.dice.choice("ABCDEFG")
    return _change(world, lambda spec: spec.model_copy(update={"name": name}), f"rename to {name}")


def _change(world: World, over: Callable[[ModelSpec], ModelSpec], what: str) -> str:
    model_id = a_model(world)
    if model_id is None:
        return "there is no model to change"
    if_match = None
    if world.dice.random() < 0.3:
        if_match = int(world.api.tables.rows["models"][model_id,]["generation"])
        if world.dice.random() < 0.3:
            world.api.project(1)
    return world.api.change(model_id, over, f"{what} {model_id}", if_match)


def delete(world: World) -> str:
    model_id = a_model(world)
    return world.api.delete(model_id) if model_id else "there is no model to delete"


def delete_instance(world: World) -> str:
    known = sorted(world.api.tables.rows["instances"])
    if not known:
        return "there is no instance to delete"
    instance_id = InstanceId(world.dice.choice(known)[0])
    return world.api.ask(f"delete {instance_id}", lambda caller: world.api.writer.delete_instance(instance_id, caller))


def ask_again(world: World) -> str:
    return world.api.ask_again()


def two_at_once(world: World) -> str:
    """The second user has read what the first one is about to change."""
    stalled, world.api.stalled = world.api.stalled, True
    model_id = a_model(world)
    generation = int(world.api.tables.rows["models"][model_id,]["generation"]) if model_id else None
    first = scale(world)
    if model_id is None:
        answer = "nobody"
    else:
        answer = world.api.change(
            model_id, lambda s: s.model_copy(update={"description": "x"}), f"describe {model_id}", generation
        )
    world.api.stalled = stalled
    return f"{first}; {answer}"


def remove_worker(world: World) -> str:
    gone = [w for (w,), row in sorted(world.api.tables.rows["workers"].items()) if row["state"] != "ready"]
    if not gone:
        return "no worker is gone"
    worker_id = WorkerId(world.dice.choice(gone))
    return world.api.ask(f"remove {worker_id}", lambda caller: world.api.writer.remove_worker(worker_id, caller))


def _operate(world: World, fact: WorkerFact) -> str:
    """No route states these yet: as a route would, guarded like `Writer.remove_worker`."""
    subject = api_part_of("worker", fact.worker_id, fact.worker_id)
    writer = world.api.writer

    def write(caller: Caller) -> Awaitable[Written]:
        async def written() -> Written:
            guard = Guard(subject, await world.api.line.last_sequence_of(subject))
            sequences = await writer._append(caller, (fact, guard))  # pyright: ignore[reportPrivateUsage] - see above
            return Written(fact.worker_id, sequences[-1], 1, projected=False)

        return written()

    return world.api.ask(f"{fact.type} {fact.worker_id}", write)


def cordon(world: World) -> str:
    return _operate(world, WorkerCordoned(worker_id=world.dice.choice(list(world.machines))))


def uncordon(world: World) -> str:
    return _operate(world, WorkerUncordoned(worker_id=world.dice.choice(list(world.machines))))


def drain(world: World) -> str:
    return _operate(world, WorkerDrainRequested(worker_id=world.dice.choice(list(world.machines))))


def label(world: World) -> str:
    zone = world.dice.choice("ab")
    return _operate(world, WorkerLabelled(worker_id=world.dice.choice(list(world.machines)), labels={"zone": zone}))


# -- files ----------------------------------------------------------------------------------------------------------------


def _ask_for_files(world: World, fact: ModelFileRequested | ModelFileDeletionRequested, what: str) -> str:
    """`Writer.ask_for_files`, which waits for several guards at once."""
    subject = api_part_of("file", fact.file_id)
    writer = world.api.writer

    def write(caller: Caller) -> Awaitable[Written]:
        async def written() -> Written:
            guard = Guard(subject, await world.api.line.last_sequence_of(subject))
            sequences = await writer._append(caller, (fact, guard))  # pyright: ignore[reportPrivateUsage] - see above
            return Written(fact.file_id, sequences[-1], 1, projected=False)

        return written()

    return world.api.ask(f"{what} {fact.file_id} on {fact.worker_id}", write)


def request_files(world: World) -> str:
    """As of what the hub has now."""
    if world.hub is None:
        return "there is no hub"
    source = hubs.a_source(world.dice)
    commit = world.hub.commit_of(source.repo_id)
    worker_id = world.dice.choice(list(world.machines))
    fact = ModelFileRequested(
        file_id=file_id_of(source, commit, worker_id),
        worker_id=worker_id,
        source=source,
        commit=commit,
        bytes=hubs.SIZES[source.repo_id],
    )
    return _ask_for_files(world, fact, "request")


def _a_file(world: World, *states: str) -> dict[str, Any] | None:
    """As the read models show it, which may be late."""
    rows = [
        row for _, row in sorted(world.api.tables.rows["files"].items()) if row["state"] in states and row["commit"]
    ]
    return world.dice.choice(rows) if rows else None


def retry_files(world: World) -> str:
    row = _a_file(world, "error", "error", "ready", "deleting")
    if row is None:
        return "no files have failed"
    fact = ModelFileRequested.model_validate(
        {"file_id": row["id"]}
        | {name: row[name] for name in ("worker_id", "source", "commit")}
        | {"bytes": row["total"]}
    )
    return _ask_for_files(world, fact, "retry")


def delete_files(world: World) -> str:
    row = _a_file(world, "wanted", "ready", "error", "deleting")
    if row is None:
        return "there are no files to delete"
    fact = ModelFileDeletionRequested(file_id=row["id"], worker_id=row["worker_id"])
    return _ask_for_files(world, fact, "delete")


def evict(world: World) -> str:
    machine = a_machine(world)
    if machine.downloader is None or machine.downloader.fetches is None:
        return f"{machine.id} removes nothing"
    return machine.downloader.fetches.evict(world.dice)


def hub_suffers(world: World) -> str:
    hub, dice = world.hub, world.dice
    if hub is None:
        return "there is no hub"
    repo_id = dice.choice(tuple(hubs.SIZES))
    worker_id = dice.choice(list(world.machines))
    match dice.choice(("down", "cut off", "cut off", "vanished", "spoilt", "moves on")):
        case "down":
            hub.is_down = not hub.is_down
            return f"the hub is {'down' if hub.is_down else 'up'}"
        case "cut off":
            hub.cut_off ^= {worker_id}
            return f"{worker_id} {'does not reach' if worker_id in hub.cut_off else 'reaches'} the hub"
        case "vanished":
            hub.vanished ^= {repo_id}
            return f"{repo_id} {'vanishes' if repo_id in hub.vanished else 'appears'}"
        case "spoilt":
            hub.spoilt ^= {repo_id}
            return f"{repo_id} is {'spoilt' if repo_id in hub.spoilt else 'sound'}"
        case _:
            hub.commits[repo_id] += 1
            return f"{repo_id} is at commit {hub.commits[repo_id]}"


def hub_recovers(world: World) -> str:
    if world.hub is not None:
        world.hub.heal()
    return "the hub recovers"


# -- machines -------------------------------------------------------------------------------------------------------------


def a_machine(world: World) -> Machine:
    return world.dice.choice(list(world.machines.values()))


def power(world: World) -> str:
    machine = a_machine(world)
    if machine.is_on:
        machine.lose_power()
        return f"{machine.id} loses power"
    machine.boot()
    return f"{machine.id} boots"


def power_back(world: World) -> str:
    for machine in world.machines.values():
        if not machine.is_on:
            machine.boot()
            return f"{machine.id} boots"
    return "all machines are on"


def cut(world: World) -> str:
    machine = a_machine(world)
    up = not machine.links["agent"].up
    machine.reach(up=up)
    return f"{machine.id} is {'reached again' if up else 'cut off'}"


def mend(world: World) -> str:
    for machine in world.machines.values():
        machine.reach(up=True)
    return "all machines are reached"


def roughen(world: World) -> str:
    link = a_machine(world).links[world.dice.choice(("agent", "downloader"))]
    link.rough = not link.rough
    if not link.rough:
        for callback in link.reconnected:
            callback()
    return f"a link is {'rough' if link.rough else 'smooth again'}"


def agent_ends(world: World) -> str:
    """Killed, or stopped in order; with its engines, or without."""
    machine = a_machine(world)
    if machine.agent is None:
        return f"{machine.id} has no agent"
    how = world.dice.choice(("killed", "killed", "leaves its engines", "takes its engines with it"))
    if how != "killed":
        machine.agent.leave(stop=how == "takes its engines with it")
    machine.agent = None
    return f"the agent of {machine.id}: {how}"


def agent_starts(world: World) -> str:
    for machine in world.machines.values():
        if machine.is_on and machine.agent is None:
            machine.boot()
            return f"{machine.id} has an agent again"
    return "all agents run"


def agent_restarts(world: World) -> str:
    machine = a_machine(world)
    if not machine.is_on:
        return f"{machine.id} is off"
    machine.agent = None
    machine.boot()
    return f"the agent of {machine.id} starts again and adopts {len(machine.engines)} engines"


def downloader_falls_silent(world: World) -> str:
    machine = a_machine(world)
    if machine.downloader is not None:
        machine.downloader = None
        return f"the downloader of {machine.id} falls silent"
    if machine.is_on:
        machine.boot()
    return f"the downloader of {machine.id} is back"


def engine_suffers(world: World) -> str:
    machine = a_machine(world)
    if not machine.engines:
        return f"{machine.id} has no engine"
    engine = world.dice.choice(list(machine.engines.values()))
    if world.dice.random() < 0.6 and engine.ends_at is None:
        machine.crash(engine.id, world.dice.choice((1, 137)))
        return f"{engine.id.instance_id}/{engine.id.attempt} on {machine.id} crashes"
    engine.deaf = not engine.deaf
    return f"{engine.id.instance_id}/{engine.id.attempt} on {machine.id} {'hears no more' if engine.deaf else 'hears'}"


def member_suffers(world: World) -> str:
    """One of several workers that run an instance together is late, lost, or loses its engine."""
    lives = sorted((i, life) for i, life in world.ledger.lives.items() if len(life.workers) > 1)
    if not lives:
        return "there is no gang"
    instance_id, life = world.dice.choice(lives)
    machine = world.machines[world.dice.choice(life.workers)]
    engine = machine.engines.get(EngineId(instance_id, life.attempt))
    what = world.dice.choice(("crashes", "crashes", "hears no more", "is cut off", "is late", "loses power"))
    match what:
        case "crashes" if engine is not None and engine.ends_at is None:
            machine.crash(engine.id, world.dice.choice((1, 137)))
        case "hears no more" if engine is not None:
            engine.deaf = True
        case "is late":
            machine.links["agent"].rough = True
        case "loses power" if machine.is_on:
            machine.lose_power()
        case _:
            what = "is cut off for a while"
            machine.reach(up=False)
            world.later(world.dice.choice((5.0, 12.0, 14.0, 25.0)), lambda: machine.reach(up=True))
    return f"{instance_id}/{life.attempt} on {machine.id} {what}"


def files_change(world: World) -> str:
    machine = a_machine(world)
    sizes = gangs.SIZES if gangs.VLLM in machine.inventory.backends else SIZES
    path = world.dice.choice(tuple(sizes))
    if machine.paths.pop(path, None) is None:
        machine.paths[path] = sizes[path]
    return f"{path} {'appears on' if path in machine.paths else 'vanishes from'} {machine.id}"


def hardware_changes(world: World) -> str:
    """A stranger takes memory of a GPU, or the machine gets another name or address."""
    machine, dice = a_machine(world), world.dice
    what = dice.choice(("name", "address", "gpu"))
    if what == "name":
        machine.name = f"{machine.id}-{dice.randrange(100)}"
    elif what == "address":
        machine.address = f"10.0.1.{dice.randrange(250)}"
    elif machine.inventory.gpus:
        used = dice.choice((0, 2, 5)) * GIB
        gpus = tuple(
            gpu.model_copy(update={"memory_used_by_others": min(used, gpu.memory_total)})
            for gpu in machine.inventory.gpus
        )
        machine.inventory = machine.inventory.model_copy(update={"gpus": gpus})
    if machine.agent is not None:
        machine.agent.edge.want_picture()
    return f"{machine.id} has another {what}"


def lie(world: World) -> str:
    """An agent reports what is not so, about any attempt of any instance."""
    machine, dice = a_machine(world), world.dice
    lives = sorted(world.ledger.lives.items())
    if not lives or machine.agent is None:
        return "no agent lies"
    instance_id, life = dice.choice(lives)
    attempt = max(1, life.attempt - dice.choice((0, 0, 1)))
    phase: EnginePhase = dice.choice(("accepted", "loading", "healthy", "healthy", "unhealthy", "exited", "stopped"))
    if machine.id in life.on.get(attempt, (machine.id,)):
        machine.has_lied = True
    machine.agent.lie(EngineSeen(instance_id=instance_id, attempt=attempt, phase=phase, ports=(9999,), peak_ram=GIB))
    return f"{machine.id} lies: attempt {attempt} of {instance_id} is {phase}"


def lie_about_files(world: World) -> str:
    """A downloader answers a wish that nobody has, or with what is not so."""
    machine, dice = a_machine(world), world.dice
    files = sorted(world.ledger.fleet.files.items())
    if not files or machine.downloader is None:
        return "no downloader lies"
    file_id, file = dice.choice(files)
    wanted = max(dice.choice((file.wanted, file.wanted - 1, file.wanted - 1)), 0)
    phase: FilePhase = dice.choice(("ready", "failed"))
    reasons = () if phase == "ready" else (ModelNotFound(path="/lie"),)
    if (file.worker_id, file.wanted) == (machine.id, wanted):
        machine.has_lied = True
    machine.downloader.lie(FileSeen(file_id=file_id, wanted=wanted, phase=phase, bytes=1, reasons=reasons))
    return f"{machine.id} lies: {file_id} wish {wanted} is {phase}"


# -- schedulers, log, time ------------------------------------------------------------------------------------------------


def takes_over(world: World) -> str:
    """While the former scheduler still believes that it decides."""
    for reign in world.reigns:
        reign.ends_at = reign.ends_at or world.clock.seconds + world.dice.choice((2.0, 8.0, 25.0))
    world.take_over()
    if world.dice.random() < 0.4:  # and another one, before the first has begun
        world.take_over()
    return f"{world.elected.name if world.elected else 'nobody'} takes over"


def pause(world: World) -> str:
    for reign in world.reigns:
        if not reign.paused and world.dice.random() < 0.7:
            reign.paused = True
            world.stand_by_at = world.clock.seconds + world.dice.choice((2.0, 2.0, 4.0, 30.0))
            return f"{reign.name} is paused"
    return "nobody is paused"


def resume(world: World) -> str:
    resumed = [reign for reign in world.reigns if reign.paused]
    for reign in resumed:
        reign.paused = False
        if reign is world.elected:
            world.decides_since = world.clock.seconds
    return f"{', '.join(reign.name for reign in resumed) or 'nobody'} goes on"


def append_fails(world: World) -> str:
    fault: Fault = world.dice.choice(("away", "unanswered", "dies", "dies"))
    if not world.reigns:
        return "nobody decides"
    reign = world.dice.choice(world.reigns)
    if world.dice.random() < 0.15:
        reign.bus.fault = fault
        return f"{reign.name}'s next assignment: {fault}"
    reign.line.fault, reign.line.spared = fault, world.dice.choice((0, 0, 1, 1, 2, 3, 5))
    return f"{reign.name}'s append after {reign.line.spared} more: {fault}"


def write_fails(world: World) -> str:
    world.api.line.fault = world.dice.choice(("away", "unanswered"))
    return f"the api's next append: {world.api.line.fault}; {world.dice.choice(USERS)(world)}"


def postgres(world: World) -> str:
    if world.dice.random() < 0.5:
        world.api.stalled = not world.api.stalled
        return f"the projector is {'stalled' if world.api.stalled else 'going on'}"
    writer = world.api.writer
    writer.postgres_is_there = not writer.postgres_is_there
    return f"PostgreSQL is {'there' if writer.postgres_is_there else 'away'}"


def wall_clock_jumps(world: World) -> str:
    world.clock.jumped_seconds += world.dice.choice((-86400.0, -3600.0, -5.0, 5.0, 700.0, 86400.0))
    return f"the wall clock jumps to {world.clock.now():%d %H:%M:%S}"


def watch(world: World) -> str:
    watcher = world.dice.choice(world.api.watchers)
    world.api.serve(watcher, world.dice.choice((1, 1, 3, 20)))
    return f"the watcher of {watcher.name} is at {watcher.at}"


def time_passes(world: World) -> str:
    del world
    return "time passes"


USERS: Final[tuple[Action, ...]] = (create, scale, update, rename, delete)
ACTIONS: Final[dict[Action, int]] = {
    time_passes: 40, create: 12, scale: 8, update: 4, rename: 4, delete: 4, delete_instance: 5, ask_again: 3, two_at_once: 3,
    remove_worker: 3, cordon: 3, uncordon: 2, label: 2,
    power: 3, power_back: 4, cut: 4, mend: 4, roughen: 2, agent_ends: 2, agent_starts: 4, agent_restarts: 3,
    downloader_falls_silent: 3, engine_suffers: 8, files_change: 2, hardware_changes: 3, lie: 2, lie_about_files: 2,
    takes_over: 3, pause: 2, resume: 3, append_fails: 5, write_fails: 3, postgres: 2, wall_clock_jumps: 2, watch: 12,
}  # fmt: skip
IN_GANGS: Final[dict[Action, int]] = {
    drain: 2, member_suffers: 10, create: 8, update: 4, power_back: 4, mend: 4, agent_starts: 4, uncordon: 6,
}  # fmt: skip
"""More of what happens, where there are machines for gangs: and more that makes it possible for them to run."""
WITH_HUB: Final[dict[Action, int]] = {
    request_files: 7, delete_files: 8, retry_files: 3, evict: 6, hub_suffers: 6, hub_recovers: 3, create: 4, scale: 4, update: 3,
    power_back: 3, mend: 3, agent_starts: 2,
}  # fmt: skip
"""… and where there is a hub."""
PASSES: Final = {0.05: 20, 0.3: 20, 0.5: 20, 1.0: 12, 2.0: 6, 4.0: 3, 11.0: 2, 25.0: 1}
"""Seconds between two steps, and how often."""


@dataclass(frozen=True, slots=True)
class Told:
    """One history, and whether everything held."""

    seed: int
    steps: int
    events: int
    digest: str = ""
    """Of the whole log: two histories with the same one are the same."""
    invariant: Invariant | None = None
    problem: str = ""
    trace: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "\n".join((f"seed {self.seed}, step {self.steps}: {self.problem}", *self.trace))


def tell(seed: int) -> Told:
    """The history that follows from a seed. Never raises because of what is wrong: it says so."""
    world = World(seed)
    step = 0
    starts: deque[int] = deque(maxlen=STEPS_SHOWN)
    try:
        with small_portions():
            for step in range(1, world.dice.randrange(160, 240)):
                starts.append(len(world.trace))
                _step(world, step)
            starts.append(len(world.trace))
            _end(world)
    except Broken as broken:
        return _told(world, step, starts, broken.invariant, str(broken))
    except Exception as error:  # noqa: BLE001 - whatever a process raises is what we look for
        return _told(world, step, starts, Invariant.ALIVE, f"[ALIVE] {type(error).__name__}: {error}{_where(error)}")
    return Told(seed, step, len(world.log.entries), _digest(world))


def _step(world: World, step: int) -> None:
    dice = world.dice
    actions = ACTIONS
    if world.has_gangs:
        actions = ACTIONS | {action: count + ACTIONS.get(action, 0) for action, count in IN_GANGS.items()}
    if world.hub is not None:
        actions = ACTIONS | {action: count + ACTIONS.get(action, 0) for action, count in WITH_HUB.items()}
    action = dice.choices(tuple(actions), tuple(actions.values()))[0]
    world.note(f"{step}. {action(world)}")
    world.advance(dice.choices(tuple(PASSES), tuple(PASSES.values()))[0])
    world.check(step)


def _end(world: World) -> None:
    world.heal()
    world.note("all faults heal")
    world.advance(HEALS_WITHIN_SECONDS / 2)
    world.advance(HEALS_WITHIN_SECONDS / 2, 2.0)
    world.check(0)
    world.check_converged()
    if world.is_still():
        before = len(world.log.entries)
        world.note("nothing is left to do")
        world.advance(IDLE_SECONDS, 2.0)
        world.check(0)
        if len(world.log.entries) > before:
            first = world.log.entries[before]
            raise Broken(Invariant.QUIET, f"in an idle minute {first.fact.type} of {first.fact.resource_id} was stated")
    _open_everything(world)
    world.check_at_the_end()


def _open_everything(world: World) -> None:
    """What operators kept from being used is used at once when they allow it."""
    for worker_id in world.machines:
        world.note(_operate(world, WorkerUncordoned(worker_id=worker_id)))
        world.note(_operate(world, WorkerLabelled(worker_id=worker_id, labels={"zone": "a"})))
    world.advance(20.0, 2.0)
    world.check(0)
    world.check_converged()


@contextmanager
def small_portions() -> Generator[None]:
    """Limits that a short history reaches too."""
    with patch.object(feed, "KEPT", 20), patch.object(feed, "PAGE", 6), patch.object(scheduler_process, "FEW", 5):
        yield


def _told(world: World, step: int, starts: deque[int], invariant: Invariant, problem: str) -> Told:
    shown = tuple(map(str, world.trace[starts[0] :]))
    return Told(world.seed, step, len(world.log.entries), _digest(world), invariant, problem, shown)


def _digest(world: World) -> str:
    return hashlib.sha256(b"".join(entry.stored.body for entry in world.log.entries)).hexdigest()


def _where(error: Exception) -> str:
    place, trace = "", error.__traceback__
    while trace is not None:
        place = f" ({trace.tb_frame.f_code.co_filename.rpartition('/')[2]}:{trace.tb_lineno})"
        trace = trace.tb_next
    return place

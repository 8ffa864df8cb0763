"""The life of a fleet as facts, the same for the same seed: users, engines and machines act at random, the scheduler's own
core answers. So the facts are those that a log of this length would hold, in an order in which they can be folded.
"""

import gc
import itertools
import random
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from kernel.log.port import Draft
from kernel.log.seal import Cause, seal_fact
from schemas.asks import ModelInspection
from schemas.facts import (
    InstanceDeletionRequested,
    InstanceScheduled,
    InstanceStopping,
    ModelCreated,
    ModelDeleted,
    ModelScaled,
    ModelUpdated,
    SchedulerElected,
    WorkerCordoned,
    WorkerLabelled,
    WorkerRemovalRequested,
    WorkerUncordoned,
)
from schemas.facts.base import Fact
from schemas.ids import InstanceId, ModelId, WorkerId
from schemas.models import Gpu, Inventory, ModelSpec, ModelWeights
from schemas.reasons import EngineExited, ModelFileTruncated
from schemas.reports import EngineReported, EngineSeen, FileReported, FileSeen, WorkerLeaving, WorkerObserved
from schemas.sources import LocalPath
from services.scheduler.domain.core import Core, Decision, Now
from services.scheduler.domain.fleet import File, Fleet, Worker, evolve
from services.scheduler.domain.instance import Instance, Running, Unreachable
from services.scheduler.domain.policy import Policy

GIB: Final = 2**30
CELLS: Final = 6
"""The fleet lives in parts that share nothing: deciding for one large fleet would take longer than what we measure."""
WORKERS: Final = 2
GPUS_EACH: Final = 8
MODELS: Final = 25
"""In each part, about so many at a time, with two instances each."""
TURN: Final = 250
"""Facts of one part before the next one's turn."""
BEATEN_WITHIN_SECONDS: Final = 8.0
"""Shorter than a lease: nobody falls silent by chance."""
BEGIN: Final = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Lived:
    fact: Fact
    at: datetime
    correlation_id: str
    actor: str


def fleet_life(facts: int) -> tuple[Lived, ...]:
    """About so many facts (what a part's turn began is lived to its end): 12 workers, 300 instances at a time."""
    lived: list[Lived] = []
    for cell in itertools.cycle([_Cell(number, lived) for number in range(CELLS)]):
        if len(lived) >= facts:
            break
        cell.live(TURN)
    return tuple(lived)


class _Cell:
    """One part of the fleet. Its facts go to the list that all share, so their places there are their sequences."""

    def __init__(self, cell: int, lived: list[Lived]) -> None:
        self._cell = cell
        self._random = random.Random(cell)
        self._lived = lived
        self._seconds = 0.0
        self._counter = 0
        self._made = 0
        self._machines = 0
        self._correlation_id = "r-start"
        self._followed: deque[Fact] = deque()
        self._fleet = Fleet()
        self._core = Core(self._fleet, Policy(), self._now())
        self._state(SchedulerElected(replica="life"), "scheduler/life")
        for _ in range(WORKERS):
            self._joined()

    def live(self, facts: int) -> None:
        """So many facts or a few more."""
        end = len(self._lived) + facts
        deeds: Sequence[tuple[Callable[[], None], int]] = (
            (self._model_scaled, 8),
            (self._model_updated, 4),
            (self._engine_crashed, 20),
            (self._instance_replaced, 4),
            (self._worker_left_and_came_back, 1),
            (self._worker_fell_silent_and_was_heard_again, 1),
            (self._worker_was_replaced, 1),
            (self._worker_labelled, 2),
            (self._worker_cordoned_for_a_while, 1),
            (self._worker_changed, 1),
        )
        kinds, weights = zip(*deeds, strict=True)
        while len(self._lived) < end:
            self._correlation_id = f"r-{len(self._lived):012d}"
            self._pass(self._random.uniform(1, 60))
            alive = self._models()
            if len(alive) < MODELS or self._random.random() < 0.25:
                self._model_created()
            elif len(alive) > MODELS or self._random.random() < 0.25:
                self._model_deleted()
            else:
                self._random.choices(kinds, weights)[0]()

    # -- deeds --------------------------------------------------------------------------------------------------------

    def _model_created(self) -> None:
        self._made += 1
        model_id, name = ModelId(f"m-{self._cell:04d}{self._made:022d}"), f"model-{self._cell}-{self._made}"
        spec = ModelSpec(
            name=name,
            description="Answers questions about the product in English and German.",
            replicas=self._random.randint(1, 3),
            source=LocalPath(path=f"/models/{name}/{name}-q4_k_m.gguf"),
            backend_parameters=("--ctx-size=8192", "--parallel=4"),
            categories=("llm",),
            placement_strategy=self._random.choice(("spread", "binpack")),
        )
        self._wish(ModelCreated(model_id=model_id, spec=spec))

    def _model_scaled(self) -> None:
        model_id = self._any_model()
        name = self._fleet.wishes[model_id].spec.name
        self._wish(ModelScaled(model_id=model_id, name=name, replicas=self._random.randint(0, 3)))

    def _model_updated(self) -> None:
        model_id = self._any_model()
        spec = self._fleet.wishes[model_id].spec.model_copy(update={"description": f"As of {self._seconds:.0f} s."})
        self._wish(ModelUpdated(model_id=model_id, spec=spec))

    def _model_deleted(self) -> None:
        model_id = self._any_model()
        self._wish(ModelDeleted(model_id=model_id, name=self._fleet.wishes[model_id].spec.name))

    def _instance_replaced(self) -> None:
        if (found := self._any_running()) is not None:
            self._wish(InstanceDeletionRequested(instance_id=found[0]))

    def _engine_crashed(self) -> None:
        if (found := self._any_running()) is not None:
            instance_id, state = found
            worker_id, attempt = state.placement.leader.worker_id, state.placement.attempt
            log = tuple(f"llama_decode: failed to decode batch {n}, n_tokens = 512, ret = -1" for n in range(20))
            reasons = (EngineExited(exit_code=1),)
            self._engine(worker_id, instance_id, attempt, "exited", exit_code=1, reasons=reasons, log_tail=log)
            self._pass(400)

    def _worker_left_and_came_back(self) -> None:
        worker = self._any_worker()
        self._heard(WorkerLeaving(**self._identity(worker.id), engines_stopped=True))
        self._pass(1)
        self._observed(worker.id, self._number(worker))

    def _worker_fell_silent_and_was_heard_again(self) -> None:
        worker = self._any_worker()
        self._pass(8, silent=worker.id)
        self._pass(4, silent=worker.id)
        if self._random.random() < 0.3:
            self._pass(12, silent=worker.id)
        self._observed(worker.id, self._number(worker))

    def _worker_was_replaced(self) -> None:
        worker = self._any_worker()
        self._heard(WorkerLeaving(**self._identity(worker.id), engines_stopped=True))
        self._wish(WorkerRemovalRequested(worker_id=worker.id))
        self._pass(60)
        self._joined()

    def _worker_labelled(self) -> None:
        labels = {"rack": f"r{self._random.randint(1, 4)}", "zone": "a"}
        self._wish(WorkerLabelled(worker_id=self._any_worker().id, labels=labels))

    def _worker_cordoned_for_a_while(self) -> None:
        worker = self._any_worker()
        self._wish(WorkerCordoned(worker_id=worker.id))
        self._pass(30)
        self._wish(WorkerUncordoned(worker_id=worker.id))

    def _worker_changed(self) -> None:
        worker = self._any_worker()
        used = self._random.randint(1, 4) * GIB // 4
        self._observed(worker.id, self._number(worker), name=f"{worker.name}-x"[:40], used_by_others=used)
        self._observed(worker.id, self._number(worker), address=f"10.0.{self._cell}.{self._random.randint(1, 250)}")

    # -- what follows -------------------------------------------------------------------------------------------------

    def _wish(self, fact: Fact) -> None:
        self._state(fact, "key/bootstrap")
        self._decided(self._core.wished(fact, self._now()))
        self._let_it_happen()

    def _heard(self, report: Any) -> None:
        self._decided(self._core.heard(report, self._now()))
        self._let_it_happen()

    def _pass(self, seconds: float, *, silent: WorkerId | None = None) -> None:
        """Time goes by and the workers beat, but for a silent one."""
        until = self._seconds + seconds
        while self._seconds < until:
            self._seconds = min(self._seconds + BEATEN_WITHIN_SECONDS, until)
            for worker_id in self._fleet.workers:
                if worker_id != silent:
                    self._core.beat(worker_id, "agent", self._now())
                self._core.beat(worker_id, "downloader", self._now())
            self._decided(self._core.time_passed(self._now()))
            self._let_it_happen()

    def _let_it_happen(self) -> None:
        """Workers do what they were assigned, downloaders answer, until nothing more follows."""
        while True:
            while self._followed:
                self._do(self._followed.popleft())
            questions = self._core.questions(self._now())
            if not questions:
                return
            for question in questions:
                answer = ModelInspection(weights=self._weights(question.model_id))
                self._decided(self._core.inspected(question, answer, self._now()))

    def _do(self, fact: Fact) -> None:
        match fact:
            case InstanceScheduled(instance_id=instance_id, attempt=attempt):
                worker_id = fact.members[0].worker_id
                self._engine(worker_id, instance_id, attempt, "accepted")
                for file_id in fact.members[0].file_ids:
                    file = self._fleet.files[file_id]
                    if file.state == "wanted":
                        seen = self._fetched(file)
                        self._decided(
                            self._core.heard(FileReported(**self._identity(worker_id), file=seen), self._now())
                        )
                self._engine(worker_id, instance_id, attempt, "loading")
                self._engine(worker_id, instance_id, attempt, "healthy", ports=(40000 + self._counter % 20000,))
            case InstanceStopping(instance_id=instance_id):
                for claim in list(self._fleet.claims.values()):
                    if claim.instance_id == instance_id:
                        self._engine(claim.worker_id, instance_id, claim.attempt, "stopped")
            case _:
                pass

    def _fetched(self, file: File) -> FileSeen:
        path, size = file.source.label, self._random.randint(2, 20) * GIB
        answer = {"file_id": file.id, "wanted": file.wanted}
        if self._random.random() < 0.03:
            truncated = ModelFileTruncated(path=path, expected_bytes=size, actual_bytes=size // 3)
            return FileSeen.model_validate(answer | {"phase": "failed", "reasons": (truncated,)})
        return FileSeen.model_validate(answer | {"phase": "ready", "bytes": size, "paths": (path,)})

    def _engine(self, worker_id: WorkerId, instance_id: InstanceId, attempt: int, phase: str, **more: Any) -> None:
        seen = EngineSeen.model_validate({"instance_id": instance_id, "attempt": attempt, "phase": phase} | more)
        self._decided(self._core.heard(EngineReported(**self._identity(worker_id), engine=seen), self._now()))

    def _joined(self) -> None:
        self._machines += 1
        self._observed(WorkerId(f"w-{self._cell:04d}{self._machines:08d}"), self._machines)

    def _observed(self, worker_id: WorkerId, number: int, *, used_by_others: int = 0, **more: str) -> None:
        """The complete picture: whatever has a claim there and is not what runs has stopped meanwhile."""
        engines = [
            EngineSeen(
                instance_id=claim.instance_id,
                attempt=claim.attempt,
                phase="healthy" if (running := _running(instance, claim.attempt)) else "stopped",
                ports=(running.port,) if running else (),
            )
            for claim in self._fleet.claims_on(worker_id)
            if (instance := self._fleet.instances.get(claim.instance_id)) is not None
        ]
        worker = self._fleet.workers.get(worker_id)
        known = {"name": worker.name, "address": worker.address} if worker else {}
        fresh = {"name": f"gpu-{self._cell}-{number}", "address": f"10.0.{self._cell}.{number + 1}"}
        report = WorkerObserved.model_validate(
            self._identity(worker_id)
            | {"agent_version": "0.1.0", "inventory": self._inventory(number, used_by_others), "engines": engines}
            | fresh
            | known
            | more
        )
        self._core.beat(worker_id, "downloader", self._now())
        self._heard(report)

    def _decided(self, decision: Decision) -> None:
        for fact in decision.facts:
            self._note(fact, "scheduler")
            self._followed.append(fact)
        self._fleet.seq = len(self._lived)

    def _state(self, fact: Fact, actor: str) -> None:
        self._note(fact, actor)
        evolve(self._fleet, fact, len(self._lived), self._now().at, self._correlation_id)

    def _note(self, fact: Fact, actor: str) -> None:
        self._lived.append(Lived(fact, self._now().at, self._correlation_id, actor))

    # -- chance and identity ------------------------------------------------------------------------------------------

    def _models(self) -> list[ModelId]:
        return [model_id for model_id, wish in self._fleet.wishes.items() if not wish.deleted]

    def _any_model(self) -> ModelId:
        return self._random.choice(self._models())

    def _any_running(self) -> tuple[InstanceId, Running] | None:
        running = [(i.id, i.state) for i in self._fleet.instances.values() if isinstance(i.state, Running)]
        return self._random.choice(running) if running else None

    def _any_worker(self) -> Worker:
        return self._random.choice(list(self._fleet.workers.values()))

    def _number(self, worker: Worker) -> int:
        return int(worker.id[-8:])

    def _weights(self, model_id: ModelId) -> ModelWeights:
        """Of the model, whichever worker looks: one in fifty is too large for any GPU of the fleet."""
        number = int(model_id[-22:])
        size = 200 * GIB if number % 50 == 0 else (1 + number % 16) * GIB
        return ModelWeights(
            format="gguf",
            weight_bytes=size,
            files=(self._fleet.wishes[model_id].spec.source.label,),
            architecture="llama",
            context_length=8192,
            layers=32,
            kv_heads=8,
            head_size=128,
            categories=("llm",),
        )

    def _inventory(self, number: int, used_by_others: int) -> Inventory:
        return Inventory(
            os="linux",
            arch="amd64",
            cpu_count=64,
            memory_total=512 * GIB,
            memory_reserved=8 * GIB,
            gpus=tuple(
                Gpu(
                    index=index,
                    vendor="NVIDIA",
                    type="cuda",
                    name="NVIDIA H100 80GB HBM3",
                    uuid=f"GPU-{self._cell:04d}{number:04d}{index:04d}",
                    memory_total=80 * GIB,
                    memory_used_by_others=used_by_others,
                    compute_capability="9.0",
                    driver_version="580.65",
                )
                for index in range(GPUS_EACH)
            ),
            backends={"llama.cpp": "b11549"},
            runtime="docker",
        )

    def _identity(self, worker_id: WorkerId) -> dict[str, Any]:
        self._counter += 1
        return {"worker_id": worker_id, "boot_id": "boot", "counter": self._counter, "observed_at": self._now().at}

    def _now(self) -> Now:
        return Now(BEGIN + timedelta(seconds=self._seconds), self._seconds)


def drafts(lived: Iterable[Lived]) -> list[Draft]:
    """Events that a log takes, with ids of their own; the same for the same life."""
    made = [
        seal_fact(
            each.fact,
            event_id=f"{number:026d}",
            at=each.at,
            source=f"/muster/{each.fact.owner}/0",
            cause=Cause(correlation_id=each.correlation_id, causation_id=each.correlation_id, actor=each.actor),
        )
        for number, each in enumerate(lived, start=1)
    ]
    gc.collect()
    gc.freeze()  # a million objects that stay: the collector would look at them again and again while we measure
    return made


def _running(instance: Instance, attempt: int) -> Running | None:
    """What runs, or ran when its worker was last heard, when it is this attempt."""
    state = instance.state.running if isinstance(instance.state, Unreachable) else instance.state
    return state if isinstance(state, Running) and instance.attempt == attempt else None

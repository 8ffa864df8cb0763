"""What the log adds up to for the scheduler: `evolve` folds one fact into the fleet.

The api's facts touch only `wishes` and `operator`, the scheduler's own everything else. The two never write the same
field, so folding them in any interleaving gives the same fleet: the scheduler may apply its own facts the moment they
are appended, before it has read the api's that lie between (a property test says so).
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Literal, TypeVar

from schemas.facts import (
    DeadlinePassed,
    InstanceAttemptEnded,
    InstanceCreated,
    InstanceDeleted,
    InstanceDeletionRequested,
    InstanceDownloading,
    InstanceFailed,
    InstancePending,
    InstanceReachable,
    InstanceRestartPlanned,
    InstanceRunning,
    InstanceScheduled,
    InstanceStarting,
    InstanceStopping,
    InstanceUnreachable,
    ModelCreated,
    ModelDegraded,
    ModelDeleted,
    ModelFileFailed,
    ModelFileForgotten,
    ModelFileReady,
    ModelFileWanted,
    ModelInspected,
    ModelPending,
    ModelReady,
    ModelRenamed,
    ModelScaled,
    ModelUpdated,
    SchedulerElected,
    WorkerAddressChanged,
    WorkerCordoned,
    WorkerInventoryChanged,
    WorkerLabelled,
    WorkerReady,
    WorkerRegistered,
    WorkerRemovalRequested,
    WorkerRemoved,
    WorkerRenamed,
    WorkerUncordoned,
    WorkerUnreachable,
)
from schemas.facts.base import Fact
from schemas.facts.instance import InstanceFact
from schemas.facts.worker import WorkerFact
from schemas.ids import FileId, InstanceId, ModelId, WorkerId
from schemas.models import Claim, Inventory, ModelSpec, ModelWeights, Source
from schemas.reasons import EngineExited, Reason
from services.scheduler.domain.instance import (
    Downloading,
    Failed,
    Instance,
    Pending,
    Placement,
    Running,
    Scheduled,
    Starting,
    State,
    Stopping,
    Unreachable,
    placement_of,
)


@dataclass(frozen=True, slots=True)
class Wish:
    """The api's part of a model: what users want."""

    spec: ModelSpec
    generation: int
    deleted: bool = False
    correlation_id: str | None = None
    traceparent: str | None = None
    """Of the request that wanted it: whatever follows belongs to it."""


@dataclass(frozen=True, slots=True)
class Operator:
    """The api's part of a worker: what operators want of it."""

    labels: dict[str, str] = field(default_factory=dict[str, str])
    cordoned: bool = False


@dataclass(frozen=True, slots=True)
class Worker:
    id: WorkerId
    name: str
    address: str
    state: Literal["registered", "ready", "unreachable"]
    inventory: Inventory
    agent_version: str
    reasons: tuple[Reason, ...] = ()
    """Why it is unreachable."""


@dataclass(frozen=True, slots=True)
class Inspection:
    """What one worker's downloader said of a model's files."""

    source: Source
    generation: int
    weights: ModelWeights | None
    reasons: tuple[Reason, ...]


@dataclass(frozen=True, slots=True)
class Status:
    """What was last stated about a model."""

    state: Literal["pending", "degraded", "ready"]
    generation: int
    wanted: int
    running: int
    reasons: tuple[Reason, ...]


@dataclass(frozen=True, slots=True)
class Model:
    """The scheduler's part of a model."""

    created: int = 0
    """How many instances it ever had: the next one's number."""
    inspections: dict[WorkerId, Inspection] = field(default_factory=dict[WorkerId, Inspection])
    status: Status | None = None


@dataclass(frozen=True, slots=True)
class File:
    id: FileId
    worker_id: WorkerId
    source: Source
    commit: str | None
    wanted: int
    """How often it was wanted: a downloader's answer names the wish that it is about."""
    state: Literal["wanted", "ready", "failed"]
    reasons: tuple[Reason, ...] = ()
    paths: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class OpenClaim:
    """Memory that is promised on a worker until the engine is seen gone."""

    instance_id: InstanceId
    attempt: int
    worker_id: WorkerId
    claim: Claim


def claim_key(instance_id: str, attempt: int, worker_id: str) -> str:
    return f"{instance_id}/{attempt}/{worker_id}"


@dataclass(slots=True)
class Fleet:
    seq: int = 0
    """The last fact that was folded."""
    wishes: dict[ModelId, Wish] = field(default_factory=dict[ModelId, Wish])
    operator: dict[WorkerId, Operator] = field(default_factory=dict[WorkerId, Operator])
    deletion_requests: set[InstanceId] = field(default_factory=set[InstanceId])
    removal_requests: dict[WorkerId, int] = field(default_factory=dict[WorkerId, int])
    """How often operators wanted a worker out of the fleet."""
    removals: dict[WorkerId, int] = field(default_factory=dict[WorkerId, int])
    """How often it left."""
    workers: dict[WorkerId, Worker] = field(default_factory=dict[WorkerId, Worker])
    models: dict[ModelId, Model] = field(default_factory=dict[ModelId, Model])
    instances: dict[InstanceId, Instance] = field(default_factory=dict[InstanceId, Instance])
    files: dict[FileId, File] = field(default_factory=dict[FileId, File])
    claims: dict[str, OpenClaim] = field(default_factory=dict[str, OpenClaim])

    def instances_of(self, model_id: ModelId) -> Iterator[Instance]:
        return (instance for instance in self.instances.values() if instance.model_id == model_id)

    def operator_of(self, worker_id: WorkerId) -> Operator:
        return self.operator.get(worker_id, NO_WISH)

    def claims_on(self, worker_id: WorkerId) -> Iterator[OpenClaim]:
        return (claim for claim in self.claims.values() if claim.worker_id == worker_id)


NO_WISH = Operator()
K = TypeVar("K")
V = TypeVar("V")


class Contradiction(Exception):
    """A fact that can't follow from the ones before it: the log is corrupt."""


def evolve(
    fleet: Fleet,
    fact: Fact,
    seq: int,
    at: datetime,
    correlation_id: str | None = None,
    traceparent: str | None = None,
) -> None:
    """Fold one fact into the fleet. Raises Contradiction."""
    fleet.seq = max(fleet.seq, seq)
    match fact:
        case WorkerFact():
            _worker(fleet, fact)
        case InstanceFact():
            _instance(fleet, fact, at)
        case ModelCreated(model_id=model_id, spec=spec):
            fleet.wishes[model_id] = Wish(spec, seq, correlation_id=correlation_id, traceparent=traceparent)
        case ModelUpdated(model_id=model_id, spec=spec):
            fleet.wishes[model_id] = Wish(spec, seq, correlation_id=correlation_id, traceparent=traceparent)
        case ModelScaled(model_id=model_id, replicas=replicas):
            wish = _known(fleet.wishes, model_id)
            spec = wish.spec.model_copy(update={"replicas": replicas})
            fleet.wishes[model_id] = Wish(spec, seq, correlation_id=correlation_id, traceparent=traceparent)
        case ModelDeleted(model_id=model_id):
            wish = _known(fleet.wishes, model_id)
            fleet.wishes[model_id] = replace(
                wish, generation=seq, deleted=True, correlation_id=correlation_id, traceparent=traceparent
            )
        case ModelInspected(model_id=model_id, worker_id=worker_id):
            wish = _known(fleet.wishes, model_id)
            model = fleet.models.get(model_id, Model())
            inspection = Inspection(wish.spec.source, fact.generation, fact.weights, fact.reasons)
            fleet.models[model_id] = replace(model, inspections=model.inspections | {worker_id: inspection})
        case ModelPending(model_id=model_id):
            _state(fleet, model_id, Status("pending", fact.generation, fact.wanted, 0, fact.reasons))
        case ModelDegraded(model_id=model_id):
            _state(fleet, model_id, Status("degraded", fact.generation, fact.wanted, fact.running, fact.reasons))
        case ModelReady(model_id=model_id):
            _state(fleet, model_id, Status("ready", fact.generation, fact.running, fact.running, ()))
        case ModelFileWanted(file_id=file_id):
            before = fleet.files.get(file_id)
            wanted = before.wanted + 1 if before else 1
            fleet.files[file_id] = File(file_id, fact.worker_id, fact.source, fact.commit, wanted, "wanted")
        case ModelFileReady(file_id=file_id):
            fleet.files[file_id] = replace(_known(fleet.files, file_id), state="ready", reasons=(), paths=fact.paths)
        case ModelFileFailed(file_id=file_id):
            fleet.files[file_id] = replace(_known(fleet.files, file_id), state="failed", reasons=fact.reasons)
        case ModelFileForgotten(file_id=file_id):
            fleet.files.pop(file_id, None)
        case SchedulerElected() | ModelRenamed():
            pass
        case _:
            raise Contradiction(f"the scheduler does not know {fact.type}")


def _known(of: dict[K, V], key: K) -> V:
    try:
        return of[key]
    except KeyError:
        raise Contradiction(f"{key} was never created") from None


def _state(fleet: Fleet, model_id: ModelId, status: Status) -> None:
    fleet.models[model_id] = replace(fleet.models.get(model_id, Model()), status=status)


def _worker(fleet: Fleet, fact: WorkerFact) -> None:
    worker_id = fact.worker_id
    match fact:
        case WorkerRegistered():
            fleet.workers[worker_id] = Worker(
                worker_id, fact.name, fact.address, "registered", fact.inventory, fact.agent_version
            )
        case WorkerInventoryChanged():
            worker = _known(fleet.workers, worker_id)
            fleet.workers[worker_id] = replace(worker, inventory=fact.inventory, agent_version=fact.agent_version)
        case WorkerRenamed():
            fleet.workers[worker_id] = replace(_known(fleet.workers, worker_id), name=fact.name)
        case WorkerAddressChanged():
            fleet.workers[worker_id] = replace(_known(fleet.workers, worker_id), address=fact.address)
        case WorkerReady():
            fleet.workers[worker_id] = replace(_known(fleet.workers, worker_id), state="ready", reasons=())
        case WorkerUnreachable(reasons=reasons):
            worker = _known(fleet.workers, worker_id)
            fleet.workers[worker_id] = replace(worker, state="unreachable", reasons=reasons)
        case WorkerRemoved():
            fleet.workers.pop(worker_id, None)
            fleet.removals[worker_id] = fleet.removals.get(worker_id, 0) + 1
            for key in [key for key, claim in fleet.claims.items() if claim.worker_id == worker_id]:
                del fleet.claims[key]
            for model_id, model in fleet.models.items():
                if worker_id in model.inspections:
                    others = {w: inspection for w, inspection in model.inspections.items() if w != worker_id}
                    fleet.models[model_id] = replace(model, inspections=others)
        case WorkerLabelled(labels=labels):
            fleet.operator[worker_id] = replace(fleet.operator_of(worker_id), labels=labels)
        case WorkerCordoned():
            fleet.operator[worker_id] = replace(fleet.operator_of(worker_id), cordoned=True)
        case WorkerUncordoned():
            fleet.operator[worker_id] = replace(fleet.operator_of(worker_id), cordoned=False)
        case WorkerRemovalRequested():
            fleet.removal_requests[worker_id] = fleet.removal_requests.get(worker_id, 0) + 1
        case _:
            raise Contradiction(f"the scheduler does not know {fact.type}")


def _instance(fleet: Fleet, fact: InstanceFact, at: datetime) -> None:
    instance_id = fact.instance_id
    match fact:
        case InstanceCreated(model_id=model_id, name=name):
            fleet.instances[instance_id] = Instance(instance_id, model_id, name, 0, 0, Pending())
            model = fleet.models.get(model_id, Model())
            fleet.models[model_id] = replace(model, created=model.created + 1)
            return
        case InstanceDeletionRequested():
            fleet.deletion_requests.add(instance_id)
            return
        case _:
            pass
    instance = _known(fleet.instances, instance_id)
    state = instance.state
    match fact:
        case InstancePending(reasons=reasons, closest=closest, suggestions=suggestions):
            after: State = Pending(reasons, closest, suggestions, explained=True)
        case InstanceScheduled(attempt=attempt, launch=launch, members=members):
            if attempt <= instance.attempt:
                raise Contradiction(f"{instance_id}: attempt {attempt} after {instance.attempt}")
            for member in members:
                key = claim_key(instance_id, attempt, member.worker_id)
                fleet.claims[key] = OpenClaim(instance_id, attempt, member.worker_id, member.claim)
            instance = replace(instance, attempt=attempt)
            after = Scheduled(Placement(attempt, launch, members))
        case InstanceDownloading():
            after = Downloading(_placed(instance))
        case InstanceStarting():
            after = Starting(_placed(instance))
        case InstanceRunning(address=address, port=port):
            after = Running(_placed(instance), address, port, at)
        case InstanceFailed(reasons=reasons, engine_gone=gone, restarts=restarts, final=final):
            placement = _placed(instance)
            if gone:
                _release(fleet, instance_id, placement.attempt)
            instance = replace(instance, crashes=restarts)
            after = Failed(placement, reasons, final=final)
        case InstanceRestartPlanned(delay_seconds=delay):
            reasons = state.reasons if isinstance(state, Failed) else (EngineExited(exit_code=None),)
            after = Failed(placement_of(state), reasons, delay)
        case InstanceUnreachable(reasons=reasons):
            after = Unreachable(_placed(instance), reasons, state if isinstance(state, Running) else None)
        case InstanceReachable():
            if not (isinstance(state, Unreachable) and state.running is not None):
                raise Contradiction(f"{instance_id} was not running when it became unreachable")
            after = state.running
        case InstanceStopping(cause=cause):
            after = Stopping(placement_of(state), cause)
        case InstanceAttemptEnded(attempt=attempt, worker_id=worker_id):
            fleet.claims.pop(claim_key(instance_id, attempt, worker_id), None)
            return
        case InstanceDeleted():
            _release(fleet, instance_id)
            del fleet.instances[instance_id]
            return
        case DeadlinePassed():
            if fact.state == "unreachable" and isinstance(state, Unreachable):
                after = replace(state, evictable=True)
            elif fact.state == "scheduled" and isinstance(state, Scheduled):
                after = replace(state, overdue=True)
            else:
                return
        case _:
            raise Contradiction(f"the scheduler does not know {fact.type}")
    fleet.instances[instance_id] = replace(instance, state=after)


def _placed(instance: Instance) -> Placement:
    placement = placement_of(instance.state)
    if placement is None:
        raise Contradiction(f"{instance.id} has no place")
    return placement


def _release(fleet: Fleet, instance_id: InstanceId, attempt: int | None = None) -> None:
    for key, claim in list(fleet.claims.items()):
        if claim.instance_id == instance_id and attempt in (None, claim.attempt):
            del fleet.claims[key]

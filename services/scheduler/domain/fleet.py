"""What the log adds up to for the scheduler: `evolve` folds one fact into the fleet.

The api's facts touch only `wishes`, `operator` and `backends`, the scheduler's own everything else. The two never write the same
field, so folding them in any interleaving gives the same fleet: the scheduler may apply its own facts the moment they
are appended, before it has read the api's that lie between (a property test says so).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Annotated, Final, Literal, TypeVar, cast

from pydantic import Field

from schemas.asks import InspectModel
from schemas.backends import InferenceBackend, built_in
from schemas.facts import (
    BackendCreated,
    BackendDeleted,
    BackendUpdated,
    DeadlinePassed,
    InstanceAttemptEnded,
    InstanceCreated,
    InstanceDeleted,
    InstanceDeletionRequested,
    InstanceDownloading,
    InstanceDrained,
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
    ModelEnded,
    ModelFileDeleted,
    ModelFileDeleting,
    ModelFileDeletionRefused,
    ModelFileDeletionRequested,
    ModelFileFailed,
    ModelFileForgotten,
    ModelFileReady,
    ModelFileRequested,
    ModelFileWanted,
    ModelInspected,
    ModelPeakMeasured,
    ModelPending,
    ModelQuarantineCleared,
    ModelQuarantined,
    ModelQuarantineLifted,
    ModelReady,
    ModelRenamed,
    ModelRolledBack,
    ModelScaled,
    ModelUpdated,
    SchedulerElected,
    WorkerAddressChanged,
    WorkerCordoned,
    WorkerDrained,
    WorkerDrainRequested,
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
from schemas.facts.file import FileFact, FileStated
from schemas.facts.instance import InstanceFact
from schemas.facts.worker import WorkerFact
from schemas.ids import FileId, InstanceId, ModelId, WorkerId
from schemas.models import Claim, Inventory, ModelSpec, ModelWeights
from schemas.reasons import EngineExited, Reason
from schemas.sources import Source
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
from services.scheduler.domain.machines import Machines
from services.scheduler.domain.peaks import Peaks, peak_in, with_peak
from services.scheduler.domain.snapshot import machine_of


@dataclass(frozen=True, slots=True)
class Wish:
    """The api's part of a model: what users want."""

    spec: ModelSpec
    generation: int
    revision: int = 0
    """The generation that last changed the engine."""
    former: ModelSpec | None = None
    """What the engine was before that; None: the model is as it was created."""
    former_revision: int = 0
    clears: int = 0
    """How often crashes of the past were to be forgotten: by an edit of the engine, or by a user."""
    deleted: bool = False
    correlation_id: str | None = None
    traceparent: str | None = None
    """Of the request that wanted it: whatever follows belongs to it."""


@dataclass(frozen=True, slots=True)
class Operator:
    """The api's part of a worker: what operators want of it."""

    labels: dict[str, str] = field(default_factory=dict[str, str])
    cordoned: bool = False
    draining: bool = False
    drains: int = 0
    """How often it was to be emptied."""


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
    drains: int = 0
    """How often it was emptied."""


@dataclass(frozen=True, slots=True)
class Inspection:
    """What one worker's downloader said of a model's files."""

    question: InspectModel
    generation: int
    weights: ModelWeights | None
    reasons: tuple[Reason, ...]


@dataclass(frozen=True, slots=True)
class Pins:
    """What the model is made of as of the first answer that said so: a branch that moves on, or a worker that leaves, changes
    nothing for instances that are added later.
    """

    question: InspectModel
    weights: ModelWeights


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
    """The newest last."""
    proven: int = 0
    """The newest revision of which an instance has run."""
    rolled_back: int = 0
    """The revision that did not run, when it was the newest."""
    rollback_problem: str | None = None
    crashes: dict[WorkerId, int] = field(default_factory=dict[WorkerId, int])
    """Crashes in a row on a worker."""
    quarantined: dict[WorkerId, int] = field(default_factory=dict[WorkerId, int])
    """Workers that it is not placed on any more, with its crashes there."""
    clears: int = 0
    """How often its crashes were forgotten."""
    peaks: Peaks = ()
    """What its engines were measured to hold at most, of the newest revisions that were measured."""
    status: Status | None = None
    pins: tuple[Pins, ...] = ()
    """What hubs' branches were pinned to, for the last questions about its files."""


@dataclass(frozen=True, slots=True)
class FileWish:
    """The api's part of a file: what users asked last."""

    worker_id: WorkerId
    want: Literal["ready", "deleted"]
    seq: int
    source: Source | None = None
    commit: str | None = None
    bytes: int | None = None


@dataclass(frozen=True, slots=True)
class File:
    id: FileId
    worker_id: WorkerId
    source: Source
    commit: str | None
    wanted: int
    """How often it was wanted, or wanted no more: a downloader's answer names the wish that it is about."""
    state: Literal["wanted", "ready", "failed", "deleting"]
    reasons: tuple[Reason, ...] = ()
    paths: tuple[str, ...] = ()
    bytes: int | None = None
    model_path: str | None = None
    digest: str | None = None


@dataclass(frozen=True, slots=True)
class OpenClaim:
    """Memory that is promised on a worker until the engine is seen gone."""

    instance_id: InstanceId
    attempt: int
    worker_id: WorkerId
    claim: Claim
    model_id: ModelId
    accelerator: str | None
    """The kind of GPU that the claim's indexes are of."""
    file_ids: tuple[FileId, ...] = ()
    """What its engine runs from."""


K = TypeVar("K")
V = TypeVar("V")
Derived: Final = Field(exclude=True)
"""Not stored in a snapshot: made from what is."""


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
    backends: dict[str, InferenceBackend] = field(default_factory=dict[str, InferenceBackend])
    """That operators defined, by name."""
    files: dict[FileId, File] = field(default_factory=dict[FileId, File])
    file_wishes: dict[FileId, FileWish] = field(default_factory=dict[FileId, FileWish])
    file_answers: dict[FileId, int] = field(default_factory=dict[FileId, int])
    """The last of users' requests that was answered."""
    forgotten: dict[FileId, int] = field(default_factory=dict[FileId, int])
    """Files that are gone: how often they had been wanted, so that an old answer fits no new wish."""
    claims: dict[str, OpenClaim] = field(default_factory=dict[str, OpenClaim])
    """By `claim_key`."""
    machines: Annotated[Machines, Derived] = field(init=False, repr=False, compare=False, default_factory=Machines)
    """The workers as placement sees them."""
    _of_model: Annotated[dict[ModelId, dict[InstanceId, None]], Derived] = field(
        init=False, repr=False, compare=False, default_factory=dict[ModelId, dict[InstanceId, None]]
    )
    _counts: Annotated[dict[ModelId, dict[str, int]], Derived] = field(
        init=False, repr=False, compare=False, default_factory=dict[ModelId, dict[str, int]]
    )
    _of_instance: Annotated[dict[InstanceId, dict[str, OpenClaim]], Derived] = field(
        init=False, repr=False, compare=False, default_factory=dict[InstanceId, dict[str, OpenClaim]]
    )
    _on_worker: Annotated[dict[WorkerId, dict[str, OpenClaim]], Derived] = field(
        init=False, repr=False, compare=False, default_factory=dict[WorkerId, dict[str, OpenClaim]]
    )
    _files: Annotated[dict[str, dict[WorkerId, FileId]], Derived] = field(
        init=False, repr=False, compare=False, default_factory=dict[str, dict[WorkerId, FileId]]
    )
    """The same files on each worker."""
    _files_on: Annotated[dict[WorkerId, dict[FileId, None]], Derived] = field(
        init=False, repr=False, compare=False, default_factory=dict[WorkerId, dict[FileId, None]]
    )

    _alike: Annotated[dict[str, dict[str, object]], Derived] = field(
        init=False, repr=False, compare=False, default_factory=dict[str, dict[str, object]]
    )

    def __post_init__(self) -> None:
        """What is derived, from what is stored."""
        for model_id, model in self.models.items():
            for worker_id, inspection in model.inspections.items():
                model.inspections[worker_id] = self.alike(model_id, "inspection", inspection)
        for instance in list(self.instances.values()):
            state = instance.state
            if isinstance(state, Scheduled | Downloading | Starting | Running):
                launch = self.alike(instance.model_id, "launch", state.placement.launch)
                state = replace(state, placement=replace(state.placement, launch=launch))
                self.instances[instance.id] = replace(instance, state=state)
        for instance in self.instances.values():
            self._of_model.setdefault(instance.model_id, {})[instance.id] = None
            self._count(instance, 1)
        for key, claim in self.claims.items():
            self._of_instance.setdefault(claim.instance_id, {})[key] = claim
            self._on_worker.setdefault(claim.worker_id, {})[key] = claim
        for worker in self.workers.values():
            self.see(worker.id)
        for file in list(self.files.values()):
            self.put_file(file)

    def alike(self, of: str, what: str, value: V) -> V:
        """The value, or an equal one that is there already: thousands of instances and workers say the same of a model."""
        known = self._alike.setdefault(of, {})
        if known.get(what) == value:
            return cast("V", known[what])
        known[what] = value
        return value

    def counts_of(self, model_id: ModelId) -> dict[str, int]:
        """Kind of state → how many instances of the model are in it."""
        return self._counts.get(model_id, {})

    def _count(self, instance: Instance, change: int) -> None:
        counts = self._counts.setdefault(instance.model_id, {})
        kind = instance.state.kind
        counts[kind] = counts.get(kind, 0) + change

    def instances_of(self, model_id: ModelId) -> list[Instance]:
        return [self.instances[instance_id] for instance_id in self._of_model.get(model_id, ())]

    def operator_of(self, worker_id: WorkerId) -> Operator:
        return self.operator.get(worker_id, NO_WISH)

    def claims_on(self, worker_id: WorkerId) -> list[OpenClaim]:
        return list(self._on_worker.get(worker_id, {}).values())

    def claims_of(self, instance_id: InstanceId) -> list[OpenClaim]:
        return list(self._of_instance.get(instance_id, {}).values())

    def on(self, worker_id: WorkerId) -> list[Instance]:
        """Instances that have memory promised on this worker, by id."""
        ids = dict.fromkeys(claim.instance_id for claim in self._on_worker.get(worker_id, {}).values())
        return [self.instances[instance_id] for instance_id in sorted(ids) if instance_id in self.instances]

    def all_backends(self) -> Mapping[str, InferenceBackend]:
        """An operator's take the place of built-in ones."""
        return {**built_in(), **self.backends}

    def workers_with(self, source: Source, commit: str | None) -> frozenset[WorkerId]:
        """Workers on which these files are ready."""
        return frozenset(file.worker_id for file in self.like(source, commit) if file.state == "ready")

    def like(self, source: Source, commit: str | None) -> list[File]:
        """The same files, on whichever workers, in whatever state: in the order in which they were wanted."""
        return [self.files[file_id] for file_id in self._files.get(_content(source, commit), {}).values()]

    def files_on(self, worker_id: WorkerId) -> list[File]:
        return [self.files[file_id] for file_id in self._files_on.get(worker_id, ())]

    # -- only `evolve` calls what follows

    def forget_alike(self, of: str) -> None:
        self._alike.pop(of, None)

    def put_instance(self, instance: Instance) -> None:
        before = self.instances.get(instance.id)
        if before is not None:
            self._count(before, -1)
        self._count(instance, 1)
        self.instances[instance.id] = instance
        self._of_model.setdefault(instance.model_id, {})[instance.id] = None

    def drop_instance(self, instance_id: InstanceId) -> None:
        instance = self.instances.pop(instance_id)
        self._count(instance, -1)
        self._of_instance.pop(instance_id, None)
        of_model = self._of_model[instance.model_id]
        of_model.pop(instance_id, None)
        if not of_model:
            del self._of_model[instance.model_id]
            self._counts.pop(instance.model_id, None)

    def open_claim(self, claim: OpenClaim) -> None:
        key = claim_key(claim.instance_id, claim.attempt, claim.worker_id)
        self.claims[key] = claim
        self._of_instance.setdefault(claim.instance_id, {})[key] = claim
        self._on_worker.setdefault(claim.worker_id, {})[key] = claim
        self.machines.promise(claim.worker_id, claim.model_id, claim.accelerator, claim.claim)

    def close_claim(self, key: str) -> None:
        claim = self.claims.pop(key, None)
        if claim is not None:
            self._of_instance[claim.instance_id].pop(key, None)
            self._on_worker[claim.worker_id].pop(key, None)
            self.machines.release(claim.worker_id, claim.model_id, claim.accelerator, claim.claim)

    def put_file(self, file: File) -> None:
        name = _content(file.source, file.commit)
        source, paths = self.alike(name, "source", file.source), self.alike(name, "paths", file.paths)
        self.files[file.id] = replace(file, source=source, paths=paths)
        self._files.setdefault(name, {})[file.worker_id] = file.id
        self._files_on.setdefault(file.worker_id, {})[file.id] = None

    def drop_file(self, file_id: FileId) -> None:
        file = self.files.pop(file_id, None)
        if file is None:
            return
        self.forgotten[file_id] = file.wanted
        content = _content(file.source, file.commit)
        alike = self._files[content]
        alike.pop(file.worker_id)
        if not alike:
            del self._files[content]
            self.forget_alike(content)
        on_worker = self._files_on[file.worker_id]
        on_worker.pop(file_id)
        if not on_worker:
            del self._files_on[file.worker_id]

    def see(self, worker_id: WorkerId) -> None:
        """Something about the worker is not what it was."""
        worker = self.workers.get(worker_id)
        if worker is None:
            self.machines.drop(worker_id)
            return
        before = self.machines.get(worker_id)
        operator = self.operator_of(worker_id)
        self.machines.put(
            machine_of(
                worker_id,
                worker.name,
                worker.address,
                worker.state,
                worker.inventory,
                labels=operator.labels,
                cordoned=operator.cordoned,
                cordon_unhealthy=self.machines.cordon_unhealthy,
                draining=operator.draining,
                downloader_alive=before.downloader_alive if before is not None else True,
                claims=[(claim.model_id, claim.accelerator, claim.claim) for claim in self.claims_on(worker_id)],
            )
        )


ENGINE_FIELDS: Final = (
    "source", "backend", "backend_version", "backend_parameters", "env", "lora_list", "speculative_config", "image_name",
    "entrypoint", "run_command", "extended_kv_cache", "claim_override", "packed", "cpu_offloading", "gpu_selector",
    "worker_selector",
)  # fmt: skip
"""What of a wish an engine was started with, or may run where it runs by: an edit replaces the instances."""


def changes_engine(before: ModelSpec, after: ModelSpec) -> bool:
    return any(getattr(before, field) != getattr(after, field) for field in ENGINE_FIELDS)


def question_about(spec: ModelSpec) -> InspectModel:
    """What a downloader is asked: the model's files, and those that are loaded beside them."""
    speculation = spec.speculative_config
    return InspectModel(
        source=spec.source,
        adapters=tuple(lora.source for lora in spec.lora_list),
        draft=None if speculation is None else speculation.draft_model,
    )


NO_WISH = Operator()
MOST_PINS: Final = 2
"""Of the newest revision, and of the one before, which may have to run again."""


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
            fleet.see(fact.worker_id)
        case InstanceFact():
            _instance(fleet, fact, at)
        case ModelCreated(model_id=model_id, spec=spec):
            fleet.wishes[model_id] = Wish(spec, seq, seq, correlation_id=correlation_id, traceparent=traceparent)
        case ModelUpdated(model_id=model_id, spec=spec):
            before = _known(fleet.wishes, model_id)
            wish = replace(before, spec=spec, generation=seq, correlation_id=correlation_id, traceparent=traceparent)
            if changes_engine(before.spec, spec):
                wish = replace(
                    wish,
                    revision=seq,
                    former=before.spec,
                    former_revision=before.revision,
                    clears=before.clears + 1,
                )
            fleet.wishes[model_id] = wish
        case ModelQuarantineCleared(model_id=model_id):
            wish = _known(fleet.wishes, model_id)
            fleet.wishes[model_id] = replace(wish, generation=seq, clears=wish.clears + 1)
        case BackendCreated(backend=backend) | BackendUpdated(backend=backend):
            fleet.backends[backend.backend_name] = backend
        case BackendDeleted(backend_name=name):
            fleet.backends.pop(name, None)
        case ModelScaled(model_id=model_id, replicas=replicas):
            wish = _known(fleet.wishes, model_id)
            spec = wish.spec.model_copy(update={"replicas": replicas})
            fleet.wishes[model_id] = replace(
                wish, spec=spec, generation=seq, correlation_id=correlation_id, traceparent=traceparent
            )
        case ModelDeleted(model_id=model_id):
            wish = _known(fleet.wishes, model_id)
            fleet.wishes[model_id] = replace(
                wish, generation=seq, deleted=True, correlation_id=correlation_id, traceparent=traceparent
            )
        case ModelInspected(model_id=model_id, worker_id=worker_id):
            wish = _known(fleet.wishes, model_id)
            model = fleet.models.get(model_id, Model())
            question = fact.question or question_about(wish.spec)
            inspection = Inspection(question, fact.generation, fact.weights, fact.reasons)
            inspection = fleet.alike(model_id, "inspection", inspection)
            others = {w: each for w, each in model.inspections.items() if w != worker_id}
            fleet.models[model_id] = replace(
                model, inspections=others | {worker_id: inspection}, pins=_with_pins(model.pins, inspection)
            )
        case ModelRolledBack(model_id=model_id, revision=revision, reasons=reasons):
            model = fleet.models.get(model_id, Model())
            problem = "; ".join(reason.sentence() for reason in reasons)
            fleet.models[model_id] = replace(model, rolled_back=revision, rollback_problem=problem)
        case ModelQuarantined(model_id=model_id, worker_id=worker_id, crashes=crashes):
            model = fleet.models.get(model_id, Model())
            fleet.models[model_id] = replace(model, quarantined=model.quarantined | {worker_id: crashes})
        case ModelQuarantineLifted(model_id=model_id, worker_ids=worker_ids, clears=clears):
            model = fleet.models.get(model_id, Model())
            fleet.models[model_id] = replace(
                model,
                clears=clears,
                crashes={w: count for w, count in model.crashes.items() if w not in worker_ids},
                quarantined={w: count for w, count in model.quarantined.items() if w not in worker_ids},
            )
        case ModelPeakMeasured(model_id=model_id):
            model = fleet.models.get(model_id, Model())
            fleet.models[model_id] = replace(model, peaks=with_peak(model.peaks, peak_in(fact)))
        case ModelPending(model_id=model_id):
            _state(fleet, model_id, Status("pending", fact.generation, fact.wanted, 0, fact.reasons))
        case ModelDegraded(model_id=model_id):
            _state(fleet, model_id, Status("degraded", fact.generation, fact.wanted, fact.running, fact.reasons))
        case ModelReady(model_id=model_id):
            _state(fleet, model_id, Status("ready", fact.generation, fact.running, fact.running, ()))
        case ModelEnded(model_id=model_id):
            fleet.models.pop(model_id, None)
            fleet.forget_alike(model_id)
        case FileFact():
            _file(fleet, fact, seq)
        case SchedulerElected() | ModelRenamed():
            pass
        case _:
            raise Contradiction(f"the scheduler does not know {fact.type}")


def _with_pins(pins: tuple[Pins, ...], inspection: Inspection) -> tuple[Pins, ...]:
    weights = inspection.weights
    if weights is None or not weights.pinned or any(each.question == inspection.question for each in pins):
        return pins
    return (*pins, Pins(inspection.question, weights))[-MOST_PINS:]


def _file(fleet: Fleet, fact: FileFact, seq: int) -> None:
    file_id = fact.file_id
    if isinstance(fact, FileStated):
        _answered(fleet, file_id, fact.known_request)
    match fact:
        case ModelFileRequested(worker_id=worker_id, source=source, commit=commit, bytes=size):
            fleet.file_wishes[file_id] = FileWish(worker_id, "ready", seq, source, commit, size)
        case ModelFileDeletionRequested(worker_id=worker_id):
            fleet.file_wishes[file_id] = FileWish(worker_id, "deleted", seq)
        case ModelFileWanted():
            fleet.drop_file(file_id)  # whoever is to have it again is the last that asks the hub
            wanted = fleet.forgotten.pop(file_id, 0) + 1
            fleet.put_file(File(file_id, fact.worker_id, fact.source, fact.commit, wanted, "wanted", bytes=fact.bytes))
            _answered(fleet, file_id, fact.request)
        case ModelFileReady(paths=paths, bytes=size, model_path=model_path, digest=digest):
            fleet.put_file(
                replace(
                    _known(fleet.files, file_id),
                    state="ready",
                    reasons=(),
                    paths=paths,
                    bytes=size,
                    model_path=model_path,
                    digest=digest,
                )
            )
        case ModelFileFailed(reasons=reasons):
            fleet.put_file(replace(_known(fleet.files, file_id), state="failed", reasons=reasons))
        case ModelFileDeletionRefused(request=request):
            _answered(fleet, file_id, request)
        case ModelFileDeleting(request=request):
            file = _known(fleet.files, file_id)
            fleet.put_file(replace(file, state="deleting", wanted=file.wanted + 1, reasons=()))
            _answered(fleet, file_id, request)
        case ModelFileDeleted() | ModelFileForgotten():
            fleet.drop_file(file_id)
        case _:
            raise Contradiction(f"the scheduler does not know {fact.type}")


def _answered(fleet: Fleet, file_id: FileId, request: int | None) -> None:
    if request is not None:
        fleet.file_answers[file_id] = max(request, fleet.file_answers.get(file_id, 0))


def _content(source: Source, commit: str | None) -> str:
    """What is the same on every worker that has it."""
    return f"{source.model_dump_json()}@{commit or ''}"


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
        case WorkerDrained():
            fleet.workers[worker_id] = replace(_known(fleet.workers, worker_id), drains=fact.drains)
        case WorkerRemoved():
            fleet.workers.pop(worker_id, None)
            fleet.removals[worker_id] = fleet.removals.get(worker_id, 0) + 1
            for claim in fleet.claims_on(worker_id):
                fleet.close_claim(claim_key(claim.instance_id, claim.attempt, worker_id))
            for model_id, model in fleet.models.items():
                if worker_id in model.inspections or worker_id in model.crashes or worker_id in model.quarantined:
                    fleet.models[model_id] = replace(
                        model,
                        inspections={w: each for w, each in model.inspections.items() if w != worker_id},
                        crashes={w: count for w, count in model.crashes.items() if w != worker_id},
                        quarantined={w: count for w, count in model.quarantined.items() if w != worker_id},
                    )
        case WorkerLabelled(labels=labels):
            fleet.operator[worker_id] = replace(fleet.operator_of(worker_id), labels=labels)
        case WorkerCordoned():
            fleet.operator[worker_id] = replace(fleet.operator_of(worker_id), cordoned=True)
        case WorkerUncordoned():
            fleet.operator[worker_id] = replace(fleet.operator_of(worker_id), cordoned=False, draining=False)
        case WorkerDrainRequested():
            operator = fleet.operator_of(worker_id)
            fleet.operator[worker_id] = replace(operator, draining=True, drains=operator.drains + 1)
        case WorkerRemovalRequested():
            fleet.removal_requests[worker_id] = fleet.removal_requests.get(worker_id, 0) + 1
        case _:
            raise Contradiction(f"the scheduler does not know {fact.type}")


def _instance(fleet: Fleet, fact: InstanceFact, at: datetime) -> None:
    instance_id = fact.instance_id
    match fact:
        case InstanceCreated(model_id=model_id, name=name):
            fleet.put_instance(Instance(instance_id, model_id, name, 0, 0, Pending()))
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
        case InstancePending(reasons=reasons, closest=closest, suggestions=suggestions, unlisted=unlisted):
            after: State = Pending(reasons, closest, suggestions, unlisted, explained=True)
        case InstanceScheduled(attempt=attempt, launch=launch, members=members):
            if attempt <= instance.attempt:
                raise Contradiction(f"{instance_id}: attempt {attempt} after {instance.attempt}")
            for member in members:
                fleet.open_claim(
                    OpenClaim(
                        instance_id,
                        attempt,
                        member.worker_id,
                        member.claim,
                        instance.model_id,
                        member.accelerator,
                        member.file_ids,
                    )
                )
            instance = replace(instance, attempt=attempt)
            launch = fleet.alike(instance.model_id, "launch", launch)
            after = Scheduled(Placement(attempt, launch, members))
        case InstanceDownloading():
            after = Downloading(_placed(instance))
        case InstanceStarting():
            after = Starting(_placed(instance))
        case InstanceRunning(address=address, port=port):
            _ran(fleet, instance)
            after = Running(_placed(instance), address, port, at)
        case InstanceFailed(reasons=reasons, engine_gone=gone, restarts=restarts, final=final):
            placement = _placed(instance)
            if gone:
                fleet.close_claim(claim_key(instance_id, placement.attempt, fact.worker_id))
            _crashed(fleet, instance, fact.worker_id, restarts)
            instance = replace(instance, crashes=restarts)
            after = Failed(placement, reasons, final=final)
        case InstanceRestartPlanned(delay_seconds=delay):
            reasons = state.reasons if isinstance(state, Failed) else (EngineExited(exit_code=None),)
            after = Failed(placement_of(state), reasons, delay)
        case InstanceUnreachable(reasons=reasons):
            after = _lost(_placed(instance), state, reasons)
        case InstanceReachable():
            if not (isinstance(state, Unreachable) and state.running is not None):
                raise Contradiction(f"{instance_id} was not running when it became unreachable")
            after = state.running
        case InstanceStopping(cause=cause, drain_seconds=drain_seconds):
            after = Stopping(placement_of(state), cause, drain_seconds)
        case InstanceDrained():
            if not isinstance(state, Stopping):
                raise Contradiction(f"{instance_id} was not being stopped when it had drained")
            after = replace(state, drain_seconds=0.0)
        case InstanceAttemptEnded(attempt=attempt, worker_id=worker_id):
            fleet.close_claim(claim_key(instance_id, attempt, worker_id))
            return
        case InstanceDeleted():
            for claim in fleet.claims_of(instance_id):
                fleet.close_claim(claim_key(instance_id, claim.attempt, claim.worker_id))
            fleet.drop_instance(instance_id)
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
    fleet.put_instance(replace(instance, state=after))


def _lost(placement: Placement, state: State, reasons: tuple[Reason, ...]) -> Unreachable:
    """Of an instance on several workers more may be lost one by one."""
    if isinstance(state, Unreachable):
        return replace(state, reasons=reasons)
    return Unreachable(placement, reasons, state if isinstance(state, Running) else None)


def _ran(fleet: Fleet, instance: Instance) -> None:
    """An instance of this revision runs: nobody goes back to the former one any more."""
    revision = _placed(instance).launch.revision
    model = fleet.models.get(instance.model_id, Model())
    if revision is not None and revision > model.proven:
        fleet.models[instance.model_id] = replace(model, proven=revision)


def _crashed(fleet: Fleet, instance: Instance, worker_id: WorkerId, restarts: int) -> None:
    """Count what the engine is to blame for, by worker. A long run begins anew."""
    if restarts == instance.crashes:  # an end that was not the engine's own
        return
    model = fleet.models.get(instance.model_id, Model())
    count = model.crashes.get(worker_id, 0) + 1 if restarts > instance.crashes else 1
    fleet.models[instance.model_id] = replace(model, crashes=model.crashes | {worker_id: count})


def _placed(instance: Instance) -> Placement:
    placement = placement_of(instance.state)
    if placement is None:
        raise Contradiction(f"{instance.id} has no place")
    return placement

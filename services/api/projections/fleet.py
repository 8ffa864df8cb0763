"""What each fact does to the read models. Pure: the same facts give the same rows, in batches of any size."""

from collections.abc import Iterable, Sequence
from typing import Final, assert_never

from sqlalchemy import Table

from kernel.projections.changes import Change, Drop, Happened, Patch, Put, PutChildren, Row
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
from schemas.facts.backend import BackendFact
from schemas.facts.file import FileFact
from schemas.facts.instance import InstanceFact
from schemas.facts.worker import WorkerFact
from schemas.models import Inventory
from schemas.reasons import ReasonBase
from services.api.projections.tables import TABLES

VERSION: Final = 6
"""Raised by hand whenever the same facts would give other rows."""


class FleetProjection:
    @property
    def version(self) -> int:
        return VERSION

    @property
    def tables(self) -> tuple[Table, ...]:
        return TABLES

    def changes(self, happened: Happened) -> Iterable[Change]:
        fact = happened.fact
        match fact:
            case WorkerFact():
                return _worker(fact, happened)
            case InstanceFact():
                return _instance(fact, happened)
            case ModelCreated() | ModelUpdated() | ModelScaled() | ModelDeleted():
                return _wish(fact, happened)
            case BackendFact():
                return _backend(fact, happened)
            case ModelInspected() | ModelRenamed() | ModelRolledBack() | ModelPeakMeasured():
                return ()
            case ModelEnded(
                model_id=model_id
            ):  # whoever decides may have spoken of it before it knew that it was deleted
                return (PutChildren("quarantines", (model_id,), ()), reason_rows("model", model_id, (), happened))
            case ModelQuarantined() | ModelQuarantineLifted() | ModelQuarantineCleared():
                return _quarantine(fact, happened)
            case ModelPending() | ModelDegraded() | ModelReady():
                return _model_state(fact, happened)
            case FileFact():
                return _file(fact, happened)
            case SchedulerElected():
                return ()
            case _:
                raise AssertionError(f"the projection does not know {fact.type}")


def reason_rows(kind: str, resource_id: str, reasons: Sequence[ReasonBase], happened: Happened) -> PutChildren:
    """The current reasons of a resource in place of the former ones."""
    return PutChildren(
        "reasons",
        (kind, resource_id),
        tuple(
            {
                "kind": kind,
                "resource_id": resource_id,
                "position": position,
                "code": numbers.pop("code"),
                "who": reason.whose,
                "worker_id": numbers.pop("worker_id"),
                "numbers": numbers,
                "text": reason.sentence(),
                "since": happened.iso,
                "cause_seq": happened.sequence,
            }
            for position, reason in enumerate(reasons)
            for numbers in (reason.model_dump(mode="json"),)
        ),
    )


def _state(state: str, happened: Happened) -> Row:
    return {"state": state, "since": happened.iso, "cause_seq": happened.sequence, "seq": happened.sequence}


def _inventory(worker_id: str, inventory: Inventory) -> tuple[Row, PutChildren]:
    columns: Row = {
        "os": inventory.os,
        "arch": inventory.arch,
        "cpu_count": inventory.cpu_count,
        "memory_total": inventory.memory_total,
        "memory_reserved": inventory.memory_reserved,
        "runtime": inventory.runtime,
        "backends": inventory.backends,
        "reach": inventory.reach,
    }
    gpus = tuple(gpu.model_dump(mode="json") | {"worker_id": worker_id} for gpu in inventory.gpus)
    return columns, PutChildren("gpus", (worker_id,), gpus)


def _worker(fact: WorkerFact, happened: Happened) -> Iterable[Change]:
    key = (fact.worker_id,)
    touched: Row = {"seq": happened.sequence}
    no_reasons = reason_rows("worker", fact.worker_id, (), happened)
    match fact:
        case WorkerRegistered():
            columns, gpus = _inventory(fact.worker_id, fact.inventory)
            row: Row = {
                "id": fact.worker_id,
                "name": fact.name,
                "address": fact.address,
                "labels": {},
                "cordoned": False,
                "draining": False,
                "drained_at": None,
                "agent_version": fact.agent_version,
                "registered_at": happened.iso,
            }
            return (Put("workers", row | columns | _state("registered", happened)), gpus)
        case WorkerInventoryChanged():
            columns, gpus = _inventory(fact.worker_id, fact.inventory)
            return (Patch("workers", key, columns | touched | {"agent_version": fact.agent_version}), gpus)
        case WorkerRenamed():
            return (Patch("workers", key, touched | {"name": fact.name}),)
        case WorkerAddressChanged():
            return (Patch("workers", key, touched | {"address": fact.address}),)
        case WorkerReady():
            return (Patch("workers", key, _state("ready", happened)), no_reasons)
        case WorkerUnreachable():
            return (
                Patch("workers", key, _state("unreachable", happened)),
                reason_rows("worker", fact.worker_id, fact.reasons, happened),
            )
        case WorkerRemoved():
            return (Drop("workers", key), PutChildren("gpus", key, ()), no_reasons)
        case WorkerLabelled():
            return (Patch("workers", key, touched | {"labels": fact.labels}),)
        case WorkerCordoned():
            return (Patch("workers", key, touched | {"cordoned": True}),)
        case WorkerUncordoned():
            return (Patch("workers", key, touched | {"cordoned": False, "draining": False}),)
        case WorkerDrainRequested():
            return (Patch("workers", key, touched | {"draining": True}),)
        case WorkerDrained():
            return (Patch("workers", key, touched | {"drained_at": happened.iso}),)
        case WorkerRemovalRequested():
            return (Patch("workers", key, touched),)
        case _:
            raise AssertionError(f"the projection does not know {fact.type}")


def _wish(fact: ModelCreated | ModelUpdated | ModelScaled | ModelDeleted, happened: Happened) -> Iterable[Change]:
    key = (fact.model_id,)
    touched: Row = {"generation": happened.sequence, "updated_at": happened.iso, "seq": happened.sequence}
    match fact:
        case ModelCreated():
            row: Row = {
                "id": fact.model_id,
                "name": fact.spec.name,
                "spec": fact.spec.model_dump(mode="json"),
                "replicas": fact.spec.replicas,
                "observed_generation": 0,
                "running": 0,
                "created_at": happened.iso,
            }
            return (Put("models", row | _state("created", happened) | touched),)
        case ModelUpdated():
            spec = fact.spec.model_dump(mode="json")
            return (
                Patch("models", key, {"name": fact.spec.name, "spec": spec, "replicas": fact.spec.replicas} | touched),
            )
        case ModelScaled():
            return (Patch("models", key, {"replicas": fact.replicas} | touched),)
        case ModelDeleted():
            return (
                Drop("models", key),
                PutChildren("quarantines", key, ()),
                reason_rows("model", fact.model_id, (), happened),
            )
        case _:
            assert_never(fact)


def _backend(fact: BackendFact, happened: Happened) -> Iterable[Change]:
    key = (fact.backend_id,)
    match fact:
        case BackendCreated(backend=backend) | BackendUpdated(backend=backend):
            columns: Row = {
                "name": backend.backend_name,
                "definition": backend.model_dump(mode="json"),
                "generation": happened.sequence,
                "updated_at": happened.iso,
                "seq": happened.sequence,
            }
            if isinstance(fact, BackendUpdated):
                return (Patch("backends", key, columns),)
            return (Put("backends", {"id": fact.backend_id, "created_at": happened.iso} | columns),)
        case BackendDeleted():
            return (Drop("backends", key),)
        case _:
            raise AssertionError(f"the projection does not know {fact.type}")


def _quarantine(
    fact: ModelQuarantined | ModelQuarantineLifted | ModelQuarantineCleared, happened: Happened
) -> Iterable[Change]:
    match fact:
        case ModelQuarantined():
            row: Row = {
                "model_id": fact.model_id,
                "worker_id": fact.worker_id,
                "crashes": fact.crashes,
                "since": happened.iso,
                "cause_seq": happened.sequence,
            }
            return (Put("quarantines", row),)
        case ModelQuarantineLifted():
            return [Drop("quarantines", (fact.model_id, worker_id)) for worker_id in fact.worker_ids]
        case ModelQuarantineCleared():
            touched: Row = {"generation": happened.sequence, "updated_at": happened.iso, "seq": happened.sequence}
            return (Patch("models", (fact.model_id,), touched),)
        case _:
            assert_never(fact)


def _model_state(fact: ModelPending | ModelDegraded | ModelReady, happened: Happened) -> Iterable[Change]:
    running = 0 if isinstance(fact, ModelPending) else fact.running
    reasons = () if isinstance(fact, ModelReady) else fact.reasons
    state = {"ModelPending": "pending", "ModelDegraded": "degraded", "ModelReady": "ready"}[fact.type]
    columns = _state(state, happened) | {"running": running, "observed_generation": fact.generation}
    return (Patch("models", (fact.model_id,), columns), reason_rows("model", fact.model_id, reasons, happened))


def _instance(fact: InstanceFact, happened: Happened) -> Iterable[Change]:
    key = (fact.instance_id,)
    no_reasons = reason_rows("instance", fact.instance_id, (), happened)
    touched: Row = {"seq": happened.sequence}
    match fact:
        case InstanceCreated():
            row: Row = {
                "id": fact.instance_id,
                "name": fact.name,
                "model_id": fact.model_id,
                "attempt": 0,
                "generation": None,
                "worker_id": None,
                "members": [],
                "parallelism": None,
                "memory_fraction": None,
                "backend_version": None,
                "overcommitted": False,
                "why": None,
                "unlisted": {},
                "restarts": 0,
                "exit_code": None,
                "log_tail": [],
                "failed_phase": None,
                "image": None,
                "commit": None,
                "image_digest": None,
                "next_restart_at": None,
                "closest_worker": None,
                "suggestions": [],
                "created_at": happened.iso,
            }
            return (Put("instances", row | _state("pending", happened)),)
        case InstancePending():
            columns: Row = {
                "closest_worker": fact.closest,
                "suggestions": [suggestion.model_dump(mode="json") for suggestion in fact.suggestions],
                "unlisted": fact.unlisted,
                "next_restart_at": None,
            }
            return (
                Patch("instances", key, columns | _state("pending", happened)),
                reason_rows("instance", fact.instance_id, fact.reasons, happened),
            )
        case InstanceScheduled():
            columns = {
                "attempt": fact.attempt,
                "generation": fact.launch.generation,
                "worker_id": fact.members[0].worker_id,
                "members": [member.model_dump(mode="json") for member in fact.members],
                "parallelism": fact.launch.parallelism.model_dump(mode="json"),
                "memory_fraction": fact.launch.memory_fraction,
                "image": fact.launch.image,
                "commit": fact.launch.commit,
                "image_digest": None,
                "backend_version": fact.launch.backend_version,
                "overcommitted": fact.overcommitted,
                "why": None if fact.why is None else fact.why.model_dump(mode="json"),
                "next_restart_at": None,
                "closest_worker": None,
                "suggestions": [],
                "unlisted": {},
            }
            return (Patch("instances", key, columns | _state("scheduled", happened)), no_reasons)
        case InstanceDownloading():
            return (Patch("instances", key, _state("downloading", happened)), no_reasons)
        case InstanceStarting():
            return (Patch("instances", key, _state("starting", happened)), no_reasons)
        case InstanceRunning():
            endpoint: Row = {
                "instance_id": fact.instance_id,
                "attempt": fact.attempt,
                "worker_id": fact.worker_id,
                "address": fact.address,
                "port": fact.port,
                "sealed_key": fact.sealed_key,
            }
            return (
                Patch(
                    "instances",
                    key,
                    {"exit_code": None, "failed_phase": None, "log_tail": [], "image_digest": fact.image_digest}
                    | _state("running", happened),
                ),
                PutChildren("endpoints", key, (endpoint,)),
                no_reasons,
            )
        case InstanceFailed():
            columns = {
                "restarts": fact.restarts,
                "exit_code": fact.exit_code,
                "log_tail": list(fact.log_tail),
                "failed_phase": fact.phase,
            }
            return (
                Patch("instances", key, columns | _state("error", happened)),
                Drop("endpoints", (fact.instance_id, fact.attempt)),
                reason_rows("instance", fact.instance_id, fact.reasons, happened),
            )
        case InstanceRestartPlanned():
            return (Patch("instances", key, touched | {"next_restart_at": fact.at.isoformat()}),)
        case InstanceUnreachable():
            return (
                Patch("instances", key, _state("unreachable", happened)),
                reason_rows("instance", fact.instance_id, fact.reasons, happened),
            )
        case InstanceReachable():
            return (Patch("instances", key, _state("running", happened)), no_reasons)
        case InstanceStopping():
            return (
                Patch("instances", key, _state("stopping", happened)),
                PutChildren("endpoints", key, ()),
                reason_rows("instance", fact.instance_id, fact.reasons, happened),
            )
        case InstanceDrained():
            return (Patch("instances", key, touched), no_reasons)
        case InstanceAttemptEnded():
            return (Drop("endpoints", (fact.instance_id, fact.attempt)), Patch("instances", key, touched))
        case InstanceDeleted():
            return (Drop("instances", key), PutChildren("endpoints", key, ()), no_reasons)
        case DeadlinePassed():
            changes: list[Change] = [Patch("instances", key, touched)]
            if fact.reasons and fact.state in ("scheduled", "stopping"):
                changes.append(reason_rows("instance", fact.instance_id, fact.reasons, happened))
            return changes
        case InstanceDeletionRequested():
            return (Patch("instances", key, touched),)
        case _:
            raise AssertionError(f"the projection does not know {fact.type}")


def _file(fact: FileFact, happened: Happened) -> Iterable[Change]:
    key = (fact.file_id,)
    no_reasons = reason_rows("file", fact.file_id, (), happened)
    touched: Row = {"seq": happened.sequence}
    match fact:
        case ModelFileRequested() | ModelFileDeletionRequested():
            return (Patch("files", key, touched),)
        case ModelFileWanted():
            row: Row = {
                "id": fact.file_id,
                "worker_id": fact.worker_id,
                "source": fact.source.model_dump(mode="json"),
                "commit": fact.commit,
                "bytes": None,
                "total": fact.bytes,
                "paths": [],
                "model_path": None,
                "digest": None,
                "request": fact.request,
                "created_at": happened.iso,
            }
            return (Put("files", row | _state("wanted", happened)), no_reasons)
        case ModelFileReady():
            columns: Row = {
                "bytes": fact.bytes,
                "total": fact.bytes,
                "paths": list(fact.paths),
                "model_path": fact.model_path,
                "digest": fact.digest,
            }
            return (Patch("files", key, columns | _state("ready", happened)), no_reasons)
        case ModelFileFailed():
            return (
                Patch("files", key, {"bytes": None} | _state("error", happened)),
                reason_rows("file", fact.file_id, fact.reasons, happened),
            )
        case ModelFileDeletionRefused():
            return (Patch("files", key, touched), reason_rows("file", fact.file_id, fact.reasons, happened))
        case ModelFileDeleting():
            return (Patch("files", key, {"bytes": None} | _state("deleting", happened)), no_reasons)
        case ModelFileDeleted() | ModelFileForgotten():
            return (Drop("files", key), no_reasons)
        case _:
            raise AssertionError(f"the projection does not know {fact.type}")

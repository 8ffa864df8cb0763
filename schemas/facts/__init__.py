"""What happened. Past tense, one frozen class each; the closed list that every reader shares."""

from typing import Final

from schemas.envelope import Envelope
from schemas.facts.backend import BackendCreated, BackendDeleted, BackendUpdated
from schemas.facts.base import Fact
from schemas.facts.file import (
    ModelFileDeleted,
    ModelFileDeleting,
    ModelFileDeletionRefused,
    ModelFileDeletionRequested,
    ModelFileFailed,
    ModelFileForgotten,
    ModelFileReady,
    ModelFileRequested,
    ModelFileWanted,
)
from schemas.facts.instance import (
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
)
from schemas.facts.model import (
    ModelCreated,
    ModelDegraded,
    ModelDeleted,
    ModelEnded,
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
)
from schemas.facts.scheduler import SchedulerElected
from schemas.facts.worker import (
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
from schemas.upcasts import upcast

FACTS: Final[tuple[type[Fact], ...]] = (
    WorkerRegistered, WorkerInventoryChanged, WorkerRenamed, WorkerAddressChanged, WorkerReady, WorkerUnreachable,
    WorkerRemoved, WorkerLabelled, WorkerCordoned, WorkerUncordoned, WorkerDrainRequested, WorkerDrained,
    WorkerRemovalRequested,
    ModelCreated, ModelUpdated, ModelRenamed, ModelScaled, ModelDeleted, ModelQuarantineCleared, ModelInspected,
    ModelRolledBack, ModelQuarantined, ModelQuarantineLifted, ModelPeakMeasured, ModelPending, ModelReady,
    ModelDegraded, ModelEnded,
    InstanceCreated, InstancePending, InstanceScheduled, InstanceDownloading, InstanceStarting, InstanceRunning,
    InstanceFailed, InstanceRestartPlanned, InstanceUnreachable, InstanceReachable, InstanceStopping,
    InstanceDrained, InstanceAttemptEnded, InstanceDeleted, DeadlinePassed, InstanceDeletionRequested,
    ModelFileRequested, ModelFileDeletionRequested, ModelFileWanted, ModelFileReady, ModelFileFailed,
    ModelFileDeletionRefused, ModelFileDeleting, ModelFileDeleted, ModelFileForgotten,
    BackendCreated, BackendUpdated, BackendDeleted,
    SchedulerElected,
)  # fmt: skip
BY_TYPE: Final[dict[str, type[Fact]]] = {fact.type: fact for fact in FACTS}


class UnknownType(Exception):
    """An event of a type, or of a version of a type, that this program does not know: a newer one wrote it."""

    def __init__(self, type_name: str, version: int) -> None:
        super().__init__(f"{type_name} v{version} is unknown here")
        self.type_name = type_name
        self.version = version


def read(envelope: Envelope) -> Fact:
    """The fact in an envelope, in its newest form. Raises UnknownType, or pydantic's ValidationError."""
    known = BY_TYPE.get(envelope.type)
    if known is None or envelope.version > known.version:
        raise UnknownType(envelope.type, envelope.version)
    return known.model_validate(upcast(envelope.type, envelope.version, known.version, envelope.data))

"""The life of an instance: owned by the scheduler; the api only states what users ask of one."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from schemas.facts.base import Fact, Owner
from schemas.ids import NOBODY, InstanceId, ModelId, WorkerId
from schemas.models import Launch, Member, Why
from schemas.reasons import FinishingRequests, Reason, Suggestion
from schemas.reports import SealedKey
from schemas.value import Count, Instant

Attempt = Annotated[int, Field(ge=1)]
LogTail = Annotated[tuple[str, ...], Field(max_length=200)]
StopCause = Literal["model_deleted", "scaled_down", "deletion_requested", "replaced", "drained"]


class InstanceFact(Fact):
    kind: ClassVar[str] = "instance"
    owner: ClassVar[Owner] = "scheduler"
    instance_id: InstanceId

    @property
    def resource_id(self) -> str:
        return self.instance_id


class InstanceOnWorkerFact(InstanceFact):
    worker_id: WorkerId
    attempt: Attempt

    @property
    def worker(self) -> str:
        return self.worker_id


class InstanceCreated(InstanceFact):
    """One more instance of a model is wanted."""

    type: ClassVar[str] = "InstanceCreated"
    model_id: ModelId
    name: str


class InstancePending(InstanceFact):
    """The instance can be placed nowhere: every worker's objections, which comes closest, what would help."""

    type: ClassVar[str] = "InstancePending"
    reasons: tuple[Reason, ...]
    """Of the request itself, and of the workers that come closest; `GET /v2/models/{id}/placement` has all."""
    closest: WorkerId | None = None
    suggestions: tuple[Suggestion, ...] = ()
    unlisted: dict[str, Count] = {}
    """Code → how many further workers object with it."""


class InstanceScheduled(InstanceFact):
    """The instance was given its place, and the place's memory was promised to it."""

    type: ClassVar[str] = "InstanceScheduled"
    attempt: Attempt
    launch: Launch
    members: Annotated[tuple[Member, ...], Field(min_length=1)]
    overcommitted: bool = False
    """The user chose the GPUs himself, and by estimate the model needs more than the engine's share of them."""
    why: Why | None = None

    @property
    def worker(self) -> str:
        return self.members[0].worker_id if len(self.members) == 1 else NOBODY


class InstanceDownloading(InstanceOnWorkerFact):
    """The worker took up its assignment; the model's files are not all there yet."""

    type: ClassVar[str] = "InstanceDownloading"


class InstanceStarting(InstanceOnWorkerFact):
    """The files are there; the engine starts and loads."""

    type: ClassVar[str] = "InstanceStarting"


class InstanceRunning(InstanceOnWorkerFact):
    """The engine answers at this address and port."""

    type: ClassVar[str] = "InstanceRunning"
    address: str
    port: Annotated[int, Field(ge=1, le=65535)]
    image_digest: str | None = None
    """Of the container that answers: `vllm/vllm-openai@sha256:…`, or the image's own id when it is of no registry."""
    sealed_key: SealedKey | None = None
    """The key that this attempt asks for, sealed: nobody but a gateway can open it. None: it asks for none."""


class InstanceFailed(InstanceOnWorkerFact):
    """The attempt has ended in an error: in which phase, with which exit code and last log lines, and why."""

    type: ClassVar[str] = "InstanceFailed"
    phase: Literal["scheduled", "downloading", "starting", "running", "unreachable"]
    reasons: Annotated[tuple[Reason, ...], Field(min_length=1)]
    exit_code: int | None = None
    log_tail: LogTail = ()
    engine_gone: bool = True
    """False while the engine has not been seen gone: its memory stays claimed."""
    restarts: int = 0
    """Crashes in a row, this one included if the engine is to blame."""
    final: bool = False
    """No restart follows by itself: somebody must act."""


class InstanceRestartPlanned(InstanceFact):
    """The next attempt is due at this time."""

    type: ClassVar[str] = "InstanceRestartPlanned"
    delay_seconds: float
    at: Instant


class InstanceUnreachable(InstanceOnWorkerFact):
    """Nothing is heard of the worker that runs the instance; it may still be serving."""

    type: ClassVar[str] = "InstanceUnreachable"
    reasons: tuple[Reason, ...]


class InstanceReachable(InstanceOnWorkerFact):
    """The worker is heard again, and the engine is still there."""

    type: ClassVar[str] = "InstanceReachable"


class InstanceStopping(InstanceFact):
    """The instance is to end: it gets no new requests, and its engine is stopped, at once or when it has drained."""

    type: ClassVar[str] = "InstanceStopping"
    cause: StopCause
    drain_seconds: Annotated[float, Field(ge=0)] = 0.0
    """So long its engine goes on for the requests that it has, unless `InstanceDrained` says earlier that it may go; 0: not at all."""

    @property
    def reasons(self) -> tuple[Reason, ...]:
        """Why it is still there."""
        return (FinishingRequests(up_to_seconds=self.drain_seconds),) if self.drain_seconds else ()


class InstanceDrained(InstanceFact):
    """The engine of an instance that is to end may go: its requests are over, or nobody waits for them any longer."""

    type: ClassVar[str] = "InstanceDrained"
    requests_left: Count = 0
    """Those that were still in flight, as far as gateways were heard: the time was over, or the instance was deleted meanwhile."""


class InstanceAttemptEnded(InstanceOnWorkerFact):
    """The engine of this attempt was seen gone: what it claimed on the worker is free again."""

    type: ClassVar[str] = "InstanceAttemptEnded"


class InstanceDeleted(InstanceFact):
    """The instance is no more."""

    type: ClassVar[str] = "InstanceDeleted"


class DeadlinePassed(InstanceFact):
    """The instance stayed longer in a state than that state may last."""

    type: ClassVar[str] = "DeadlinePassed"
    state: Literal["scheduled", "downloading", "starting", "stopping", "unreachable"]
    attempt: int
    deadline_seconds: float
    reasons: tuple[Reason, ...] = ()


class InstanceDeletionRequested(InstanceFact):
    """A user wants this instance gone; while the model wants as many, another takes its place."""

    type: ClassVar[str] = "InstanceDeletionRequested"
    owner: ClassVar[Owner] = "api"

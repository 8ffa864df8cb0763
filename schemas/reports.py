"""What agents and downloaders see. Reports are hints; the complete picture (`…Observed`) is the truth. Nobody folds them into history:
the scheduler checks each against the attempt it is about before it states a fact.
"""

from typing import Annotated, ClassVar, Final, Literal

from pydantic import Field

from schemas.ids import FileId, InstanceId, WorkerId
from schemas.models import Inventory
from schemas.reasons import Reason
from schemas.subjects import ReportSubject
from schemas.value import Bytes, Count, Instant, Value

EnginePhase = Literal["accepted", "pulling", "loading", "healthy", "unhealthy", "exited", "stopped"]
FilePhase = Literal["queued", "listing", "downloading", "copying", "verifying", "ready", "failed", "deleted"]
"""`queued`: others are fetched first. `copying`: from a neighbour, another worker of the fleet."""


RISE_PERCENT: Final = 5


def has_risen(known: int | None, peak: int | None) -> bool:
    """Is this peak worth telling to whoever knows the former one? Engines creep: not every page is news."""
    if not peak:
        return False
    return not known or peak * 100 >= known * (100 + RISE_PERCENT)


SealedKey = Annotated[str, Field(max_length=1024, pattern=r"^[A-Za-z0-9+/=]*$")]
"""A sealed box in base64: `kernel/engine_keys.py`."""


class Report(Value):
    type: ClassVar[str]
    kind: ClassVar[str]
    version: ClassVar[int] = 1
    worker_id: WorkerId
    boot_id: str
    """Drawn when the agent or downloader started."""
    counter: Count
    """Rises with every report of that boot: a later one wins."""
    observed_at: Instant

    @property
    def resource_id(self) -> str:
        raise NotImplementedError  # pragma: no cover - each kind names its own

    @property
    def subject(self) -> str:
        return str(ReportSubject(self.worker_id, self.kind, self.resource_id, self.type))


class PullSeen(Value):
    """How far an image is pulled; bytes as they go over the network."""

    image: Annotated[str, Field(max_length=512)]
    bytes: Bytes = 0
    total: Bytes | None = None
    """Of the layers that are known by now: it grows at the beginning. None: nothing was told yet."""
    bytes_per_second: Bytes | None = None
    """Over the last seconds; None: not known yet."""
    remaining_seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    """At that rate; None: not known, or nothing comes."""


class EngineSeen(Value):
    """One engine as it is now."""

    instance_id: InstanceId
    attempt: Annotated[int, Field(ge=1)]
    rank: int = 0
    phase: EnginePhase
    progress: Annotated[float, Field(ge=0, le=1)] | None = None
    pull: PullSeen | None = None
    """How far its image is, while it is being pulled."""
    exit_code: Annotated[int, Field(ge=-(2**31), lt=2**31)] | None = None
    reasons: tuple[Reason, ...] = ()
    """The agent's diagnosis, when it ended or was given up."""
    log_tail: Annotated[tuple[str, ...], Field(max_length=200)] = ()
    ports: tuple[Annotated[int, Field(ge=1, le=65535)], ...] = ()
    image_digest: Annotated[str, Field(max_length=512)] | None = None
    """Of what its container was made from; None: it is in none."""
    peak_vram: dict[int, Bytes] = {}
    """GPU index → the most that it was seen to hold there. Told once it has answered: what it held while it still loaded
    says little. Empty where nobody measures.
    """
    peak_ram: Bytes | None = None
    """The most RAM that it was seen to hold with everything it started. Told once it has answered; None: not measured."""
    sealed_key: SealedKey | None = None
    """The key that it asks for, which only gateways can open; None: it asks for none."""


class EngineReported(Report):
    """An engine's phase changed."""

    type: ClassVar[str] = "EngineReported"
    kind: ClassVar[str] = "instance"
    engine: EngineSeen

    @property
    def resource_id(self) -> str:
        return self.engine.instance_id


class WorkerObserved(Report):
    """The complete picture of a worker: what the machine has and every engine that the agent knows of."""

    type: ClassVar[str] = "WorkerObserved"
    kind: ClassVar[str] = "worker"
    name: str
    address: str
    agent_version: str
    inventory: Inventory
    engines: Annotated[tuple[EngineSeen, ...], Field(max_length=4096)] = ()
    assigned_election: int = 0
    assigned_seq: int = 0
    """The newest assignment that the agent had read when it looked: what that one adds later can't be missed here."""

    @property
    def resource_id(self) -> str:
        return self.worker_id


class WorkerLeaving(Report):
    """The agent is being stopped in order; with `engines_stopped` it has taken its engines with it."""

    type: ClassVar[str] = "WorkerLeaving"
    kind: ClassVar[str] = "worker"
    engines_stopped: bool

    @property
    def resource_id(self) -> str:
        return self.worker_id


class FileSeen(Value):
    """One file resource as it is now."""

    file_id: FileId
    wanted: int = 0
    """The wish that this answers."""
    commit: str | None = None
    phase: FilePhase
    bytes: Bytes = 0
    total: Bytes | None = None
    paths: tuple[str, ...] = ()
    model_path: str | None = None
    """What an engine is given: a directory, or a GGUF; once they are ready."""
    digest: Annotated[str, Field(max_length=128)] | None = None
    """Of the names, sizes and digests of all files; once they are ready."""
    reasons: tuple[Reason, ...] = ()


class FileReported(Report):
    """A file's phase changed, or bytes still arrive."""

    type: ClassVar[str] = "FileReported"
    kind: ClassVar[str] = "file"
    file: FileSeen

    @property
    def resource_id(self) -> str:
        return self.file.file_id


class FilesObserved(Report):
    """The complete picture of a worker's files."""

    type: ClassVar[str] = "FilesObserved"
    kind: ClassVar[str] = "files"
    files: tuple[FileSeen, ...] = ()

    @property
    def resource_id(self) -> str:
        return self.worker_id


REPORTS: Final[tuple[type[Report], ...]] = (EngineReported, WorkerObserved, WorkerLeaving, FileReported, FilesObserved)
BY_TYPE: Final[dict[str, type[Report]]] = {report.type: report for report in REPORTS}


class RequestsInFlight(Value):
    """All that one gateway has in flight. Core NATS, when it changes and every two seconds, never stored."""

    gateway: str
    """Drawn when the gateway started."""
    seq: Count
    """The last fact of the log that its routes know: nothing more goes to an instance that was being stopped by then."""
    instances: dict[InstanceId, Annotated[int, Field(ge=1)]] = {}
    """Instances with requests, and how many: each counts until its last byte went out, or its client left."""


class Beat(Value):
    """I am here. Core NATS, every two seconds, never stored."""

    boot_id: str
    counter: Count


class PartInFlight(Value):
    """One file of those that are fetched."""

    name: Annotated[str, Field(max_length=1024)]
    bytes: Bytes
    total: Bytes


class FileProgress(Value):
    """How far files are that a worker is to have."""

    file_id: FileId
    phase: FilePhase
    bytes: Bytes = 0
    total: Bytes | None = None
    bytes_per_second: Bytes | None = None
    """Over the last seconds; None: not known yet."""
    remaining_seconds: Annotated[float, Field(ge=0)] | None = None
    """At that rate; None: not known, or nothing comes."""
    origin: Annotated[str, Field(max_length=255)] | None = None
    """Where the bytes come from: a host, or a neighbour's id."""
    parts: Annotated[tuple[PartInFlight, ...], Field(max_length=16)] = ()
    """Of the files that are on their way just now, the first."""
    files_ready: Count = 0
    files: Count = 0


class FilesProgress(Value):
    """All that is on its way to one worker. Core NATS, every half second at most and only when it changes, never stored."""

    worker_id: WorkerId
    files: Annotated[tuple[FileProgress, ...], Field(max_length=64)] = ()

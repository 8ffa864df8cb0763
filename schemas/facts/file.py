"""The life of a model's files on one worker. What users ask of it is the api's, the rest is owned by the scheduler."""

from typing import ClassVar, Literal

from schemas.facts.base import Fact, Owner
from schemas.ids import NOBODY, FileId, WorkerId
from schemas.reasons import Reason
from schemas.sources import Source
from schemas.value import Bytes


class FileFact(Fact):
    kind: ClassVar[str] = "file"
    owner: ClassVar[Owner] = "scheduler"
    file_id: FileId
    worker_id: WorkerId

    @property
    def resource_id(self) -> str:
        return self.file_id

    @property
    def worker(self) -> str:
        return self.worker_id if self.owner == "scheduler" else NOBODY


class ModelFileRequested(FileFact):
    """A user wants these files on the worker, whether or not a model runs there; or wants them to be tried again."""

    type: ClassVar[str] = "ModelFileRequested"
    owner: ClassVar[Owner] = "api"
    source: Source
    commit: str | None = None
    bytes: Bytes | None = None
    """As a downloader said when it was asked; None: the files lie there already."""


class ModelFileDeletionRequested(FileFact):
    """A user wants the files off the worker's disk."""

    type: ClassVar[str] = "ModelFileDeletionRequested"
    owner: ClassVar[Owner] = "api"


class FileStated(FileFact):
    """What the scheduler says of a file."""

    known_request: int | None = None
    """The sequence of the user's last request that was known: whatever it wanted, it is open no more. None: none was open."""


class ModelFileWanted(FileStated):
    """The worker is to have these files."""

    type: ClassVar[str] = "ModelFileWanted"
    source: Source
    commit: str | None = None
    """The commit that the source's revision named when it was looked at; None: the files lie on the worker already."""
    bytes: Bytes | None = None
    """Of all files together; None: not known beforehand."""
    request: int | None = None
    """The sequence of the user's request that this answers; None: instances are to run from it."""


class ModelFileReady(FileStated):
    """The files are on the worker, complete and verified."""

    type: ClassVar[str] = "ModelFileReady"
    bytes: Bytes
    paths: tuple[str, ...]
    model_path: str | None = None
    """What an engine is given: a directory, or a GGUF. None (in old facts): what the source says."""
    digest: str | None = None
    """Of the names, sizes and digests of all files: the same on each worker that has them. None: they are not a hub's."""


class ModelFileFailed(FileStated):
    """The files can't be had on the worker, and why."""

    type: ClassVar[str] = "ModelFileFailed"
    reasons: tuple[Reason, ...]


class ModelFileDeletionRefused(FileStated):
    """The files stay: something runs from them."""

    type: ClassVar[str] = "ModelFileDeletionRefused"
    request: int
    """The sequence of the user's request that this answers."""
    reasons: tuple[Reason, ...]


class ModelFileDeleting(FileStated):
    """The worker is to remove these files from its disk."""

    type: ClassVar[str] = "ModelFileDeleting"
    request: int
    """The sequence of the user's request that this answers."""


class ModelFileDeleted(FileStated):
    """The files are on the worker no more."""

    type: ClassVar[str] = "ModelFileDeleted"
    cause: Literal["requested", "evicted", "vanished"]
    """`evicted`: the worker made room for others (`MUSTER_EVICT`). `vanished`: somebody removed them by hand."""


class ModelFileForgotten(FileStated):
    """The worker has left the fleet, and what is known of its files with it; the files themselves stay there."""

    type: ClassVar[str] = "ModelFileForgotten"

"""The life of a model's files on one worker. Owned by the scheduler."""

from typing import ClassVar

from schemas.facts.base import Fact, Owner
from schemas.ids import FileId, WorkerId
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
        return self.worker_id


class ModelFileWanted(FileFact):
    """The worker is to have these files."""

    type: ClassVar[str] = "ModelFileWanted"
    source: Source
    commit: str | None = None


class ModelFileReady(FileFact):
    """The files are on the worker, complete and verified."""

    type: ClassVar[str] = "ModelFileReady"
    bytes: Bytes
    paths: tuple[str, ...]


class ModelFileFailed(FileFact):
    """The files can't be had on the worker, and why."""

    type: ClassVar[str] = "ModelFileFailed"
    reasons: tuple[Reason, ...]


class ModelFileForgotten(FileFact):
    """The worker has left the fleet, and what is known of its files with it; the files themselves stay there."""

    type: ClassVar[str] = "ModelFileForgotten"

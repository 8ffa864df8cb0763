"""What is assigned to a worker: one complete document, derived by the scheduler from its facts.

Absent from a newer document means stop. No document, or an older one, means change nothing.
"""

from typing import Literal

from schemas.ids import FileId, InstanceId, ModelId, WorkerId
from schemas.models import Claim, Launch, Member
from schemas.sources import Source
from schemas.value import Bytes, Value


class AssignedInstance(Value):
    instance_id: InstanceId
    model_id: ModelId
    attempt: int
    rank: int
    world_size: int
    members: tuple[Member, ...]
    leader_address: str
    launch: Launch
    accelerator: str | None = None
    gpu_indexes: tuple[int, ...] = ()
    claim: Claim = Claim()
    files: tuple[FileId, ...] = ()
    ports: tuple[int, ...] = ()
    want: Literal["prepared", "running"] = "running"
    """`prepared`: accept, pull images, start nothing; what runs goes on. So while files are missing, and while an engine
    that is to end finishes its requests: when that one is gone, it is not started again.
    """
    engine_key_ref: str | None = None
    """The gateways' public key: an engine that can ask for a key is started with one that is sealed for it. None: without."""


class Neighbour(Value):
    """A worker that has the same files, or is to have them first."""

    worker_id: WorkerId
    file_id: FileId
    address: str
    """Of the worker; where it can't be reached, files go through the bus."""
    ready: bool


class AssignedFile(Value):
    file_id: FileId
    source: Source
    commit: str | None = None
    want: Literal["ready", "deleted"] = "ready"
    priority: int = 0
    """How many instances wait for it: more come first."""
    in_use: bool = False
    """Instances are to run from it, or do."""
    bytes: Bytes | None = None
    """Of all files together, as far as it is known."""
    digest: str | None = None
    """What any worker's copy must have, as the first that had one said."""
    neighbours: tuple[Neighbour, ...] = ()
    """Where they can be had without asking the hub, the best first."""
    paths: tuple[str, ...] = ()
    """Where the files lie, once they are ready."""
    model_path: str | None = None
    """What an engine is given, once they are ready."""
    wanted: int = 0
    """The sequence of the wish: a newer one asks for the files to be looked at again."""


class Assigned(Value):
    election: int
    """The sequence of the election of the scheduler that wrote it."""
    seq: int
    """The sequence of the last fact that it takes into account."""
    worker_id: WorkerId
    instances: tuple[AssignedInstance, ...] = ()
    near: tuple[str, ...] = ()
    """Hosts that engines reach without a proxy: the fleet's workers, as far as they are not too many to be listed, and what
    the operator names (the gateway). As of when the document was written.
    """
    files: tuple[AssignedFile, ...] = ()

    def is_newer_than(self, election: int, seq: int) -> bool:
        return (self.election, self.seq) > (election, seq)

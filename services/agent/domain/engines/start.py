"""What is known when an engine is to be started, the same for all engines; and which ports its parts meet at."""

import posixpath
import zlib
from dataclasses import dataclass, field
from typing import Final

from schemas.assignment import AssignedInstance
from schemas.models import Launch, Member
from schemas.parameters import find
from schemas.versions import Version, version_of
from services.agent.domain.engines.local import path_of

LOWEST_PORT: Final = 20000
BLOCKS: Final = 2500
PORTS_OF_BLOCK: Final = 4


@dataclass(frozen=True, slots=True)
class Start:
    assigned: AssignedInstance
    host: str
    """Where it listens for requests."""
    address: str
    """Where others reach this worker."""
    port: int
    """For requests."""
    weights: tuple[str, ...] = ()
    """The model's files, or their directory, as a downloader tells them."""
    program: tuple[str, ...] = ()
    """Takes the place of the engine's usual program, with leading arguments; empty: the usual one."""
    interface: str | None = None
    """The network interface that has `address` (`eth0`); None: not known, the libraries choose."""
    family: str | None = None
    """Of the accelerators, as their vendor calls it: `Ascend310P3`, `Ascend910B2`; None: not told."""
    cache: str | None = None
    """A directory of this worker for engines of this model, which outlives them: what they compile is kept there."""
    processors: tuple[int, ...] = ()
    """Numbers of those that engines may run on."""
    directory: str | None = None
    """A directory of this attempt on this worker, for files that are written for it."""
    engine_key: str | None = field(default=None, repr=False)
    """What the engine is to ask for; None: gateways have no key that it could be sealed for."""

    @property
    def launch(self) -> Launch:
        return self.assigned.launch

    @property
    def engine(self) -> str:
        """Which of ours starts it."""
        return self.launch.engine or self.launch.backend

    @property
    def model_path(self) -> str:
        """The GGUF, or the first of its shards; else the directory."""
        gguf = [path for path in self.weights if path.lower().endswith(".gguf") and path != self.projector]
        return min(gguf, default=path_of(self.launch.source))

    @property
    def projector(self) -> str | None:
        """The GGUF beside the model that lets it see or hear."""
        return next((path for path in self.weights if "mmproj" in posixpath.basename(path).lower()), None)

    @property
    def version(self) -> Version | None:
        """Of the backend; None: not told (the user's own image, say)."""
        return version_of(self.launch.backend_version)

    @property
    def gpus(self) -> int:
        """On this worker."""
        return len(self.assigned.gpu_indexes)

    @property
    def nodes(self) -> int:
        return self.assigned.world_size

    @property
    def is_leader(self) -> bool:
        return self.assigned.rank == 0

    @property
    def members(self) -> tuple[Member, ...]:
        """In the order of their ranks."""
        return tuple(sorted(self.assigned.members, key=lambda member: member.rank))

    def meeting_port(self, number: int) -> int:
        """Of the leader, where the other members find it; `number`: 0 to 3.

        The ports that were fixed for the leader after its first. Where none are, every member comes to the same number
        by itself, from the attempt's name: below the ports that Linux gives to outgoing connections (32768 and up,
        `ip_local_port_range`), and another one for each attempt, should one be taken.
        """
        fixed = self.members[0].ports[1:] if self.members else ()
        if number < len(fixed):
            return fixed[number]
        name = f"{self.assigned.instance_id}.{self.assigned.attempt}"
        return LOWEST_PORT + zlib.crc32(name.encode()) % BLOCKS * PORTS_OF_BLOCK + number

    def listens_on(self) -> int:
        """The port for requests: the user's, else ours."""
        theirs = find(self.launch.parameters, ("--port",)) or ""
        return int(theirs) if theirs.isdecimal() else self.port

    def is_at_least(self, *version: int) -> bool:
        """What older ones don't know is passed only where the version is told."""
        ours = self.version
        return ours is not None and ours >= version


def default_program(start: Start, usual: tuple[str, ...]) -> tuple[str, ...]:
    """The author's entrypoint, the operator's program, the usual one: the first that is given."""
    return start.launch.entrypoint or start.program or usual

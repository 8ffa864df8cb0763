"""The port through which the agent runs engines: as local processes, or in containers."""

import zlib
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, Literal, Protocol

from schemas.ids import InstanceId
from schemas.reasons import Reason


@dataclass(frozen=True, slots=True)
class Mount:
    path: str
    """On the host."""
    target: str | None = None
    """In the container; None: the same path."""
    read_only: bool = True


@dataclass(frozen=True, slots=True)
class DeviceRequest:
    """Devices that a driver of the container engine hands in (Docker Engine API, `HostConfig.DeviceRequests`)."""

    driver: str
    """`nvidia`, `cdi`."""
    ids: tuple[str, ...]
    """UUIDs, or qualified CDI names."""
    capabilities: tuple[str, ...] = ("gpu",)


@dataclass(frozen=True, slots=True)
class GpuAccess:
    """How an engine gets at the GPUs that are assigned to it, and at no other."""

    env: Mapping[str, str] = field(default_factory=dict[str, str])
    """The last word: no variable of the engine's or of its user takes its place."""
    requests: tuple[DeviceRequest, ...] = ()
    devices: tuple[str, ...] = ()
    """Nodes under /dev."""
    mounts: tuple[Mount, ...] = ()
    runtime: str | None = None
    """A container runtime that the vendor installs; None: the usual one."""
    groups: tuple[str, ...] = ()
    """Of the host, that the nodes belong to."""


@dataclass(frozen=True, slots=True)
class Needs:
    """What an engine needs beyond a locked-down container; its backend declares it."""

    capabilities: tuple[str, ...] = ()
    writable_root: bool = False
    host_network: bool = False
    host_ipc: bool = False
    user: str | None = None
    """`uid:gid`; None: the image's own."""


@dataclass(frozen=True, slots=True)
class Container:
    """Where an engine runs when it is no plain process."""

    image: str
    entrypoint: tuple[str, ...] | None = None
    """None: the image's own, with `argv` as its arguments; else it takes the place of that."""
    mounts: tuple[Mount, ...] = ()
    """Model files, at the same path as on the host."""
    access: GpuAccess = GpuAccess()
    needs: Needs = Needs()
    shm_bytes: int = 10 * 2**30
    """Of /dev/shm, through which the workers of an engine talk: the 64 MiB of a container are too few for them."""
    memory_bytes: int | None = None
    pids: int = 4096
    platform: str | None = None
    """`linux/arm64`: which of an image's variants."""
    publish_on: str = "127.0.0.1"
    """The worker's address on which the engine's port is published, where it has a network of its own."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """Of an engine that is a process."""

    memory_bytes: int | None = None
    """RAM, of all that it starts together."""
    pids: int = 4096


@dataclass(frozen=True, slots=True)
class EngineCommand:
    argv: tuple[str, ...]
    env: Mapping[str, str]
    """What the engine gets on top of the few variables of the agent that a runtime passes on."""
    program: str
    """What the operator would have to install, in words for a reason."""
    health_path: str | None
    """None: it answers no requests (a follower of several machines), and is well as long as it runs."""
    port: int
    files: Mapping[str, str] = field(default_factory=dict[str, str])
    """Absolute path on the host → text: written before it starts, for its own user only (mode 0600)."""
    bounds: Bounds = Bounds()
    """Of a process; a container has its own."""
    container: Container | None = None
    """None: a process of this machine."""


@dataclass(frozen=True, slots=True)
class EngineId:
    instance_id: InstanceId
    attempt: int


@dataclass(frozen=True, slots=True)
class RunningEngine:
    id: EngineId
    handle: int | str
    """The process id of the engine's group, or the id of its container."""
    port: int
    started_at: datetime
    details: Mapping[str, object]
    """What the caller gave to `start`, also when another agent started it."""
    image_digest: str | None = None
    """`repository@sha256:…` of its container's image; its id where it is of no registry; None: it is in no container."""


EndedBy = Literal["itself", "a_stop", "memory", "the_machine"]
"""`memory`: killed since it held more than it may. `the_machine`: it was running when that was started anew."""


@dataclass(frozen=True, slots=True)
class Activity:
    """What an engine's processes have done so far, to be compared with what they had done before."""

    busy_seconds: float
    """On a processor, or waiting for one: a machine that is too busy to run it is no fault of an engine."""
    read_bytes: int
    log_mark: int
    """Another one after it wrote something."""


LINES_OF_PROGRESS: Final = 50
"""A mark is of so many last lines."""


def log_mark(lines: Sequence[str], besides: str | None) -> int:
    """Of its last lines, without those that contain this: what it writes of our probes says nothing of its progress."""
    return zlib.crc32("\n".join(line for line in lines if not besides or besides not in line).encode())


@dataclass(frozen=True, slots=True)
class EngineExit:
    """An engine is gone with everything it started. Both numbers are None where nobody could see how it ended."""

    id: EngineId
    exit_code: int | None
    signal: int | None
    log_tail: tuple[str, ...]
    ended_by: EndedBy = "itself"


class EngineNotStarted(Exception):
    """There is no process and will be none: `reasons` say why, the message is the system's own."""

    def __init__(self, reasons: tuple[Reason, ...], message: str) -> None:
        super().__init__(message)
        self.reasons = reasons


@dataclass(frozen=True, slots=True)
class LogPart:
    """Lines of an engine's log that follow each other, oldest first."""

    lines: tuple[str, ...]
    after: str
    """Where they end, in the runtime's own words: given back, the next part begins there."""
    skipped: int = 0
    """Lines between the place that was asked for and the first of these: they are kept no more."""


@dataclass(frozen=True, slots=True)
class PullProgress:
    """Of an image; bytes as they go over the network."""

    done_bytes: int
    total_bytes: int
    """Of the layers that are known by now: it grows at the beginning."""


class ImageNotPulled(Exception):
    """The image is not here and can't be had: `reasons` say why, the message is the container engine's own."""

    def __init__(self, reasons: tuple[Reason, ...], message: str) -> None:
        super().__init__(message)
        self.reasons = reasons


class ContainerRuntime(Protocol):
    """Engines outlive the agent; one that starts again on the same machine adopts what runs.

    What was started once has run or runs, until it is forgotten: an end is remembered also when the power fails.
    """

    def pull(self, container: Container) -> AsyncIterator[PullProgress]:
        """Has the image here when it ends; of one that is here already there is no progress. Raises ImageNotPulled.

        What was pulled before it was broken off is kept: the next one goes on from there.
        """
        ...

    async def has_image(self, image: str) -> bool:
        """Is it here, so that a container can be made from it?"""
        ...

    async def start(self, engine: EngineId, command: EngineCommand, details: Mapping[str, object]) -> RunningEngine:
        """Starting what runs already changes nothing. `details` are kept as JSON. Raises EngineNotStarted."""
        ...

    async def stop(self, engine: EngineId, grace_seconds: float) -> None:
        """Asks, waits that long, then kills; returns when nothing of the engine is left. Stopping what is not there is fine."""
        ...

    async def forget(self, engine: EngineId) -> None:
        """The end of this engine is answered: it is not told again. One that runs is left alone."""
        ...

    async def list(self) -> tuple[RunningEngine, ...]:
        """Everything that runs, adopted engines included."""
        ...

    def exits(self) -> AsyncIterator[EngineExit]:
        """Every end once, stops included, as it happens; for one reader.

        An agent that starts again is told of the ends that nobody answered with `forget` or with a newer attempt.
        """
        ...

    async def log_tail(self, engine: EngineId, lines: int) -> tuple[str, ...]:
        """The last lines, oldest first; nothing when there is no log (any more)."""
        ...

    async def log_part(self, engine: EngineId, lines: int, after: str | None) -> LogPart | None:
        """At most so many lines after a place, or the last ones (`after`: None; "": from the beginning); None: there is no log.

        Lines are whole: the one that is being written comes when it is finished, or its engine is gone. A part may have fewer
        lines than there are. What is given as `after` stays valid while the log is cut, and for the next agent.
        """
        ...

    async def kept_logs(self, instance_id: InstanceId) -> tuple[int, ...]:
        """Attempts of an instance that have a log here, oldest first; also when the instance is gone."""
        ...

    async def peak_ram(self, engine: EngineId) -> int | None:
        """The most RAM in bytes that its processes have held so far, those that live; None: not known (any more).

        An upper bound: each process counts with its own highest moment, and with the pages that it shares.
        """
        ...

    async def activity(self, engine: EngineId, besides: str | None = None) -> Activity | None:
        """What it does, or fails to do; None: not known (any more). `besides`: lines of its log with this text do not count."""
        ...

    async def close(self) -> None:
        """Stops watching. The engines run on."""
        ...

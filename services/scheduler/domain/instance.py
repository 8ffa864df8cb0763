"""The life of an instance: a union of frozen states. Only the scheduler moves one.

Pending → Scheduled → Downloading → Starting → Running
Failed (REST: error), Unreachable, Stopping
"""

from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated, Final, Literal

from pydantic import Field

from schemas.facts.instance import StopCause
from schemas.ids import InstanceId, ModelId, WorkerId
from schemas.models import Launch, Member
from schemas.reasons import Reason, Suggestion


@dataclass(frozen=True, slots=True)
class Placement:
    attempt: int
    launch: Launch
    members: tuple[Member, ...]

    @property
    def leader(self) -> Member:
        return self.members[0]

    def on(self, worker_id: WorkerId) -> Member | None:
        return next((member for member in self.members if member.worker_id == worker_id), None)


@dataclass(frozen=True, slots=True)
class Pending:
    """Waits for a place. `explained` is False until the first refusal was stated."""

    reasons: tuple[Reason, ...] = ()
    closest: WorkerId | None = None
    suggestions: tuple[Suggestion, ...] = ()
    unlisted: dict[str, int] = field(default_factory=dict[str, int])
    """Code → how many workers beyond those listed object with it."""
    explained: bool = False
    kind: Literal["pending"] = "pending"


@dataclass(frozen=True, slots=True)
class Scheduled:
    placement: Placement
    overdue: bool = False
    """Not taken up in time: it goes elsewhere as soon as that is possible."""
    kind: Literal["scheduled"] = "scheduled"


@dataclass(frozen=True, slots=True)
class Downloading:
    placement: Placement
    kind: Literal["downloading"] = "downloading"


@dataclass(frozen=True, slots=True)
class Starting:
    placement: Placement
    kind: Literal["starting"] = "starting"


@dataclass(frozen=True, slots=True)
class Running:
    placement: Placement
    address: str
    port: int
    at: datetime
    kind: Literal["running"] = "running"


@dataclass(frozen=True, slots=True)
class Failed:
    """REST: `error`. Ends in a restart, or names who must act."""

    placement: Placement | None
    reasons: tuple[Reason, ...]
    restart_in_seconds: float | None = None
    """None: not planned (yet)."""
    final: bool = False
    """Never will be: somebody must act."""
    kind: Literal["failed"] = "failed"


@dataclass(frozen=True, slots=True)
class Unreachable:
    placement: Placement
    reasons: tuple[Reason, ...]
    running: Running | None
    """What it was, when it ran."""
    evictable: bool = False
    """The eviction time has passed: it is placed elsewhere as soon as that is possible."""
    kind: Literal["unreachable"] = "unreachable"


@dataclass(frozen=True, slots=True)
class Stopping:
    placement: Placement | None
    cause: StopCause
    drain_seconds: float = 0.0
    """So long at most its engine goes on, to finish its requests; 0: it is being stopped."""
    kind: Literal["stopping"] = "stopping"


State = Annotated[
    Pending | Scheduled | Downloading | Starting | Running | Failed | Unreachable | Stopping,
    Field(discriminator="kind"),
]
"""Tagged, so that a snapshot gives back the same state: several have the same fields."""
OnItsWay = Scheduled | Downloading | Starting
Assigned = Scheduled | Downloading | Starting | Running | Unreachable
"""States in which the engine is wanted on its worker."""


@dataclass(frozen=True, slots=True)
class Instance:
    id: InstanceId
    model_id: ModelId
    name: str
    attempt: int
    """The newest attempt; 0 before the first."""
    crashes: int
    """Ends in a row that were the engine's own."""
    state: State


def placement_of(state: State) -> Placement | None:
    return None if isinstance(state, Pending) else state.placement


PHASES: Final[dict[type, str]] = {
    Scheduled: "scheduled",
    Downloading: "downloading",
    Starting: "starting",
    Running: "running",
    Unreachable: "unreachable",
}

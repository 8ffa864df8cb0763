"""The life of a worker. The scheduler says which workers there are and live; the api says what operators want of them."""

from typing import ClassVar

from schemas.facts.base import Fact, Owner
from schemas.ids import WorkerId
from schemas.models import Inventory
from schemas.reasons import Reason


class WorkerFact(Fact):
    kind: ClassVar[str] = "worker"
    owner: ClassVar[Owner] = "scheduler"
    worker_id: WorkerId

    @property
    def resource_id(self) -> str:
        return self.worker_id

    @property
    def worker(self) -> str:
        return self.worker_id


class WorkerRegistered(WorkerFact):
    """A worker reported for the first time."""

    type: ClassVar[str] = "WorkerRegistered"
    name: str
    address: str
    inventory: Inventory
    agent_version: str


class WorkerInventoryChanged(WorkerFact):
    """The machine's GPUs, memory or backends are not what they were."""

    type: ClassVar[str] = "WorkerInventoryChanged"
    inventory: Inventory
    agent_version: str


class WorkerRenamed(WorkerFact):
    """The same worker goes by another name now."""

    type: ClassVar[str] = "WorkerRenamed"
    name: str


class WorkerAddressChanged(WorkerFact):
    """The same worker is reached at another address now."""

    type: ClassVar[str] = "WorkerAddressChanged"
    address: str


class WorkerReady(WorkerFact):
    """The worker reports and takes instances."""

    type: ClassVar[str] = "WorkerReady"


class WorkerUnreachable(WorkerFact):
    """Nothing is heard of the worker's agent."""

    type: ClassVar[str] = "WorkerUnreachable"
    reasons: tuple[Reason, ...]


class WorkerRemoved(WorkerFact):
    """The worker has left the fleet; its claims are void."""

    type: ClassVar[str] = "WorkerRemoved"


class WorkerLabelled(WorkerFact):
    """An operator set the worker's labels; these replace the former ones."""

    type: ClassVar[str] = "WorkerLabelled"
    owner: ClassVar[Owner] = "api"
    labels: dict[str, str]


class WorkerCordoned(WorkerFact):
    """An operator wants no new instances on the worker."""

    type: ClassVar[str] = "WorkerCordoned"
    owner: ClassVar[Owner] = "api"


class WorkerUncordoned(WorkerFact):
    """An operator allows new instances on the worker again."""

    type: ClassVar[str] = "WorkerUncordoned"
    owner: ClassVar[Owner] = "api"


class WorkerDrainRequested(WorkerFact):
    """An operator wants the worker empty: its instances are replaced elsewhere, each stopped when another one runs."""

    type: ClassVar[str] = "WorkerDrainRequested"
    owner: ClassVar[Owner] = "api"


class WorkerDrained(WorkerFact):
    """Nothing is promised any more on a worker that was to be emptied."""

    type: ClassVar[str] = "WorkerDrained"
    drains: int
    """How often it was to be emptied, this time included."""


class WorkerRemovalRequested(WorkerFact):
    """An operator wants the worker out of the fleet."""

    type: ClassVar[str] = "WorkerRemovalRequested"
    owner: ClassVar[Owner] = "api"

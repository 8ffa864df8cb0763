"""Which engine answers for a model: the newest running attempt of each instance, the one with the fewest requests first.

Folded from the same facts as everything else. Silence on the bus takes nothing out; a refused connection does, for a while.
"""

from dataclasses import dataclass, field

from schemas.facts import (
    InstanceAttemptEnded,
    InstanceCreated,
    InstanceDeleted,
    InstanceFailed,
    InstanceRunning,
    InstanceScheduled,
    InstanceStopping,
    ModelCreated,
    ModelDeleted,
    ModelUpdated,
    WorkerAddressChanged,
    WorkerInventoryChanged,
    WorkerRegistered,
    WorkerRemoved,
)
from schemas.facts.base import Fact
from schemas.ids import InstanceId, ModelId, WorkerId
from schemas.reports import RequestsInFlight
from services.api.domain.in_flight import InFlight
from services.api.domain.reach import Reaches

RESTED_SECONDS = 1.0
"""An endpoint that refused a connection is asked again after this time, or when there is no other."""


@dataclass(slots=True)
class Endpoint:
    instance_id: InstanceId
    attempt: int
    address: str
    port: int
    model_name: str
    """What the engine calls the model: its name when the attempt was scheduled."""
    worker_id: WorkerId | None = None
    sealed_key: str | None = None
    """None: the engine asks for no key."""
    key: str | None = field(default=None, repr=False)
    """… once a gateway has opened it."""
    refused_at: float = float("-inf")

    @property
    def url(self) -> str:
        return f"http://{self.address}:{self.port}"


@dataclass(slots=True)
class Routes:
    names: dict[str, ModelId] = field(default_factory=dict[str, ModelId])
    models: dict[ModelId, str] = field(default_factory=dict[ModelId, str])
    instances: dict[InstanceId, ModelId] = field(default_factory=dict[InstanceId, ModelId])
    launched: dict[tuple[InstanceId, int], str] = field(default_factory=dict[tuple[InstanceId, int], str])
    endpoints: dict[InstanceId, dict[int, Endpoint]] = field(default_factory=dict[InstanceId, dict[int, Endpoint]])
    in_flight: InFlight = field(default_factory=InFlight)
    reaches: Reaches = field(default_factory=Reaches)
    seq: int = 0
    """The last fact that was folded, or passed over; kept by whoever folds."""

    def evolve(self, fact: Fact) -> None:
        match fact:
            case ModelCreated(model_id=model_id, spec=spec) | ModelUpdated(model_id=model_id, spec=spec):
                former = self.models.get(model_id)
                if former is not None and self.names.get(former) == model_id:
                    del self.names[former]
                self.models[model_id] = spec.name
                self.names[spec.name] = model_id
            case ModelDeleted(model_id=model_id):
                former = self.models.pop(model_id, None)
                if former is not None and self.names.get(former) == model_id:
                    del self.names[former]
            case InstanceCreated(instance_id=instance_id, model_id=model_id):
                self.instances[instance_id] = model_id
            case InstanceScheduled(instance_id=instance_id, attempt=attempt, launch=launch):
                self.launched[instance_id, attempt] = launch.model_name
            case InstanceRunning(instance_id=instance_id, attempt=attempt):
                name = self.launched.get((instance_id, attempt), "")
                endpoint = Endpoint(
                    instance_id, attempt, fact.address, fact.port, name, fact.worker_id, fact.sealed_key
                )
                self.endpoints[instance_id] = {attempt: endpoint}
            case (
                InstanceFailed(instance_id=instance_id, attempt=attempt)
                | InstanceAttemptEnded(instance_id=instance_id, attempt=attempt)
            ):
                self.endpoints.get(instance_id, {}).pop(attempt, None)
                self.launched.pop((instance_id, attempt), None)
            case InstanceStopping(instance_id=instance_id):
                self.endpoints.pop(instance_id, None)
            case InstanceDeleted(instance_id=instance_id):
                self.endpoints.pop(instance_id, None)
                self.instances.pop(instance_id, None)
                for key in [key for key in self.launched if key[0] == instance_id]:
                    del self.launched[key]
            case WorkerRegistered(worker_id=worker_id) | WorkerInventoryChanged(worker_id=worker_id):
                self.reaches.says(worker_id, fact.inventory.reach)
            case WorkerAddressChanged(worker_id=worker_id):
                self.reaches.forget(worker_id)
            case WorkerRemoved(worker_id=worker_id):
                self.reaches.removed(worker_id)
            case _:
                pass

    def is_known(self, name: str) -> bool:
        return name in self.names

    def candidates(self, name: str, now: float) -> list[Endpoint]:
        """Endpoints of a model, best first: those that did not just refuse, then the fewest requests in flight."""
        model_id = self.names.get(name)
        found = [
            attempts[max(attempts)]
            for instance_id, attempts in self.endpoints.items()
            if attempts and model_id is not None and self.instances.get(instance_id) == model_id
        ]
        requests = self.in_flight.of
        return sorted(
            found, key=lambda e: (now - e.refused_at < RESTED_SECONDS, requests(e.instance_id), e.instance_id)
        )

    def picture(self, gateway: str) -> RequestsInFlight:
        """What is in flight, as of the last fact: whatever these facts take out gets no request any more."""
        return self.in_flight.picture(gateway, self.seq)

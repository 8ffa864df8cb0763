"""Who is heard. Not folded from facts: it is this scheduler's own hearing, measured from the moment it was elected."""

from dataclasses import dataclass, field

from schemas.ids import WorkerId
from services.scheduler.domain.policy import Policy


@dataclass(slots=True)
class Liveness:
    policy: Policy
    since: float
    """Monotonic seconds at which this scheduler began to listen: nobody is silent before a full lease has passed."""
    agents: dict[WorkerId, float] = field(default_factory=dict[WorkerId, float])
    downloaders: dict[WorkerId, float] = field(default_factory=dict[WorkerId, float])
    left: set[WorkerId] = field(default_factory=set[WorkerId])
    """Said goodbye, and not been heard since."""

    def agent_heard(self, worker_id: WorkerId, now: float) -> None:
        self.agents[worker_id] = now
        self.left.discard(worker_id)

    def downloader_heard(self, worker_id: WorkerId, now: float) -> bool:
        """True when it was silent before."""
        was_silent = worker_id in self.silent_downloaders([worker_id], now)
        self.downloaders[worker_id] = now
        return was_silent

    def agent_silent_for(self, worker_id: WorkerId, now: float) -> float:
        return now - max(self.agents.get(worker_id, self.since), self.since)

    def silent_agents(self, workers: list[WorkerId], now: float) -> list[WorkerId]:
        return [worker for worker in workers if self.agent_silent_for(worker, now) >= self.policy.lease_seconds]

    def silent_downloaders(self, workers: list[WorkerId], now: float) -> frozenset[WorkerId]:
        """Those that were never heard, or not for a lease. A downloader must have been heard once."""
        return frozenset(
            worker
            for worker in workers
            if now - self.downloaders.get(worker, float("-inf")) >= self.policy.lease_seconds
        )

    def braked(self, silent: int, fleet_size: int) -> bool:
        """A large share of the fleet fell silent together: more likely the network, or us, than all of them."""
        return silent > 1 and silent >= self.policy.brake_share * fleet_size

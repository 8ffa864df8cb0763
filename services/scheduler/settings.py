"""Settings of the scheduler (environment: MUSTER_<FIELD>)."""

from typing import Annotated

from pydantic import Field, field_validator

from kernel.engine_keys import is_public_key
from kernel.settings import ServiceSettings
from services.scheduler.domain.policy import Policy


class SchedulerSettings(ServiceSettings):
    lease_seconds: float = 10.0
    """An agent that is silent for this long makes its worker unreachable."""
    eviction_seconds: float = 10.0
    """So much longer, and its instances are placed elsewhere."""
    restart_base_seconds: float = 1.0
    """Delay before the first restart of a crashed engine; doubles with each crash in a row."""
    drain_seconds: Annotated[float, Field(ge=0, le=86400)] = 60.0
    """An instance that is replaced, drained or scaled down has so long to finish its requests; 0: none."""
    cordon_unhealthy: bool = False
    """A worker with a GPU that its driver calls unhealthy takes no new instance, not even on its other GPUs."""
    claims_from_peak: bool = False
    """A new instance claims what its model was measured to hold at most on such GPUs, and a tenth more, in place of an
    estimate. Shares of GPUs and what authors say stay as they are.
    """
    engine_key_public: str | None = None
    """The public half (`U…`) of the api's MUSTER_ENGINE_KEY_SEED: engines that can ask for a key are then started with one
    that only gateways know. Without it engines answer whoever reaches them.
    """
    engine_no_proxy: str = ""
    """Comma-separated hosts that engines reach without a proxy, beside this fleet's workers: the gateway's, say."""
    scheduler_lease_seconds: float = 2.0
    """A standby takes over when the deciding scheduler was not heard for this long."""
    snapshot_every: int = 2000
    """Facts between two snapshots, or more: half as many as there are instances."""

    @field_validator("engine_key_public")
    @classmethod
    def _is_a_key(cls, text: str | None) -> str | None:
        if text is not None and not is_public_key(text):
            raise ValueError("not the public half of an NKey (`U…`)")
        return text

    def near(self) -> tuple[str, ...]:
        return tuple(host.strip() for host in self.engine_no_proxy.split(",") if host.strip())

    def policy(self) -> Policy:
        return Policy(
            lease_seconds=self.lease_seconds,
            eviction_seconds=self.eviction_seconds,
            restart_base_seconds=self.restart_base_seconds,
            drain_seconds=self.drain_seconds,
            cordon_unhealthy=self.cordon_unhealthy,
            claims_from_peak=self.claims_from_peak,
        )

"""Settings of the simulator (environment: MUSTER_<FIELD>)."""

from pathlib import Path

from pydantic import SecretStr

from kernel.accounts import inbox_prefix
from kernel.settings import BusSettings, ServiceSettings


class SimulatorSettings(ServiceSettings):
    fleet: Path | None = None
    """The JSON file that describes the workers."""
    simulator_nkey_seed: SecretStr | None = None
    """Seed of the simulator's NKey."""
    simulator_address: str | None = None
    """Where all simulated engines are reached; when not given each worker has an address of its own in 127.0.0.0/8."""

    def line(self) -> BusSettings:
        seed = self.simulator_nkey_seed or self.nats_nkey_seed
        return self.model_copy(update={"nats_nkey_seed": seed}).bus(inbox_prefix=inbox_prefix("simulator"))

"""Settings: one frozen class per service, read once in `__main__` and passed down. Environment variables begin with MUSTER_."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, SecretStr, ValidationError


class BadSettings(Exception):
    """A setting is missing or wrong: one sentence, exit code 2."""


class Settings(BaseModel):
    """Fields are read from `MUSTER_<FIELD>`; `MUSTER_<FIELD>_FILE` names a file that holds the value (for secrets)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None, **overrides: Any) -> Self:
        """Raises BadSettings."""
        environment = os.environ if environment is None else environment
        values: dict[str, Any] = {}
        for field in cls.model_fields:
            name = f"MUSTER_{field.upper()}"
            if (value := environment.get(name)) is not None:
                values[field] = value
            elif (path := environment.get(f"{name}_FILE")) is not None:
                try:
                    values[field] = Path(path).read_text(encoding="utf-8").strip()
                except OSError as error:
                    raise BadSettings(f"{name}_FILE={path} can't be read: {error.strerror}") from error
                except UnicodeDecodeError as error:
                    raise BadSettings(f"{name}_FILE={path} can't be read: it is not UTF-8") from error
        values |= {name: value for name, value in overrides.items() if value is not None}
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            field = str(first["loc"][0]) if first["loc"] else ""
            raise BadSettings(f"MUSTER_{field.upper()} is wrong: {first['msg']}") from error


class BusSettings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    servers: tuple[str, ...] = ("nats://127.0.0.1:4222",)
    nkey_seed: SecretStr | None = None
    inbox_prefix: str | None = None


class ServiceSettings(Settings):
    """What every service has."""

    nats_servers: str = "nats://127.0.0.1:4222"
    """Comma-separated addresses of the NATS servers."""
    nats_nkey_seed: SecretStr | None = None
    """Seed of this service's NKey; without it the connection is anonymous."""
    replica: str = "0"
    """Tells replicas of one service apart in logs and events."""
    health_host: str = "127.0.0.1"
    health_port: int = 0
    """Where /healthz, /readyz and /metrics are served; 0: nowhere (the api serves them beside its own routes)."""
    log_level: str = "INFO"
    log_format: str = "json"
    """`json`, or `text` for a terminal."""
    otlp_endpoint: str | None = None
    """Where traces go (OTLP over HTTP); without it no exporter is loaded."""

    def bus(self, *, inbox_prefix: str | None = None) -> BusSettings:
        return BusSettings(
            servers=tuple(server.strip() for server in self.nats_servers.split(",") if server.strip()),
            nkey_seed=self.nats_nkey_seed,
            inbox_prefix=inbox_prefix,
        )

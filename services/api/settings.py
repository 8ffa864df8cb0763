"""Settings of the api (environment: MUSTER_<FIELD>)."""

from typing import Annotated

from pydantic import Field, SecretStr

from kernel.settings import ServiceSettings


class ApiSettings(ServiceSettings):
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8700
    database_url: str = "postgresql+asyncpg://muster@127.0.0.1:5432/muster"
    """SQLAlchemy address of PostgreSQL (15 or newer)."""
    api_key: SecretStr | None = None
    """The bootstrap key: may do everything."""
    engine_key_seed: SecretStr | None = None
    """Seed of an NKey (`SU…`), the same for all replicas: opens the keys of engines. Several, separated by commas: the
    current one, then former ones whose engines still run.
    """
    most_body_bytes: int = 1024 * 1024
    """Bodies of /v2 requests that are larger are refused."""
    most_inference_body_bytes: int = 64 * 1024 * 1024
    projection_wait_seconds: float = 5.0
    """A write that is not projected by then is answered with 202."""
    behind_seconds: float = 2.0
    """Writes are refused while the projection is further behind."""

"""Settings of the downloader (environment: MUSTER_<FIELD>)."""

from pathlib import Path

from pydantic import SecretStr

from kernel.settings import ServiceSettings


class DownloaderSettings(ServiceSettings):
    data_dir: Path = Path(".muster")
    worker_id: str | None = None
    """The worker whose files these are."""
    downloader_nkey_seed: SecretStr | None = None
    """Seed of the downloader's NKey."""
    local_model_dirs: str = ""
    """Directories (separated by `:`) that local models may lie in; empty: anywhere."""

"""Settings of the downloader (environment: MUSTER_<FIELD>)."""

import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, SecretStr

from kernel.settings import ServiceSettings

GIB = 2**30


class DownloaderSettings(ServiceSettings):
    data_dir: Path = Path(".muster")
    cache_dir: Path | None = None
    """Where model files go; `<data-dir>/cache` when not given. The same path in the downloader, the agent and on the host."""
    worker_id: str | None = None
    """The worker whose files these are."""
    downloader_nkey_seed: SecretStr | None = None
    """Seed of the downloader's NKey."""
    local_model_dirs: str = ""
    """Directories (separated by `:`) that local models may lie in; empty: anywhere."""
    huggingface_token: SecretStr | None = None
    """For gated and private repositories; `HF_TOKEN` when not given. The hub is huggingface.co, or what `HF_ENDPOINT` names."""
    modelscope_token: SecretStr | None = None
    """The same for ModelScope; `MODELSCOPE_API_TOKEN` and `MODELSCOPE_ENDPOINT`."""
    downloads_at_once: Annotated[int, Field(ge=1, le=64)] = 2
    """Models that are fetched at one time; the others wait, those that most instances wait for first."""
    connections: Annotated[int, Field(ge=1, le=64)] = 8
    """To a hub or a neighbour, for each model that is fetched."""
    bytes_per_second: Annotated[int, Field(ge=0)] = 0
    """All downloads of this worker together take no more than this; 0: whatever there is."""
    disk_reserve_bytes: Annotated[int, Field(ge=0)] = GIB
    """Of the disk that models are put on, so much is kept free."""
    evict: Literal["never", "least_recently_used"] = "never"
    """Whether models that no instance uses are removed when there is no room for one that is wanted."""
    stall_seconds: Annotated[float, Field(gt=0, le=3600)] = 60.0
    """A download to which no byte comes for so long has failed."""
    share: bool = True
    """Other workers may take files from this one."""
    from_neighbours: bool = True
    """Files are taken from other workers that have them; else always from the hub."""
    share_port: Annotated[int, Field(ge=0, le=65535)] = 0
    """Where other workers take files from this one; 0: wherever the system finds a free port."""
    share_address: str | None = None
    """… and at which address; detected when not given. Where it can't be reached, files go through the bus."""
    store_is_shared: bool = False
    """`cache_dir` is a file system that several workers share (NFS): one of them fetches, the others wait for it."""
    trusted_repositories: str = ""
    """Repositories whose own programs and pickled weights engines may load, each as of one commit, with commas between:
    `org/name@<commit>`.
    """

    @property
    def cache(self) -> Path:
        return self.cache_dir or self.data_dir / "cache"

    @property
    def trusted(self) -> frozenset[str]:
        return frozenset(each.strip() for each in self.trusted_repositories.split(",") if each.strip())

    def account(self, kind: Literal["huggingface", "model_scope"]) -> tuple[str | None, str | None]:
        """Endpoint and token of a hub, by the variables that its users know."""
        if kind == "huggingface":
            token, names = self.huggingface_token, ("HF_ENDPOINT", "HF_TOKEN")
        else:
            token, names = self.modelscope_token, ("MODELSCOPE_ENDPOINT", "MODELSCOPE_API_TOKEN")
        endpoint = os.environ.get(names[0]) or None
        return endpoint, token.get_secret_value() if token is not None else os.environ.get(names[1]) or None

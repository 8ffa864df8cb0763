"""Settings of `muster up` (environment: MUSTER_<FIELD>)."""

import socket
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, SecretStr

from kernel.settings import Settings


class UpSettings(Settings):
    data_dir: Path = Path(".muster")
    """Everything that lasts: log, database, keys, engine logs."""
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8700
    """Where the api listens; 0: any free port."""
    api_key: SecretStr | None = None
    """The bootstrap key; generated into `<data-dir>/admin.key` when not given."""
    worker_name: str = Field(default_factory=socket.gethostname)
    inventory: Path | None = None
    """A JSON file that describes the machine by hand."""
    cache_dir: Path | None = None
    """Where model files go; `<data-dir>/cache` when not given."""
    huggingface_token: SecretStr | None = None
    """For gated and private repositories; `HF_TOKEN` when not given. The hub is huggingface.co, or what `HF_ENDPOINT` names."""
    modelscope_token: SecretStr | None = None
    """The same for ModelScope; `MODELSCOPE_API_TOKEN` and `MODELSCOPE_ENDPOINT`."""
    bytes_per_second: Annotated[int, Field(ge=0)] = 0
    """All downloads together take no more than this; 0: whatever there is."""
    disk_reserve_bytes: Annotated[int, Field(ge=0)] = 2**30
    """Of the disk that models are put on, so much is kept free."""
    evict: Literal["never", "least_recently_used"] = "never"
    """Whether models that no instance uses are removed when there is no room for one that is wanted."""
    local_model_dirs: str = ""
    """Directories (separated by `:`) that local models may lie in; empty: anywhere."""
    trusted_repositories: str = ""
    """Repositories whose own programs and pickled weights engines may load, each as of one commit, with commas between:
    `org/name@<commit>`.
    """
    llama_cpp_command: str | None = None
    """Another program for the llama.cpp backend; it takes llama-server's flags."""
    vllm_command: str = ""
    """The program of the vLLM backend, with leading arguments: `/opt/vllm/bin/vllm serve`; without one there is no vLLM."""
    simulator: bool = False
    """Whether `muster simulate` may add workers; its key is in `<data-dir>/keys/simulator.seed`."""
    lease_seconds: float = 10.0
    restart_base_seconds: float = 1.0
    cordon_unhealthy: bool = False
    """A worker with a GPU that its driver calls unhealthy takes no new instance, not even on its other GPUs."""
    claims_from_peak: bool = False
    """New instances claim what their model was measured to hold at most, in place of an estimate."""
    drain_seconds: Annotated[float, Field(ge=0, le=86400)] = 60.0
    """An instance that is replaced, drained or scaled down has so long to finish its requests; 0: none."""
    log_level: str = "WARNING"
    otlp_endpoint: str | None = None

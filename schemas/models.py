"""What a user says about a model, what its files say, and how an attempt of it is launched."""

from typing import Annotated, Literal

from pydantic import Field, field_validator

from schemas.ids import FileId, Token, WorkerId
from schemas.value import Bytes, Count, Value

Category = Literal["llm", "embedding", "reranker", "unknown"]


class LocalPath(Value):
    """Files that lie on a worker already."""

    type: Literal["local_path"] = "local_path"
    path: Annotated[str, Field(min_length=1, max_length=4096)]
    """Absolute: a `.gguf` (the first of its shards), or a directory with `*.safetensors` and `config.json`."""


Source = LocalPath
"""Where the files come from. The hubs become further members of this union."""


class GpuSelector(Value):
    gpu_ids: tuple[str, ...] = ()
    """`<worker name>:<type>:<index>` each."""


class ModelSpec(Value):
    """What a user wants to run. Field names follow the peer's API where the concept is the same."""

    name: str
    description: str = ""
    replicas: int = 1
    source: Source
    backend: str = "llama.cpp"
    backend_version: str | None = None
    backend_parameters: tuple[str, ...] = ()
    env: dict[str, str] = {}
    categories: tuple[Category, ...] = ()
    placement_strategy: Literal["spread", "binpack"] = "spread"
    worker_selector: dict[str, str] = {}
    gpu_selector: GpuSelector | None = None
    restart_on_error: bool = True
    start_timeout_seconds: float = 900.0
    """Without progress of the engine for this long, the start has failed."""


class ModelWeights(Value):
    """What the model's files weigh and are, read from their headers (GGUF) or sizes (safetensors)."""

    format: Literal["gguf", "safetensors"]
    weight_bytes: Bytes
    files: tuple[str, ...]
    """Absolute paths of the files that the engine will read."""
    architecture: str | None = None
    context_length: Count | None = None
    layers: Count | None = None
    kv_heads: Count | None = None
    head_size: Count | None = None
    categories: tuple[Category, ...] = ()


class Claim(Value):
    """Memory that is promised to an instance on one worker; bytes."""

    ram: Bytes = 0
    vram: dict[int, Bytes] = {}
    """GPU index → bytes."""


class Parallelism(Value):
    tensor: Annotated[int, Field(ge=1)] = 1
    pipeline: Annotated[int, Field(ge=1)] = 1
    data: Annotated[int, Field(ge=1)] = 1


class Member(Value):
    """One worker's part of an attempt."""

    worker_id: WorkerId
    address: str
    """Where the gateway and the other members reach this worker."""
    rank: int = 0
    accelerator: str | None = None
    """`cuda rocm cann …`; None when the engine runs on the CPU."""
    gpu_indexes: tuple[int, ...] = ()
    claim: Claim = Claim()
    ports: tuple[int, ...] = ()
    """Ports that are fixed beforehand; empty when the agent chooses."""
    file_ids: tuple[FileId, ...] = ()


class Launch(Value):
    """Everything about the engine that was decided when the attempt was scheduled: an edit of the model changes later attempts."""

    model_name: str
    generation: int
    """The model's generation (sequence of its last api fact) that this attempt runs."""
    backend: str
    backend_version: str | None = None
    image: str | None = None
    entrypoint: tuple[str, ...] = ()
    source: Source
    parameters: tuple[str, ...] = ()
    env: dict[str, str] = {}
    memory_fraction: float | None = None
    parallelism: Parallelism = Parallelism()
    start_timeout_seconds: float = 900.0


class Gpu(Value):
    index: Annotated[int, Field(ge=0, le=255)]
    vendor: str
    type: Token
    """`cuda rocm cann dtk musa corex maca neuware hggc`."""
    name: str
    uuid: str | None = None
    memory_total: Bytes
    memory_used_by_others: Bytes = 0
    """Bytes held by processes that are not engines of ours."""
    compute_capability: str | None = None
    driver_version: str | None = None


class Inventory(Value):
    """What a machine has, as its agent sees it or as a file describes it."""

    os: str
    arch: str
    cpu_count: Annotated[int, Field(ge=1, le=65536)]
    memory_total: Bytes
    memory_reserved: Bytes = 0
    """RAM that is kept for the system and never promised."""
    gpus: Annotated[tuple[Gpu, ...], Field(max_length=256)] = ()
    backends: dict[str, str | None] = {}
    """Backends that this worker's runtime can start, with their versions."""
    runtime: str = "process"

    @field_validator("gpus")
    @classmethod
    def _one_gpu_for_each_index(cls, gpus: tuple[Gpu, ...]) -> tuple[Gpu, ...]:
        """Memory is promised by index: two GPUs with one would share a promise."""
        indexes = [gpu.index for gpu in gpus]
        if twice := sorted({index for index in indexes if indexes.count(index) > 1}):
            raise ValueError(f"two GPUs have the index {twice[0]}")
        return gpus

"""What a user says about a model, what its files say, and how an attempt of it is launched."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, JsonValue, field_validator

from schemas.ids import FileId, Token, WorkerId
from schemas.sources import Source
from schemas.value import Bytes, Count, Value

Category = Literal["llm", "embedding", "reranker", "image", "speech_to_text", "text_to_speech", "unknown"]
Backend = Literal["llama.cpp", "vLLM", "SGLang", "MindIE", "Custom"]
"""Engines that Muster knows how to start. `Custom` is the user's own image."""


class GpuSelector(Value):
    gpu_ids: tuple[str, ...] = ()
    """`<worker name>:<type>:<index>` each."""
    gpus_per_replica: Annotated[int, Field(ge=1, le=4096)] | None = None
    """So many of them for one instance; None: the number follows from the parameters, or from the memory it needs."""


class Lora(Value):
    """An adapter that is loaded beside the model."""

    lora_name: str
    source: Source


class Speculation(Value):
    """Drafting tokens that the model then checks."""

    algorithm: Literal["draft_model", "eagle3", "mtp", "ngram"]
    draft_model: Source | None = None
    draft_tokens: Annotated[int, Field(ge=1, le=64)] | None = None


class ExtendedKvCache(Value):
    """RAM beside the KV cache on the GPU: what is pushed out of the one is found in the other."""

    ram_ratio: Annotated[float, Field(gt=0, le=100)] = 1.2
    """Of the instance's VRAM on a worker; where `ram_size` is None."""
    ram_size: Annotated[float, Field(gt=0, le=2**20)] | None = None
    """GiB on each worker."""
    chunk_size: Annotated[int, Field(ge=1, le=2**20)] | None = None
    """Tokens that move together; None: the engine's own."""


class ClaimOverride(Value):
    """What the author knows better than the estimate; bytes of one instance, over all its GPUs."""

    vram: Bytes | None = None
    ram: Bytes | None = None


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
    distributed_inference_across_workers: bool = True
    """Several machines may run one instance together, when no single one can."""
    cpu_offloading: bool = False
    """llama.cpp may keep the layers that fit on no GPU in RAM; vLLM and custom backends may run on a worker that has no GPU."""
    packed: bool = False
    """Take what the model needs instead of the engine's usual share of a GPU, so that several small models share one."""
    lora_list: tuple[Lora, ...] = ()
    speculative_config: Speculation | None = None
    extended_kv_cache: ExtendedKvCache | None = None
    image_name: str | None = None
    """The container image to run instead of the backend's own; required for `Custom`."""
    entrypoint: tuple[str, ...] = ()
    """Takes the place of the image's own entrypoint, and of the program that Muster would start."""
    run_command: str | None = None
    """What is started, with placeholders (`{{model_path}}` …); words are split as a shell does, and no shell reads them."""
    claim_override: ClaimOverride | None = None
    restart_on_error: bool = True
    start_timeout_seconds: float = 900.0
    """Without progress of the engine for this long, the start has failed."""


class Pinned(Value):
    """A hub's files as of one commit: of a model, of an adapter that is loaded beside it, or of its draft model."""

    source: Source
    commit: str
    bytes: Bytes
    """Of all files that are fetched, weights or not."""


class ModelWeights(Value):
    """What the model's files weigh and are, read from their headers (GGUF) or sizes (safetensors)."""

    format: Literal["gguf", "safetensors", "pickle"]
    """`pickle`: of a repository that the operator trusts."""
    weight_bytes: Bytes
    files: tuple[str, ...] = ()
    """The files that the engine will read: absolute paths of a worker, or names in a hub's repository."""
    pinned: tuple[Pinned, ...] = ()
    """What is to be fetched; nothing where it lies on the worker."""
    lora_bytes: Bytes = 0
    """Of all adapters together."""
    draft_bytes: Bytes = 0
    """Of the draft model."""
    config: dict[str, JsonValue] = {}
    """The model's config.json without what is long (safetensors)."""
    remote_code: bool = False
    """It brings programs of its own (`auto_map`)."""
    architecture: str | None = None
    context_length: Count | None = None
    layers: Count | None = None
    attention_layers: Count | None = None
    """GGUF: of the layers, those with a KV cache; None: all."""
    windowed_layers: Count | None = None
    """GGUF: of those, how many look back a `window` of tokens only."""
    window: Count | None = None
    state_bytes: Bytes | None = None
    """GGUF: what a sequence keeps in recurrent layers, in all of them together."""
    hidden_size: Count | None = None
    attention_heads: Count | None = None
    kv_heads: Count | None = None
    head_size: Count | None = None
    value_size: Count | None = None
    """Of a head's values, where it is not that of its keys."""
    vocabulary_size: Count | None = None
    layer_bytes: Bytes | None = None
    """GGUF: of `weight_bytes`, what lies in the repeating layers; the rest stands once."""
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
    gpu_addresses: tuple[str, ...] = ()
    """Of the network ports that these GPUs have of their own, in the same order; empty where they have none."""
    claim: Claim = Claim()
    ports: tuple[int, ...] = ()
    """Ports that are fixed beforehand; empty when the agent chooses."""
    file_ids: tuple[FileId, ...] = ()


class RunnerUp(Value):
    """A place that would have done as well."""

    worker_id: WorkerId
    gpu_indexes: tuple[int, ...] = ()
    scores: dict[str, int] = {}
    lost_by: str
    """The preference that decided; `name` when all were equal."""


class Why(Value):
    """Why an instance was placed where it was."""

    scores: dict[str, int]
    """Preference → number, in their order; a lower one is liked better, and the first that differs decides."""
    fitting: Annotated[int, Field(ge=1)]
    """Workers that could have taken it."""
    runners_up: tuple[RunnerUp, ...] = ()


class Needs(Value):
    """What an engine needs beyond a locked-down container. An operator allows it on the worker (`MUSTER_ALLOWED_NEEDS`)."""

    writable_root: bool = False
    """It writes beside its programs: most compile kernels there."""
    host_ipc: bool = False
    host_network: bool = False
    capabilities: Annotated[tuple[Annotated[str, Field(pattern=r"^[A-Z_]{2,32}$")], ...], Field(max_length=16)] = ()
    """Of Linux, without `CAP_`: `IPC_LOCK`."""

    @property
    def names(self) -> tuple[str, ...]:
        flags = [name for name in ("writable_root", "host_ipc", "host_network") if getattr(self, name)]
        return (*flags, *self.capabilities)


class Launch(Value):
    """Everything about the engine that was decided when the attempt was scheduled: an edit of the model changes later attempts."""

    model_name: str
    generation: int
    """The model's generation (sequence of its last api fact) that this attempt runs."""
    revision: int | None = None
    """The generation that last changed the engine; None (in old facts): not told, and never replaced for it."""
    backend: str
    engine: str | None = None
    """Which of Muster's engines starts it; None (in old facts): the backend's name says it."""
    backend_version: str | None = None
    image: str | None = None
    entrypoint: tuple[str, ...] = ()
    run_command: str | None = None
    source: Source
    commit: str | None = None
    """Of the hub's repository, to which the source's revision was pinned; None: the files lie on the worker."""
    parameters: tuple[str, ...] = ()
    env: dict[str, str] = {}
    categories: tuple[Category, ...] = ()
    """What the model is for; none: the engine finds out by itself."""
    lora_list: tuple[Lora, ...] = ()
    speculative_config: Speculation | None = None
    extended_kv_cache: ExtendedKvCache | None = None
    memory_fraction: float | None = None
    context_length: Count | None = None
    """Tokens of one sequence that placement reckoned with."""
    health_path: str | None = None
    """Where a `Custom` engine answers 200 when it is ready."""
    parameter_format: Literal["space", "equal"] | None = None
    """How a `Custom` engine wants its flags; None: as they are written."""
    needs: Needs | None = None
    """Beyond a locked-down container; None (in old facts): what its engine usually needs."""
    parallelism: Parallelism = Parallelism()
    start_timeout_seconds: float = 900.0


def _zero_for_none(value: Any) -> Any:
    return 0 if value is None else value


Told = Annotated[Bytes, BeforeValidator(_zero_for_none)]
"""A size that a machine may fail to tell: 0 then, and the worker takes no instance until it does."""


class GpuNetwork(Value):
    """The network port of an accelerator that has its own (RoCE of Ascend)."""

    address: str | None = None
    up: bool = True


class Gpu(Value):
    index: Annotated[int, Field(ge=0, le=255)]
    vendor: str
    type: Token
    """`cuda rocm cann dtk musa corex maca neuware hggc`."""
    name: str
    uuid: str | None = None
    memory_total: Told = 0
    memory_used_by_others: Told = 0
    """Bytes held by processes that are not engines of ours."""
    compute_capability: str | None = None
    driver_version: str | None = None
    runtime_version: str | None = None
    """The newest CUDA, ROCm, CANN … that the driver can run."""
    island: int | None = None
    """GPUs of a worker with the same number reach each other directly (NVLink, xGMI, HCCS, one PCIe switch)."""
    network: GpuNetwork | None = None
    unhealthy: str | None = None
    """What its driver calls wrong with it; None: nothing."""


Reach = Literal["auto", "direct", "relay"]
"""How gateways get at a worker's engines: they dial it, they go through the bus, or they find out which of both works."""


class Inventory(Value):
    """What a machine has, as its agent sees it or as a file describes it."""

    os: str
    arch: str
    cpu_count: Annotated[int, Field(ge=1, le=65536)]
    memory_total: Told = 0
    memory_reserved: Bytes = 0
    """RAM that is kept for the system and never promised."""
    vram_reserved: Bytes = 0
    """Of each GPU: kept for the system and never promised."""
    disk_free: Bytes | None = None
    """Where model files go; None: not told."""
    gpus: Annotated[tuple[Gpu, ...], Field(max_length=256)] = ()
    backends: dict[str, str | None] = {}
    """Backends that this worker's runtime can start, with their versions."""
    runtime: str = "process"
    """`process`: starts the `backends` that are installed; any other (`docker` …): whatever there is an image of."""
    reach: Reach = "auto"
    """How gateways get at this worker's engines."""

    @field_validator("gpus")
    @classmethod
    def _one_gpu_for_each_index(cls, gpus: tuple[Gpu, ...]) -> tuple[Gpu, ...]:
        """Memory is promised by type and index: two GPUs with one would share a promise."""
        ids = [(gpu.type, gpu.index) for gpu in gpus]
        if twice := sorted({each for each in ids if ids.count(each) > 1}):
            raise ValueError(f"two GPUs of type {twice[0][0]} have the index {twice[0][1]}")
        return gpus

"""The question "would it run, where, and what would it take?", and its answer: `POST /v2/placements`, `muster plan`.

Nothing is deployed by asking. Sizes are bytes; a GPU's id is `<worker name>:<type>:<index>`.
"""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    StringConstraints,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from schemas.ids import ModelId
from schemas.models import Category, ClaimOverride, ExtendedKvCache, GpuNetwork, Lora, Parallelism, Speculation, Told
from schemas.source_fields import SourceFields, SourceKind
from schemas.value import Bytes, Value

Text = Annotated[str, StringConstraints(max_length=4096, pattern=r"^[^\x00]*$")]
Label = Annotated[str, StringConstraints(max_length=128, pattern=r"^[^\x00-\x1f\x7f]*$")]
Kind = Literal["cuda", "rocm", "cann", "dtk", "musa", "corex", "maca", "neuware", "hggc"]


class Asked(BaseModel):
    """What people write: an unknown field is a mistake."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class AskedGpuSelector(Asked):
    gpu_ids: Annotated[tuple[Text, ...], Field(max_length=4096, examples=[["w1:cuda:0"]])] = ()
    gpus_per_replica: Annotated[int, Field(ge=1, le=4096)] | None = None


class AskedModel(SourceFields, Asked):
    """The fields of a model that placement looks at; others of `POST /v2/models` are allowed and change nothing.

    With a source, and without `facts`, a worker's downloader is asked what the files weigh.
    """

    needs_source: ClassVar[bool] = False
    name: Text = "model"
    description: Text = ""
    backend: Annotated[Text, Field(min_length=1, max_length=64)] = "vLLM"
    backend_version: Annotated[Text, Field(max_length=64)] | None = None
    backend_parameters: Annotated[tuple[Text, ...], Field(max_length=256)] = ()
    replicas: Annotated[int, Field(ge=1, le=10_000, strict=True)] = 1
    placement_strategy: Literal["spread", "binpack"] = "spread"
    distributed_inference_across_workers: bool = True
    cpu_offloading: bool = False
    packed: bool = False
    worker_selector: Annotated[dict[Label, Label], Field(max_length=64)] = {}
    gpu_selector: AskedGpuSelector | None = None
    categories: Annotated[tuple[Category, ...], Field(max_length=8)] = ()
    env: Annotated[dict[Text, Text], Field(max_length=256)] = {}
    lora_list: Annotated[tuple[Lora, ...], Field(max_length=64)] = ()
    speculative_config: Speculation | None = None
    extended_kv_cache: ExtendedKvCache | None = None
    image_name: Annotated[Text, Field(max_length=512)] | None = None
    entrypoint: Annotated[tuple[Text, ...], Field(max_length=64)] = ()
    run_command: Text | None = None
    claim_override: ClaimOverride | None = None
    restart_on_error: bool = True
    start_timeout_seconds: Annotated[float, Field(gt=0, le=86400)] = 900.0
    source: SourceKind | None = None  # pyright: ignore[reportIncompatibleVariableOverride] - there need not be one


class AskedFacts(Asked):
    """What the model's files say; instead of looking at them."""

    weight_bytes: Bytes | None = None
    lora_bytes: Bytes = 0
    draft_bytes: Bytes = 0
    config: dict[str, JsonValue] = {}
    """The model's config.json."""
    format: Literal["gguf", "safetensors"] | None = None
    """None: GGUF for llama.cpp, else safetensors."""
    context_length: Annotated[int, Field(ge=1, le=2**31)] | None = None
    layers: Annotated[int, Field(ge=1, le=100_000)] | None = None
    kv_heads: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    head_size: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    layer_bytes: Bytes | None = None


class AskedGpu(Asked):
    type: Kind
    vendor: Label = ""
    index: Annotated[int, Field(ge=0, le=255, strict=True)]
    name: Label = ""
    uuid: Label | None = None
    memory_total: Told = 0
    memory_used_by_others: Told = 0
    compute_capability: Label | None = None
    driver_version: Label | None = None
    runtime_version: Label | None = None
    island: Annotated[int, Field(ge=0, le=255)] | None = None
    network: GpuNetwork | None = None
    unhealthy: Label | None = None


class AskedReserve(Asked):
    ram: Bytes = 0
    vram: Bytes = 0
    """Of each GPU."""


class AskedClaim(Asked):
    """Memory that an instance of some model holds on the worker."""

    model: Label = ""
    type: Kind | None = None
    ram: Bytes = 0
    vram: Annotated[dict[Annotated[int, Field(ge=0, le=255)], Bytes], Field(max_length=256)] = {}


class AskedWorker(Asked):
    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$")]
    state: Literal["ready", "registered", "unreachable", "not_ready"] = "ready"
    os: Label = "linux"
    arch: Label = "amd64"
    labels: Annotated[dict[Label, Label], Field(max_length=256)] = {}
    cordoned: bool = False
    draining: bool = False
    cpu_count: Annotated[int, Field(ge=1, le=65536)] = 1
    memory_total: Told = 0
    disk_free: Bytes | None = None
    system_reserved: AskedReserve = AskedReserve()
    runtime: Label = "docker"
    backends: dict[Label, Label | None] = {}
    """Of a worker with the runtime `process`: what is installed there."""
    gpus: Annotated[tuple[AskedGpu, ...], Field(max_length=256)] = ()
    claims: Annotated[tuple[AskedClaim, ...], Field(max_length=10_000)] = ()

    @field_validator("gpus")
    @classmethod
    def _one_gpu_for_each_index(cls, gpus: tuple[AskedGpu, ...]) -> tuple[AskedGpu, ...]:
        seen: set[tuple[str, int]] = set()
        for gpu in gpus:
            if (gpu.type, gpu.index) in seen:
                raise PydanticCustomError(
                    "duplicate_gpu",
                    "two GPUs of type {type} have the index {index}",
                    {"type": gpu.type, "index": gpu.index},
                )
            seen.add((gpu.type, gpu.index))
        return gpus

    @model_validator(mode="after")
    def _claims_are_of_its_gpus(self) -> "AskedWorker":
        there = {(gpu.type, gpu.index) for gpu in self.gpus}
        kinds = {gpu.type for gpu in self.gpus}
        for number, claim in enumerate(self.claims):
            kind = claim.type if claim.type is not None else next(iter(kinds)) if len(kinds) == 1 else None
            for index in claim.vram:
                if kind is None or (kind, index) not in there:
                    raise PydanticCustomError(
                        "claim_elsewhere",
                        "claims.{number} is on {kind}:{index}, which the worker does not have",
                        {"number": number, "kind": kind or "a GPU", "index": index},
                    )
        return self


def _distinct(fleet: Any) -> Any:
    if isinstance(fleet, list | tuple):
        names = [worker.get("name") for worker in fleet if isinstance(worker, dict)]  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
        if twice := next((name for name in names if isinstance(name, str) and names.count(name) > 1), None):
            raise PydanticCustomError("duplicate_name", "two workers are called {name}", {"name": twice})
    return fleet  # pyright: ignore[reportUnknownVariableType]


AskedFleet = Annotated[tuple[AskedWorker, ...], Field(max_length=10_000), BeforeValidator(_distinct)]


class PlacementQuestion(Asked):
    model: AskedModel
    facts: AskedFacts | None = None
    """None: what is known of the model's files, or what a downloader says of them."""
    fleet: AskedFleet | None = None
    """None: the fleet as it is."""


class AnswerClaim(Value):
    ram: Bytes
    vram: dict[str, Bytes]
    """GPU index → bytes."""


class AnswerMember(Value):
    worker: str
    role: Literal["leader", "follower"]
    type: str | None
    gpu_indexes: tuple[int, ...]
    claim: AnswerClaim


class AnswerRunnerUp(Value):
    worker: str
    gpu_indexes: tuple[int, ...]
    scores: dict[str, int]
    lost_by: str
    text: str


class AnswerWhy(Value):
    scores: dict[str, int]
    fitting: int
    runners_up: tuple[AnswerRunnerUp, ...] = ()


class AnswerPlacement(Value):
    members: tuple[AnswerMember, ...]
    parallelism: Parallelism
    overcommitted: bool
    parameters: tuple[str, ...] = ()
    """What Muster passes to the engine beside the model's own parameters."""
    why: AnswerWhy | None = None


class AnswerNeeds(Value):
    vram: Bytes
    """Of one instance, over all its GPUs."""
    ram: Bytes
    weight_bytes: Bytes
    per_gpu_share: float | None
    """What its engine reserves of each GPU; None: only what it needs."""


class AnswerObjection(Value):
    worker: str | None
    """None: it is about the request itself, or about all workers together."""
    code: str
    who: Literal["wait", "operator", "author"]
    numbers: dict[str, JsonValue]
    text: str


class AnswerSuggestion(Value):
    change: dict[str, JsonValue]
    text: str


class PlacementAnswer(Value):
    placed: bool
    placements: tuple[AnswerPlacement, ...] = ()
    """One for each replica; all or none."""
    needs: AnswerNeeds
    objections: tuple[AnswerObjection, ...] = ()
    closest: str | None = None
    suggestions: tuple[AnswerSuggestion, ...] = ()
    summary: str
    """All of it in a sentence."""
    unlisted: dict[str, int] = {}
    """Code → how many further workers object with it, when they are too many for one message."""
    refused_replica: int | None = None
    """The first replica that found no place, from 1: those before it would have."""


class AnswerMeasured(Value):
    """What instances that are placed alike claim, and what engines like theirs were measured to hold at most."""

    gpu: str
    """The name of the GPUs; `cpu` when they run on none."""
    gpus: int
    """Of each instance."""
    workers: int = 1
    gpu_layers: int | None = None
    """Of llama.cpp, when it was told a number."""
    instances: int
    claimed_vram: Bytes
    """On each GPU; the largest."""
    peak_vram: Bytes | None = None
    """None: not measured."""
    claimed_ram: Bytes
    """On each worker; the largest."""
    peak_ram: Bytes | None = None
    share: float | None = None
    """Of each GPU, which the engine reserves whatever it needs; None: what it claims is an estimate, or was measured."""
    text: str
    warning: str | None = None
    """What to do where more was measured than is claimed."""


class ModelPlacementQuestion(Asked):
    """`muster.core.placement`: why are this model's instances where they are, or nowhere?"""

    model_id: ModelId


class ModelPlacement(Value):
    known: bool
    as_of: int = 0
    """The last fact that was taken into account."""
    needs: AnswerNeeds | None = None
    refusal: PlacementAnswer | None = None
    """Of one more instance, while some are pending."""
    measured: tuple[AnswerMeasured, ...] = ()
    """Of those that are placed; each kind of place once."""

"""What may be sent to /v2: field names of the peer's API where the concept is the same; unknown fields are refused."""

import posixpath
import shlex
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, field_validator

from kernel.errors import Refused
from schemas.backends import InferenceBackend
from schemas.ids import NAME_PATTERN
from schemas.models import Category, ModelSpec
from schemas.reasons import Reason
from schemas.source_fields import ALL, Pattern, SourceFields, SourceKind, changed_fields
from schemas.sources import Repository, Revision
from schemas.wanted import wanted_of
from services.api.domain.models import written_as

Name = Annotated[str, StringConstraints(pattern=NAME_PATTERN)]
Label = Annotated[str, StringConstraints(max_length=128, pattern=r"^[^\x00-\x1f\x7f]*$")]
Argument = Annotated[str, StringConstraints(max_length=4096, pattern=r"^[^\x00]*$")]
Text = Argument
"""PostgreSQL stores no NUL, so none is ever written to the log."""
EnvName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,127}$")]
Replicas = Annotated[int, Field(ge=0, le=1000, strict=True)]

MOST_BYTES = 64 * 1024
"""Of a model's wish: the assignment of a worker repeats it for every instance, and is one message of at most 1 MiB."""


def refusal_of(problem: Reason, field: str | None = None) -> Refused:
    """What is wrong with a wish, as an answer; `field`: where it stands, if not where the reason says."""
    numbers = problem.model_dump(mode="json", exclude={"code", "worker_id", "field"})
    return Refused(problem.code, problem.sentence(), field=field or getattr(problem, "field", None), **numbers)


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid", str_max_length=65536)


class GpuSelectorFields(Body):
    gpu_ids: Annotated[list[Text], Field(max_length=256, examples=[["worker-1:cuda:0"]])] = []
    gpus_per_replica: Annotated[int, Field(ge=1, le=4096, strict=True)] | None = None


def _absolute(path: str) -> str:
    if not path.startswith("/") or "\0" in path:
        raise ValueError("must be absolute")
    if posixpath.normpath(path) != path.rstrip("/"):
        raise ValueError("must not contain '.', '..' or empty parts")
    return path


LocalFiles = Annotated[str, Field(min_length=1, max_length=4096), AfterValidator(_absolute)]


class Files(SourceFields, Body):
    local_path: LocalFiles | None = None


class LoraFields(Files):
    lora_name: Name


class SpeculationFields(Files):
    """Its source is that of the draft model."""

    needs_source: ClassVar[bool] = False
    algorithm: Literal["draft_model", "eagle3", "mtp", "ngram"]
    source: SourceKind | None = None  # pyright: ignore[reportIncompatibleVariableOverride] - there need not be one
    draft_tokens: Annotated[int, Field(ge=1, le=64, strict=True)] | None = None


class ExtendedKvCacheFields(Body):
    ram_ratio: Annotated[float, Field(gt=0, le=100, allow_inf_nan=False)] = 1.2
    """RAM as a multiple of the instance's VRAM on a worker, where `ram_size` is not given."""
    ram_size: Annotated[float, Field(gt=0, le=2**20, allow_inf_nan=False)] | None = None
    """GiB on each worker."""
    chunk_size: Annotated[int, Field(ge=1, le=2**20, strict=True)] | None = None
    """Tokens that move together."""


Size = Annotated[int, Field(ge=0, le=2**60, strict=True)]


class ClaimFields(Body):
    vram: Size | None = None
    ram: Size | None = None


class ModelFields(Files):
    description: Text = ""
    replicas: Replicas = 1
    local_path: Annotated[LocalFiles | None, Field(examples=["/models/qwen3-8b-q4_k_m.gguf"])] = None
    backend: Annotated[Text, Field(min_length=1, max_length=64, examples=["vLLM"])] = "llama.cpp"
    backend_version: Annotated[Text, Field(max_length=64)] | None = None
    backend_parameters: Annotated[list[Argument], Field(max_length=256, examples=[["--ctx-size=4096"]])] = []
    env: Annotated[dict[EnvName, Argument], Field(max_length=256)] = {}
    categories: Annotated[list[Category], Field(max_length=8)] = []
    placement_strategy: Literal["spread", "binpack"] = "spread"
    worker_selector: Annotated[dict[Label, Label], Field(max_length=64)] = {}
    gpu_selector: GpuSelectorFields | None = None
    distributed_inference_across_workers: bool = True
    cpu_offloading: bool = False
    packed: bool = False
    lora_list: Annotated[list[LoraFields], Field(max_length=32)] = []
    speculative_config: SpeculationFields | None = None
    extended_kv_cache: ExtendedKvCacheFields | None = None
    image_name: Annotated[Text, Field(min_length=1, max_length=512)] | None = None
    entrypoint: Annotated[list[Argument], Field(max_length=64, examples=[["vllm", "serve"]])] = []
    run_command: Annotated[Text, Field(min_length=1)] | None = None
    claim_override: ClaimFields | None = None
    restart_on_error: bool = True
    start_timeout_seconds: Annotated[float, Field(gt=0, le=86400, allow_inf_nan=False)] = 900.0

    @field_validator("run_command")
    @classmethod
    def _has_words(cls, command: str | None) -> str | None:
        if command is None:
            return None
        try:
            words = shlex.split(command)
        except ValueError as error:
            raise ValueError(f"can't be split into words: {error}") from error
        if not words:
            raise ValueError("has no words")
        return command

    def spec(self, name: str, backends: Mapping[str, InferenceBackend]) -> ModelSpec:
        """`backends`: those that there are, by name. Raises Refused (model_too_large, and the codes of what contradicts
        itself: backend_unknown, parameter_invalid …).
        """
        if (backend := backends.get(self.backend)) is not None:
            self._check_backend(backend)
        fields = self.model_dump(exclude={*ALL, "name", "lora_list", "speculative_config"})
        spec = ModelSpec.model_validate(
            fields
            | {
                "name": name,
                "source": self.to_source(),
                "lora_list": [{"lora_name": lora.lora_name, "source": lora.to_source()} for lora in self.lora_list],
                "speculative_config": _speculation(self.speculative_config),
            }
        )
        for problem in wanted_of(spec, backends).problems:
            raise refusal_of(problem)
        size = len(spec.model_dump_json().encode())
        if size > MOST_BYTES:
            raise Refused(
                "model_too_large", f"what is wanted of a model has at most {MOST_BYTES} bytes of JSON, this has {size}"
            )
        return spec

    def _check_backend(self, backend: InferenceBackend) -> None:
        """Raises Refused."""
        has_image = backend.images or any(each.image_name or each.images for each in backend.version_configs.values())
        if backend.engine == "Custom" and self.image_name is None and not has_image:
            raise Refused("invalid_request", f"the backend {self.backend} needs an image_name", field="image_name")
        if backend.engine not in ("vLLM", "SGLang", "MindIE") and (self.lora_list or self.speculative_config):
            field = "lora_list" if self.lora_list else "speculative_config"
            raise Refused(
                "invalid_request", f"{self.backend} takes neither lora_list nor speculative_config", field=field
            )


class CreateModel(ModelFields):
    """A model that is to run."""

    name: Name


class ChangeModel(Body):
    """What is to change; everything else stays."""

    name: Name | None = None
    description: Text | None = None
    replicas: Replicas | None = None
    source: SourceKind | None = None
    huggingface_repo_id: Repository | None = None
    huggingface_filename: Pattern | None = None
    model_scope_model_id: Repository | None = None
    model_scope_file_path: Pattern | None = None
    revision: Revision | None = None
    local_path: Annotated[str, Field(min_length=1, max_length=4096)] | None = None
    backend_version: Annotated[Text, Field(max_length=64)] | None = None
    backend_parameters: Annotated[list[Argument], Field(max_length=256)] | None = None
    env: Annotated[dict[EnvName, Argument], Field(max_length=256)] | None = None
    categories: Annotated[list[Category], Field(max_length=8)] | None = None
    placement_strategy: Literal["spread", "binpack"] | None = None
    worker_selector: Annotated[dict[Label, Label], Field(max_length=64)] | None = None
    gpu_selector: GpuSelectorFields | None = None
    distributed_inference_across_workers: bool | None = None
    cpu_offloading: bool | None = None
    packed: bool | None = None
    lora_list: Annotated[list[LoraFields], Field(max_length=32)] | None = None
    speculative_config: SpeculationFields | None = None
    extended_kv_cache: ExtendedKvCacheFields | None = None
    image_name: Annotated[Text, Field(min_length=1, max_length=512)] | None = None
    entrypoint: Annotated[list[Argument], Field(max_length=64)] | None = None
    run_command: Annotated[Text, Field(min_length=1)] | None = None
    claim_override: ClaimFields | None = None
    restart_on_error: bool | None = None
    start_timeout_seconds: Annotated[float, Field(gt=0, le=86400, allow_inf_nan=False)] | None = None

    def over(self, spec: ModelSpec, backends: Mapping[str, InferenceBackend]) -> ModelSpec:
        """The whole new wish, checked like a new one. Raises pydantic's ValidationError, Refused."""
        before = written_as(spec)
        given = self.model_dump(exclude_unset=True)
        others = {name: value for name, value in (before | given).items() if name not in ALL}
        after = CreateModel.model_validate(others | changed_fields(before, given))
        return after.spec(after.name, backends)


class ChangeWorker(Body):
    """What operators want of a worker; what is left out stays."""

    labels: Annotated[dict[Label, Label], Field(max_length=64)] | None = None
    """All of them: these replace the former ones."""
    cordoned: bool | None = None


def _speculation(fields: SpeculationFields | None) -> dict[str, Any] | None:
    if fields is None:
        return None
    return {
        "algorithm": fields.algorithm,
        "draft_model": fields.to_source(),
        "draft_tokens": fields.draft_tokens,
    }

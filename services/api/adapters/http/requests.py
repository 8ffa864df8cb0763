"""What may be sent to /v2: field names of the peer's API where the concept is the same; unknown fields are refused."""

import posixpath
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from schemas.ids import NAME_PATTERN
from schemas.models import Category, GpuSelector, LocalPath, ModelSpec
from services.api.domain.models import BACKENDS

Name = Annotated[str, StringConstraints(pattern=NAME_PATTERN)]
Label = Annotated[str, StringConstraints(max_length=128, pattern=r"^[^\x00-\x1f\x7f]*$")]
Argument = Annotated[str, StringConstraints(max_length=4096, pattern=r"^[^\x00]*$")]
EnvName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,127}$")]
Replicas = Annotated[int, Field(ge=0, le=1000, strict=True)]

OURS: dict[str, str] = {
    "--host": "the agent",
    "--port": "the agent",
    "--model": "the source",
    "-m": "the source",
    "--alias": "the name",
}
"""Flags that Muster sets; a model may not."""
ISOLATION = ("LD_", "PYTHON", "NVIDIA_VISIBLE", "CUDA_VISIBLE", "DOCKER_", "BASH_ENV", "MUSTER_")
"""Environment that would break isolation."""


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid", str_max_length=65536)


class ModelFields(Body):
    description: Annotated[str, Field(max_length=4096)] = ""
    replicas: Replicas = 1
    source: Literal["local_path"] = "local_path"
    local_path: Annotated[str, Field(min_length=1, max_length=4096, examples=["/models/qwen3-8b-q4_k_m.gguf"])]
    backend: Literal["llama.cpp"] = "llama.cpp"
    backend_version: Annotated[str, Field(max_length=64)] | None = None
    backend_parameters: Annotated[list[Argument], Field(max_length=256, examples=[["--ctx-size=4096"]])] = []
    env: Annotated[dict[EnvName, Argument], Field(max_length=256)] = {}
    categories: Annotated[list[Category], Field(max_length=8)] = []
    placement_strategy: Literal["spread", "binpack"] = "spread"
    worker_selector: Annotated[dict[Label, Label], Field(max_length=64)] = {}
    gpu_selector: GpuSelector | None = None
    restart_on_error: bool = True
    start_timeout_seconds: Annotated[float, Field(gt=0, le=86400, allow_inf_nan=False)] = 900.0

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.local_path.startswith("/") or "\0" in self.local_path:
            raise ValueError("local_path must be absolute")
        if posixpath.normpath(self.local_path) != self.local_path.rstrip("/"):
            raise ValueError("local_path must not contain '.', '..' or empty parts")
        for parameter in self.backend_parameters:
            flag = parameter.partition("=")[0].replace("_", "-")
            if flag in OURS:
                raise ValueError(f"backend_parameters: {flag} is set by {OURS[flag]}")
        for name in self.env:
            if name.upper().startswith(ISOLATION):
                raise ValueError(f"env: {name} would break isolation and is not allowed")
        return self

    def spec(self, name: str) -> ModelSpec:
        fields = self.model_dump(exclude={"source", "local_path", "name"})
        return ModelSpec.model_validate(fields | {"name": name, "source": LocalPath(path=self.local_path)})


class CreateModel(ModelFields):
    """A model that is to run."""

    name: Name


class ChangeModel(Body):
    """What is to change; everything else stays."""

    name: Name | None = None
    description: Annotated[str, Field(max_length=4096)] | None = None
    replicas: Replicas | None = None
    local_path: Annotated[str, Field(min_length=1, max_length=4096)] | None = None
    backend_version: Annotated[str, Field(max_length=64)] | None = None
    backend_parameters: Annotated[list[Argument], Field(max_length=256)] | None = None
    env: Annotated[dict[EnvName, Argument], Field(max_length=256)] | None = None
    categories: Annotated[list[Category], Field(max_length=8)] | None = None
    placement_strategy: Literal["spread", "binpack"] | None = None
    worker_selector: Annotated[dict[Label, Label], Field(max_length=64)] | None = None
    gpu_selector: GpuSelector | None = None
    restart_on_error: bool | None = None
    start_timeout_seconds: Annotated[float, Field(gt=0, le=86400, allow_inf_nan=False)] | None = None

    def over(self, spec: ModelSpec) -> ModelSpec:
        """The whole new wish, checked like a new one. Raises pydantic's ValidationError."""
        before = spec.model_dump(exclude={"source"}) | {"local_path": spec.source.path}
        given = self.model_dump(exclude_unset=True)
        after = CreateModel.model_validate(before | given)
        return after.spec(after.name)


assert set(BACKENDS) == {"llama.cpp"}  # noqa: S101 - the Literal above lists the same

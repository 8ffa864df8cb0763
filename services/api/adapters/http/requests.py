"""What may be sent to /v2: field names of the peer's API where the concept is the same; unknown fields are refused."""

import posixpath
import re
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator

from kernel.errors import Refused
from schemas.ids import NAME_PATTERN
from schemas.models import Category, LocalPath, ModelSpec
from services.api.domain.models import BACKENDS

Name = Annotated[str, StringConstraints(pattern=NAME_PATTERN)]
Label = Annotated[str, StringConstraints(max_length=128, pattern=r"^[^\x00-\x1f\x7f]*$")]
Argument = Annotated[str, StringConstraints(max_length=4096, pattern=r"^[^\x00]*$")]
Text = Argument
"""PostgreSQL stores no NUL, so none is ever written to the log."""
EnvName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,127}$")]
Replicas = Annotated[int, Field(ge=0, le=1000, strict=True)]

OURS: dict[str, str] = {
    "--host": "the agent",
    "--port": "the agent",
    "--model": "the source",
    "-m": "the source",
    "--alias": "the name",
    "-a": "the name",
}
"""Flags that Muster sets; a model may not."""
ISOLATION = ("LD_", "PYTHON", "NVIDIA_VISIBLE", "CUDA_VISIBLE", "DOCKER_", "BASH_ENV", "MUSTER_")
"""Environment that would break isolation."""


MOST_BYTES = 64 * 1024
"""Of a model's wish: the assignment of a worker repeats it for every instance, and is one message of at most 1 MiB."""


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid", str_max_length=65536)


class GpuSelectorFields(Body):
    gpu_ids: Annotated[list[Text], Field(max_length=256, examples=[["worker-1:cuda:0"]])] = []


class ModelFields(Body):
    description: Text = ""
    replicas: Replicas = 1
    source: Literal["local_path"] = "local_path"
    local_path: Annotated[str, Field(min_length=1, max_length=4096, examples=["/models/qwen3-8b-q4_k_m.gguf"])]
    backend: Literal["llama.cpp"] = "llama.cpp"
    backend_version: Annotated[Text, Field(max_length=64)] | None = None
    backend_parameters: Annotated[list[Argument], Field(max_length=256, examples=[["--ctx-size=4096"]])] = []
    env: Annotated[dict[EnvName, Argument], Field(max_length=256)] = {}
    categories: Annotated[list[Category], Field(max_length=8)] = []
    placement_strategy: Literal["spread", "binpack"] = "spread"
    worker_selector: Annotated[dict[Label, Label], Field(max_length=64)] = {}
    gpu_selector: GpuSelectorFields | None = None
    restart_on_error: bool = True
    start_timeout_seconds: Annotated[float, Field(gt=0, le=86400, allow_inf_nan=False)] = 900.0

    @field_validator("local_path")
    @classmethod
    def _is_absolute(cls, path: str) -> str:
        if not path.startswith("/") or "\0" in path:
            raise ValueError("must be absolute")
        if posixpath.normpath(path) != path.rstrip("/"):
            raise ValueError("must not contain '.', '..' or empty parts")
        return path

    @field_validator("backend_parameters")
    @classmethod
    def _leave_ours_alone(cls, parameters: list[str]) -> list[str]:
        for parameter in parameters:
            flag = re.split(r"[=\s]", parameter.lstrip(), maxsplit=1)[0].replace("_", "-")
            if flag in OURS:
                raise ValueError(f"{flag} is set by {OURS[flag]}")
        return parameters

    @field_validator("env")
    @classmethod
    def _keep_isolation(cls, env: dict[str, str]) -> dict[str, str]:
        for name in env:
            if name.upper().startswith(ISOLATION):
                raise ValueError(f"{name} would break isolation and is not allowed")
        return env

    def spec(self, name: str) -> ModelSpec:
        """Raises Refused (model_too_large)."""
        fields = self.model_dump(exclude={"source", "local_path", "name"})
        spec = ModelSpec.model_validate(fields | {"name": name, "source": LocalPath(path=self.local_path)})
        size = len(spec.model_dump_json().encode())
        if size > MOST_BYTES:
            raise Refused(
                "model_too_large", f"what is wanted of a model has at most {MOST_BYTES} bytes of JSON, this has {size}"
            )
        return spec


class CreateModel(ModelFields):
    """A model that is to run."""

    name: Name


class ChangeModel(Body):
    """What is to change; everything else stays."""

    name: Name | None = None
    description: Text | None = None
    replicas: Replicas | None = None
    local_path: Annotated[str, Field(min_length=1, max_length=4096)] | None = None
    backend_version: Annotated[Text, Field(max_length=64)] | None = None
    backend_parameters: Annotated[list[Argument], Field(max_length=256)] | None = None
    env: Annotated[dict[EnvName, Argument], Field(max_length=256)] | None = None
    categories: Annotated[list[Category], Field(max_length=8)] | None = None
    placement_strategy: Literal["spread", "binpack"] | None = None
    worker_selector: Annotated[dict[Label, Label], Field(max_length=64)] | None = None
    gpu_selector: GpuSelectorFields | None = None
    restart_on_error: bool | None = None
    start_timeout_seconds: Annotated[float, Field(gt=0, le=86400, allow_inf_nan=False)] | None = None

    def over(self, spec: ModelSpec) -> ModelSpec:
        """The whole new wish, checked like a new one. Raises pydantic's ValidationError."""
        before = spec.model_dump(exclude={"source"}) | {"local_path": spec.source.path}
        given = self.model_dump(exclude_unset=True)
        after = CreateModel.model_validate(before | given)
        return after.spec(after.name)


assert set(BACKENDS) == {"llama.cpp"}  # noqa: S101 - the Literal above lists the same

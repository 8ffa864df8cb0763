"""Where a model's files are, as people write it: fields of the model itself, named as in the peer's API."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Final, Literal

from pydantic import BaseModel, Field, StringConstraints, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from schemas.sources import FilePattern, HuggingFace, LocalPath, ModelScope, Repository, Revision, Source

SourceKind = Literal["huggingface", "model_scope", "local_path"]
Path = Annotated[str, StringConstraints(max_length=4096, pattern=r"^[^\x00]*$"), Field(min_length=1)]
Pattern = Annotated[FilePattern, StringConstraints(pattern=r"^[^\x00-\x1f\x7f]*$")]

MAIN: Final[Mapping[SourceKind, str]] = {
    "huggingface": "huggingface_repo_id",
    "model_scope": "model_scope_model_id",
    "local_path": "local_path",
}
"""The field without which there is no such source."""
FIELDS: Final[Mapping[SourceKind, tuple[str, ...]]] = {
    "huggingface": ("huggingface_repo_id", "huggingface_filename", "revision"),
    "model_scope": ("model_scope_model_id", "model_scope_file_path", "revision"),
    "local_path": ("local_path",),
}
ALL: Final = tuple(dict.fromkeys(("source", *(name for names in FIELDS.values() for name in names))))


def _without_default(schema: dict[str, Any]) -> None:
    del schema["default"]


class SourceFields(BaseModel):
    """Exactly the fields of one source. Where `source` is left out it follows from which of them are given."""

    needs_source: ClassVar[bool] = True
    source: SourceKind = Field(default=None, json_schema_extra=_without_default)  # pyright: ignore[reportAssignmentType, reportUnknownVariableType] - `null` is refused, and leaving it out is not
    huggingface_repo_id: Annotated[Repository | None, Field(examples=["Qwen/Qwen3-8B"])] = None
    huggingface_filename: Annotated[Pattern | None, Field(examples=["*Q4_K_M*.gguf"])] = None
    model_scope_model_id: Repository | None = None
    model_scope_file_path: Pattern | None = None
    revision: Revision | None = None
    """A branch, a tag or a commit of the repository; when not given, its `main` (Hugging Face) or `master` (ModelScope)."""
    local_path: Path | None = None

    @model_validator(mode="after")
    def _one_source(self) -> "SourceFields":
        kind = self.source_kind
        if kind is None:
            if self.needs_source or self.given("revision"):
                field = next((name for name in MAIN.values() if name in self.model_fields_set), "source")
                raise wrong_field(self, field, f"say where the files are: {', '.join(MAIN.values())}")
            return self
        if getattr(self, MAIN[kind]) is None:
            raise wrong_field(self, MAIN[kind], f"is missing: the source is {kind}")
        for name in ALL[1:]:
            if self.given(name) and name not in FIELDS[kind]:
                raise wrong_field(self, name, f"is no field of the source {kind}")
        return self

    @property
    def source_kind(self) -> SourceKind | None:
        """As it is said, or as it follows."""
        if "source" in self.model_fields_set and self.given("source"):
            return self.source
        return kind_of({name: getattr(self, name) for name in ALL if name != "source"})

    def given(self, name: str) -> bool:
        return getattr(self, name) is not None

    def to_source(self) -> Source | None:
        """None when none is given, where that may be."""
        match self.source_kind:
            case "huggingface":
                return HuggingFace.model_validate(self._hub("huggingface_repo_id", "huggingface_filename"))
            case "model_scope":
                return ModelScope.model_validate(self._hub("model_scope_model_id", "model_scope_file_path"))
            case "local_path":
                return LocalPath(path=self.local_path or "")
            case None:
                return None

    def _hub(self, repository: str, filename: str) -> dict[str, Any]:
        told = {"repo_id": getattr(self, repository), "filename": getattr(self, filename), "revision": self.revision}
        return {name: value for name, value in told.items() if value is not None}


def kind_of(fields: Mapping[str, Any]) -> SourceKind | None:
    """Which source these fields are of, the first where they are of several."""
    for kind, names in FIELDS.items():
        if any(fields.get(name) is not None for name in names if name != "revision"):
            return kind
    return None


def fields_of(source: Source | None) -> dict[str, str | None]:
    """A source as it would be written: all fields, those of the others empty."""
    fields: dict[str, str | None] = dict.fromkeys(ALL)
    match source:
        case LocalPath():
            told: dict[str, str | None] = {"local_path": source.path}
        case HuggingFace():
            told = {"huggingface_repo_id": source.repo_id, "huggingface_filename": source.filename}
            told["revision"] = source.revision
        case ModelScope():
            told = {"model_scope_model_id": source.repo_id, "model_scope_file_path": source.filename}
            told["revision"] = source.revision
        case None:
            return fields
    return fields | told | {"source": source.type}


def changed_fields(before: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """What is written of a source after a change: fields that are left out stay, unless they are of another source."""
    told = {name: given[name] for name in ALL if name in given}
    if not told:
        return {name: before[name] for name in ALL if before.get(name) is not None}
    kind = told.get("source") or kind_of(told) or before.get("source")
    stays = {} if kind != before.get("source") else {name: before[name] for name in ALL if before.get(name) is not None}
    after = stays | told
    return {name: value for name, value in after.items() if value is not None or name in MAIN.values()}


def wrong_field(of: BaseModel, name: str, sentence: str) -> ValidationError:
    """At the field, where a validator of the whole could only say that something is wrong with it."""
    problem = PydanticCustomError("wrong_field", sentence)  # pyright: ignore[reportArgumentType] - no literal, but ours
    wrong = InitErrorDetails(type=problem, loc=(name,), input=None)
    return ValidationError.from_exception_data(type(of).__name__, [wrong])

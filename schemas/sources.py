"""Where a model's files come from: a path of the worker, or a repository of a hub."""

import hashlib
import re
from typing import Annotated, Any, Final, Literal, cast

from pydantic import AfterValidator, Discriminator, Field, Tag

from schemas.ids import FileId, WorkerId
from schemas.value import Value

_REPOSITORY: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}(/[A-Za-z0-9][A-Za-z0-9._-]{0,95})?")
_REVISION: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/+-]{0,127}")
MOST_NAME: Final = 255


def _repository(name: str) -> str:
    """What both hubs accept. Source: huggingface_hub, `validate_repo_id`."""
    if not _REPOSITORY.fullmatch(name) or "--" in name or ".." in name or name.endswith((".git", "-", ".")):
        raise ValueError("must be `name` or `organisation/name` of letters, digits, '-', '_' and '.'")
    return name


def _revision(revision: str) -> str:
    """A branch, a tag or a commit. What others propose (`refs/pr/1`) is none that its owner has published."""
    parts = revision.split("/")
    if not _REVISION.fullmatch(revision) or ".." in revision or "" in parts or parts[0] == "refs":
        raise ValueError("must be a branch, a tag or a commit of the repository")
    return revision


def _pattern(pattern: str) -> str:
    """A path in the repository; `*`, `?` and `[…]` stand for what a shell lets them stand for."""
    parts = pattern.split("/")
    if "\0" in pattern or "\\" in pattern or any(part in ("", ".", "..") for part in parts):
        raise ValueError("must be a path in the repository, without '..', backslashes and empty parts")
    return pattern


Repository = Annotated[str, AfterValidator(_repository)]
Revision = Annotated[str, AfterValidator(_revision)]
FilePattern = Annotated[str, Field(min_length=1, max_length=MOST_NAME), AfterValidator(_pattern)]


class LocalPath(Value):
    """Files that lie on a worker already."""

    type: Literal["local_path"] = "local_path"
    path: Annotated[str, Field(min_length=1, max_length=4096)]
    """Absolute: a `.gguf` (the first of its shards), or a directory with `*.safetensors` and `config.json`."""

    @property
    def label(self) -> str:
        return self.path


class Hub(Value):
    """A repository that a downloader fetches from, or takes from a neighbour that has fetched it."""

    repo_id: Repository
    filename: FilePattern | None = None
    """Which GGUF of the repository (`*Q4_K_M*.gguf`); None: the whole model."""

    @property
    def pattern(self) -> str:
        return "" if self.filename is None else f"/{self.filename}"


class HuggingFace(Hub):
    """A repository on huggingface.co, or on what `HF_ENDPOINT` names."""

    type: Literal["huggingface"] = "huggingface"
    revision: Revision = "main"
    """A branch or tag, which is pinned to the commit that it names when the model is looked at, or a commit."""

    @property
    def label(self) -> str:
        return f"huggingface:{self.repo_id}{self.pattern}@{self.revision}"


class ModelScope(Hub):
    """A repository on modelscope.cn, or on what `MODELSCOPE_ENDPOINT` names."""

    type: Literal["model_scope"] = "model_scope"
    revision: Revision = "master"
    """As of `HuggingFace`."""

    @property
    def label(self) -> str:
        return f"model_scope:{self.repo_id}{self.pattern}@{self.revision}"


HubSource = HuggingFace | ModelScope


def _type_of(source: Any) -> str | None:
    """A source that does not say is a path: all were, once."""
    found: Any = cast("dict[str, Any]", source).get("type", "local_path") if isinstance(source, dict) else source.type
    return found if isinstance(found, str) else None


Source = Annotated[
    Annotated[LocalPath, Tag("local_path")]
    | Annotated[HuggingFace, Tag("huggingface")]
    | Annotated[ModelScope, Tag("model_scope")],
    Discriminator(_type_of),
]


def file_id_of(source: Source, commit: str | None, worker_id: WorkerId) -> FileId:
    """One file resource for each source, commit and worker."""
    digest = hashlib.sha256("\0".join((source.model_dump_json(), commit or "", worker_id)).encode())
    return FileId("f-" + digest.hexdigest()[:20])

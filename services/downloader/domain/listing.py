"""What a hub lists of a repository as of one commit."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class RemoteFile:
    name: str
    """In the repository, with `/` between its parts."""
    size: int
    """Bytes."""
    sha256: str | None = None
    """In hex digits; hubs publish it of large files."""
    git_sha1: str | None = None
    """Of a small file: of `blob <size>`, a NUL and its content, as git names it."""


@dataclass(frozen=True, slots=True)
class Listing:
    commit: str
    files: tuple[RemoteFile, ...]
    by_name: Mapping[str, RemoteFile] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "by_name", {file.name: file for file in self.files})

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files)

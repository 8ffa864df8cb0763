"""What a worker has of a repository, or is to have: written beside the files, so that a restart knows it."""

import hashlib
from typing import Annotated, Final, Literal, Self

from pydantic import Field

from schemas.sources import HubSource, Source
from schemas.value import Bytes, Value
from services.downloader.domain.listing import Listing, RemoteFile
from services.downloader.domain.selection import Selection

VERSION: Final = 1


class ManifestFile(Value):
    name: str
    size: Bytes
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    """As the hub published it, or as it was found once the file was there."""
    git_sha1: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")] | None = None
    is_verified: bool = False
    """It is in its place, and was what it is to be."""

    @property
    def remote(self) -> RemoteFile:
        return RemoteFile(self.name, self.size, self.sha256, self.git_sha1)


class Manifest(Value):
    version: Literal[1] = VERSION
    source: Annotated[HubSource, Field(discriminator="type")]
    commit: str
    files: tuple[ManifestFile, ...]
    """What is small first, weights last."""
    weights: tuple[str, ...]
    model: str | None = None
    """The GGUF that an engine is given; None: `directory`."""
    directory: str = ""
    """In the repository."""
    is_listed: bool = False
    """As the hub listed it; else as a neighbour said."""
    boot: str | None = None
    """The machine's start in which what is verified was."""
    is_synced: bool = False
    """All of it is on the disk. Until then a machine that fails may lose some: what was there in another start is verified again."""

    @classmethod
    def of(cls, source: HubSource, listing: Listing, selection: Selection) -> Self:
        return cls(
            source=source,
            commit=listing.commit,
            files=tuple(
                ManifestFile(name=file.name, size=file.size, sha256=file.sha256, git_sha1=file.git_sha1)
                for file in selection.files
            ),
            weights=selection.weights,
            model=selection.model,
            directory=selection.directory,
            is_listed=True,
        )

    @property
    def key(self) -> str:
        """Tells what was chosen of one repository apart."""
        return key_of(self.source)

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files)

    @property
    def is_complete(self) -> bool:
        return all(file.is_verified for file in self.files)

    @property
    def digest(self) -> str:
        """Of names, sizes and SHA-256 of all files. Only where all are verified."""
        lines = sorted(f"{file.name}\0{file.size}\0{file.sha256}" for file in self.files)
        return "sha256:" + hashlib.sha256("\n".join(lines).encode()).hexdigest()

    def with_file(self, name: str, *, sha256: str | None, is_verified: bool, boot: str | None = None) -> Self:
        files = tuple(
            file.model_copy(update={"sha256": sha256 or file.sha256, "is_verified": is_verified})
            if file.name == name
            else file
            for file in self.files
        )
        return self.model_copy(update={"files": files, "boot": boot, "is_synced": False})


def key_of(source: Source) -> str:
    return hashlib.sha256(source.model_dump_json().encode()).hexdigest()[:20]

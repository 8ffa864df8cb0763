"""Models that lie on the worker's disk already: what they are and weigh, and whether they are complete.

Everything here blocks; it belongs in a thread. Only headers are read, never weights.
"""

import errno
import os
import stat
from collections.abc import Collection, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Final, Self

from schemas.asks import InspectModel, ModelInspection
from schemas.reasons import InspectionFailed, ModelFileInvalid, ModelNotFound, PathNotAllowed
from schemas.sources import LocalPath, Source
from services.downloader.domain.inspection import Kind, Lies, Unfit, inspect_together

_ABSENT: Final = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)
_KINDS: Final = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def inspect_model(question: InspectModel, allowed_roots: tuple[Path, ...]) -> ModelInspection:
    """The model with what is loaded beside it; the objections to all of them, where there are any.

    `allowed_roots`: directories that all of it must lie in, symbolic links followed; empty allows every path.
    """
    disk = Disk.under(allowed_roots)
    try:
        return inspect_together(
            _on(disk, question.source),
            [_on(disk, adapter) for adapter in question.adapters],
            None if question.draft is None else _on(disk, question.draft),
        )
    except Unfit as unfit:
        return ModelInspection(reasons=unfit.reasons)


def _on(disk: "Disk", source: Source) -> Lies:
    if not isinstance(source, LocalPath):
        raise Unfit(InspectionFailed(problem=f"{source.label} is no path of this worker"))
    return Lies(at=PurePosixPath(source.path), place=disk)


@dataclass(frozen=True, slots=True)
class Disk:
    """The files that the operator allows us to see; a `Place`."""

    roots: tuple[Path, ...]
    """Without symbolic links; none: everything."""

    @classmethod
    def under(cls, allowed_roots: tuple[Path, ...]) -> Self:
        return cls(tuple(Path(os.path.realpath(root)) for root in allowed_roots))

    def called(self, path: PurePosixPath) -> str:
        return str(path)

    def kind(self, path: PurePosixPath) -> Kind | None:
        if not path.is_absolute():
            raise _invalid(path, "the path is not absolute")
        if "\0" in str(path):
            raise Unfit(ModelNotFound(path=str(path)))
        try:
            mode = self._real(path).stat().st_mode
        except OSError as error:
            if error.errno in _ABSENT:
                return None
            raise
        return "directory" if stat.S_ISDIR(mode) else "file"

    @property
    def pickled(self) -> tuple[str, ...]:
        """None: of a path nobody says who made it."""
        return ()

    def names(self, directory: PurePosixPath) -> Iterator[str]:
        return (entry.name for entry in self._real(directory).iterdir())

    @contextmanager
    def open(self, path: PurePosixPath) -> Generator[tuple[BinaryIO, int], None, None]:
        """Opening a pipe or a device has effects, so only regular files ever are."""
        real = self._real(path)
        _require_regular(path, real.stat().st_mode)
        # What was looked at may have been replaced since: no link is followed, no pipe waited for.
        descriptor = os.open(real, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        with open(descriptor, "rb") as file:  # noqa: PTH123 - pathlib opens no descriptors
            found = os.fstat(descriptor)
            _require_regular(path, found.st_mode)
            yield file, found.st_size

    def size(self, path: PurePosixPath) -> int:
        found = self._real(path).stat()
        _require_regular(path, found.st_mode)
        return found.st_size

    def to_read(self, weights: Sequence[PurePosixPath]) -> Collection[PurePosixPath]:
        return weights

    def _real(self, path: PurePosixPath) -> Path:
        real = Path(os.path.realpath(path))
        if self.roots and not any(real.is_relative_to(root) for root in self.roots):
            raise Unfit(PathNotAllowed(path=str(path)))
        return real


def _require_regular(path: PurePosixPath, mode: int) -> None:
    if not stat.S_ISREG(mode):
        raise _invalid(path, f"it is {_KINDS.get(stat.S_IFMT(mode), 'no file')}")


def _invalid(path: PurePosixPath, problem: str) -> Unfit:
    return Unfit(ModelFileInvalid(path=str(path), problem=problem))

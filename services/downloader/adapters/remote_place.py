"""A hub's repository as a place where a model lies: it is looked at through ranged reads, before anything is downloaded.

The listing and the bytes are a stranger's. What is fetched is bounded, whatever they claim.
"""

import io
from collections.abc import Callable, Collection, Generator, Sequence
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, BinaryIO, Final

from schemas.reasons import ModelFileInvalid, ModelNotFound
from services.downloader.domain.inspection import Kind, Unfit, is_utf8
from services.downloader.domain.listing import Listing, RemoteFile

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

Read = Callable[[str, int, int], bytes]
"""Name in the repository, offset and length in bytes → exactly so many. Raises `OSError` when the hub fails."""

MOST_BYTES: Final = 64 * 2**20
MOST_HEADERS: Final = 8
FIRST_STEP: Final = 64 * 2**10
MOST_STEP: Final = 4 * 2**20
"""Bytes of the first answer and of the longest: most headers end within the first few, and each costs a round trip."""
_MOST_NAME: Final = 1024


class TooMuchToRead(Unfit):
    """More than the bound would have to be read."""


class RemotePlace:
    """A `Place`; its paths are relative to the repository's root, which is `.`. One inspection each: its bound is used up.

    `called`: the repository, in reasons. `most_bytes`: of all that is read. `most_headers`: of a model in more files, that
    many headers are read.
    """

    def __init__(
        self,
        listing: Listing,
        read: Read,
        *,
        called: str = "the repository",
        most_bytes: int = MOST_BYTES,
        most_headers: int = MOST_HEADERS,
        pickled: Collection[str] = (),
    ) -> None:
        self._called = called
        self.pickled = tuple(pickled)
        self._read = read
        self._most_bytes = self._bytes_left = most_bytes
        self._most_headers = most_headers
        self._files = {file.name: file for file in listing.files if is_path(file.name)}
        self._directories: dict[str, set[str]] = {".": set()}
        for name in self._files:
            self._enter(name)

    def _enter(self, name: str) -> None:
        """The directories that it lies in, up to one that is known."""
        known = False
        while not known:
            directory, _, last = name.rpartition("/")
            directory = directory or "."
            known = directory in self._directories
            self._directories.setdefault(directory, set()).add(last)
            name = directory

    def called(self, path: PurePosixPath) -> str:
        return self._called if str(path) == "." else f"{self._called}/{path}"

    def kind(self, path: PurePosixPath) -> Kind | None:
        if str(path) in self._files:
            return "file"
        return "directory" if str(path) in self._directories else None

    def names(self, directory: PurePosixPath) -> Collection[str]:
        return self._directories.get(str(directory), ())

    @contextmanager
    def open(self, path: PurePosixPath) -> Generator[tuple[BinaryIO, int], None, None]:
        file = self._file(path)
        with io.BufferedReader(_Ahead(file, self.take), FIRST_STEP) as reader:
            yield reader, file.size

    def size(self, path: PurePosixPath) -> int:
        return self._file(path).size

    def to_read(self, weights: Sequence[PurePosixPath]) -> Collection[PurePosixPath]:
        return weights[: self._most_headers]

    def take(self, file: RemoteFile, offset: int, length: int, needed: int) -> bytes:
        """So many bytes, or what is left of the bound. `needed`: with what follows at once, so many will be.

        Raises `TooMuchToRead`, and `OSError` when the hub fails.
        """
        if needed > self._bytes_left:
            problem = f"to look at it, more than {self._most_bytes} bytes of the repository would have to be read"
            raise TooMuchToRead(ModelFileInvalid(path=self.called(PurePosixPath(file.name)), problem=problem))
        length = min(length, self._bytes_left)
        self._bytes_left -= length
        answer = self._read(file.name, offset, length)
        if len(answer) != length:
            raise OSError(f"{len(answer)} bytes of {file.name} were answered where {length} were asked for")
        return answer

    def _file(self, path: PurePosixPath) -> RemoteFile:
        match self.kind(path):
            case "file":
                return self._files[str(path)]
            case "directory":
                raise Unfit(ModelFileInvalid(path=self.called(path), problem="it is a directory"))
            case None:
                raise Unfit(ModelNotFound(path=self.called(path)))


class _Ahead(io.RawIOBase):
    """Reads forward in steps that grow, and keeps what of the last one was not asked for yet."""

    def __init__(self, file: RemoteFile, take: Callable[[RemoteFile, int, int, int], bytes]) -> None:
        super().__init__()
        self._file = file
        self._take = take
        self._offset = 0
        self._step = FIRST_STEP
        self._ahead = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "WriteableBuffer", /) -> int:
        into = memoryview(buffer)
        if not self._ahead:
            self._ahead = memoryview(self._fetch(len(into)))
        length = min(len(into), len(self._ahead))
        into[:length] = self._ahead[:length]
        self._ahead = self._ahead[length:]
        return length

    def _fetch(self, asked: int) -> bytes:
        left = self._file.size - self._offset
        if left <= 0:
            return b""
        # Who asks for a buffer needs a byte of it at least. Who asks for more needs all of it, or hears so before any is read.
        needed = min(asked, left) if asked > FIRST_STEP else 1
        fetched = self._take(self._file, self._offset, min(max(asked, self._step), left, MOST_STEP), needed)
        self._offset += len(fetched)
        self._step = min(2 * self._step, MOST_STEP)
        return fetched


def is_path(name: str) -> bool:
    """Spelled as git does, in letters that a document can hold. No client writes a file of another name, so no engine sees it."""
    spelled = len(name) <= _MOST_NAME and "\0" not in name and not {"", ".", ".."} & set(name.split("/"))
    return spelled and is_utf8(name)

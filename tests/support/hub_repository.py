"""What a hub of the tests has: repositories, their commits, and what each commit lists."""

import hashlib
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Final

BLOCK_BYTES: Final = 1 << 18
LFS_SUFFIXES: Final = (".safetensors", ".gguf", ".bin", ".pt")
LFS_BYTES: Final = 10 << 20
REGULAR_FILE: Final = 0o100644
SYMBOLIC_LINK: Final = 0o120000
DIRECTORY: Final = 0o040000
SHORTEST_COMMIT: Final = 7


@dataclass(frozen=True)
class Part:
    """Bytes, or a stretch of a file on disk, which is never read into memory."""

    source: bytes | Path
    start: int
    stop: int

    @property
    def size(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class Content:
    parts: tuple[Part, ...] = ()

    @classmethod
    def of(cls, source: bytes | Path) -> "Content":
        size = len(source) if isinstance(source, bytes) else source.stat().st_size
        return cls((Part(source, 0, size),))

    @cached_property
    def size(self) -> int:
        return sum(part.size for part in self.parts)

    def part(self, start: int, stop: int) -> "Content":
        """From byte `start` to before byte `stop`; less where there is less."""
        found: list[Part] = []
        begin = 0
        for part in self.parts:
            first, last = max(start - begin, 0), min(stop - begin, part.size)
            if first < last:
                found.append(Part(part.source, part.start + first, part.start + last))
            begin += part.size
        return Content(tuple(found))

    def blocks(self, block_bytes: int = BLOCK_BYTES) -> Iterator[bytes]:
        for part in self.parts:
            if isinstance(part.source, bytes):
                for at in range(part.start, part.stop, block_bytes):
                    yield part.source[at : min(at + block_bytes, part.stop)]
            else:
                with part.source.open("rb") as file:
                    file.seek(part.start)
                    left = part.size
                    while left and (block := file.read(min(block_bytes, left))):
                        yield block
                        left -= len(block)

    def with_flipped(self, at: int, count: int = 16) -> "Content":
        """The same size; each bit of `count` bytes from `at` on is another."""
        flipped = bytes(byte ^ 0xFF for block in self.part(at, at + count).blocks() for byte in block)
        changed = (Part(flipped, 0, len(flipped)),)
        return Content(self.part(0, at).parts + changed + self.part(at + count, self.size).parts)


@dataclass(frozen=True)
class Hashes:
    sha256: str
    git_sha1: str


def hashes_of(source: bytes | Path) -> Hashes:
    if isinstance(source, bytes):
        return _hashes(Content.of(source))
    status = source.stat()
    return _hashes_of_file(source, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=4096)
def _hashes_of_file(source: Path, size: int, _changed_ns: int) -> Hashes:
    return _hashes(Content((Part(source, 0, size),)))


def _hashes(content: Content) -> Hashes:
    sha256 = hashlib.sha256()
    git_sha1 = hashlib.sha1(f"blob {content.size}\0".encode())
    for block in content.blocks(1 << 20):
        sha256.update(block)
        git_sha1.update(block)
    return Hashes(sha256.hexdigest(), git_sha1.hexdigest())


@dataclass(frozen=True)
class Listed:
    """One line of a listing, true or lying; `blob_id` is git's SHA-1, of the pointer where the file is in LFS."""

    path: str
    size: int
    sha256: str
    blob_id: str
    in_lfs: bool
    content: Content
    pointer_size: int = 0
    mode: int = REGULAR_FILE
    changed_in: str = ""
    """The commit that changed the file last; the listing's own where empty."""

    @property
    def is_directory(self) -> bool:
        return self.mode == DIRECTORY

    @property
    def parent(self) -> str:
        return self.path.rpartition("/")[0]


def listed(
    path: str,
    source: bytes | Path = b"",
    *,
    size: int | None = None,
    sha256: str | None = None,
    blob_id: str | None = None,
    in_lfs: bool | None = None,
    mode: int = REGULAR_FILE,
) -> Listed:
    """What is true of `source`, but for what is given."""
    hashes = hashes_of(source)
    content = Content.of(source)
    if in_lfs is None:
        in_lfs = path.endswith(LFS_SUFFIXES) or content.size >= LFS_BYTES
    told_size = content.size if size is None else size
    told_sha256 = hashes.sha256 if sha256 is None else sha256
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{told_sha256}\nsize {told_size}\n".encode()
    true_id = _hashes(Content.of(pointer)).git_sha1 if in_lfs else hashes.git_sha1
    return Listed(
        path=path,
        size=told_size,
        sha256=told_sha256,
        blob_id=true_id if blob_id is None else blob_id,
        in_lfs=in_lfs,
        content=content,
        pointer_size=len(pointer) if in_lfs else 0,
        mode=mode,
    )


def directory(path: str) -> Listed:
    oid = hashlib.sha1(f"tree {path}".encode("utf-8", "surrogatepass")).hexdigest()
    return Listed(path, 0, "", oid, in_lfs=False, content=Content(), mode=DIRECTORY)


@dataclass(frozen=True)
class Commit:
    id: str
    entries: tuple[Listed, ...]
    at: float = field(default_factory=time.time)

    @cached_property
    def by_path(self) -> Mapping[str, Listed]:
        return {entry.path: entry for entry in self.entries}

    @cached_property
    def files(self) -> tuple[Listed, ...]:
        return tuple(entry for entry in self.entries if not entry.is_directory)

    def below(self, path: str, *, recursive: bool) -> Sequence[Listed]:
        if not path and recursive:
            return self.entries
        if recursive:
            return [entry for entry in self.entries if entry.path.startswith(path + "/")]
        return [entry for entry in self.entries if entry.parent == path]


@dataclass
class Repository:
    name: str
    """With its organisation: `org/name`."""
    default_branch: str = "main"
    gated: str | None = None
    """`auto` or `manual`: everybody sees the listing, few may read the files."""
    private: bool = False
    branches: dict[str, str] = field(default_factory=dict[str, str])
    tags: dict[str, str] = field(default_factory=dict[str, str])
    commits: dict[str, Commit] = field(default_factory=dict[str, Commit])

    def put(self, entries: Iterable[Listed], branch: str) -> Commit:
        """The same entries are the same commit."""
        told = tuple(entries)
        digest = hashlib.sha1(self.name.encode())
        for entry in told:
            line = f"{entry.path}\0{entry.size}\0{entry.blob_id}\0{entry.sha256}\0{entry.mode}\n"
            digest.update(line.encode("utf-8", "surrogatepass"))
        commit_id = digest.hexdigest()
        before = self.commits[self.branches[branch]].by_path if branch in self.branches else {}
        commit = Commit(commit_id, tuple(_with_last_change(entry, before.get(entry.path), commit_id) for entry in told))
        self.commits.setdefault(commit_id, commit)
        self.branches[branch] = commit_id
        return self.commits[commit_id]

    def find(self, revision: str) -> Commit | None:
        """By branch, tag, or commit, whole or shortened."""
        known = self.branches.get(revision) or self.tags.get(revision)
        if known is None and re.fullmatch(rf"[0-9a-f]{{{SHORTEST_COMMIT},40}}", revision):
            known = next((commit for commit in self.commits if commit.startswith(revision)), None)
        return None if known is None else self.commits[known]


def _with_last_change(entry: Listed, before: Listed | None, commit_id: str) -> Listed:
    same = before is not None and before.blob_id == entry.blob_id
    return replace(entry, changed_in=before.changed_in if before is not None and same else commit_id)


def tree_of(files: Mapping[str, bytes | Path]) -> list[Listed]:
    """The files and the directories above them, as git orders them."""
    entries = [listed(path, source) for path, source in files.items()]
    directories = {path[:at] for path in files for at in _slashes(path)}
    return sorted([*entries, *map(directory, directories)], key=lambda entry: entry.path)


def _slashes(path: str) -> Iterator[int]:
    return (match.start() for match in re.finditer("/", path))


def files_below(root: Path) -> dict[str, Path]:
    return {path.relative_to(root).as_posix(): path for path in sorted(root.rglob("*")) if path.is_file()}


@dataclass
class Repositories:
    by_name: dict[str, Repository] = field(default_factory=dict[str, Repository])
    tokens: dict[str, set[str]] = field(default_factory=dict[str, set[str]])
    """Which gated and private repositories each valid token may read."""

    def of(self, name: str) -> Repository:
        return self.by_name.setdefault(name, Repository(name))

    def may_read(self, token: str | None, name: str) -> bool:
        repository = self.by_name[name]
        restricted = repository.private or repository.gated is not None
        return not restricted or (token is not None and name in self.tokens.get(token, set()))

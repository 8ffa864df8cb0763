"""The store: where model files lie on a worker, so that a person finds them. Blocks; it belongs in a thread.

    <cache>/huggingface/Qwen/Qwen3-8B/<commit>/model-00001-of-00005.safetensors     what engines are given
    <cache>/huggingface/Qwen/Qwen3-8B/<commit>/.muster/                             what we know of it, and what is on its way

Every path is walked from a descriptor of the store, a name at a time, and no symbolic link is followed: whatever a name says, it
leads to nothing outside.
"""

import contextlib
import errno
import hashlib
import os
import secrets
import stat
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from schemas.sources import HubSource
from services.downloader.adapters.parts import DIRECTORY, Expected, Part, discard
from services.downloader.domain.manifest import Manifest, key_of
from services.downloader.domain.names import OURS

MANIFEST_SUFFIX: Final = ".json"
HOLD_SUFFIX: Final = ".holds"
LEASE: Final = "lease"
MOST_DEPTH: Final = 3
"""Of organisation, name and commit."""
MOST_MANIFEST_BYTES: Final = 32 << 20
_GONE: Final = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
_READ: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_NEW: Final = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
MOST_OF_GIT: Final = 64 << 20
"""Larger files are never told by git's digest."""
LEASE_BYTES: Final = 256
"""It is renewed in place, so it is always as long: on a disk that is full, that works."""


@dataclass(frozen=True, slots=True)
class Space:
    free_bytes: int
    total_bytes: int


class Store:
    def __init__(self, root: Path, holder: str | None = None) -> None:
        """`holder`: the worker, where several share the store."""
        self._holder = holder
        self.root = root.absolute()
        self.root.mkdir(parents=True, exist_ok=True)
        self.changing = threading.RLock()
        """Held by who removes a repository's files, and by who notes some: a directory does not vanish below its user."""

    def space(self) -> Space:
        found = os.statvfs(self.root)
        return Space(found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize)

    @contextmanager
    def home(self, source: HubSource, commit: str, *, create: bool = False) -> Generator["Home", None, None]:
        """Of one commit of a repository. Raises FileNotFoundError where there is none, OSError."""
        parts = home_parts(source, commit)
        with (
            self._open() as root,
            descended(root, parts, create=create) as directory,
            descended(directory, (OURS,), create=create) as ours,
        ):
            yield Home(self.root.joinpath(*parts), directory, ours)

    def manifests(self) -> Iterator[tuple[Manifest, float]]:
        """All that is here, whole or not, and when it was used last (seconds since the epoch)."""
        for kind in ("huggingface", "model_scope"):
            top = self.root / kind
            for directory, names, _ in os.walk(top, followlinks=False):
                is_home = OURS in names
                if is_home:
                    yield from self._manifests_in(Path(directory))
                if is_home or len(Path(directory).relative_to(top).parts) >= MOST_DEPTH:
                    names.clear()

    def _manifests_in(self, home: Path) -> Iterator[tuple[Manifest, float]]:
        parts = home.relative_to(self.root).parts
        with contextlib.suppress(OSError), self._open() as root, descended(root, (*parts, OURS)) as ours:
            for manifest, at in list(_manifests(ours)):
                if home_parts(manifest.source, manifest.commit) == parts:  # else somebody has put it there
                    yield manifest, at

    def remove(self, source: HubSource, commit: str | None) -> None:
        """What was chosen of the repository, without what others chose too; None: as of all commits. Not being there is
        fine. Of a store that is shared, what another worker has stays. Raises OSError.
        """
        if commit is None:
            for commit in {each.commit for each, _ in self.manifests() if each.source == source}:  # noqa: PLR1704 - each of them
                self.remove(source, commit)
            return
        with self.changing:
            try:
                with self.home(source, commit) as home:
                    if self._is_needed_by_others(home, key_of(source)):
                        return
                    home.remove(key_of(source))
            except FileNotFoundError:
                return
            self._prune(home_parts(source, commit))

    def freed_by(self, manifest: Manifest) -> int:
        """Bytes of the disk that its removal would give back."""
        try:
            with self.home(manifest.source, manifest.commit) as home:
                others = home.holders(manifest.key) - {self._holder} if self._holder is not None else ()
                return 0 if others else home.freed_by(manifest.key)
        except OSError:
            return 0

    def use(self, source: HubSource, commit: str) -> None:
        """It is used now: what was used last is removed last. In a store that is shared, it is noted by whom."""
        with self.home(source, commit) as home:
            home.use(source)
            if self._holder is not None:
                home.hold(key_of(source), self._holder)

    def _is_needed_by_others(self, home: "Home", key: str) -> bool:
        if self._holder is None:
            return False
        home.let_go(key, self._holder)
        return bool(home.holders(key))

    def _prune(self, parts: Sequence[str]) -> None:
        """Directories that hold nothing any more."""
        for depth in range(len(parts), 0, -1):
            with contextlib.suppress(OSError), self._open() as root, descended(root, parts[: depth - 1]) as parent:
                os.rmdir(parts[depth - 1], dir_fd=parent)

    @contextmanager
    def _open(self) -> Generator[int, None, None]:
        descriptor = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            yield descriptor
        finally:
            os.close(descriptor)


class Home:
    """`directory`, `ours`: open descriptors, of whoever made it."""

    def __init__(self, path: Path, directory: int, ours: int) -> None:
        self.path = path
        self.directory = directory
        self.ours = ours

    # -- what is known

    def manifest(self, source: HubSource) -> Manifest | None:
        found = _read_manifest(self.ours, key_of(source) + MANIFEST_SUFFIX)
        return found if found is not None and found.source == source else None

    def write_manifest(self, manifest: Manifest) -> None:
        """Whole, or not at all."""
        name = manifest.key + MANIFEST_SUFFIX
        temporary = f"{name}.{secrets.token_hex(4)}.new"  # another worker may write one at the same moment
        descriptor = os.open(temporary, _NEW, 0o644, dir_fd=self.ours)
        try:
            try:
                _write_all(descriptor, manifest.model_dump_json().encode())
                if manifest.is_synced:
                    os.fsync(descriptor)
            finally:
                os.close(descriptor)
            os.rename(temporary, name, src_dir_fd=self.ours, dst_dir_fd=self.ours)
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(temporary, dir_fd=self.ours)
            raise

    def use(self, source: HubSource) -> None:
        """It is used now: what was used last is removed last."""
        with contextlib.suppress(OSError):
            os.utime(key_of(source) + MANIFEST_SUFFIX, dir_fd=self.ours, follow_symlinks=False)

    def hold(self, key: str, holder: str) -> None:
        """A worker has these files, of several that share the store."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        os.close(os.open(f"{key}.{holder}{HOLD_SUFFIX}", flags, 0o644, dir_fd=self.ours))

    def let_go(self, key: str, holder: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{key}.{holder}{HOLD_SUFFIX}", dir_fd=self.ours)

    def holders(self, key: str) -> set[str]:
        return {
            name.removeprefix(f"{key}.").removesuffix(HOLD_SUFFIX)
            for name in _names_in(self.ours)
            if name.startswith(f"{key}.") and name.endswith(HOLD_SUFFIX)
        }

    # -- files

    def size_of(self, name: str) -> int | None:
        """None: there is no such regular file."""
        try:
            with self.open(name) as descriptor:
                return os.fstat(descriptor).st_size
        except OSError as error:
            if error.errno in _GONE:
                return None
            raise

    @contextmanager
    def open(self, name: str) -> Generator[int, None, None]:
        """To read. Raises OSError (ENOENT also for what is no regular file)."""
        *parents, last = name.split("/")
        with descended(self.directory, parents) as parent:
            descriptor = os.open(last, _READ, dir_fd=parent)
            try:
                if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                    raise FileNotFoundError(errno.ENOENT, "no regular file", name)
                yield descriptor
            finally:
                os.close(descriptor)

    def digests(self, name: str, stopped: Callable[[], bool] = lambda: False) -> tuple[str, str]:
        """SHA-256, and git's SHA-1. Raises OSError (EINTR when it was stopped)."""
        with self.open(name) as descriptor:
            sha256 = hashlib.sha256()
            git = hashlib.sha1(b"blob %d\0" % os.fstat(descriptor).st_size, usedforsecurity=False)
            is_small = os.fstat(descriptor).st_size <= MOST_OF_GIT
            buffer = bytearray(1 << 20)
            while count := os.readv(descriptor, [buffer]):
                if stopped():
                    raise InterruptedError(errno.EINTR, "it was not wanted any more", name)
                sha256.update(memoryview(buffer)[:count])
                if is_small:
                    git.update(memoryview(buffer)[:count])
        return sha256.hexdigest(), git.hexdigest() if is_small else ""

    def open_part(self, name: str, expected: Expected, boot: str) -> Part:
        """What is there of it already counts. Raises OSError."""
        return Part.open(self.ours, part_name(name), expected, boot)

    def settle(self, name: str) -> None:
        """A part that is complete becomes the file."""
        *parents, last = name.split("/")
        with descended(self.directory, parents, create=True) as parent:
            os.rename(f"{part_name(name)}.part", last, src_dir_fd=self.ours, dst_dir_fd=parent)
        discard(self.ours, part_name(name))

    def drop_part(self, name: str) -> None:
        discard(self.ours, part_name(name))

    def part_bytes(self, names: Iterable[str]) -> int:
        """What the parts of these files take on the disk already."""
        return sum(self._blocks_of(self.ours, f"{part_name(name)}.part") for name in names)

    def _blocks_of(self, directory: int, name: str) -> int:
        try:
            return os.stat(name, dir_fd=directory, follow_symlinks=False).st_blocks * 512
        except OSError:
            return 0

    def freed_by(self, key: str) -> int:
        """Bytes of the disk that `remove` would give back."""
        mine = _read_manifest(self.ours, key + MANIFEST_SUFFIX)
        others = self._others(key)
        found = 0
        for file in mine.files if mine is not None else ():
            if file.name not in others:
                *parents, last = file.name.split("/")
                with contextlib.suppress(OSError), descended(self.directory, parents) as parent:
                    found += self._blocks_of(parent, last)
                found += self.part_bytes([file.name])
        return found

    def _others(self, key: str) -> set[str]:
        """Files of what else was chosen."""
        return {file.name for other, _ in _manifests(self.ours) if other.key != key for file in other.files}

    def sync(self, names: Iterable[str]) -> None:
        """Bring them to the disk, with the directories that name them."""
        for name in names:
            with self.open(name) as descriptor:
                os.fsync(descriptor)
            *parents, _ = name.split("/")
            with descended(self.directory, parents) as parent:
                os.fsync(parent)

    def remove(self, key: str) -> None:
        mine = _read_manifest(self.ours, key + MANIFEST_SUFFIX)
        others = self._others(key)
        if mine is None and not others and self._is_named(key):  # it can't be read any more: all of it was its
            _remove_below(self.directory, keeping=OURS)
        for file in mine.files if mine is not None else ():
            if file.name in others:
                continue
            discard(self.ours, part_name(file.name))
            self._unlink(file.name)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(key + MANIFEST_SUFFIX, dir_fd=self.ours)
        if not others:
            _remove_below(self.ours)
            with contextlib.suppress(OSError):
                os.rmdir(OURS, dir_fd=self.directory)

    def _is_named(self, key: str) -> bool:
        try:
            os.stat(key + MANIFEST_SUFFIX, dir_fd=self.ours, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True

    def _unlink(self, name: str) -> None:
        """With the directories that held nothing else."""
        *parents, last = name.split("/")
        try:
            with descended(self.directory, parents) as parent:
                os.unlink(last, dir_fd=parent)
        except OSError as error:
            if error.errno not in (*_GONE, errno.EISDIR, errno.EPERM):
                raise
        for depth in range(len(parents), 0, -1):
            with contextlib.suppress(OSError), descended(self.directory, parents[: depth - 1]) as parent:
                os.rmdir(parents[depth - 1], dir_fd=parent)


@contextmanager
def descended(directory: int, parts: Sequence[str], *, create: bool = False) -> Generator[int, None, None]:
    """A descriptor of a directory below. Raises OSError: ELOOP or ENOTDIR where a symbolic link stands in the way."""
    current = os.dup(directory)
    try:
        for part in parts:
            if part in ("", ".", "..") or "/" in part:
                raise OSError(errno.EINVAL, "no name of a file", part)
            if create:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(part, 0o755, dir_fd=current)
            below = os.open(part, DIRECTORY, dir_fd=current)
            os.close(current)
            current = below
        yield current
    finally:
        os.close(current)


def _remove_below(directory: int, keeping: str = "") -> None:
    """All that is in there. A symbolic link is removed, and not followed. Raises OSError."""
    for name in _names_in(directory):
        if name == keeping:
            continue
        try:
            os.unlink(name, dir_fd=directory)
        except FileNotFoundError:
            continue
        except (IsADirectoryError, PermissionError):
            with descended(directory, (name,)) as below:
                _remove_below(below)
            os.rmdir(name, dir_fd=directory)


def _write_all(descriptor: int, content: bytes) -> None:
    """A disk that becomes full takes some of it, and says so only when it is given the rest."""
    done = 0
    while done < len(content):
        done += os.write(descriptor, content[done:])


def home_parts(source: HubSource, commit: str) -> tuple[str, ...]:
    return (source.type, *source.repo_id.split("/"), commit)


def _names_in(directory: int) -> list[str]:
    with os.scandir(directory) as entries:
        return [entry.name for entry in entries]


def part_name(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:32]


def _manifests(ours: int) -> Iterator[tuple[Manifest, float]]:
    for name in sorted(_names_in(ours)):
        if name.endswith(MANIFEST_SUFFIX):
            manifest = _read_manifest(ours, name)
            if manifest is not None:
                yield manifest, os.stat(name, dir_fd=ours, follow_symlinks=False).st_mtime


def _read_manifest(ours: int, name: str) -> Manifest | None:
    """None: there is none, or it is of another version, or damaged: then the files are looked at anew."""
    try:
        descriptor = os.open(name, _READ, dir_fd=ours)
    except OSError:
        return None
    try:
        content = b""
        while len(content) <= MOST_MANIFEST_BYTES and (piece := os.read(descriptor, 1 << 20)):
            content += piece
        return Manifest.model_validate_json(content)
    except (OSError, ValidationError):
        return None
    finally:
        os.close(descriptor)


class Lease:
    """Who fetches into a store that several workers share. It is kept by renewing it, and not by a clock: machines' clocks differ.

    Whoever finds one that does not change for `seconds`, on its own clock, takes it over: its holder is gone.
    """

    def __init__(self, home: Home, holder: str, seconds: float = 20.0) -> None:
        self._home = home
        self._holder = holder
        self._seconds = seconds
        self._counter = 0
        self._seen: bytes | None = None
        self._seen_at = 0.0

    def take(self) -> bool:
        """Ours from now on; False: it is somebody else's. Ask again from time to time. Raises OSError."""
        found = self._read(LEASE)
        if found is None:
            return self._write_new()
        if self._is_ours(found):
            return self.renew()
        now = time.monotonic()
        if found != self._seen:
            self._seen, self._seen_at = found, now
            return False
        if now - self._seen_at < self._seconds:
            return False
        return self._take_away(found) and self._write_new()

    def renew(self) -> bool:
        """False: it is somebody else's by now. Raises OSError."""
        try:
            descriptor = os.open(
                LEASE, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=self._home.ours
            )
        except FileNotFoundError:
            return False
        try:
            if not self._is_ours(os.pread(descriptor, LEASE_BYTES, 0)):
                return False
            os.pwrite(descriptor, self._said(), 0)
            os.fsync(descriptor)  # others see it on their machines
        finally:
            os.close(descriptor)
        return True

    def give_back(self) -> None:
        found = self._read(LEASE)
        if found is not None and self._is_ours(found):
            self._take_away(None)

    def _take_away(self, stale: bytes | None) -> bool:
        """`stale`: as we found it; None: it is ours. False: another one was there by now, or it was renewed after all."""
        aside = f"{LEASE}.{secrets.token_hex(8)}.old"
        try:  # one of several that want it succeeds
            os.rename(LEASE, aside, src_dir_fd=self._home.ours, dst_dir_fd=self._home.ours)
        except FileNotFoundError:
            return False
        found = self._read(aside)
        is_it = found is not None and (self._is_ours(found) if stale is None else found == stale)
        if not is_it:
            with contextlib.suppress(FileExistsError):
                os.link(aside, LEASE, src_dir_fd=self._home.ours, dst_dir_fd=self._home.ours)
        os.unlink(aside, dir_fd=self._home.ours)
        return is_it

    def _write_new(self) -> bool:
        temporary = f"{LEASE}.{secrets.token_hex(8)}.new"
        descriptor = os.open(temporary, _NEW, 0o644, dir_fd=self._home.ours)
        try:
            try:
                _write_all(descriptor, self._said())
            finally:
                os.close(descriptor)
            # a link is made by one alone, also on NFS
            os.link(temporary, LEASE, src_dir_fd=self._home.ours, dst_dir_fd=self._home.ours)
        except FileExistsError:
            return False
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary, dir_fd=self._home.ours)
        return True

    def _said(self) -> bytes:
        self._counter += 1
        return f"{self._holder} {self._counter} {time.time_ns()}".encode().ljust(LEASE_BYTES)

    def _is_ours(self, said: bytes) -> bool:
        return said.partition(b" ")[0].decode("utf-8", "replace") == self._holder

    def _read(self, name: str) -> bytes | None:
        try:
            descriptor = os.open(name, _READ, dir_fd=self._home.ours)
        except FileNotFoundError:
            return None
        try:
            return os.read(descriptor, LEASE_BYTES)
        finally:
            os.close(descriptor)

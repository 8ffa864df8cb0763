"""A file on its way: preallocated, written in place, with a journal beside it of which blocks are there.

Killed at any moment, we go on with what the journal says: a block is noted after the operating system has it. That outlives us
but not the machine, so blocks are noted again once they are on the disk, and after a restart of the machine only those count.
"""

import ctypes
import errno
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import orjson

from services.downloader.domain.blocks import MISSING, SYNCED, WRITTEN, Blocks, Span, block_bytes_of

HEADER_BYTES: Final = 512
VERSION: Final = 1
SYNC_BYTES: Final = 1 << 30
"""So many bytes are written before they are brought to the disk: what a machine that fails may have to fetch again."""
DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW
_FILE: Final = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_NO_FALLOCATE: Final = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


def boot_id() -> str:
    """Of this start of the machine."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


@dataclass(frozen=True, slots=True)
class Expected:
    """What a part is to become: a journal about anything else is worth nothing."""

    size: int
    digest: str
    """`sha256:…`, `git-sha1:…`; where the hub publishes none, what names the version."""


class Part:
    """Threads share it. `directory`: a descriptor of where it lies; `name` stays in there."""

    def __init__(self, directory: int, name: str, expected: Expected, file: int, journal: int, blocks: Blocks) -> None:
        self._directory = directory
        self.name = name
        self.expected = expected
        self.file = file
        self._journal = journal
        self._blocks = blocks
        self._lock = threading.Lock()
        self.grown = threading.Condition(self._lock)
        """Told when more bytes from the beginning are there, or nothing more will be."""
        self.can_splice = True
        """The kernel may write into it from a pipe; found out by trying."""
        self.writing = threading.Lock()
        """Held by who writes: of several that write to one file at once, the kernel lets all but one burn a processor."""
        self._unsynced = 0
        self._syncing = threading.Lock()
        self._syncer: threading.Thread | None = None
        self._trouble: OSError | None = None
        """What the disk said when we brought something to it. It says so once, and then as if nothing had been."""

    @classmethod
    def open(cls, directory: int, name: str, expected: Expected, boot: str) -> Self:
        """What is there of it already counts. Raises OSError (ENOSPC before anything was written, and then nothing is kept)."""
        file = os.open(f"{name}.part", _FILE, 0o644, dir_fd=directory)
        journal = -1
        begins = True
        try:
            begins = os.fstat(file).st_size != expected.size
            journal = os.open(f"{name}.journal", _FILE, 0o644, dir_fd=directory)
            blocks = None if begins else _read(journal, expected, boot)
            if blocks is None:
                begins = True
                os.ftruncate(journal, 0)
                os.ftruncate(file, 0)
                allocate(file, expected.size)
                blocks = Blocks(expected.size, block_bytes_of(expected.size))
            _begin(journal, expected, boot, blocks)
        except BaseException:
            os.close(file)
            if journal >= 0:
                os.close(journal)
            if begins:  # else it is worth something, whatever went wrong now
                discard(directory, name)
            raise
        return cls(directory, name, expected, file, journal, blocks)

    def close(self) -> None:
        """When nobody writes any more. What is on its way to the disk is waited for."""
        if self._syncer is not None:
            self._syncer.join()
        os.close(self.file)
        os.close(self._journal)

    def discard(self) -> None:
        """Give its space back. It is still to be closed."""
        discard(self._directory, self.name)

    @property
    def block_bytes(self) -> int:
        return self._blocks.block_bytes

    @property
    def missing_bytes(self) -> int:
        return self._blocks.missing_bytes

    @property
    def is_complete(self) -> bool:
        return self._blocks.is_complete

    @property
    def contiguous(self) -> int:
        return self._blocks.contiguous

    def take(self, most_bytes: int) -> Span | None:
        with self._lock:
            return self._blocks.take(most_bytes)

    def give_back(self, span: Span) -> None:
        with self._lock:
            self._blocks.give_back(span)
            self.grown.notify_all()

    def filled(self, span: Span, count: int) -> None:
        """So many bytes were written at `span.position`. Raises OSError."""
        with self._lock:
            self._raise_trouble()
            before = self._blocks.contiguous
            first, last = self._blocks.fill(span, count)
            if first < last:
                os.pwrite(self._journal, bytes(self._blocks.there[first:last]), HEADER_BYTES + first)
            if self._blocks.contiguous != before:
                self.grown.notify_all()
            self._unsynced += count
            if self._unsynced >= SYNC_BYTES and (self._syncer is None or not self._syncer.is_alive()):
                self._unsynced = 0
                self._syncer = threading.Thread(target=self._sync, name=f"sync {self.name}", daemon=True)
                self._syncer.start()

    def wait_until(self, arrived: Callable[[], bool], seconds: float) -> bool:
        with self.grown:
            return self.grown.wait_for(arrived, seconds)

    def start_over(self) -> None:
        """Nothing of it counts any more."""
        with self._lock:
            self._blocks = Blocks(self.expected.size, self._blocks.block_bytes)
            os.pwrite(self._journal, bytes(self._blocks.there), HEADER_BYTES)

    def sync(self) -> None:
        """Returns when all that was written is on the disk. Raises OSError, also where it was told to nobody before."""
        with self._syncing:
            with self._lock:
                self._raise_trouble()
                blocks, there = self._blocks, bytes(self._blocks.there)
            try:
                os.fdatasync(self.file)
                with self._lock:
                    if blocks is not self._blocks:  # it was started over: those bytes count no more
                        return
                    blocks.synced(there)
                    os.pwrite(self._journal, bytes(blocks.there), HEADER_BYTES)
                os.fdatasync(self._journal)
            except OSError as error:
                self._trouble = error
                raise

    def _sync(self) -> None:
        with suppress(OSError):  # whoever writes next is told
            self.sync()

    def _raise_trouble(self) -> None:
        if self._trouble is not None:
            raise OSError(*self._trouble.args) from self._trouble


def discard(directory: int, name: str) -> None:
    for suffix in (".part", ".journal"):
        try:
            os.unlink(name + suffix, dir_fd=directory)
        except FileNotFoundError:
            continue


def allocate(file: int, size: int) -> None:
    """Take the space now, and not when the disk is full. Where a file system can't, only the size is set. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    while size and libc.fallocate(file, 0, ctypes.c_longlong(0), ctypes.c_longlong(size)) != 0:
        number = ctypes.get_errno()
        if number in _NO_FALLOCATE:
            break
        if number != errno.EINTR:
            raise OSError(number, os.strerror(number))
    os.ftruncate(file, size)


def _begin(journal: int, expected: Expected, boot: str, blocks: Blocks) -> None:
    header = orjson.dumps(
        {
            "version": VERSION,
            "size": expected.size,
            "digest": expected.digest,
            "block_bytes": blocks.block_bytes,
            "boot": boot,
        }
    )
    os.pwrite(
        journal, bytes(blocks.there), HEADER_BYTES
    )  # first: the header says that they are of this start of the machine
    os.ftruncate(journal, HEADER_BYTES + len(blocks.there))
    os.pwrite(journal, header.ljust(HEADER_BYTES), 0)


def _read(journal: int, expected: Expected, boot: str) -> Blocks | None:
    """What the journal says; None: it is about something else, or damaged."""
    try:
        header = orjson.loads(os.pread(journal, HEADER_BYTES, 0))
        block_bytes = block_bytes_of(expected.size)
        said = (header["version"], header["size"], header["digest"], header["block_bytes"])
        if said != (VERSION, expected.size, expected.digest, block_bytes):
            return None
        there = bytearray(os.pread(journal, os.fstat(journal).st_size - HEADER_BYTES, HEADER_BYTES))
        if header["boot"] != boot:
            there = there.translate(bytes([MISSING, MISSING, SYNCED, *(MISSING,) * 253]))
        if not set(there) <= {MISSING, WRITTEN, SYNCED}:
            return None
        return Blocks(expected.size, block_bytes, there)
    except (ValueError, KeyError, TypeError, OSError):
        return None

"""One file from wherever it is: by several connections at once, hashed behind them. Blocks; it belongs in a thread."""

import errno
import hashlib
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Protocol

from schemas.reasons import (
    ChecksumMismatch,
    DiskError,
    DiskFull,
    DownloadStalled,
    HubError,
    HubUnauthorized,
    ModelFilesIncomplete,
    Reason,
)
from services.downloader.adapters.http_ranges import Interrupted, Location, Ranges, Rate
from services.downloader.adapters.parts import Part
from services.downloader.domain.answers import MOST_WAIT_SECONDS, Asked, NoRanges, NotFetched
from services.downloader.domain.blocks import KIB, MIB, Span, span_bytes
from services.downloader.domain.listing import RemoteFile

HASHED_AT_ONCE: Final = 256 * KIB
BEHIND: Final = 8 * MIB
"""What is hashed keeps so far behind what is written: whoever looks after each chunk is in the way of those who write."""
LOOK_SECONDS: Final = 0.2
"""Between two looks whether it is to stop."""
BYTES_OF_A_CONNECTION: Final = 16 * MIB
"""A smaller file gets fewer connections than it may have."""
NICE: Final = 5
"""Of the connections' threads: engines come first, and so does what hashes what has come."""
MOST_WHOLE: Final = 3
"""Times that a file is asked for as a whole, where no part of it can be had."""
_FULL: Final = (errno.ENOSPC, errno.EDQUOT)
_EXPIRED: Final = (HubUnauthorized, ModelFilesIncomplete, HubError)
"""What the address that a hub redirects to says when it has become too old."""


@dataclass(frozen=True, slots=True)
class Patience:
    stall_seconds: float = 60.0
    """Without a byte for so long, the file is given up."""
    idle_seconds: float = 20.0
    """… and a connection is made anew."""
    first_wait_seconds: float = 0.5
    longest_wait_seconds: float = 15.0


class Line(Protocol):
    """What one thread fetches by: `Ranges`, or what does the same over the bus."""

    said: str

    def fetch(self, at: Location, asked: Asked, span: Span, part: Part, stopped: Callable[[], bool]) -> Location: ...

    def close(self) -> None: ...

    def interrupt(self) -> None: ...


class Stopped(Exception):
    """It was not wanted any more."""


class Stalled(NotFetched):
    """Nothing came for too long."""


class Fetch:
    """`locate` tells where the file is, now. `verify=False` is for measuring what it costs."""

    def __init__(
        self,
        part: Part,
        file: RemoteFile,
        repository: str,
        commit: str,
        locate: Callable[[], Location],
        *,
        connections: int = 8,
        patience: Patience | None = None,
        rate: Rate | None = None,
        verify: bool = True,
        line: Callable[[float, Callable[[int], None]], Line] = Ranges,
    ) -> None:
        self._part = part
        self._file = file
        self._repository = repository
        self._commit = commit
        self._locate = locate
        self._connections = max(1, min(connections, -(-file.size // BYTES_OF_A_CONNECTION)))
        self._patience = patience or Patience()
        self._rate = rate
        self._verify = verify
        self._line = line
        self._found: Location | None = None
        """Where the last bytes came from, if not from where we were told."""
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._failure: BaseException | None = None
        self._is_stopped = False
        self._by_ranges: list[Line] = []
        self._last_byte_at = time.monotonic()
        self._left_alone_until = 0.0
        self._whole = False
        self.said = ""
        """The other side's last answer, for people."""

    def stop(self) -> None:
        """From another thread."""
        with self._lock:
            self._is_stopped = True
        self._fail(Stopped())

    def run(self) -> str | None:
        """The SHA-256 of the whole file, verified. Raises NotFetched, Stopped."""
        try:
            try:
                return self._run(self._connections)
            except NoRanges:
                self._whole = True
            return self._run_whole()
        except OSError as error:
            raise disk_trouble(self._file.name, error) from error

    def _run_whole(self) -> str | None:
        for number in range(1, MOST_WHOLE + 1):
            self._begin_again()
            self._part.start_over()
            try:
                return self._run(1)
            except (Interrupted, NoRanges) as broken:
                if number == MOST_WHOLE:
                    raise self._stalled(None) from broken
                self._begin_again()
                self._pause(number, None, None)
        raise AssertionError

    def _begin_again(self) -> None:
        """Raises Stopped: whoever stops us doesn't know that we are between two tries."""
        with self._lock:
            if self._is_stopped:
                raise Stopped
            self._failure = None
            self._ended.clear()

    def _run(self, connections: int) -> str | None:
        self._last_byte_at = time.monotonic()
        threads = [threading.Thread(target=self._work, name=f"fetch {self._file.name}") for _ in range(connections)]
        try:
            if not self._part.is_complete:
                for thread in threads:
                    thread.start()
            digest = self._digest() if self._verify else self._wait()
        except BaseException as error:
            self._fail(error)
            raise
        finally:
            for thread in threads:
                if thread.ident is not None:
                    thread.join()
            with self._lock:
                ended, self._by_ranges = self._by_ranges, []
            for ranges in ended:
                ranges.close()
        if self._file.sha256 is None and self._file.git_sha1 is None:
            self._check()  # a digest knows better than whoever found that too much was sent
        return digest

    # -- the connections ----------------------------------------------------------------------------------------------

    def _work(self) -> None:
        try:
            with suppress(OSError):  # who was started nicer than that may not become less so
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
            ranges = self._line(self._patience.idle_seconds, self._came)
            with self._lock:
                self._by_ranges.append(ranges)
            while not self._ended.is_set():
                span = self._part.take(
                    self._file.size if self._whole else span_bytes(self._file.size, self._connections)
                )
                if span is None:
                    return
                try:
                    self._fill(ranges, span)
                finally:
                    self._part.give_back(span)
        except BaseException as error:  # noqa: BLE001 - told to whoever waits for the file
            self._fail(error)

    def _fill(self, ranges: Line, span: Span) -> None:
        """Raises NotFetched, NoRanges, Interrupted (of a whole file)."""
        failures = 0
        while span.left > 0 and not self._ended.is_set():
            position, found = span.position, self._found
            asked = Asked(self._file, self._repository, self._commit, position, span.end)
            try:
                self._found = ranges.fetch(found or self._locate(), asked, span, self._part, self._ended.is_set)
            except Interrupted as interrupted:
                self.said = f"{ranges.said}, then: {interrupted}"
                if self._whole:
                    raise
                failures = 0 if span.position > position else failures + 1
                self._pause(failures, None, None)
            except NotFetched as refused:
                self.said = ranges.said
                if self._found is found:  # and no other connection has found it anew
                    self._found = None
                is_expired = found is not None and isinstance(refused.reason, _EXPIRED)
                if refused.way != "again" and not is_expired:
                    raise
                failures += 1
                if not is_expired or failures > 1:
                    self._pause(failures, refused.reason, refused.after_seconds)
            else:
                failures = 0
                self.said = ranges.said

    def _pause(self, failures: int, reason: Reason | None, after_seconds: float | None) -> None:
        """Before it is tried again. Raises Stalled when it was tried for long enough."""
        now, patience = time.monotonic(), self._patience
        if after_seconds is not None:
            self._left_alone_until = max(self._left_alone_until, now + after_seconds)
        since = max(self._last_byte_at, min(self._left_alone_until, self._last_byte_at + MOST_WAIT_SECONDS))
        if now - since > patience.stall_seconds:
            raise self._stalled(reason)
        doubled = patience.first_wait_seconds * 2 ** min(failures - 1, 16)
        wait = min(doubled, patience.longest_wait_seconds) if failures else 0
        self._ended.wait(max(wait, after_seconds or 0.0))

    def _stalled(self, reason: Reason | None) -> Stalled:
        seconds = round(time.monotonic() - self._last_byte_at, 1)
        return Stalled(
            reason or DownloadStalled(after_seconds=seconds, last_answer=self.said[:300] or None), "final", None
        )

    def _came(self, count: int) -> None:
        self._last_byte_at = time.monotonic()
        if self._rate is not None:
            self._ended.wait(self._rate.spend(count))
            self._last_byte_at = time.monotonic()

    def _fail(self, error: BaseException) -> None:
        with self._lock:
            if self._failure is None:
                self._failure = error
            self._ended.set()
            for ranges in self._by_ranges:
                ranges.interrupt()
        with self._part.grown:
            self._part.grown.notify_all()

    # -- the bytes that are there ---------------------------------------------------------------------------------------

    def _wait(self) -> None:
        while not self._part.is_complete:
            self._check()
            self._part.wait_until(lambda: self._part.is_complete or self._ended.is_set(), LOOK_SECONDS)

    def _digest(self) -> str:
        """Of all bytes, in order, as they come. Raises NotFetched (checksum_mismatch)."""
        size, file = self._file.size, self._part.file
        sha256 = hashlib.sha256()
        git = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False) if self._file.git_sha1 else None
        buffer = memoryview(bytearray(min(HASHED_AT_ONCE, max(size, 1))))
        position = 0
        while position < size:
            enough = min(position + BEHIND, size)
            while (there := self._part.contiguous) < enough and not self._ended.is_set():
                self._part.wait_until(
                    lambda enough=enough: self._part.contiguous >= enough or self._ended.is_set(), LOOK_SECONDS
                )
            if there < enough:
                self._check()
            while position < there:
                if self._ended.is_set():
                    self._check()
                count = os.preadv(file, [buffer[: min(there - position, len(buffer))]], position)
                if count == 0:
                    raise OSError(errno.EIO, "the file is shorter than what was written to it")
                sha256.update(buffer[:count])
                if git is not None:
                    git.update(buffer[:count])
                position += count
        self._compare("sha256", self._file.sha256, sha256.hexdigest())
        if git is not None:
            self._compare("git-sha1", self._file.git_sha1, git.hexdigest())
        return sha256.hexdigest()

    def _compare(self, algorithm: str, expected: str | None, actual: str) -> None:
        if expected is not None and expected != actual:
            reason = ChecksumMismatch(
                path=self._file.name, expected=f"{algorithm}:{expected}", actual=f"{algorithm}:{actual}"
            )
            raise NotFetched(reason, "wrong")

    def _check(self) -> None:
        """Raises what a connection failed with."""
        if self._failure is not None:
            raise self._failure


def disk_trouble(path: str, error: OSError) -> NotFetched:
    if error.errno in _FULL:
        return NotFetched(DiskFull(path=path), "final")
    return NotFetched(DiskError(path=path, problem=error.strerror or str(error)), "final")

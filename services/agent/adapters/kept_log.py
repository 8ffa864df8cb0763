"""An engine's log on disk: the file that it writes to by itself, and what was cut off its beginning, compressed.

The engine holds the descriptor, and nothing stands between it and its file. A pump (a process that reads a pipe and writes files)
would have to live exactly as long as the engine: when it dies the engine gets SIGPIPE, and while nobody reads the pipe it stands
still. Copying a file and truncating it loses what is written between the two. So here the oldest part is compressed into a
segment, and then the blocks that it took are given back in place (`FALLOC_FL_PUNCH_HOLE`, `man 2 fallocate`): every byte keeps its
offset, nothing is lost whenever the agent dies, and whoever reads by offset does not notice. `ls -l` shows all that was ever
written, `du` what is taken. While no agent runs a log grows; the next one cuts it. On a file system that
can't do so (NFS before 4.2) it keeps its size on the disk too.

`<attempt>.log.<first byte>-<end byte>.<first line>-<end line>.gz` is a segment; the newest says where the file's own part begins.
"""

import ctypes
import errno
import gzip
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple

from services.agent.domain.log_lines import last_lines, shown
from services.agent.domain.runtime import LogPart

TAIL_BYTES: Final = 256 * 1024
"""Of the end: where last lines are looked for, and what stays uncompressed so that they are found there."""
READ_BYTES: Final = 256 * 1024
"""Of one part: an answer must fit into a message of the bus, whatever the bytes become as JSON."""
_CHUNK_BYTES: Final = 1024 * 1024
_SEGMENT: Final = re.compile(r"\.log\.(\d+)-(\d+)\.(\d+)-(\d+)\.gz")
_PUNCH_HOLE_KEEP_SIZE: Final = 0x02 | 0x01
"""`linux/falloc.h`"""
_LIBC: Final = ctypes.CDLL(None, use_errno=True)
_Offset: Final = ctypes.c_longlong


class Place(NamedTuple):
    """Between two lines of a log, counted from its very beginning."""

    byte: int
    line: int

    def __str__(self) -> str:
        return f"{self.byte}.{self.line}"


class _Segment(NamedTuple):
    path: Path
    first: Place
    end: Place


class KeptLog:
    def __init__(self, path: Path, segment_bytes: int, segments: int) -> None:
        self.path = path
        self._segment_bytes = segment_bytes
        self._segments = segments
        self._left_bytes = min(TAIL_BYTES, segment_bytes)

    def tail(self, lines: int) -> tuple[str, ...]:
        """The last lines, the unfinished one included."""
        try:
            with self.path.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(self._begin().byte, size - TAIL_BYTES))
                return last_lines(file.read().decode(errors="replace"), lines)
        except OSError:
            return ()

    def part(self, lines: int, after: str | None, *, ended: bool) -> LogPart | None:
        """None when there is no log. The unfinished last line is part of it once the engine has ended."""
        try:
            place = self._before_last(lines) if after is None else self._parsed(after)
            begin, data = self._read(place)
        except OSError:
            return None
        taken = _whole_lines(data, lines, ended=ended)
        text = data[:taken].decode(errors="replace")
        end = Place(begin.byte + taken, begin.line + data.count(b"\n", 0, taken))
        return LogPart(shown(text), str(end), skipped=max(0, begin.line - place.line))

    def rotate(self) -> None:
        """Compresses what is old, one segment after the other. Raises OSError."""
        self._cut_until(self._left_bytes, self._segment_bytes)

    def close(self, left_bytes: int) -> None:
        """Of an attempt that has ended: its end stays, and one segment before that. Raises OSError."""
        self._cut_until(left_bytes, 1)
        for segment in self._kept()[:-1]:
            segment.path.unlink(missing_ok=True)

    def remove(self) -> None:
        for segment in self._kept():
            segment.path.unlink(missing_ok=True)
        self.path.unlink(missing_ok=True)

    # -- reading ------------------------------------------------------------------------------------------------------

    def _read(self, place: Place) -> tuple[Place, bytes]:
        """What follows there; from a later place on when what came there is kept no more. Raises OSError."""
        while True:
            try:
                begin, old = self._from_segments(place)
            except FileNotFoundError:  # dropped under our hands
                continue
            at = begin.byte + len(old)
            with self.path.open("rb") as file:
                file.seek(at)
                new = file.read(READ_BYTES - len(old))
            if not new or self._begin().byte <= at:
                return begin, old + new  # else it was cut off meanwhile, and may have been read as zeros

    def _from_segments(self, place: Place) -> tuple[Place, bytes]:
        begin, data = place, b""
        for segment in self._kept():
            if begin.byte + len(data) < segment.end.byte and len(data) < READ_BYTES:
                begin = begin if data else max(place, segment.first)
                with gzip.open(segment.path) as packed:
                    packed.seek(begin.byte + len(data) - segment.first.byte)
                    data += packed.read(READ_BYTES - len(data))
        return begin, data

    def _before_last(self, lines: int) -> Place:
        """Raises OSError."""
        while True:
            begin = self._begin()
            with self.path.open("rb") as file:
                end = file.seek(0, os.SEEK_END)
                from_ = max(begin.byte, end - READ_BYTES)
                file.seek(begin.byte)
                counted = sum(chunk.count(b"\n") for chunk in _chunks(file, from_ - begin.byte))
                data = file.read(READ_BYTES)
            if self._begin() == begin:  # else some of it was cut off while its lines were counted
                break
        at = data.rfind(b"\n")
        for _ in range(lines):
            at = data.rfind(b"\n", 0, max(at, 0))
        if at < 0 and from_ > begin.byte:  # the line that is cut by where we began to read is not shown
            at = data.find(b"\n")
        return Place(from_ + at + 1, begin.line + counted + data.count(b"\n", 0, at + 1))

    def _parsed(self, after: str) -> Place:
        byte, _, line = after.partition(".")
        if not (byte.isdecimal() and line.isdecimal()):
            return Place(0, 0)
        return Place(min(int(byte), self.path.stat().st_size), int(line))

    # -- cutting ------------------------------------------------------------------------------------------------------

    def _cut_until(self, left_bytes: int, at_least: int) -> None:
        while True:
            begin = self._begin()
            old = self.path.stat().st_size - left_bytes - begin.byte
            if old < at_least:
                return
            end = self._after_a_line(begin.byte, begin.byte + min(old, self._segment_bytes))
            if end is None:
                return
            self._cut(begin, end)

    def _cut(self, begin: Place, end: int) -> None:
        part = self.path.with_suffix(".log.part")
        counted = 0
        with self.path.open("rb") as file, part.open("wb") as written:
            file.seek(begin.byte)
            with gzip.GzipFile(fileobj=written, mode="wb", compresslevel=1, mtime=0) as packed:
                for chunk in _chunks(file, end - begin.byte):
                    counted += chunk.count(b"\n")
                    packed.write(chunk)
            written.flush()
            os.fsync(written.fileno())
        name = f"{self.path.name}.{begin.byte}-{end}.{begin.line}-{begin.line + counted}.gz"
        part.replace(self.path.with_name(name))
        for segment in self._kept()[: -self._segments]:
            segment.path.unlink(missing_ok=True)
        _give_back(self.path, end)

    def _after_a_line(self, begin: int, end: int) -> int | None:
        """The last place up to `end` where a line begins; a line that is longer than a segment is cut."""
        with self.path.open("rb") as file:
            start = max(begin, end - _CHUNK_BYTES)
            file.seek(start)
            found = file.read(end - start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        return end if end - begin >= self._segment_bytes else None

    def _begin(self) -> Place:
        """Of what is in the file itself."""
        kept = self._kept()
        return kept[-1].end if kept else Place(0, 0)

    def _kept(self) -> list[_Segment]:
        """Oldest first."""
        found: list[_Segment] = []
        for path in self.path.parent.glob(f"{self.path.name}.*.gz"):
            if match := _SEGMENT.fullmatch(path.name.removeprefix(self.path.stem)):
                first, end, first_line, end_line = (int(number) for number in match.groups())
                found.append(_Segment(path, Place(first, first_line), Place(end, end_line)))
        return sorted(found, key=lambda segment: segment.first)


def _whole_lines(data: bytes, lines: int, *, ended: bool) -> int:
    """How many bytes the first lines take. A line that fills a part is cut: it may never end."""
    taken = 0
    for _ in range(lines):
        newline = data.find(b"\n", taken)
        if newline < 0:
            full = taken == 0 and len(data) == READ_BYTES
            return len(data) if full or (ended and len(data) < READ_BYTES) else taken
        taken = newline + 1
    return taken


def _chunks(file: BinaryIO, size: int) -> Iterator[bytes]:
    while size > 0 and (chunk := file.read(min(size, _CHUNK_BYTES))):
        size -= len(chunk)
        yield chunk


def _give_back(path: Path, end: int) -> None:
    """What the first bytes of the file take of the disk, where the file system can. Raises OSError."""
    with path.open("rb+") as file:
        if _LIBC.fallocate(file.fileno(), _PUNCH_HOLE_KEEP_SIZE, _Offset(0), _Offset(end)) == 0:
            return
        number = ctypes.get_errno()
    if number not in (errno.EOPNOTSUPP, errno.ENOSYS):
        raise OSError(number, os.strerror(number), str(path))

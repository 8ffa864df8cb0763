"""Which parts of a file are there, and who fetches which of the rest. Pure: nothing is read or written.

A file is cut into blocks of one size. A connection takes a span of blocks that are missing and fills it from its beginning;
whatever it has filled is there for good, also when the program is killed the moment after.
"""

import re
from dataclasses import dataclass
from typing import Final

KIB: Final = 1024
MIB: Final = 1024 * KIB
SMALL_BLOCK: Final = 64 * KIB
BLOCK: Final = 256 * KIB
LARGE_FILE: Final = 64 * MIB
"""From here on blocks are large."""
SHORTEST_SPAN: Final = 4 * MIB
LONGEST_SPAN: Final = 16 * MIB
WORTH_DIVIDING: Final = 16 * MIB
"""What one connection has before it, for another one that has nothing to do to take half of it over."""

MISSING: Final = 0
WRITTEN: Final = 1
"""It was handed to the operating system: it survives us, and not the machine."""
SYNCED: Final = 2
"""It is on the disk."""
_RUNS: Final = re.compile(bytes([WRITTEN]) + b"+")


def block_bytes_of(size: int) -> int:
    """Small enough that what is lost when we are killed is little of the file, too."""
    return BLOCK if size >= LARGE_FILE else SMALL_BLOCK


@dataclass(slots=True, eq=False)
class Span:
    """Bytes `position` up to `end` are still to be fetched, by one connection. Another one may take its last part over."""

    start: int
    end: int
    position: int

    @property
    def left(self) -> int:
        return self.end - self.position


class Blocks:
    """`there`: one of MISSING, WRITTEN, SYNCED for each block."""

    def __init__(self, size: int, block_bytes: int, there: bytearray | None = None) -> None:
        self.size = size
        self.block_bytes = block_bytes
        self.count = -(-size // block_bytes)
        if there is not None and len(there) != self.count:
            raise ValueError(f"{self.count} blocks, not {len(there)}")
        self.there = bytearray(self.count) if there is None else there
        self._taken: list[Span] = []
        self._first_missing = 0
        self._find_first_missing()
        self.missing_bytes = sum(self._length(block) for block in range(self.count) if not self.there[block])

    @property
    def is_complete(self) -> bool:
        return self._first_missing == self.count

    @property
    def contiguous(self) -> int:
        """So many bytes from the beginning are all there."""
        return min(self._first_missing * self.block_bytes, self.size)

    def take(self, most_bytes: int) -> Span | None:
        """The first bytes that are missing and that nobody fetches; else half of what another one has before it.

        None: there is nothing that would be worth it.
        """
        found = self._free(most_bytes)
        if found is None:
            slowest = max(self._taken, key=lambda span: span.left, default=None)
            if slowest is None or slowest.left < WORTH_DIVIDING:
                return None
            middle = self._block_of(slowest.position + slowest.left // 2) * self.block_bytes
            found = Span(middle, slowest.end, middle)
            slowest.end = middle
        self._taken.append(found)
        return found

    def fill(self, span: Span, count: int) -> tuple[int, int]:
        """So many more bytes of the span were written. Gives the blocks (from, up to) that are there since."""
        first = self._block_of(span.position)
        span.position += count
        last = self.count if span.position >= self.size else self._block_of(span.position)
        for block in range(first, last):
            if not self.there[block]:
                self.there[block] = WRITTEN
                self.missing_bytes -= self._length(block)
        if first <= self._first_missing < last:
            self._first_missing = last
            self._find_first_missing()
        return first, last

    def give_back(self, span: Span) -> None:
        """Nobody fetches it any more; what of it is not there is missing."""
        self._taken.remove(span)

    def synced(self, upto: bytes) -> None:
        """Whatever was there when `upto` was copied from `there` is on the disk."""
        for run in _RUNS.finditer(upto):
            self.there[run.start() : run.end()] = bytes([SYNCED]) * (run.end() - run.start())

    def _find_first_missing(self) -> None:
        found = self.there.find(MISSING, self._first_missing)
        self._first_missing = self.count if found < 0 else found

    def _free(self, most_bytes: int) -> Span | None:
        block = self._first_missing
        while block < self.count:
            block = self.there.find(MISSING, block)
            if block < 0:
                return None
            start = block * self.block_bytes
            holder = next((span for span in self._taken if span.start <= start < span.end), None)
            if holder is not None:
                block = self._block_after(holder.end)
                continue
            end = self._block_after(min(start + most_bytes, self.size))
            for each in range(block, end):
                if self.there[each]:
                    end = each
                    break
            stop = min(end * self.block_bytes, self.size)
            stop = min([stop, *(span.start for span in self._taken if start < span.start < stop)])
            return Span(start, stop, start)
        return None

    def _block_of(self, position: int) -> int:
        return position // self.block_bytes

    def _block_after(self, position: int) -> int:
        """The first block that begins at this byte, or later."""
        return -(-position // self.block_bytes)

    def _length(self, block: int) -> int:
        return min(self.block_bytes, self.size - block * self.block_bytes)


def span_bytes(size: int, connections: int) -> int:
    """How much a connection asks for at once: the longer, the fewer requests; the shorter, the less lies out of order."""
    return max(SHORTEST_SPAN, min(LONGEST_SPAN, size // max(4 * connections, 1)))

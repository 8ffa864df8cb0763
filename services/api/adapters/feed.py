"""Events as watchers get them: in order, each once, only what is projected; however slow the watcher is.

One reader of the log a process, whatever the number of watchers. The newest events are kept in memory; who is further
behind reads `event_log` until it has caught up. Nobody is skipped.
"""

import asyncio
import bisect
import logging
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Final

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from kernel.log.port import EventLog, Position, Stored, subject_matches
from kernel.projections.marks import HighWater
from kernel.projections.tables import SCHEMA
from schemas.subjects import ALL_FACTS

log = logging.getLogger(__name__)

KEPT: Final = 10_000
PAGE: Final = 1000


class OtherGeneration(Exception):
    """The watcher's position is of a log that was restored since; `resume` is where it can go on."""

    def __init__(self, resume: Position) -> None:
        super().__init__(f"the log was restored; resume from {resume}")
        self.resume = resume


@dataclass(frozen=True, slots=True)
class Filter:
    """Which events a watcher wants; empty means all."""

    types: frozenset[str] = frozenset()
    subjects: tuple[str, ...] = ()

    def takes(self, event: Stored) -> bool:
        if self.types and event.subject.rpartition(".")[2] not in self.types:
            return False
        return not self.subjects or any(subject_matches(event.subject, wanted) for wanted in self.subjects)


class Feed:
    def __init__(self, event_log: EventLog, engine: AsyncEngine, high_water: HighWater) -> None:
        self._log = event_log
        self._engine = engine
        self._high_water = high_water
        self._unprojected: list[tuple[Stored, float]] = []
        self._kept: list[Stored] = []
        self._sequences: list[int] = []
        self._grown = asyncio.Event()
        self._closed = False
        self.head = 0
        """The last event that watchers were given."""

    def behind_seconds(self) -> float:
        """How long the oldest event that is in the log and not yet projected has been waiting."""
        return time.monotonic() - self._unprojected[0][1] if self._unprojected else 0.0

    async def run(self, after: int) -> None:
        self.head = after
        risen = self._high_water.listen()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._read(after))
            tasks.create_task(self._release(risen))

    async def _read(self, after: int) -> None:
        async for events in self._log.tail([ALL_FACTS], after=after):
            now = time.monotonic()
            self._unprojected.extend((event, now) for event in events)
            self._let_go()

    async def _release(self, risen: asyncio.Event) -> None:
        while True:
            await risen.wait()
            risen.clear()
            self._let_go()

    def _let_go(self) -> None:
        """Hand what is projected to the watchers."""
        mark = self._high_water.mark.sequence
        ready = bisect.bisect_right(self._unprojected, mark, key=lambda pair: pair[0].sequence)
        if not ready:
            return
        for event, _ in self._unprojected[:ready]:
            self._kept.append(event)
            self._sequences.append(event.sequence)
        del self._unprojected[:ready]
        if len(self._kept) > 2 * KEPT:
            del self._kept[:-KEPT], self._sequences[:-KEPT]
        self.head = self._sequences[-1]
        grown, self._grown = self._grown, asyncio.Event()
        grown.set()

    def close(self) -> None:
        """Let all watchers end: they come back, here or at another replica, and resume where they were."""
        self._closed = True
        self._grown.set()

    def resume_from(self, position: Position | None) -> int:
        """The sequence to go on after. Raises OtherGeneration."""
        current = self._high_water.mark
        if position is None:
            return self.head
        if position.generation != current.generation:
            raise OtherGeneration(Position(current.generation, min(position.sequence, current.sequence)))
        return position.sequence

    async def is_reached(self, sequence: int) -> bool:
        """Is there an event of this sequence? Another replica may have given it to a watcher before it was known here."""
        return sequence <= self.head or sequence <= (await self._log.state()).last_sequence

    async def after(self, sequence: int) -> AsyncIterator[Sequence[Stored]]:
        """Every event after this sequence, in batches, until the feed is closed."""
        while not self._closed:
            grown = self._grown
            if sequence >= self.head:
                await grown.wait()
                continue
            if self._sequences and sequence >= self._sequences[0] - 1:
                start = bisect.bisect_right(self._sequences, sequence)
                batch: Sequence[Stored] = self._kept[start : start + PAGE]
            else:
                batch = await self._from_database(sequence)
            if not batch:
                await asyncio.sleep(0.05)
                continue
            sequence = batch[-1].sequence
            yield batch

    async def _from_database(self, after: int) -> list[Stored]:
        async with self._engine.connect() as connection:
            rows = await connection.execute(
                text(
                    f"SELECT seq, subject, body FROM {SCHEMA}.event_log WHERE seq > :after AND seq <= :head"
                    " ORDER BY seq LIMIT :page"
                ),
                {"after": after, "head": self.head, "page": PAGE},
            )
            return [Stored(row.seq, row.subject, row.body) for row in rows]

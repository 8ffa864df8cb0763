"""The log in memory, for simulation and unit tests; behaves like JetStream where the contract suite looks.

The guard is checked before the duplicate, as servers since 2.12 do.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime

from kernel.errors import Conflict
from kernel.log.port import MOST_IN_AN_APPEND, Draft, LogState, Stored, subject_matches


class MemoryLog:
    def __init__(self, *, generation: int = 1, created: datetime | None = None) -> None:
        self._events: list[Stored] = []
        self._ids: dict[str, int] = {}
        self._last_on: dict[str, int] = {}
        self._generation = generation
        self._created = created or datetime.now(UTC)
        self._grown = asyncio.Condition()

    async def append(self, drafts: Sequence[Draft]) -> tuple[int, ...]:
        if len(drafts) > MOST_IN_AN_APPEND:
            raise ValueError(f"an append has at most {MOST_IN_AN_APPEND} events, not {len(drafts)}")
        for draft in drafts:
            if draft.guard is not None and self._last(draft.guard.subject) != draft.guard.sequence:
                raise Conflict(f"{draft.guard.subject} is no longer at {draft.guard.sequence}")
        ids = [draft.envelope.id for draft in drafts]
        if len(ids) == 1 and ids[0] in self._ids:
            return (self._ids[ids[0]],)
        if len(set(ids)) < len(ids) or not self._ids.keys().isdisjoint(ids):
            raise Conflict("an id of this batch was seen before")
        sequences: list[int] = []
        for draft in drafts:
            sequence = len(self._events) + 1
            self._events.append(Stored(sequence, draft.subject, draft.envelope.to_json()))
            self._ids[draft.envelope.id] = sequence
            self._last_on[draft.subject] = sequence
            sequences.append(sequence)
        async with self._grown:
            self._grown.notify_all()
        return tuple(sequences)

    async def last_sequence_of(self, subject_filter: str) -> int:
        return self._last(subject_filter)

    async def last(self, subject_filter: str) -> Stored | None:
        sequence = self._last(subject_filter)
        return self._events[sequence - 1] if sequence else None

    async def read(self, subject_filter: str, *, after: int = 0, limit: int | None = None) -> list[Stored]:
        found = [event for event in self._events[after:] if subject_matches(event.subject, subject_filter)]
        return found[:limit]

    def tail(self, subject_filters: Sequence[str], *, after: int) -> "MemoryTail":
        return MemoryTail(self, tuple(subject_filters), after)

    async def state(self) -> LogState:
        return LogState(self._generation, self._created, 1, len(self._events))

    def _last(self, subject_filter: str) -> int:
        if not ("*" in subject_filter or subject_filter.endswith(">")):
            return self._last_on.get(subject_filter, 0)
        beginning = subject_filter.partition("*")[0].rstrip(">")
        for event in reversed(self._events):
            if event.subject.startswith(beginning) and subject_matches(event.subject, subject_filter):
                return event.sequence
        return 0

    def matching_after(self, sequence: int, filters: tuple[str, ...]) -> list[Stored]:
        return [event for event in self._events[sequence:] if any(subject_matches(event.subject, f) for f in filters)]

    async def until_matching_after(self, sequence: int, filters: tuple[str, ...]) -> list[Stored]:
        """Wait until there are events after this sequence that match."""
        async with self._grown:
            await self._grown.wait_for(lambda: self.matching_after(sequence, filters))
        return self.matching_after(sequence, filters)


class MemoryTail:
    def __init__(self, log: MemoryLog, filters: tuple[str, ...], after: int) -> None:
        self._log = log
        self._filters = filters
        self._after = after

    @property
    def has_more(self) -> bool:
        return bool(self._log.matching_after(self._after, self._filters))

    async def __aiter__(self) -> AsyncIterator[Sequence[Stored]]:
        while True:
            events = await self._log.until_matching_after(self._after, self._filters)
            self._after = events[-1].sequence
            yield events

    async def close(self) -> None:
        """Nothing is held."""

"""The api in a simulation: the real `Writer`, `Feed`, `Routes` and projection; PostgreSQL is a few dictionaries.

Mirrored: what the read schema's `apply` does with a batch (`kernel/projections/functions.py`), what `Reader.model_wish` reads,
and `over_the_newest` of `services/api/adapters/http/resources.py`.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, cast

import orjson
from sqlalchemy.ext.asyncio import AsyncEngine

from kernel.errors import Conflict, Refused, Unavailable
from kernel.log.port import Position, Stored
from kernel.projections.changes import Batch, Happened, Row
from kernel.projections.marks import HighWater
from schemas.ids import ModelId
from schemas.models import ModelSpec
from services.api.adapters.feed import Feed, Filter, OtherGeneration
from services.api.adapters.writer import Caller, Writer, Written, command_id
from services.api.domain.routing import Routes
from services.api.projections.fleet import FleetProjection
from services.api.projections.tables import TABLES
from services.api.settings import ApiSettings
from tests.simulation.clock import VirtualClock, finish
from tests.simulation.lines import Entry, Line

KEYS: Final = {table.name: tuple(column.name for column in table.primary_key.columns) for table in TABLES}
_NOWHERE: Final = asyncio.new_event_loop()
"""A future must belong to a loop; nothing ever runs on this one."""
_NOWHERE.close()
Rows = dict[str, dict[tuple[Any, ...], Row]]
CHANGE_TRIES: Final = 5


class Tables:
    """The read models, as far as the entries are projected."""

    def __init__(self) -> None:
        self.rows: Rows = {table.name: {} for table in TABLES}
        self._projection = FleetProjection()

    def project(self, entries: Iterable[Entry]) -> None:
        """All of them as one batch."""
        batch = Batch(TABLES)
        for entry in entries:
            for change in self._projection.changes(Happened(entry.fact, entry.sequence, entry.envelope.time)):
                batch.add(change)
        self._apply(orjson.loads(batch.to_json()))

    def _apply(self, document: dict[str, dict[str, list[Row]]]) -> None:
        for name, steps in document.items():
            rows, keys = self.rows[name], KEYS[name]
            for length in range(1, len(keys)):
                for parent in steps.get(f"parents{length}", ()):
                    start = tuple(parent[column] for column in keys[:length])
                    for key in [key for key in rows if key[:length] == start]:
                        del rows[key]
            for row in steps.get("children", ()):
                rows[tuple(row[column] for column in keys)] = row
            for row in steps.get("drops", ()):
                rows.pop(tuple(row[column] for column in keys), None)
            for row in steps.get("puts", ()):
                rows[tuple(row[column] for column in keys)] = row
            for row in steps.get("patches", ()):
                key = tuple(row[column] for column in keys)
                if key in rows:
                    rows[key] = rows[key] | row


class Marks(HighWater):
    """Nobody waits: whoever asks makes the projector go on, unless it is stalled."""

    def __init__(self, project: Callable[[], None]) -> None:
        super().__init__()
        self._project = project

    async def wait_for(self, sequence: int, *, timeout_seconds: float) -> bool:
        del timeout_seconds
        if self.mark.sequence < sequence:
            self._project()
        return self.mark.sequence >= sequence


class SimulatedFeed(Feed):
    def __init__(self, line: Line, marks: Marks, projected: Sequence[Stored], clock: VirtualClock) -> None:
        super().__init__(line, cast("AsyncEngine", None), marks)
        self._projected = projected
        self._clock = clock

    def read(self, events: Iterable[Stored]) -> None:
        """`_read`."""
        self._unprojected.extend((event, self._clock.seconds) for event in events)
        self._let_go()

    def release(self) -> None:
        self._let_go()

    def behind_seconds(self) -> float:
        return self._clock.seconds - self._unprojected[0][1] if self._unprojected else 0.0

    async def next_after(self, sequence: int) -> Sequence[Stored]:
        """What a watcher that has seen up to here is given next; nothing when it has seen all."""
        if sequence >= self.head:
            return ()
        try:
            return await anext(self.after(sequence))
        except RuntimeError:  # it would sleep, waiting for what should be there: this watcher gets no further
            return ()

    async def _from_database(self, after: int) -> list[Stored]:
        return [event for event in self._projected if after < event.sequence <= self.head][:7]


class SimulatedWriter(Writer):
    """PostgreSQL answers, or not, at once; and knows the commands that are projected."""

    def __init__(self, line: Line, clock: VirtualClock, marks: Marks, feed: Feed, projected: Sequence[Stored]) -> None:
        super().__init__(line, cast("AsyncEngine", None), clock, marks, feed, ApiSettings())
        self.postgres_is_there = True
        self._seen = projected

    def _ask_postgres(self) -> "asyncio.Task[bool]":
        answer: asyncio.Future[bool] = asyncio.Future(loop=_NOWHERE)
        answer.set_result(self.postgres_is_there)
        return cast("asyncio.Task[bool]", answer)

    async def _projected(self, caller: Caller) -> Written | None:
        if not self.postgres_is_there:
            raise Unavailable("PostgreSQL is away; nothing was written")
        if caller.command_id is None:
            return None
        key = caller.command_id.partition(".")[0].encode()
        for event in reversed(self._seen):
            if key in event.body and (event.envelope.commandid or "").encode().startswith(key):
                return await self._as_before(event, caller, projected=True)
        return None


Outcome = Literal["acknowledged", "refused", "unknown"]


@dataclass(frozen=True, slots=True)
class Write:
    """What one request came to."""

    what: str
    request_id: str
    command: str | None
    outcome: Outcome
    sequence: int = 0
    over: tuple[str, int] | None = None
    """The model and the generation that the change was made over."""


@dataclass(slots=True)
class Watcher:
    """Follows `GET /v2/events` with a filter, from a place on, at its own pace, and comes back with `Last-Event-ID`."""

    name: str
    takes: Filter
    started_after: int
    at: Position
    seen: list[int] = field(default_factory=list[int])


class Api:
    def __init__(self, line: Line, clock: VirtualClock, dice: random.Random) -> None:
        self.line = line
        self.clock = clock
        self.dice = dice
        self.tables = Tables()
        self.routes = Routes()
        self.projected: list[Stored] = []
        self.position = 0
        self.routed = 0
        self.stalled = False
        self.marks = Marks(self._project_all)
        self.feed = SimulatedFeed(line, self.marks, self.projected, clock)
        self.writer = SimulatedWriter(line, clock, self.marks, self.feed, self.projected)
        self.writes: list[Write] = []
        self.watchers: list[Watcher] = []
        self.marks.rise(1, 0)
        self._fed = 0
        self._requests = 0
        self._unanswered: list[Callable[[], str]] = []

    # -- what follows the log -----------------------------------------------------------------------------------------

    def pump(self) -> None:
        entries = self.line.log.entries
        if self._fed < len(entries):
            self.feed.read(entry.stored for entry in entries[self._fed :])
            self._fed = len(entries)
        if not self.stalled and self.position < len(entries):
            self.project(self.dice.choice((1, 10, 1000, 1000)))
        if self.routed < len(entries) and self.dice.random() < 0.8:
            self.route()

    def project(self, count: int) -> None:
        entries = self.line.log.entries[self.position : self.position + count]
        if not entries:
            return
        self.tables.project(entries)
        self.projected.extend(entry.stored for entry in entries)
        self.position = entries[-1].sequence
        self.marks.rise(1, self.position)
        self.feed.release()

    def _project_all(self) -> None:
        if not self.stalled:
            self.project(len(self.line.log.entries))

    def route(self) -> None:
        for entry in self.line.log.entries[self.routed :]:
            self.routes.evolve(entry.fact)
        self.routed = len(self.line.log.entries)

    # -- watchers -----------------------------------------------------------------------------------------------------

    def watch(self, name: str, takes: Filter) -> Watcher:
        start = self.feed.resume_from(None)
        watcher = Watcher(name, takes, start, Position(1, start))
        self.watchers.append(watcher)
        return watcher

    def serve(self, watcher: Watcher, batches: int) -> None:
        """The watcher connects with the last event that it has seen, and reads so many batches."""
        try:
            sequence = self.feed.resume_from(Position.parse(str(watcher.at)))
        except OtherGeneration as other:
            sequence = other.resume.sequence
        for _ in range(batches):
            events = finish(self.feed.next_after(sequence))
            if not events:
                return
            sequence = events[-1].sequence
            watcher.seen.extend(event.sequence for event in events if watcher.takes.takes(event))
            watcher.at = Position(1, sequence)

    # -- requests -----------------------------------------------------------------------------------------------------

    def create(self, spec: ModelSpec, key: str | None = None) -> str:
        def write(caller: Caller) -> Awaitable[Written]:
            return self.writer.once(caller, spec.name, lambda: self.writer.create_model(spec, caller))

        return self._request(f"create {spec.name}", key, write)

    def change(
        self, model_id: ModelId, over: Callable[[ModelSpec], ModelSpec], what: str, if_match: int | None = None
    ) -> str:
        async def write(model_id: ModelId, spec: ModelSpec, generation: int, caller: Caller) -> Written:
            return await self.writer.change_model(model_id, spec, over(spec), generation, caller)

        return self._over_the_newest(model_id, what, if_match, write)

    def delete(self, model_id: ModelId, if_match: int | None = None) -> str:
        return self._over_the_newest(model_id, f"delete {model_id}", if_match, self.writer.delete_model)

    def _over_the_newest(
        self,
        model_id: ModelId,
        what: str,
        if_match: int | None,
        write: Callable[[ModelId, ModelSpec, int, Caller], Awaitable[Written]],
    ) -> str:
        written_over: list[tuple[str, int]] = []

        async def tries(caller: Caller) -> Written:
            for _ in range(CHANGE_TRIES):
                row = self.tables.rows["models"].get((model_id,))
                if row is None:
                    raise Refused("not_found", f"there is no model {model_id}", status=404)
                spec = ModelSpec.model_validate(row["spec"] | {"replicas": row["replicas"]})
                generation = int(row["generation"])
                if if_match is not None and if_match != generation:
                    raise Refused("precondition_failed", "somebody else changed this model", status=412)
                try:
                    written = await write(model_id, spec, generation, caller)
                except Conflict:
                    if if_match is not None:
                        raise Refused("precondition_failed", "somebody else changed this model", status=412) from None
                    await self.marks.wait_for(generation + 1, timeout_seconds=1.0)
                else:
                    if written.sequence != generation:
                        written_over.append((model_id, generation))
                    return written
            raise Conflict("too many writers")

        return self._request(what, None, tries, written_over)

    def ask(self, what: str, write: Callable[[Caller], Awaitable[Written]]) -> str:
        """Any other request."""
        return self._request(what, None, write)

    def ask_again(self) -> str:
        """A client that had no answer sends the same command once more."""
        if not self._unanswered:
            return "nobody waits for an answer"
        return self._unanswered.pop(0)()

    def _request(
        self,
        what: str,
        key: str | None,
        write: Callable[[Caller], Awaitable[Written]],
        written_over: list[tuple[str, int]] | None = None,
    ) -> str:
        self._requests += 1
        request_id = f"q{self._requests}"
        command = command_id("key/1", "POST /v2/models", key, what.encode()) if key is not None else None
        caller = Caller(actor="key/1", request_id=request_id, command_id=command)

        async def written() -> Written:
            return await write(caller)

        outcome: Outcome = "refused"
        sequence = 0
        try:
            found = finish(written())
        except (Refused, Conflict) as error:
            answer = f"{type(error).__name__}: {error}"
        except Unavailable as error:
            outcome, answer = "unknown", f"503: {error}"
            if "nothing was written" in str(error):
                outcome = "refused"
            if key is not None:
                self._unanswered.append(lambda: self._request(what, key, write))
        else:
            outcome, sequence = "acknowledged", found.sequence
            answer = f"{sequence}{'' if found.projected else ', not projected yet'}"
        over = written_over[0] if written_over else None
        self.writes.append(Write(what, request_id, command, outcome, sequence, over))
        return f"{what} → {answer}"

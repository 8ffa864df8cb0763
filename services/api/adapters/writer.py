"""From a user's wish to facts that are durable and projected (DESIGN: acknowledged means both stores)."""

import asyncio
import hashlib
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

from kernel.clock import Clock
from kernel.errors import Conflict, Refused, Unavailable
from kernel.log.names import look_up_name
from kernel.log.port import Draft, EventLog, Guard, Position, Stored
from kernel.log.seal import Cause, seal_fact
from kernel.projections.marks import HighWater
from kernel.projections.tables import SCHEMA
from schemas.backends import InferenceBackend, backend_id_of
from schemas.facts import (
    BackendCreated,
    BackendDeleted,
    BackendUpdated,
    InstanceDeletionRequested,
    ModelCreated,
    ModelDeleted,
    ModelFileDeletionRequested,
    ModelFileRequested,
    ModelQuarantineCleared,
    ModelRenamed,
    ModelScaled,
    ModelUpdated,
    WorkerCordoned,
    WorkerDrainRequested,
    WorkerLabelled,
    WorkerRemovalRequested,
    WorkerUncordoned,
    read,
)
from schemas.facts.base import Fact
from schemas.ids import TOKEN_PATTERN, FileId, InstanceId, ModelId, WorkerId
from schemas.models import ModelSpec
from schemas.subjects import api_facts_about, api_part_of, name_token, parse_fact_subject
from services.api.adapters.database import UNREACHABLE
from services.api.adapters.feed import Feed
from services.api.domain.models import changed
from services.api.settings import ApiSettings

TRIES: Final = 5
BATCHES_AT_ONCE: Final = 16
"""The server takes 50 open batches a stream, from all replicas together."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks, and how the request is told apart from others."""

    actor: str
    request_id: str
    traceparent: str | None = None
    command_id: str | None = None
    """From the Idempotency-Key: `<key digest>.<body digest>`."""

    @property
    def cause(self) -> Cause:
        return Cause(
            correlation_id=self.request_id,
            causation_id=self.request_id,
            command_id=self.command_id,
            actor=self.actor,
            traceparent=self.traceparent,
        )


@dataclass(frozen=True, slots=True)
class Written:
    """An acknowledged write: durable, and projected unless it says otherwise."""

    resource_id: str
    sequence: int
    generation: int
    projected: bool
    spec: ModelSpec | None = None

    @property
    def position(self) -> Position:
        return Position(self.generation, self.sequence)


def command_id(actor: str, route: str, key: str, body: bytes) -> str:
    """The same key by the same caller on the same route is the same command; the body's digest tells misuse."""
    who = hashlib.sha256(b"\0".join((actor.encode(), route.encode(), key.encode()))).hexdigest()[:32]
    return f"{who}.{hashlib.sha256(body).hexdigest()[:16]}"


class Writer:
    def __init__(
        self,
        event_log: EventLog,
        engine: AsyncEngine,
        clock: Clock,
        high_water: HighWater,
        feed: Feed,
        settings: ApiSettings,
    ) -> None:
        self._log = event_log
        self._engine = engine
        self._clock = clock
        self._high_water = high_water
        self._feed = feed
        self._settings = settings
        self._probe: asyncio.Task[bool] | None = None
        self._batches = asyncio.Semaphore(BATCHES_AT_ONCE)

    async def once(self, caller: Caller, model: str, write: Callable[[], Awaitable[Written]]) -> Written:
        """One Idempotency-Key is one write: what was done before is answered as it was, also where the write would be
        refused now because of it, or because Postgres is away or behind. `model`: its name or id.

        Raises Refused (idempotency_key_reused), and what `write` raises.
        """
        try:
            return await self._projected(caller) or await write()
        except (Refused, Conflict, Unavailable):
            if (before := await self._durable(caller, model)) is not None:
                return before
            raise

    async def create_model(self, spec: ModelSpec, caller: Caller) -> Written:
        """Raises Refused (name_taken), Unavailable."""
        self._check_behind()
        probe = self._ask_postgres()  # while the name is looked up
        model_id = ModelId(f"m-{self._clock.new_id().lower()}")
        for _ in range(TRIES):
            name = await look_up_name(self._log, "model", spec.name)
            if name.bearer is not None:
                raise _name_taken(spec.name)
            if not await asyncio.shield(probe):
                raise Unavailable("PostgreSQL is away; nothing was written")
            try:
                (sequence,) = await self._append(caller, (ModelCreated(model_id=model_id, spec=spec), name.guard))
            except Conflict:
                continue
            return await self._acknowledge(model_id, sequence, spec)
        raise Unavailable("too many writers want this name at once; try again")

    async def change_model(
        self, model_id: ModelId, before: ModelSpec, after: ModelSpec, expected: int, caller: Caller
    ) -> Written:
        """Write what is wanted over generation `expected`, which was read as `before`.

        Raises Conflict when somebody wrote first, Refused (name_taken), Unavailable.
        """
        self._check_behind()
        fact = changed(model_id, before, after)
        if fact is None:
            return Written(model_id, expected, self._high_water.mark.generation, projected=True, spec=after)
        guard = _part_of(model_id, before.name, expected)
        if name_token(before.name) == name_token(after.name):
            sequences = await self._append(caller, (fact, guard))
        else:
            name = await look_up_name(self._log, "model", after.name)
            if name.bearer is not None:
                raise _name_taken(after.name)
            renamed = ModelRenamed(model_id=model_id, name=before.name, to=after.name)
            sequences = await self._append(caller, (renamed, guard), (fact, name.guard))
        return await self._acknowledge(model_id, sequences[-1], after)

    async def delete_model(self, model_id: ModelId, before: ModelSpec, expected: int, caller: Caller) -> Written:
        """Raises Conflict when somebody wrote first, Unavailable."""
        self._check_behind()
        fact = ModelDeleted(model_id=model_id, name=before.name)
        (sequence,) = await self._append(caller, (fact, _part_of(model_id, before.name, expected)))
        return await self._acknowledge(model_id, sequence)

    async def delete_instance(self, instance_id: InstanceId, caller: Caller) -> Written:
        self._check_behind()
        subject = api_part_of("instance", instance_id)
        guard = Guard(subject, await self._log.last_sequence_of(subject))
        sequences = await self._append(caller, (InstanceDeletionRequested(instance_id=instance_id), guard))
        return await self._acknowledge(instance_id, sequences[-1])

    async def remove_worker(self, worker_id: WorkerId, caller: Caller) -> Written:
        self._check_behind()
        subject = api_part_of("worker", worker_id, worker_id)
        guard = Guard(subject, await self._log.last_sequence_of(subject))
        sequences = await self._append(caller, (WorkerRemovalRequested(worker_id=worker_id), guard))
        return await self._acknowledge(worker_id, sequences[-1])

    async def drain_worker(self, worker_id: WorkerId, caller: Caller) -> Written:
        """Raises Conflict when somebody wrote first, Unavailable."""
        self._check_behind()
        subject = api_part_of("worker", worker_id, worker_id)
        guard = Guard(subject, await self._log.last_sequence_of(subject))
        sequences = await self._append(caller, (WorkerDrainRequested(worker_id=worker_id), guard))
        return await self._acknowledge(worker_id, sequences[-1])

    async def clear_quarantine(
        self, model_id: ModelId, before: ModelSpec, worker_id: WorkerId | None, expected: int, caller: Caller
    ) -> Written:
        """Raises Conflict when somebody wrote first, Unavailable."""
        self._check_behind()
        fact = ModelQuarantineCleared(model_id=model_id, name=before.name, worker_id=worker_id)
        (sequence,) = await self._append(caller, (fact, _part_of(model_id, before.name, expected)))
        return await self._acknowledge(model_id, sequence, before)

    async def files_requested_before(self, caller: Caller) -> tuple[list[ModelFileRequested], Written] | None:
        """What the same command asked for, when that is projected. Raises Refused (idempotency_key_reused), Unavailable."""
        if not (events := await self._projected_events(caller)):
            return None
        facts = [read(event.envelope) for event in events]
        answer = await self._as_before(events[-1], caller, projected=True)
        return [fact for fact in facts if isinstance(fact, ModelFileRequested)], answer

    async def ask_for_files(
        self, facts: Sequence[ModelFileRequested | ModelFileDeletionRequested], caller: Caller
    ) -> Written:
        """All or none: what a user asks last of a file is what is wanted of it. Raises Unavailable."""
        self._check_behind()
        for _ in range(TRIES):
            guards = await asyncio.gather(*(self._file_guard(fact.file_id) for fact in facts))
            try:
                sequences = await self._append(caller, *zip(facts, guards, strict=True))
            except Conflict:
                continue
            return await self._acknowledge(facts[0].file_id, sequences[-1])
        raise Unavailable("too many writers want something of these files at once; try again")

    async def _file_guard(self, file_id: FileId) -> Guard:
        subject = api_part_of("file", file_id)
        return Guard(subject, await self._log.last_sequence_of(subject))

    async def put_backend(self, backend: InferenceBackend, expected: int | None, caller: Caller) -> Written:
        """Over generation `expected`; 0: there is none. None: over whatever is there.

        Raises Conflict when somebody wrote first, Unavailable.
        """
        self._check_behind()
        subject = api_part_of("backend", backend_id_of(backend.backend_name))
        newest = await self._log.last(subject)
        last = 0 if newest is None else newest.sequence
        is_there = newest is not None and newest.envelope.type != BackendDeleted.type
        if expected is not None and expected != (last if is_there else 0):
            raise Conflict("somebody else wrote this backend")
        fact = (BackendUpdated if is_there else BackendCreated)(backend=backend)
        (sequence,) = await self._append(caller, (fact, Guard(subject, last)))
        return await self._acknowledge(fact.backend_id, sequence)

    async def delete_backend(self, name: str, expected: int, caller: Caller) -> Written:
        """Raises Conflict when somebody wrote first, Unavailable."""
        self._check_behind()
        fact = BackendDeleted(backend_name=name)
        guard = Guard(api_part_of("backend", fact.backend_id), expected)
        (sequence,) = await self._append(caller, (fact, guard))
        return await self._acknowledge(fact.backend_id, sequence)

    async def change_worker(
        self, worker_id: WorkerId, labels: dict[str, str] | None, cordoned: bool | None, caller: Caller
    ) -> Written:
        """Raises Conflict when somebody wrote first, Unavailable."""
        self._check_behind()
        subject = api_part_of("worker", worker_id, worker_id)
        last = await self._log.last_sequence_of(subject)
        facts: list[Fact] = [] if labels is None else [WorkerLabelled(worker_id=worker_id, labels=labels)]
        if cordoned is not None:
            facts.append((WorkerCordoned if cordoned else WorkerUncordoned)(worker_id=worker_id))
        if not facts:
            return Written(worker_id, last, max(self._high_water.mark.generation, 1), projected=True)
        guards = (Guard(subject, last), *(None for _ in facts[1:]))  # one batch: all or none
        sequences = await self._append(caller, *zip(facts, guards, strict=True))
        return await self._acknowledge(worker_id, sequences[-1])

    # -- the two stores -----------------------------------------------------------------------------------------------

    async def _append(self, caller: Caller, *facts: tuple[Fact, Guard | None]) -> tuple[int, ...]:
        at = self._clock.now()
        drafts: list[Draft] = [
            seal_fact(
                fact,
                event_id=self._clock.new_id(),
                at=at,
                source=f"/muster/api/{self._settings.replica}",
                cause=caller.cause,
                guard=guard,
            )
            for fact, guard in facts
        ]
        if len(drafts) == 1:
            return await self._log.append(drafts)
        async with self._batches:
            return await self._log.append(drafts)

    async def _acknowledge(self, resource_id: str, sequence: int, spec: ModelSpec | None = None) -> Written:
        projected = await self._high_water.wait_for(sequence, timeout_seconds=self._settings.projection_wait_seconds)
        return Written(resource_id, sequence, max(self._high_water.mark.generation, 1), projected, spec)

    def _check_behind(self) -> None:
        """Before anything is appended: would it be projected? Raises Unavailable. Who has just read knows that Postgres is there."""
        behind = self._feed.behind_seconds()
        if behind > self._settings.behind_seconds:
            raise Unavailable(f"the projection is {behind:.0f} s behind the log; nothing was written")

    async def postgres_answers(self) -> bool:
        return await asyncio.shield(self._ask_postgres())

    def _ask_postgres(self) -> asyncio.Task[bool]:
        """Does it answer? One question for all who ask at once."""
        if self._probe is None or self._probe.done():
            self._probe = asyncio.create_task(self._postgres_answers())
        return self._probe

    async def _postgres_answers(self) -> bool:
        try:
            async with asyncio.timeout(2), self._engine.connect() as connection:
                await connection.execute(text("SELECT 1"))
        except (DBAPIError, *UNREACHABLE):
            return False
        return True

    async def _projected(self, caller: Caller) -> Written | None:
        """What the same command came to, when it is in `event_log`. Raises Refused (idempotency_key_reused), Unavailable."""
        if not (events := await self._projected_events(caller)):
            return None
        return await self._as_before(events[-1], caller, projected=True)

    async def _projected_events(self, caller: Caller) -> list[Stored]:
        """All that have this command's key, as far as they are in `event_log`. Raises Unavailable."""
        if caller.command_id is None:
            return []
        key = caller.command_id.partition(".")[0]
        try:
            async with asyncio.timeout(2), self._engine.connect() as connection:
                rows = await connection.execute(
                    text(
                        f"SELECT seq, body FROM {SCHEMA}.event_log"
                        " WHERE command_id >= :low AND command_id < :high ORDER BY seq"
                    ),
                    {"low": f"{key}.", "high": f"{key}/"},
                )
                return [Stored(row.seq, "", row.body) for row in rows]
        except (DBAPIError, *UNREACHABLE) as error:
            raise Unavailable("PostgreSQL is away; nothing was written") from error

    async def _durable(self, caller: Caller, model: str) -> Written | None:
        """What the same command came to, when it is in the log. Raises Refused (idempotency_key_reused), Unavailable."""
        if caller.command_id is None:
            return None
        key = caller.command_id.partition(".")[0]
        name = await look_up_name(self._log, "model", model)
        named = parse_fact_subject(name.last.subject).id if name.last is not None else None
        for model_id in (named, model if re.fullmatch(TOKEN_PATTERN, model) else None):
            for event in await self._log.read(api_facts_about("model", model_id)) if model_id else []:
                if (event.envelope.commandid or "").partition(".")[0] == key:
                    seconds = self._settings.projection_wait_seconds
                    projected = await self._high_water.wait_for(event.sequence, timeout_seconds=seconds)
                    return await self._as_before(event, caller, projected=projected)
        return None

    async def _as_before(self, event: Stored, caller: Caller, *, projected: bool) -> Written:
        """The answer that the command of this event was given. Raises Refused when it was another command."""
        envelope = event.envelope
        if envelope.commandid != caller.command_id:
            raise Refused(
                "idempotency_key_reused", "this Idempotency-Key was used for another request", field="Idempotency-Key"
            )
        resource_id = envelope.subject.partition("/")[2]
        spec = None if envelope.type == ModelDeleted.type else await self._spec_as_of(resource_id, event.sequence)
        return Written(resource_id, event.sequence, max(self._high_water.mark.generation, 1), projected, spec)

    async def _spec_as_of(self, model_id: str, sequence: int) -> ModelSpec | None:
        spec: ModelSpec | None = None
        for event in await self._log.read(api_facts_about("model", model_id)):
            if event.sequence > sequence:
                break
            match read(event.envelope):
                case ModelCreated(spec=wanted) | ModelUpdated(spec=wanted):
                    spec = wanted
                case ModelScaled(replicas=replicas) if spec is not None:
                    spec = spec.model_copy(update={"replicas": replicas})
                case _:
                    pass
        return spec


def _part_of(model_id: ModelId, name: str, sequence: int) -> Guard:
    return Guard(api_part_of("model", model_id, name_token(name)), sequence)


def _name_taken(name: str) -> Refused:
    return Refused("name_taken", f"there is a model called {name} already", field="name", status=409)

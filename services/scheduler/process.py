"""The scheduler's shell: read, fold, decide, append. One input after the other; whoever is deposed starts over."""

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Final

import orjson
from nats.aio.msg import Msg
from prometheus_client import Counter, Gauge, Histogram
from pydantic import ValidationError

from kernel.bus import Bus, JetStreamError
from kernel.clock import Clock, SystemClock
from kernel.errors import Corrupt, Deposed, Unavailable
from kernel.log.election import Election, append_as_elected, elect
from kernel.log.jetstream import JetStreamLog
from kernel.log.jetstream_tail import JetStreamTail
from kernel.log.port import Stored
from kernel.log.seal import Cause
from kernel.log.streams import verify
from kernel.process import retry_until_connected
from kernel.telemetry import span
from schemas.asks import ModelInspection
from schemas.envelope import Envelope
from schemas.facts import UnknownType, read
from schemas.facts.base import Fact
from schemas.facts.instance import InstanceFact
from schemas.facts.model import ModelFact
from schemas.ids import WorkerId
from schemas.reasons import InspectionFailed
from schemas.reports import BY_TYPE as REPORT_TYPES
from schemas.reports import Report, RequestsInFlight
from schemas.sources import LocalPath
from schemas.subjects import (
    ALL_BEATS,
    ALL_FACTS,
    ALL_REPORTS,
    ALL_REQUESTS,
    ELECTION,
    FACTS_OF_THE_API,
    REPORTS,
    ask,
    parse_beat,
    parse_report_subject,
    parse_requests,
)
from services.scheduler.adapters.board import Board, TooLarge
from services.scheduler.adapters.lease import Lease
from services.scheduler.adapters.questions import Questions
from services.scheduler.adapters.snapshots import SnapshotStore
from services.scheduler.domain.assignments import assigned_to
from services.scheduler.domain.core import Core, Decision, Now, Question
from services.scheduler.domain.fleet import Contradiction, Fleet, evolve
from services.scheduler.settings import SchedulerSettings

log = logging.getLogger(__name__)

TICK_SECONDS: Final = 0.5
FEW: Final = 5
"""Facts that are appended one by one: to the server an atomic batch costs as much as ten single facts."""
MOST_IN_A_BATCH: Final = 900
"""The server takes 1000."""
MOST_INPUTS: Final = 200
"""That share one append: the more, the longer the first of them waits."""
MOST_SECONDS: Final = 0.25
"""… and what they may take together: meanwhile nobody renews the lease, and nobody hears a beat."""
INSPECTION_SECONDS: Final = 15.0
HUB_SECONDS: Final = 60.0
"""The same, where a hub is asked too."""

DECIDED = Counter("muster_scheduler_facts_total", "Facts that the scheduler stated", ["type"])
REFUSED_REPORTS = Counter(
    "muster_scheduler_refused_reports_total", "Reports that were malformed or not the sender's to make"
)
DECISION_SECONDS = Histogram("muster_scheduler_decision_seconds", "From an input to its facts being durable")
IS_DECIDING = Gauge("muster_scheduler_is_deciding", "1 on the replica that decides")

Input = Callable[[Now], tuple[Decision, Cause]]


class LogNewerThanMe(Corrupt):
    """The log holds a type that this program does not know: deciding without it could contradict it."""

    def __init__(self, type_name: str) -> None:
        super().__init__(
            f"log_newer_than_me: the log holds {type_name}, which this version does not know; update the scheduler"
        )


class SchedulerProcess:
    name = "scheduler"

    def __init__(self, settings: SchedulerSettings, clock: Clock | None = None) -> None:
        self._settings = settings
        self._clock = clock or SystemClock()
        self._why_not_ready: str | None = "connecting"
        self.reign: Reign | None = None
        self.reigns = 0
        self.deciding = asyncio.Event()
        """Set once this replica has decided for the first time."""

    def not_ready(self) -> str | None:
        return self._why_not_ready

    async def run(self) -> None:
        """Stand by until the lease is ours, decide until it is lost, for ever. Raises Corrupt, ServerTooOld, Drift."""
        bus = await self._connect()
        lease = Lease(bus, self._settings.replica, self._settings.scheduler_lease_seconds)
        try:
            while True:
                self._why_not_ready = None
                await lease.acquire()
                await self._reign(bus, lease)
        finally:
            await lease.release()
            await bus.close()

    async def _connect(self) -> Bus:
        buses: list[Bus] = []

        async def connect() -> None:
            bus = await Bus.connect("scheduler", self._settings.bus(inbox_prefix="_INBOX_scheduler"), timeout_seconds=3)
            try:
                await verify(bus)
            except BaseException:
                await bus.close()
                raise
            buses.append(bus)

        await retry_until_connected("NATS", connect)
        return buses[0]

    async def _reign(self, bus: Bus, lease: Lease) -> None:
        self.reign = Reign(bus, self._settings, self._clock)
        self.reign.deciding = self.deciding
        self.reigns += 1
        work = asyncio.create_task(self.reign.run())
        keep = asyncio.create_task(lease.keep())
        try:
            await asyncio.wait({work, keep}, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                work.result()
        except (Deposed, Unavailable, JetStreamError) as error:
            log.warning("deciding was interrupted: %s", error)
            self._why_not_ready = str(error)
            await asyncio.sleep(0.1)
        finally:
            IS_DECIDING.set(0)
            for task in (work, keep):
                task.cancel()
            await asyncio.gather(work, keep, return_exceptions=True)
            await lease.release()


class Reign:
    """From one election to the next. Whatever goes wrong in between ends it, and the next one folds the log anew."""

    def __init__(self, bus: Bus, settings: SchedulerSettings, clock: Clock) -> None:
        self._bus = bus
        self._settings = settings
        self._clock = clock
        self._log = JetStreamLog(bus)
        self._board = Board(bus)
        self._snapshots = SnapshotStore(bus)
        self._inputs: asyncio.Queue[tuple[float, Input]] = asyncio.Queue(maxsize=100_000)
        """With the monotonic second at which each arrived."""
        self._taken: deque[tuple[float, Input]] = deque()
        """Out of the queue, and not decided."""
        self._asking: set[Question] = set()
        self._since_snapshot = 0
        self._followed = 0
        """Every fact of the api up to here is folded."""
        self._in_doubt = False
        """The fleet holds what was decided and is not known to be in the log."""
        self._greeted: set[WorkerId] = set()
        """Workers that were sent an assignment of this election, and so send us their complete picture."""
        self.deciding = asyncio.Event()
        self.election: Election | None = None
        self.core: Core | None = None

    async def run(self) -> None:
        """Raises Deposed, Unavailable, Corrupt."""
        self.election = await elect(self._log, self._clock, self._settings.replica)
        reports_after = (await self._bus.js_api(f"STREAM.INFO.{REPORTS}"))["state"]["last_seq"]
        fleet = await self.fold_up_to(self.election.sequence)
        core = self.core = Core(fleet, self._settings.policy(), self._now())
        self._followed = self.election.sequence
        log.info("deciding since election %d, with %d workers", self.election.sequence, len(fleet.workers))
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._follow_api())
                tasks.create_task(self._follow_reports(reports_after))
                tasks.create_task(self._listen_to_beats())
                tasks.create_task(self._listen_to_gateways())
                tasks.create_task(Questions(self._bus, core).answer())
                self._in_doubt = True
                # Who is removed now is told so too: it must not come back to its old assignment.
                workers = set(fleet.workers)
                await self._append((core.took_over(self._now()), Cause(actor="scheduler")))
                await self._publish(workers | set(fleet.workers), always=True)
                IS_DECIDING.set(1)
                self.deciding.set()
                await self._decide(tasks)
        except* (Deposed, Unavailable, JetStreamError) as group:
            raise group.exceptions[0] from group
        except* (Corrupt, Contradiction) as group:
            raise Corrupt(str(group.exceptions[0])) from group
        finally:
            if self._since_snapshot and self._bus.is_connected:
                await self._save_snapshot()

    async def fold_up_to(self, sequence: int) -> Fleet:
        """The fleet as of this fact: a snapshot, if there is a fitting one, and the log from there."""
        state = await self._log.state()
        fleet = await self._snapshots.load(state) or Fleet()
        if fleet.seq >= sequence:
            return fleet
        tail = self._log.tail([ALL_FACTS], after=fleet.seq)
        try:
            async for events in tail:
                for event in events:
                    if event.sequence > sequence:
                        return fleet
                    fold(fleet, event)
                if events[-1].sequence >= sequence:
                    return fleet
        finally:
            await tail.close()
        return fleet

    async def _decide(self, tasks: asyncio.TaskGroup) -> None:
        while True:
            await self._wait_for_inputs()
            for question in await self._decide_once():
                tasks.create_task(self._inspect(question))

    async def _decide_once(self) -> list[Question]:
        """What follows from what is there, and from the time; the new questions that are to be asked."""
        core = self._core
        workers: set[WorkerId] = set()
        behind: set[WorkerId] = set()
        now = self._now()
        with DECISION_SECONDS.time():
            self._in_doubt = True
            decisions, heard_until = self._decide_inputs(now)
            decisions.append((core.time_passed(now, heard_until), Cause(actor="scheduler")))
            for decision, _ in decisions:
                workers |= decision.workers
                behind |= decision.behind
            await self._append(*decisions)
            await self._publish(behind, always=True)
            await self._publish(workers - behind)
        questions = [question for question in core.questions(self._now()) if question not in self._asking]
        self._asking.update(questions)
        if self._since_snapshot >= max(self._settings.snapshot_every, len(core.fleet.instances) // 2):
            await self._save_snapshot()
        return questions

    def _decide_inputs(self, now: Now) -> tuple[list[tuple[Decision, Cause]], float]:
        """The first of them, and up to when (monotonic seconds) everything has been heard."""
        self._take_inputs()
        decisions: list[tuple[Decision, Cause]] = []
        facts = 0
        heard_until = now.monotonic
        while self._taken and len(decisions) < MOST_INPUTS and facts < self._core.policy.most_facts:
            if decisions and self._clock.monotonic() - now.monotonic > MOST_SECONDS:
                break
            heard_until, each = self._taken.popleft()
            decisions.append(each(now))
            facts += len(decisions[-1][0].facts)
        return decisions, heard_until if self._taken or not self._inputs.empty() else now.monotonic

    async def _wait_for_inputs(self) -> None:
        """Until there is something, a deadline is due, or the last decision was too long and goes on."""
        if self._taken or not self._inputs.empty():
            return
        if self._core.has_more:
            await asyncio.sleep(0)
            return
        deadline = self._core.next_deadline()
        wait = TICK_SECONDS if deadline is None else min(max(deadline - self._clock.monotonic(), 0.0), TICK_SECONDS)
        with suppress(TimeoutError):
            async with asyncio.timeout(wait):
                self._taken.append(await self._inputs.get())

    def _take_inputs(self) -> None:
        while len(self._taken) < MOST_INPUTS and not self._inputs.empty():
            self._taken.append(self._inputs.get_nowait())

    async def _append(self, *decisions: tuple[Decision, Cause]) -> None:
        """Of one moment, in order, each part fenced by the election.

        Many inputs that were there at once share their appends: a fleet that reports together waits for one, not for a
        thousand. Whoever takes over completes what was cut off (`Core.took_over`).
        """
        if self.election is None:
            raise Deposed("not elected")
        decided = [(fact, self._cause_of(fact, cause)) for decision, cause in decisions for fact in decision.facts]
        if not decided:
            self._in_doubt = False
            return
        at = next(decision.at for decision, _ in decisions if decision.facts)
        traceparent = next((cause.traceparent for _, cause in decided if cause.traceparent is not None), None)
        with span("decide", traceparent=traceparent):
            size = 1 if len(decided) <= FEW else MOST_IN_A_BATCH
            for start in range(0, len(decided), size):
                part = decided[start : start + size]
                _, sequences = await append_as_elected(self._log, self.election, self._clock, part, at=at)
                self._core.fleet.seq = max(self._core.fleet.seq, sequences[-1])
                self._since_snapshot += len(part)
        self._in_doubt = False
        for fact, _ in decided:
            DECIDED.labels(fact.type).inc()

    def _cause_of(self, fact: Fact, cause: Cause) -> Cause:
        """What follows from a report belongs to the request that wanted the model."""
        if cause.correlation_id is not None:
            return cause
        model_id = None
        if isinstance(fact, ModelFact):
            model_id = fact.model_id
        elif isinstance(fact, InstanceFact) and (instance := self._core.fleet.instances.get(fact.instance_id)):
            model_id = instance.model_id
        wish = self._core.fleet.wishes.get(model_id) if model_id else None
        if wish is None:
            return cause
        return replace(cause, correlation_id=wish.correlation_id, traceparent=cause.traceparent or wish.traceparent)

    async def _publish(self, workers: set[WorkerId], *, always: bool = False) -> None:
        if self.election is None:
            raise Deposed("not elected")
        for worker_id in sorted(workers):
            self._greeted.add(worker_id)
            document = assigned_to(
                self._core.fleet,
                worker_id,
                self.election.sequence,
                engine_key_ref=self._settings.engine_key_public,
                near=self._settings.near(),
            )
            try:
                sent = await self._board.publish(document, always=always)
            except TooLarge as error:  # what is new in it is not accepted in time; everybody else is served meanwhile
                log.error("not published: %s", error)  # noqa: TRY400 - the sentence is enough
                continue
            attempts = [(instance.instance_id, instance.attempt) for instance in document.instances]
            self._core.published(worker_id, attempts, document.election, document.seq, unchanged=not sent)

    # -- what comes in ------------------------------------------------------------------------------------------------

    async def _put(self, each: Input) -> None:
        await self._inputs.put((self._clock.monotonic(), each))

    async def _follow_api(self) -> None:
        if self.election is None:
            raise Deposed("not elected")
        async for events in self._log.tail([FACTS_OF_THE_API], after=self.election.sequence):
            for event in events:
                await self._put(self._wish(event))

    def _wish(self, event: Stored) -> Input:
        def decide(now: Now) -> tuple[Decision, Cause]:
            found = fold(self._core.fleet, event)
            self._followed = event.sequence
            if found is None:
                return Decision(), Cause()
            fact, envelope = found
            return self._core.wished(fact, now), _follows(envelope)

        return decide

    async def _follow_reports(self, after: int) -> None:
        async for events in JetStreamTail(self._bus, REPORTS, (ALL_REPORTS,), after=after):
            for event in events:
                await self._put(partial(self._reported, event))

    def _reported(self, event: Stored, now: Now) -> tuple[Decision, Cause]:
        """Read when its turn comes: until then it takes a tenth of the room."""
        found = parse_report(event)
        return (Decision(), Cause()) if found is None else self._heard(*found)(now)

    def _heard(self, report: Report, envelope: Envelope) -> Input:
        cause = _follows(envelope)
        return lambda now: (self._core.heard(report, now), cause)

    async def _listen_to_beats(self) -> None:
        async def heard(message: Msg) -> None:
            name, role = parse_beat(message.subject)
            await self._beat(WorkerId(name), role, boot_of(message.data))

        subscription = await self._bus.subscribe(ALL_BEATS, heard)
        try:
            await asyncio.Event().wait()
        finally:
            await subscription.unsubscribe()

    async def _beat(self, worker_id: WorkerId, role: str, boot_id: str | None) -> None:
        if role == "agent" and worker_id not in self._greeted:
            await self._put(lambda _now: (Decision(workers={worker_id}), Cause()))
        elif role == "agent" and self._must_look(worker_id, boot_id):
            await self._ask_to_look(worker_id)
        if self._core.beat_is_news(worker_id, role, self._clock.monotonic(), boot_id):
            await self._put(
                lambda now: (self._core.beat(worker_id, role, now, boot_id), Cause(actor=f"worker/{worker_id}"))
            )

    async def _listen_to_gateways(self) -> None:
        async def heard(message: Msg) -> None:
            if (told := parse_picture(message.subject, message.data)) is not None:
                await self._requests(told)

        subscription = await self._bus.subscribe(ALL_REQUESTS, heard)
        try:
            await asyncio.Event().wait()
        finally:
            await subscription.unsubscribe()

    async def _requests(self, told: RequestsInFlight) -> None:
        if self._core.requests_are_news(told, self._clock.monotonic()):
            await self._put(lambda now: (self._core.requests_told(now), Cause(actor="scheduler")))

    async def _ask_to_look(self, worker_id: WorkerId) -> None:
        await self._bus.publish(ask(worker_id, "look"), b"")

    def _must_look(self, worker_id: WorkerId, boot_id: str | None) -> bool:
        """It was started anew, or is heard again after it was given up: only its complete picture makes it ready."""
        boots = self._core.boots
        if boots.is_another(worker_id, "agent", boot_id) or boots.is_spoken_for(worker_id, "agent", boot_id):
            return True
        worker = self._core.fleet.workers.get(worker_id)
        return worker is not None and worker.state == "unreachable" and worker_id not in self._core.liveness.left

    async def _inspect(self, question: Question) -> None:
        """Ask a downloader what a model weighs; whatever comes of it is an input."""
        wish = self._core.fleet.wishes[question.model_id]
        try:
            request = question.about.model_dump_json().encode()
            about = (question.about.source, *question.about.adapters, question.about.draft)
            is_local = all(isinstance(each, LocalPath | None) for each in about)
            seconds = INSPECTION_SECONDS if is_local else HUB_SECONDS
            message = await self._bus.request(ask(question.worker_id, "inspect"), request, timeout_seconds=seconds)
            answer = ModelInspection.model_validate_json(message.data)
        except (Unavailable, ValidationError) as error:
            answer = ModelInspection(reasons=(InspectionFailed(problem=str(error)[:200]),))
        finally:
            self._asking.discard(question)
        actor = f"worker/{question.worker_id}"
        cause = Cause(correlation_id=wish.correlation_id, actor=actor, traceparent=wish.traceparent)
        await self._put(lambda now: (self._core.inspected(question, answer, now), cause))

    async def _save_snapshot(self) -> None:
        """Unless the fleet may not be what the log adds up to: something was decided and is perhaps not in it, a wish is
        in it and was not read yet, or somebody else has decided since. Then it is tried again a little later.
        """
        if self._in_doubt or self.election is None:
            return
        try:
            wished = await self._log.last_sequence_of(FACTS_OF_THE_API)
            elected = await self._log.last_sequence_of(ELECTION)
            if wished <= self._followed and elected == self.election.sequence:
                self._since_snapshot = 0
                await self._snapshots.save(self._core.fleet, await self._log.state())
        except (Unavailable, JetStreamError) as error:
            self._since_snapshot = 0
            log.warning("the snapshot could not be saved: %s", error)

    @property
    def _core(self) -> Core:
        if self.core is None:
            raise Deposed("not elected")
        return self.core

    def _now(self) -> Now:
        return Now(self._clock.now(), self._clock.monotonic())


def fold(fleet: Fleet, event: Stored) -> tuple[Fact, Envelope] | None:
    """Fold one stored event. A body that is no event at all can't come from a newer version: it is logged and passed over.

    Raises LogNewerThanMe, Contradiction.
    """
    try:
        envelope = Envelope.model_validate_json(event.body)
        fact = read(envelope)
    except UnknownType as unknown:
        raise LogNewerThanMe(unknown.type_name) from unknown
    except ValidationError as error:
        why = error.errors(include_url=False, include_input=False)[0]
        log.error("event %d is malformed and passed over: %s", event.sequence, why)  # noqa: TRY400 - the sentence is enough
        fleet.seq = max(fleet.seq, event.sequence)
        return None
    evolve(fleet, fact, event.sequence, envelope.time, envelope.correlationid, envelope.traceparent)
    return fact, envelope


def boot_of(beat: bytes) -> str | None:
    """Who beats; None when the beat does not say."""
    try:
        return str(orjson.loads(beat)["boot_id"])
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return None


def parse_picture(subject: str, body: bytes) -> RequestsInFlight | None:
    """What a gateway has in flight, if it is that and comes from whom it says; else None."""
    try:
        told = RequestsInFlight.model_validate_json(body)
        if told.gateway != parse_requests(subject):
            raise ValueError(f"it is of {told.gateway}")  # noqa: TRY301 - one way out for all of them
    except ValueError as error:
        log.warning("what a gateway tells on %s can't be read: %s", subject, str(error)[:300])
        return None
    return told


def parse_report(event: Stored) -> tuple[Report, Envelope] | None:
    """The report, if it is one and comes from whom it says; else None, and it is counted."""
    try:
        subject = parse_report_subject(event.subject)
        envelope = Envelope.model_validate(orjson.loads(event.body))
        report = REPORT_TYPES[envelope.type].model_validate(envelope.data)
        if (report.worker_id, report.type, report.resource_id) != (subject.worker, subject.type, subject.id):
            raise ValueError(f"{subject.worker} reports as {report.worker_id}")  # noqa: TRY301 - one way out for all of them
    except (ValueError, KeyError) as error:
        REFUSED_REPORTS.inc()
        log.warning("a report on %s was refused: %s", event.subject, str(error)[:300])
        return None
    return report, envelope


def _follows(envelope: Envelope) -> Cause:
    return Cause(
        correlation_id=envelope.correlationid,
        causation_id=envelope.id,
        actor=envelope.actor,
        traceparent=envelope.traceparent,
    )

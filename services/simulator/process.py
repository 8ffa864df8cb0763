"""The simulator's shell: one connection, one loop and a few senders for all workers of a fleet.

Its workers do what agents and downloaders do (kernel/edge.py), but their number must cost little: no task and no
subscription is any one worker's.
"""

import asyncio
import contextlib
import heapq
import logging
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from typing import Final

import nats.errors
from nats.aio.msg import Msg
from pydantic import BaseModel, ValidationError

from kernel.bus import Bus
from kernel.clock import Clock, SystemClock
from kernel.edge import AGAIN_SECONDS, BEAT_SECONDS, PICTURE_SECONDS, send_report
from kernel.errors import Refused, Unavailable
from kernel.process import retry_until_connected
from kernel.settings import BadSettings
from schemas.asks import InspectModel, LogLines, TailLog
from schemas.assignment import Assigned
from schemas.ids import WorkerId
from schemas.reports import (
    Beat,
    EngineReported,
    EngineSeen,
    FileReported,
    FileSeen,
    FilesObserved,
    Report,
    WorkerLeaving,
    WorkerObserved,
)
from schemas.subjects import ALL_ASSIGNED, ask, beat
from services.simulator.adapters.answers import Answers, Served
from services.simulator.domain.files import inspect
from services.simulator.domain.fleet import Fleet, read_fleet
from services.simulator.domain.worker import Join, Leave, Look, Serve, ServeNoMore, Step, Tell, Worker
from services.simulator.settings import SimulatorSettings

log = logging.getLogger(__name__)

SLICES: Final = 40
"""A beat's two seconds are cut into so many: each worker beats in one of them, and nobody beats all at once."""
SENDERS: Final = 64
"""Reports on their way at the same time; those of one worker are sent one after the other."""
SUMMARY_SECONDS: Final = 3.0
LEAVING_SECONDS: Final = 4.0
"""How long goodbyes may take, for each 4,000 workers that are there."""
VERSION: Final = f"{version('muster')}-simulated"

Say = Callable[[str], None]


@dataclass(slots=True, eq=False)
class Seat:
    """A worker, and what is on its way from it."""

    worker: Worker
    address: str
    boot_id: str = ""
    counter: int = 0
    beats: int = 0
    """0: its first picture has not arrived yet, or it has left."""
    unsent: deque["Sending"] = field(default_factory=deque["Sending"])
    is_queued: bool = False
    picture_at: float = 0.0
    wakes_at: float | None = None

    @property
    def id(self) -> WorkerId:
        return self.worker.described.id


@dataclass(frozen=True, slots=True, eq=False)
class Sending:
    make: Callable[[], Report]
    """Made when it is sent: its counter is that of its turn."""
    then: Callable[[], None] | None = None


class SimulatorProcess:
    name = "simulator"

    def __init__(self, settings: SimulatorSettings, *, clock: Clock | None = None, say: Say = log.info) -> None:
        """`say` is told every few seconds how it is. Raises BadSettings."""
        self._settings = settings
        self._clock = clock or SystemClock()
        self._say = say
        self._fleet = fleet_of(settings)
        self._seats = {described.id: self._seat(Worker(described, self._fleet)) for described in self._fleet.workers}
        self._answers = Answers()
        self._ready: asyncio.Queue[Seat] = asyncio.Queue()
        self._wakes: list[tuple[float, int, Seat]] = []
        self._wake_number = 0
        self._started_at = 0.0
        self._bus: Bus | None = None
        self._tasks: asyncio.TaskGroup | None = None
        self._why_not_ready: str | None = "connecting"

    @property
    def size(self) -> int:
        """How many workers there are to be."""
        return len(self._seats)

    def not_ready(self) -> str | None:
        return self._why_not_ready

    async def run(self) -> None:
        async def connect() -> None:
            self._bus = await Bus.connect("simulator", self._settings.line(), timeout_seconds=3)

        await retry_until_connected("NATS", connect)
        bus = self._line()
        await self._answers.start()
        try:
            await self._try_address()
            async with asyncio.TaskGroup() as tasks:
                self._tasks = tasks
                for subject, hear in (
                    (ALL_ASSIGNED, self._hear_assigned),
                    (ask("*", "inspect"), self._hear_inspect),
                    (ask("*", "logs"), self._hear_logs),
                    (ask("*", "look"), self._hear_look),
                ):
                    await bus.subscribe(subject, hear)
                await bus.flush()
                bus.on_reconnect(self._look_everywhere)
                for _ in range(SENDERS):
                    tasks.create_task(self._send())
                tasks.create_task(self._turn())
                tasks.create_task(self._summarize())
                self._why_not_ready = None
        finally:
            await self._answers.stop()
            await self._leave_all()
            await bus.close()

    async def _try_address(self) -> None:
        """Raises BadSettings where engines could not listen: before anybody has joined."""
        address = next(iter(self._seats.values())).address
        try:
            await self._answers.open("a try", address, Served("", 0, 0))
        except OSError as error:
            raise BadSettings(
                f"simulated engines can't listen on {address} ({error.strerror}): --address (MUSTER_SIMULATOR_ADDRESS) names another"
            ) from error
        self._answers.close("a try")

    # -- the loop -----------------------------------------------------------------------------------------------------

    async def _turn(self) -> None:
        """Beats, pictures and whatever is due, in slices of a beat's time."""
        self._started_at = self._clock.monotonic()
        for seat in self._seats.values():
            await self._do(seat, seat.worker.joins())
        slices = [list(self._seats.values())[start::SLICES] for start in range(SLICES)]
        next_at = self._clock.monotonic()
        while True:
            for seats in slices:
                for seat in seats:
                    if seat.beats:
                        await self._beat(seat)
                await self._wake()
                next_at = max(next_at + BEAT_SECONDS / SLICES, self._clock.monotonic())
                await asyncio.sleep(next_at - self._clock.monotonic())

    async def _beat(self, seat: Seat) -> None:
        body = Beat(boot_id=seat.boot_id, counter=seat.beats).model_dump_json().encode()
        seat.beats += 1
        try:
            for role in ("agent", "downloader"):
                await self._line().publish(beat(seat.id, role), body)
        except Unavailable as error:
            log.debug("no beat: %s", error)
        if self._clock.monotonic() >= seat.picture_at:
            self._look(seat)

    async def _wake(self) -> None:
        now = self._now()
        while self._wakes and self._wakes[0][0] <= now:
            at, _, seat = heapq.heappop(self._wakes)
            if at == seat.wakes_at:
                seat.wakes_at = None
                await self._do(seat, seat.worker.time_passed(now))

    async def _do(self, seat: Seat, steps: Iterable[Step]) -> None:
        """What a worker wants done."""
        for step in steps:
            match step:
                case Tell(seen=EngineSeen() as seen):
                    self._tell(seat, partial(self._engine_reported, seat, seen))
                case Tell(seen=FileSeen() as seen):
                    self._tell(seat, partial(self._file_reported, seat, seen))
                case Look():
                    self._look(seat)
                case Join():
                    seat.boot_id, seat.counter = self._clock.new_id(), 0
                    self._look(seat, then=lambda: self._has_joined(seat))
                case Leave(says_goodbye=says_goodbye):
                    seat.beats = 0
                    seat.unsent.clear()
                    if says_goodbye:
                        self._tell(seat, partial(self._leaving, seat))
                case Serve():
                    await self._serve(seat, step)
                case ServeNoMore(key=key):
                    self._answers.close((seat.id, key))
                case _:
                    raise AssertionError(step)
        self._schedule(seat)

    async def _serve(self, seat: Seat, serve: Serve) -> None:
        served = Served(serve.model, serve.first_token_seconds, serve.token_seconds)
        try:
            port = await self._answers.open((seat.id, serve.key), seat.address, served)
        except OSError as error:
            why = f"{serve.model} can't be served at {seat.address}: {error.strerror}"
            log.error(why)  # noqa: TRY400 - the sentence is enough
            await self._do(seat, seat.worker.not_opened(serve.key, why))
        else:
            await self._do(seat, seat.worker.opened(serve.key, port))

    def _schedule(self, seat: Seat) -> None:
        at = seat.worker.next_at()
        if at is not None and (seat.wakes_at is None or at < seat.wakes_at):
            seat.wakes_at = at
            self._wake_number += 1
            heapq.heappush(self._wakes, (at, self._wake_number, seat))

    async def _summarize(self) -> None:
        said = ""
        while True:
            await asyncio.sleep(SUMMARY_SECONDS)
            if (summary := self.summary()) != said:
                said = summary
                self._say(summary)

    def summary(self) -> str:
        joined = sum(1 for seat in self._seats.values() if seat.beats)
        phases = Counter(phase for seat in self._seats.values() for phase in seat.worker.phases())
        engines = ", ".join(f"{count} {phase}" for phase, count in sorted(phases.items())) or "none"
        return f"{joined} of {len(self._seats)} workers are there; engines: {engines}"

    # -- what is said -------------------------------------------------------------------------------------------------

    def _tell(self, seat: Seat, make: Callable[[], Report], then: Callable[[], None] | None = None) -> None:
        seat.unsent.append(Sending(make, then))
        if not seat.is_queued:
            seat.is_queued = True
            self._ready.put_nowait(seat)

    def _look(self, seat: Seat, then: Callable[[], None] | None = None) -> None:
        seat.picture_at = self._clock.monotonic() + PICTURE_SECONDS
        self._tell(seat, partial(self._observed, seat))
        self._tell(seat, partial(self._files_observed, seat), then)

    def _look_everywhere(self) -> None:
        for seat in self._seats.values():
            if seat.beats:
                self._look(seat)

    def _has_joined(self, seat: Seat) -> None:
        seat.beats = 1
        if self._tasks is not None:
            self._tasks.create_task(self._beat(seat))

    async def _send(self) -> None:
        while True:
            seat = await self._ready.get()
            while seat.unsent:
                sending = seat.unsent[0]
                try:
                    await self._send_now(sending.make())
                except Unavailable as error:  # it may have arrived; told twice is told once
                    log.debug("a report of %s waits: %s", seat.id, error)
                    await asyncio.sleep(AGAIN_SECONDS)
                    continue
                except Refused as error:
                    log.error("a report of %s is not sent: %s", seat.id, error)  # noqa: TRY400 - the sentence is enough
                if seat.unsent and seat.unsent[0] is sending:  # else it left meanwhile
                    seat.unsent.popleft()
                    if sending.then is not None:
                        sending.then()
            seat.is_queued = False

    async def _send_now(self, report: Report) -> None:
        await send_report(self._line(), report, self._clock.new_id(), f"/muster/simulator/{report.worker_id}")

    async def _leave_all(self) -> None:
        """As agents that are stopped in order, and take their engines with them."""
        staying = [seat for seat in self._seats.values() if seat.worker.is_here]

        async def leave() -> None:
            while staying:
                seat = staying.pop()
                try:
                    await self._send_now(self._leaving(seat))
                except Unavailable as error:
                    log.debug("%s has not said goodbye yet: %s", seat.id, error)
                    staying.insert(0, seat)
                    await asyncio.sleep(AGAIN_SECONDS)

        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LEAVING_SECONDS * max(1, len(staying) / 4000)):
                await asyncio.gather(*(leave() for _ in range(SENDERS)))
        if staying:
            log.warning("%d workers could not say goodbye", len(staying))

    def _identity(self, seat: Seat) -> dict[str, object]:
        seat.counter += 1
        now = self._clock.now()
        return {"worker_id": seat.id, "boot_id": seat.boot_id, "counter": seat.counter, "observed_at": now}

    def _observed(self, seat: Seat) -> Report:
        worker = seat.worker
        picture = {
            "name": worker.described.name,
            "address": seat.address,
            "agent_version": VERSION,
            "inventory": worker.described.inventory(),
            "engines": worker.engines(),
            "assigned_election": worker.election,
            "assigned_seq": worker.seq,
        }
        return WorkerObserved.model_validate(self._identity(seat) | picture)

    def _files_observed(self, seat: Seat) -> Report:
        return FilesObserved.model_validate(self._identity(seat) | {"files": seat.worker.files()})

    def _engine_reported(self, seat: Seat, seen: EngineSeen) -> Report:
        return EngineReported.model_validate(self._identity(seat) | {"engine": seen})

    def _file_reported(self, seat: Seat, seen: FileSeen) -> Report:
        return FileReported.model_validate(self._identity(seat) | {"file": seen})

    def _leaving(self, seat: Seat) -> Report:
        return WorkerLeaving.model_validate(self._identity(seat) | {"engines_stopped": True})

    # -- what is heard ------------------------------------------------------------------------------------------------

    async def _hear_assigned(self, message: Msg) -> None:
        seat = self._asked(message)
        if seat is None:
            return
        try:
            document = Assigned.model_validate_json(message.data)
        except ValidationError as error:
            log.error("the assignment can't be read and changes nothing: %s", error.errors(include_url=False)[0])  # noqa: TRY400
            return
        if document.worker_id == seat.id:
            await self._do(seat, seat.worker.assigned(document, self._now()))

    async def _hear_inspect(self, message: Msg) -> None:
        if (seat := self._asked(message)) is None or self._tasks is None:
            return
        described = seat.worker.described
        try:
            question = InspectModel.model_validate_json(message.data)
        except ValidationError as error:
            log.warning("a question can't be read: %s", error.errors(include_url=False)[0])
            return
        answer = inspect(self._fleet, described.name, question)
        seconds = described.draw(described.group.files.inspect_seconds, "inspect", question.source.label)
        if seconds:
            self._tasks.create_task(self._answer(message, answer, seconds))
        else:
            await self._answer(message, answer)

    async def _hear_logs(self, message: Msg) -> None:
        if (seat := self._asked(message)) is None:
            return
        try:
            question = TailLog.model_validate_json(message.data)
        except ValidationError as error:
            log.warning("a question can't be read: %s", error.errors(include_url=False)[0])
            return
        found = seat.worker.log_of(question.instance_id, question.attempt)
        lines = LogLines(found=False)
        if found is not None:
            attempt, log_ = found
            first = max(0, len(log_) - question.lines) if question.after is None else int(question.after or 0)
            shown = log_[first : first + question.lines]
            after = str(first + len(shown)) if question.follow else None
            lines = LogLines(found=True, attempt=attempt, lines=shown, after=after)
        await self._answer(message, lines)

    async def _hear_look(self, message: Msg) -> None:
        if (seat := self._asked(message)) is not None:
            self._look(seat)

    def _asked(self, message: Msg) -> Seat | None:
        """Whom it is for; None when it is none of ours, or is away."""
        seat = self._seats.get(WorkerId(message.subject.split(".")[2]))
        return seat if seat is not None and seat.worker.is_here else None

    @staticmethod
    async def _answer(message: Msg, answer: BaseModel, after_seconds: float = 0) -> None:
        await asyncio.sleep(after_seconds)
        if not message.reply:
            return
        try:
            await message.respond(answer.model_dump_json().encode())
        except (nats.errors.Error, OSError) as error:
            log.debug("not answered: %s", error)

    # -- small things -------------------------------------------------------------------------------------------------

    def _seat(self, worker: Worker) -> Seat:
        return Seat(worker, self._settings.simulator_address or loopback_of(worker.described.number))

    def _now(self) -> float:
        """Seconds of the simulation."""
        return self._clock.monotonic() - self._started_at

    def _line(self) -> Bus:
        if self._bus is None:
            raise Unavailable("the simulator is not connected")
        return self._bus


def fleet_of(settings: SimulatorSettings) -> Fleet:
    """Raises BadSettings, which names the file, the field and the code."""
    file = settings.fleet
    if file is None:
        raise BadSettings("MUSTER_FLEET is missing: which workers are to be simulated?")
    try:
        return read_fleet(file.read_bytes())
    except OSError as error:
        raise BadSettings(f"{file} can't be read: {error.strerror}") from error
    except Refused as error:
        where = f"{file}: {error.field}" if error.field else str(file)
        raise BadSettings(f"{where}: {error.message} ({error.code})") from error


def loopback_of(number: int) -> str:
    """An address in 127.0.0.0/8 (RFC 1122), away from the ones that people use."""
    high, low = divmod(number, 250)
    return f"127.64.{high}.{1 + low}"

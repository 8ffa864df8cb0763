"""Logs of engines and of workers' services, asked for over the bus and told as text: the reader sets the pace.

A followed log is a series of questions, each with the place where the last answer ended. Nothing of it is held here or on the
worker in between: a reader that is slow is asked for later, one that has gone away is asked for no more.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Final, Literal, TypeVar

from pydantic import BaseModel

from kernel.bus import Bus
from kernel.errors import Refused, Unavailable
from schemas.asks import LogLines, ServiceLine, ServiceLines, TailLog, TailService
from schemas.subjects import ask
from services.api.adapters.reader import Reader

Service = Literal["agent", "downloader"]
SERVICES: Final[tuple[Service, ...]] = ("agent", "downloader")
ANSWER_SECONDS: Final = 5.0
WAIT_SECONDS: Final = 2.0
"""So long a question waits on the worker for a line; whether the reader is still there is seen between two questions."""
AGAIN_SECONDS: Final = 0.5
"""Until the next question to a worker that does not answer, or for an attempt that is not there yet."""
PAGE: Final = 1000
FROM_THE_BEGINNING: Final = ""

A = TypeVar("A", bound=BaseModel)
Gone = Callable[[], Awaitable[bool]]
"""Whether the reader is no longer there."""


@dataclass(frozen=True, slots=True)
class Log:
    """Which log is meant, and where it is."""

    instance_id: str
    name: str
    attempt: int
    worker_id: str
    one_attempt: bool
    """The reader named the attempt: the next one is none of its business."""


class Logs:
    def __init__(self, reader: Reader, bus: Bus) -> None:
        self._reader = reader
        self._bus = bus

    # -- engines ------------------------------------------------------------------------------------------------------

    async def find(self, instance: str, attempt: int | None, *, previous: bool) -> Log:
        """Raises Refused (not_found, no_logs). An instance that is gone is found by its id."""
        name = instance
        try:
            found = await self._reader.instance(instance)
        except Refused:
            attempts = await self._reader.attempts(instance)
            if not attempts:
                raise
        else:
            instance, name = found["id"], found["name"]
            attempts = await self._reader.attempts(instance)
        if not attempts:
            raise Refused("no_logs", f"{name} has not been started anywhere yet", status=404)
        newest = max(attempts)
        if previous and newest == 1:
            raise Refused("no_logs", f"{name} has had one attempt only", status=404)
        wanted = attempt if attempt is not None else newest - 1 if previous else newest
        if wanted not in attempts:
            raise Refused("no_logs", f"the worker has no log of {name}, attempt {wanted}", status=404)
        return Log(instance, name, wanted, attempts[wanted], one_attempt=attempt is not None or previous)

    async def tail(self, log: Log, lines: int) -> LogLines:
        """Raises Refused (no_logs), Unavailable."""
        return await self._told(log, _question(log, lines))

    async def follow(self, log: Log, lines: int, gone: Gone) -> AsyncIterator[bytes]:
        """From the last lines on, over attempts and workers. Raises Refused (no_logs) and Unavailable before it begins."""
        part = await self._told(log, _question(log, lines, follow=True))
        return self._followed(replace(log, attempt=part.attempt or log.attempt), part, gone)

    async def _followed(self, log: Log, part: LogLines, gone: Gone) -> AsyncIterator[bytes]:
        place, silent, over = part.after, False, part.ended
        yield _text(part.skipped, part.lines)
        while place is not None and not await gone():
            if over or silent:
                following = await self._next(log)
                if following is None or (over and log.one_attempt):
                    return
                if following == log:
                    await asyncio.sleep(AGAIN_SECONDS)
                else:
                    log, place = following, FROM_THE_BEGINNING
                    yield _note(f"attempt {log.attempt} begins")
            question = _question(log, PAGE, follow=True, named=True, after=place, wait_seconds=WAIT_SECONDS)
            try:
                part = await self._ask(log.worker_id, "logs", question, LogLines)
            except Unavailable as error:
                if not silent:
                    yield _note(f"the worker does not answer: {error}")
                silent = True
                continue
            silent, over = False, part.ended or not part.found
            if part.found:
                place = part.after
            if part.lines or part.skipped:
                yield _text(part.skipped, part.lines)

    async def _next(self, log: Log) -> Log | None:
        """What is to be followed after this one has ended; the same while nothing has come; None when nothing will."""
        try:
            await self._reader.instance(log.instance_id)
        except Refused:
            return None
        attempts = await self._reader.attempts(log.instance_id)
        newer = [attempt for attempt in attempts if attempt > log.attempt]
        return (
            replace(log, attempt=min(newer), worker_id=attempts[min(newer)]) if newer and not log.one_attempt else log
        )

    async def _told(self, log: Log, question: TailLog) -> LogLines:
        lines = await self._ask(log.worker_id, "logs", question, LogLines)
        if not lines.found:
            raise Refused("no_logs", f"the worker has no log of {log.name}, attempt {log.attempt}", status=404)
        return lines

    # -- workers' services --------------------------------------------------------------------------------------------

    async def of_worker(self, worker_id: str, services: tuple[Service, ...], lines: int) -> "WorkerLog":
        """The last lines of these services, by time. Raises Unavailable when none of them answers."""
        asked = (self._ask_service(worker_id, each, TailService(lines=lines)) for each in services)
        parts = zip(services, await asyncio.gather(*asked, return_exceptions=True), strict=True)
        answers: dict[Service, ServiceLines] = {each: part for each, part in parts if isinstance(part, ServiceLines)}
        if not answers:
            raise Unavailable(f"neither {' nor '.join(services)} of this worker answers")
        told: list[tuple[ServiceLine, Service]] = [
            (line, service) for service, part in answers.items() for line in part.lines
        ]
        told.sort(key=lambda each: each[0].at)  # lines of one moment stay in order: a traceback is many of them
        places: dict[Service, str] = {service: part.after for service, part in answers.items()}
        return WorkerLog(worker_id, tuple(_service_line(service, line) for line, service in told[-lines:]), places)

    async def follow_worker(self, log: "WorkerLog", services: tuple[Service, ...], gone: Gone) -> AsyncIterator[bytes]:
        """One after the other, without waiting at one that has nothing to say; both answer from memory."""
        yield _text(0, log.lines)
        places = dict(log.places)
        while not await gone():
            said = False
            for service in services:
                question = TailService(lines=PAGE, after=places.get(service))
                try:
                    part = await self._ask_service(log.worker_id, service, question)
                except Unavailable:  # it is being started anew, say: its lines come when it is back
                    continue
                places[service] = part.after
                if part.lines or part.skipped:
                    said = True
                    yield _text(part.skipped, tuple(_service_line(service, line) for line in part.lines))
            if not said:
                await asyncio.sleep(AGAIN_SECONDS)

    async def _ask_service(self, worker_id: str, service: Service, question: TailService) -> ServiceLines:
        return await self._ask(worker_id, f"{service}-log", question, ServiceLines)

    async def _ask(self, worker_id: str, verb: str, question: BaseModel, answer: type[A]) -> A:
        message = await self._bus.request(
            ask(worker_id, verb), question.model_dump_json().encode(), timeout_seconds=ANSWER_SECONDS
        )
        return answer.model_validate_json(message.data)


@dataclass(frozen=True, slots=True)
class WorkerLog:
    worker_id: str
    lines: tuple[str, ...]
    places: dict[Service, str]
    """Where the lines of each service end."""


def _question(log: Log, lines: int, *, named: bool = False, **more: object) -> TailLog:
    """Unless the attempt is `named` the agent takes the newest that it has: the next may only be on its way there."""
    attempt = log.attempt if named or log.one_attempt else None
    return TailLog.model_validate({"instance_id": log.instance_id, "attempt": attempt, "lines": lines} | more)


def _service_line(service: Service, line: ServiceLine) -> str:
    return f"{line.at.isoformat(timespec='milliseconds')} {service} {line.text}"


def _text(skipped: int, lines: tuple[str, ...]) -> bytes:
    told = _note(f"{skipped} lines skipped") if skipped else b""
    return told + "".join(f"{line}\n" for line in lines).encode()


def _note(sentence: str) -> bytes:
    """What is not the engine's."""
    return f"… {sentence}\n".encode()

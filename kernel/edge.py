"""What an agent and a downloader have in common: beats, reports, and the assignment of their worker.

Nothing here needs more of the bus than a worker's credentials allow: publish own reports and beats, read own assignment.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from datetime import datetime
from pathlib import Path
from typing import Any, Final, TypeVar

import orjson
from nats.aio.msg import Msg
from pydantic import ValidationError

from kernel.bus import MOST_BYTES, Bus
from kernel.clock import Clock
from kernel.errors import Refused, Unavailable
from kernel.log.seal import seal_report
from kernel.telemetry import current_traceparent
from schemas.assignment import Assigned
from schemas.envelope import CONTENT_TYPE
from schemas.ids import WorkerId
from schemas.masking import masked
from schemas.reports import Beat, Report
from schemas.subjects import ASSIGNED, assigned, beat

log = logging.getLogger(__name__)

BEAT_SECONDS: Final = 2.0
REREAD_SECONDS: Final = 30.0
PICTURE_SECONDS: Final = 60.0
ACKNOWLEDGEMENT_SECONDS: Final = 2.0
AGAIN_SECONDS: Final = 0.2
MOST_UNSENT: Final = 1000

R = TypeVar("R", bound=Report)


async def send_report(bus: Bus, report: Report, event_id: str, source: str) -> None:
    """Send once; returns when it is stored. Raises Unavailable, Refused (report_too_large)."""
    envelope = seal_report(report, event_id=event_id, source=source, traceparent=current_traceparent())
    content = masked(envelope.to_json().decode()).encode()  # whatever went wrong may have been told with a password
    if len(content) > MOST_BYTES:
        raise Refused("report_too_large", f"{len(content)} bytes are more than the {MOST_BYTES} that can be sent")
    answer = await bus.request(
        report.subject, content, headers={"content-type": CONTENT_TYPE}, timeout_seconds=ACKNOWLEDGEMENT_SECONDS
    )
    body = orjson.loads(answer.data)
    if "error" in body:
        raise Unavailable(f"the report was refused: {body['error'].get('description')}")


class Edge:
    """One role's line to the core. `picture` makes the complete picture, sent whenever a hint may have been lost."""

    def __init__(
        self,
        bus: Bus,
        worker_id: WorkerId,
        role: str,
        clock: Clock,
        state_file: Path,
        picture: Callable[[], Awaitable[Report]],
    ) -> None:
        self._bus = bus
        self.worker_id = worker_id
        self._role = role
        self._clock = clock
        self._state_file = state_file
        self._picture = picture
        self.boot_id = clock.new_id()
        self._counter = 0
        self._unsent: asyncio.Queue[Report] = asyncio.Queue()
        self._picture_wanted = asyncio.Event()
        self.newest = self._read_state()
        """Election and sequence of the newest assignment that was ever read here."""
        self.election, self.seq = 0, 0
        """Of the newest that this boot has taken up: a picture that omits what it adds tells that it is missing."""
        self._arrived: asyncio.Queue[bytes | None] = asyncio.Queue()
        """Assignments that came by themselves; None: one may have been missed, it is to be read."""
        bus.on_reconnect(self._reconnected)

    def _reconnected(self) -> None:
        """What was said or published meanwhile may be lost."""
        self._picture_wanted.set()
        self._arrived.put_nowait(None)

    def identity(self) -> dict[str, Any]:
        """The fields that every report begins with; each call is the next report."""
        self._counter += 1
        observed_at: datetime = self._clock.now()
        return {
            "worker_id": self.worker_id,
            "boot_id": self.boot_id,
            "counter": self._counter,
            "observed_at": observed_at,
        }

    def report(self, report: Report) -> None:
        """Hand over a report; it is sent in order. When too many wait, the complete picture takes their place."""
        if self._unsent.qsize() >= MOST_UNSENT:
            self._forget_unsent()
            self._picture_wanted.set()
            return
        self._unsent.put_nowait(report)

    def want_picture(self) -> None:
        self._picture_wanted.set()

    async def send(self, report: Report) -> None:
        """Send now, once. Raises Unavailable, Refused (report_too_large)."""
        await send_report(self._bus, report, self._clock.new_id(), f"/muster/{self._role}/{self.worker_id}")

    async def run(self, on_assigned: Callable[[Assigned], Awaitable[None]]) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._beat())
            tasks.create_task(self._send_reports())
            tasks.create_task(self._send_pictures())
            tasks.create_task(self._follow_assignment(on_assigned))

    async def _beat(self) -> None:
        counter = 0
        while True:
            counter += 1
            try:
                body = Beat(boot_id=self.boot_id, counter=counter).model_dump_json().encode()
                await self._bus.publish(beat(self.worker_id, self._role), body)
            except Unavailable as error:
                log.debug("no beat: %s", error)
            await asyncio.sleep(BEAT_SECONDS)

    async def _send_reports(self) -> None:
        while True:
            report = await self._unsent.get()
            while True:
                try:
                    await self.send(report)
                except Unavailable as error:  # it may have arrived; told twice is told once
                    log.debug("%s waits: %s", report.type, error)
                    await asyncio.sleep(AGAIN_SECONDS)
                except Refused as error:
                    log.error("%s is not sent: %s", report.type, error)  # noqa: TRY400 - the sentence is enough
                    break
                else:
                    break

    async def _send_pictures(self) -> None:
        """On connecting, after each election, whenever hints may be lost, and every minute."""
        while True:
            self._picture_wanted.clear()
            self._unsent.put_nowait(await self._picture())
            try:
                async with asyncio.timeout(PICTURE_SECONDS):
                    await self._picture_wanted.wait()
            except TimeoutError:
                pass

    async def _follow_assignment(self, on_assigned: Callable[[Assigned], Awaitable[None]]) -> None:
        """Live, and read again every 30 s: level-triggered, so nothing can be missed for long."""

        async def heard(message: Msg) -> None:
            self._arrived.put_nowait(message.data)

        await self._bus.subscribe(assigned(self.worker_id), heard)
        while True:
            body = await self._read_assignment()
            if body is not None:
                await self._take(body, on_assigned, again=True)
            read_again_at = asyncio.get_running_loop().time() + (REREAD_SECONDS if body is not None else 1.0)
            while True:
                try:
                    async with asyncio.timeout_at(read_again_at):
                        live = await self._arrived.get()
                except TimeoutError:
                    break
                if live is None:
                    break
                await self._take(live, on_assigned)

    async def _read_assignment(self) -> bytes | None:
        subject = f"$JS.API.DIRECT.GET.{ASSIGNED}.{assigned(self.worker_id)}"
        try:
            message = await self._bus.request(subject, b"", timeout_seconds=2.0)
        except Unavailable as error:
            log.debug("the assignment can't be read: %s", error)
            return None
        return None if (message.headers or {}).get("Status") else message.data

    async def _take(
        self, body: bytes, on_assigned: Callable[[Assigned], Awaitable[None]], *, again: bool = False
    ) -> None:
        try:
            document = Assigned.model_validate_json(body)
        except ValidationError as error:
            log.error("the assignment can't be read and changes nothing: %s", error.errors(include_url=False)[0])  # noqa: TRY400
            return
        same = (document.election, document.seq) == self.newest
        if document.worker_id != self.worker_id or not (document.is_newer_than(*self.newest) or (same and again)):
            return
        new_election = document.election > self.election
        self.newest = (document.election, document.seq)
        self._write_state()
        await on_assigned(document)
        self.election, self.seq = self.newest
        if new_election:
            self.want_picture()

    def _forget_unsent(self) -> None:
        while not self._unsent.empty():
            self._unsent.get_nowait()

    def _read_state(self) -> tuple[int, int]:
        """The newest assignment that was ever read here: an older one changes nothing, not even after a restart."""
        try:
            state = orjson.loads(self._state_file.read_bytes())
            return int(state["election"]), int(state["seq"])
        except (OSError, ValueError, KeyError, TypeError):
            return 0, 0

    def _write_state(self) -> None:
        """On a disk that is full the worker does what it is told all the same: what is lost matters only to its next boot."""
        temporary = self._state_file.with_suffix(".new")
        try:
            self._state_file.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(orjson.dumps(dict(zip(("election", "seq"), self.newest, strict=True))))
            temporary.replace(self._state_file)
        except OSError as error:
            log.warning("which assignment is the newest could not be noted: %s", error)

"""How far images are, as agents report it: what is true for a second is kept in memory, and never stored."""

import logging
import time
from dataclasses import dataclass
from typing import Any, Final

from nats.aio.msg import Msg
from pydantic import ValidationError

from kernel.bus import Bus
from schemas.envelope import Envelope
from schemas.reports import EngineReported, PullSeen
from schemas.subjects import ALL_ENGINES_REPORTED, parse_report_subject

log = logging.getLogger(__name__)

STALE_SECONDS: Final = 15.0
"""After so long without news nobody knows its rate. Agents tell it each second while something comes."""
MOST: Final = 10_000


@dataclass(frozen=True, slots=True)
class _Heard:
    attempt: int
    pull: PullSeen
    at: float


class Pulls:
    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._heard: dict[str, dict[str, _Heard]] = {}
        """Instance → worker → what was heard last; the instance that was heard last comes last."""

    async def listen(self) -> None:
        await self._bus.subscribe(ALL_ENGINES_REPORTED, self._hear)

    async def _hear(self, message: Msg) -> None:
        subject = parse_report_subject(message.subject)
        if b'"pulling"' not in message.data:  # most reports are about something else
            self._forget(subject.id, subject.worker)
            return
        try:
            report = EngineReported.model_validate(Envelope.model_validate_json(message.data).data)
        except ValidationError as error:
            log.debug("a report can't be read: %s", error)
            return
        if report.engine.pull is None:
            self._forget(subject.id, subject.worker)
            return
        workers = self._heard.pop(subject.id, {})
        workers[subject.worker] = _Heard(report.engine.attempt, report.engine.pull, time.monotonic())
        self._heard[subject.id] = workers
        if len(self._heard) > MOST:
            del self._heard[next(iter(self._heard))]

    def _forget(self, instance_id: str, worker_id: str) -> None:
        workers = self._heard.get(instance_id)
        if workers is not None and workers.pop(worker_id, None) is not None and not workers:
            del self._heard[instance_id]

    def of(self, instance_id: str, attempt: int) -> list[dict[str, Any]]:
        """Of each of its workers that pulls."""
        now = time.monotonic()
        return [
            {"worker_id": worker_id} | pull_document(heard.pull, is_known=now - heard.at < STALE_SECONDS)
            for worker_id, heard in sorted(self._heard.get(instance_id, {}).items())
            if heard.attempt == attempt
        ]


def pull_document(pull: PullSeen, *, is_known: bool = True) -> dict[str, Any]:
    """`is_known`: how fast it goes was told just now."""
    unknown = {} if is_known else {"bytes_per_second": None, "remaining_seconds": None}
    return pull.model_dump(mode="json") | unknown

"""How far model files are, as downloaders tell it: what is true for a second is kept in memory, and never stored."""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from nats.aio.msg import Msg
from pydantic import ValidationError

from kernel.bus import Bus
from schemas.reports import FileProgress, FilesProgress
from schemas.subjects import ALL_PROGRESS, parse_progress

log = logging.getLogger(__name__)

STALE_SECONDS: Final = 10.0
"""After so long without news nobody knows how far it is."""
MOST_WORKERS: Final = 10_000


@dataclass(frozen=True, slots=True)
class _Heard:
    files: Mapping[str, FileProgress]
    at: float


class Progress:
    def __init__(self, bus: Bus, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._bus = bus
        self._monotonic = monotonic
        self._heard: dict[str, _Heard] = {}
        """By worker; the one that was heard last comes last."""

    async def listen(self) -> None:
        await self._bus.subscribe(ALL_PROGRESS, self._hear)

    async def _hear(self, message: Msg) -> None:
        self.hear(message.subject, message.data)

    def hear(self, subject: str, body: bytes) -> None:
        """The sender is who the subject says; a body that says another one is nobody's."""
        worker = parse_progress(subject)
        try:
            told = FilesProgress.model_validate_json(body)
        except ValidationError as error:
            log.debug("progress of %s can't be read: %s", worker, error)
            return
        if told.worker_id != worker:
            log.debug("%s tells the progress of %s", worker, told.worker_id)
            return
        self._heard.pop(worker, None)
        self._heard[worker] = _Heard({file.file_id: file for file in told.files}, self._monotonic())
        while len(self._heard) > MOST_WORKERS or self._is_stale(next(iter(self._heard.values()))):
            del self._heard[next(iter(self._heard))]

    def of(self, worker_id: str, file_id: str) -> FileProgress | None:
        """None when nothing was heard just now."""
        heard = self._heard.get(worker_id)
        return None if heard is None or self._is_stale(heard) else heard.files.get(file_id)

    def _is_stale(self, heard: _Heard) -> bool:
        return self._monotonic() - heard.at > STALE_SECONDS

"""What a service has logged lately, in memory, for who asks over the bus (`muster logs worker/NAME`).

A service's lines are those of its task and of what that started (a context variable says whose they are): in `muster up` several
services share a process. Secrets are taken out before a line is kept.
"""

import asyncio
import itertools
import logging
import time
from collections import deque
from collections.abc import Sequence
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, Final

from faststream.nats import NatsBroker
from pydantic import BaseModel, SecretStr

from kernel.redaction import redacted
from schemas.asks import ServiceLine, ServiceLines, TailService
from schemas.subjects import ask

LINES_KEPT: Final = 2_000
LINE_CHARACTERS: Final = 500
"""What is kept of a line: an answer with all of them still fits into a message."""
READERS: Final = 16
"""Questions that may wait at one time."""
LOOK_SECONDS: Final = 0.2

_service: ContextVar[str | None] = ContextVar("service", default=None)


class Trail(logging.Handler):
    """The last lines of one service. `secrets` are those that it holds itself."""

    def __init__(self, service: str, secrets: Sequence[str] = ()) -> None:
        super().__init__(logging.INFO)
        self.service = service
        self._secrets = tuple(secrets)
        self._lines: deque[ServiceLine] = deque(maxlen=LINES_KEPT)
        self._written = 0
        self._began = f"{time.time_ns():x}"
        """Tells a place in this trail from one in that of the process before."""
        self.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))

    def filter(self, record: logging.LogRecord) -> bool:
        return _service.get() == self.service and bool(super().filter(record))

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = redacted(self.format(record), self._secrets)
        except Exception:  # noqa: BLE001 - as every handler: a line that can't be formatted harms nobody
            self.handleError(record)
            return
        at = datetime.fromtimestamp(record.created, UTC)
        for line in text.splitlines():
            self._lines.append(ServiceLine(at=at, text=line[:LINE_CHARACTERS]))
            self._written += 1

    def part(self, lines: int, after: str | None) -> ServiceLines:
        oldest = self._written - len(self._lines)
        wanted = self._written - min(lines, len(self._lines)) if after is None else self._parsed(after)
        first = max(wanted, oldest)
        taken = tuple(itertools.islice(self._lines, first - oldest, first - oldest + lines))
        return ServiceLines(lines=taken, after=f"{self._began}.{first + len(taken)}", skipped=first - wanted)

    def answer(self, broker: NatsBroker, worker_id: str) -> None:
        """Subscribes to the question for these lines."""
        verb = f"{self.service}-log"

        @broker.subscriber(ask(worker_id, verb), title=verb, max_workers=READERS)
        async def tail_service(question: TailService) -> ServiceLines:  # pyright: ignore[reportUnusedFunction] - the broker calls it
            ends = asyncio.get_running_loop().time() + question.wait_seconds
            while True:
                part = self.part(question.lines, question.after)
                if part.lines or asyncio.get_running_loop().time() >= ends:
                    return part
                await asyncio.sleep(LOOK_SECONDS)

    def _parsed(self, after: str) -> int:
        """From the beginning when it is a place in another trail: the service was started anew."""
        began, _, line = after.partition(".")
        return min(int(line), self._written) if began == self._began and line.isdecimal() else 0


class Trailing:
    """`with Trailing(service, settings) as trail:` in the service's own task, before it starts others."""

    def __init__(self, service: str, settings: BaseModel) -> None:
        self._trail = Trail(service, secrets_of(settings))

    def __enter__(self) -> Trail:
        self._token = _service.set(self._trail.service)
        logging.getLogger().addHandler(self._trail)
        return self._trail

    def __exit__(self, *_: object) -> None:
        logging.getLogger().removeHandler(self._trail)
        _service.reset(self._token)


def secrets_of(settings: BaseModel) -> tuple[str, ...]:
    values: list[Any] = [getattr(settings, name) for name in type(settings).model_fields]
    return tuple(value.get_secret_value() for value in values if isinstance(value, SecretStr))

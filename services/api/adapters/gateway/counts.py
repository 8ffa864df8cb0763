"""What this gateway has in flight, told to whoever decides: which instance goes first, and when an engine may."""

import asyncio
import logging
import time
import uuid
from typing import Final

from kernel.bus import Bus
from kernel.errors import Unavailable
from schemas.reports import RequestsInFlight
from schemas.subjects import requests
from services.api.domain.routing import Routes

log = logging.getLogger(__name__)

TELL_SECONDS: Final = 2.0
"""So often it is told at least."""
COALESCE_SECONDS: Final = 0.25
"""So often at most."""


class Counts:
    def __init__(self, routes: Routes, bus: Bus) -> None:
        self._routes = routes
        self._bus = bus
        self.gateway = uuid.uuid4().hex[:16]
        """Drawn anew with each start: what the process before it counted is over."""
        self._told: RequestsInFlight | None = None
        self._told_at = float("-inf")

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self.tell()
            await asyncio.sleep(COALESCE_SECONDS)

    async def tell(self) -> None:
        """If it is news, or was not told for long. Before the first request comes in, the scheduler must know of this gateway."""
        picture = self._routes.picture(self.gateway)
        now = time.monotonic()
        if picture == self._told and now - self._told_at < TELL_SECONDS:
            return
        try:
            await self._bus.publish(requests(self.gateway), picture.model_dump_json().encode())
        except Unavailable as error:
            log.debug("not told what is in flight: %s", error)
            return
        self._told, self._told_at = picture, now

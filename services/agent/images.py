"""The images of this worker: every pull goes through here, so that whoever asks is told the same of it."""

import time
from collections import Counter
from collections.abc import AsyncIterator

from schemas.reports import PullSeen
from services.agent.domain.pulling import PullRate
from services.agent.domain.runtime import Container, ContainerRuntime


class Images:
    def __init__(self, runtime: ContainerRuntime) -> None:
        self._runtime = runtime
        self._pulls: Counter[str] = Counter()
        """Image → so many that pull it: the container engine brings its layers once."""
        self._seen: dict[str, PullSeen] = {}

    async def pull(self, container: Container) -> AsyncIterator[PullSeen]:
        """How far it is, each time that it goes on; it is here at the end. Raises ImageNotPulled."""
        image, rate = container.image, PullRate(container.image)
        self._pulls[image] += 1
        try:
            async for progress in self._runtime.pull(container):
                seen = self._seen[image] = rate.seen(progress, time.monotonic())
                yield seen
        finally:
            self._pulls[image] -= 1
            if not self._pulls[image]:
                del self._pulls[image]
                self._seen.pop(image, None)

"""The images of this worker: every pull goes through here, so that whoever asks is told the same of it.

What is to be pulled ahead of any engine is noted on disk until that has ended: the next agent goes on with it.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from pathlib import Path
from typing import Final

import orjson

from schemas.asks import ImageSeen, ImagesSeen, LookForImages, PullImages
from schemas.reasons import ImageNotPulled as NotPulled
from schemas.reasons import Reason
from schemas.reports import PullSeen
from services.agent.domain.pulling import PullRate
from services.agent.domain.runtime import Container, ContainerRuntime, ImageNotPulled

log = logging.getLogger(__name__)

LOOK_SECONDS: Final = 3.0
"""What the container engine may take to say what is here: who asks waits a little longer."""
MOST_FAILURES: Final = 100
"""That are remembered."""

Spawn = Callable[[Awaitable[None]], asyncio.Task[None]]


class Images:
    def __init__(self, runtime: ContainerRuntime, note: Path, spawn: Spawn) -> None:
        self._runtime = runtime
        self._note = note
        self._spawn = spawn
        self._pulls: Counter[str] = Counter()
        """Image → so many that pull it: the container engine brings its layers once."""
        self._seen: dict[str, PullSeen] = {}
        self._ahead: dict[str, asyncio.Task[None]] = {}
        self._failed: dict[str, tuple[Reason, ...]] = {}
        """Those that were asked for last and did not come, and why."""

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

    # -- ahead of any engine ------------------------------------------------------------------------------------------

    def resume(self) -> None:
        """What the former agent was asked for and did not finish."""
        try:
            noted = PullImages.model_validate_json(self._note.read_bytes())
        except FileNotFoundError:
            return
        except (OSError, ValueError) as error:
            log.warning("which images are to be pulled is not known any more: %s", error)
            return
        self._begin(noted.images)

    async def pull_ahead(self, wish: PullImages) -> ImagesSeen:
        """Answers at once: those that are here already stay as they are."""
        there = await self.look(wish)
        if self._begin(seen.image for seen in there.images if seen.state in ("absent", "failed")):
            self._write()
        return await self.look(wish)

    def _begin(self, images: Iterable[str]) -> bool:
        begun = [image for image in images if image not in self._ahead]
        for image in begun:
            self._failed.pop(image, None)
            self._ahead[image] = self._spawn(self._pull_ahead(image))
        return bool(begun)

    async def _pull_ahead(self, image: str) -> None:
        try:
            async for _ in self.pull(Container(image=image)):
                pass
        except ImageNotPulled as error:
            log.warning("the image %s was not pulled: %s", image, error)
            self._failed[image] = error.reasons
            if len(self._failed) > MOST_FAILURES:
                del self._failed[next(iter(self._failed))]
        self._ahead.pop(image, None)
        self._write()

    def _write(self) -> None:
        """A disk that is full keeps nobody from pulling: only the next agent does not hear of it."""
        try:
            if not self._ahead:
                self._note.unlink(missing_ok=True)
                return
            self._note.parent.mkdir(parents=True, exist_ok=True)
            part = self._note.with_suffix(".new")
            part.write_bytes(orjson.dumps({"images": list(self._ahead)}))
            part.replace(self._note)
        except OSError as error:
            log.warning("which images are to be pulled could not be noted: %s", error)

    # -- questions ----------------------------------------------------------------------------------------------------

    async def look(self, question: LookForImages) -> ImagesSeen:
        return ImagesSeen(images=tuple(await asyncio.gather(*map(self._look, question.images))))

    async def _look(self, image: str) -> ImageSeen:
        if image in self._ahead or image in self._pulls:
            return ImageSeen(image=image, state="pulling", pull=self._seen.get(image))
        try:
            async with asyncio.timeout(LOOK_SECONDS):
                is_here = await self._runtime.has_image(image)
        except TimeoutError:
            problem = "the container engine does not answer"
            return ImageSeen(image=image, state="failed", reasons=(NotPulled(image=image, problem=problem),))
        if is_here:
            return ImageSeen(image=image, state="here")
        if image in self._failed:
            return ImageSeen(image=image, state="failed", reasons=self._failed[image])
        return ImageSeen(image=image, state="absent")

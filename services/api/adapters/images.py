"""A backend's images on workers: who decides says which image each would be given, its agent how far that is.

Nothing is written to the log (docs/decisions/0027).
"""

import asyncio
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from pydantic import ValidationError

from kernel.bus import Bus
from kernel.errors import Unavailable
from schemas.asks import ImageSeen, ImagesSeen, LookForImages, PullImages
from schemas.ids import WorkerId
from schemas.images import MOST_WORKERS, ImagesAnswer, ImagesQuestion, WorkerImages
from schemas.reasons import AgentSilent, Reason
from schemas.subjects import ask, ask_core
from services.api.adapters.pulls import pull_document
from services.api.adapters.reader import Document, Reader
from services.api.domain.where import Where

DECIDE_SECONDS: Final = 10.0
ANSWER_SECONDS: Final = 5.0
ASKED_AT_ONCE: Final = 64
"""Workers."""
_NOT_PULLED: Final[Document] = {
    "bytes": None,
    "total": None,
    "bytes_per_second": None,
    "remaining_seconds": None,
}


class BackendImages:
    def __init__(self, reader: Reader, bus: Bus) -> None:
        self._reader = reader
        self._bus = bus

    async def ask(self, backend: str, version: str | None, where: Where, *, begin: bool) -> Document:
        """How far the images are; `begin`: those that are not there are pulled. Raises Refused (not_found), Unavailable."""
        workers = where.among(await self._reader.workers(), "workers")
        by_id = {worker["id"]: worker for worker in workers}
        is_open = not where.names and where.labels is None
        chosen = await self._chosen(backend, version, [WorkerId(worker_id) for worker_id in by_id], named=not is_open)
        asked = [each for each in chosen if each.supported or not is_open]
        most = asyncio.Semaphore(ASKED_AT_ONCE)

        async def told(each: WorkerImages) -> list[Document]:
            async with most:
                seen = await self._seen(each, begin=begin)
            return [_document(by_id[each.worker_id], image) for image in seen]

        items = itertools.chain.from_iterable(await asyncio.gather(*map(told, asked)))
        return {"backend": backend, "version": version, "workers": list(items)}

    async def _chosen(
        self, backend: str, version: str | None, ids: Sequence[WorkerId], *, named: bool
    ) -> list[WorkerImages]:
        """By who decides, as for a placement. Raises Unavailable."""
        found: list[WorkerImages] = []
        for start in range(0, len(ids), MOST_WORKERS):
            question = ImagesQuestion(
                backend=backend,
                version=version,
                on_processors=named,
                worker_ids=tuple(ids[start : start + MOST_WORKERS]),
            )
            message = await self._bus.request(
                ask_core("images"), question.model_dump_json().encode(), timeout_seconds=DECIDE_SECONDS
            )
            found += ImagesAnswer.model_validate_json(message.data).workers
        return found

    async def _seen(self, of: WorkerImages, *, begin: bool) -> Sequence["ImageSeen | Refusal"]:
        if not of.images:
            return (Refusal(None, of.reasons),)
        question = PullImages(images=of.images) if begin else LookForImages(images=of.images)
        verb = "pull" if begin else "images"
        try:
            message = await self._bus.request(
                ask(of.worker_id, verb), question.model_dump_json().encode(), timeout_seconds=ANSWER_SECONDS
            )
            return ImagesSeen.model_validate_json(message.data).images
        except (Unavailable, ValidationError):
            silent = (AgentSilent(worker_id=of.worker_id),)
            return [Refusal(image, silent) for image in of.images]


@dataclass(frozen=True, slots=True)
class Refusal:
    """Nothing was begun."""

    image: str | None
    reasons: tuple[Reason, ...]
    state: str = "refused"


def _document(worker: Document, of: ImageSeen | Refusal) -> Document:
    pull: dict[str, Any] = _NOT_PULLED
    if isinstance(of, ImageSeen) and of.pull is not None:
        pull = pull_document(of.pull)
    return {
        **pull,
        "worker": worker["name"],
        "worker_id": worker["id"],
        "image": of.image,
        "state": of.state,
        "reasons": [
            {
                "code": reason.code,
                "who": reason.whose,
                "numbers": reason.model_dump(mode="json", exclude={"code", "worker_id"}),
                "text": reason.sentence(),
            }
            for reason in of.reasons
        ],
    }

"""Which images of a backend workers would be given: a question to who decides (`muster.core.images`), and its answer."""

from typing import Annotated

from pydantic import Field

from schemas.ids import WorkerId
from schemas.reasons import Reason
from schemas.value import Value

MOST_WORKERS = 500
"""Of one question: the answer is one message, with reasons."""


class ImagesQuestion(Value):
    backend: str
    version: str | None = None
    """None: the one that a model gets which names none."""
    on_processors: bool = False
    """Also what a model gets only where its author allows processors: somebody named these workers."""
    worker_ids: Annotated[tuple[WorkerId, ...], Field(max_length=MOST_WORKERS)]


class WorkerImages(Value):
    """Either images, one for each kind of its GPUs, or reasons."""

    worker_id: WorkerId
    images: tuple[str, ...] = ()
    reasons: tuple[Reason, ...] = ()
    supported: bool = False
    """The backend runs on what this worker is and has, whatever else is in the way."""


class ImagesAnswer(Value):
    workers: tuple[WorkerImages, ...] = ()

"""Questions to a worker and their answers: `muster.ask.<worker>.<verb>`, core NATS request and reply. All but `pull` change nothing."""

from typing import Annotated, Final, Literal

from pydantic import Field

from schemas.ids import FileId, InstanceId, WorkerId
from schemas.models import ModelWeights
from schemas.reasons import Reason
from schemas.reports import PullSeen
from schemas.sources import Source
from schemas.value import Bytes, Instant, Value


class InspectModel(Value):
    """Verb `inspect`, answered by the downloader: what do these files weigh?"""

    source: Source
    adapters: tuple[Source, ...] = ()
    """LoRA adapters that are loaded beside it."""
    draft: Source | None = None
    """The draft model of speculative decoding."""


class ModelInspection(Value):
    """Either weights (of the model, its adapters and its draft model), or at least one reason."""

    weights: ModelWeights | None = None
    reasons: tuple[Reason, ...] = ()


class TailLog(Value):
    """Verb `logs`, answered by the agent: lines of an engine's log, the last ones or those after a place.

    To follow a log is to ask again with what the answer gave as `after`: the reader sets the pace, and a worker keeps nothing
    of a reader between two questions.
    """

    instance_id: InstanceId
    attempt: int | None = None
    """None: the newest attempt that the agent knows."""
    lines: Annotated[int, Field(ge=1, le=2000)] = 200
    follow: bool = False
    """Whether the answer is to say where it ends."""
    after: str | None = None
    """None: the last lines; "": from the beginning; else what the answer before said."""
    wait_seconds: Annotated[float, Field(ge=0, le=20)] = 0.0
    """So long an answer may wait for a line; a log that has ended is answered at once."""


class LogLines(Value):
    found: bool
    attempt: int | None = None
    lines: tuple[str, ...] = ()
    after: str | None = None
    """Where the lines end; None: that was not asked."""
    skipped: int = 0
    """Lines before the first of these that the reader was too late for: they are kept no more."""
    ended: bool = False
    """The engine is gone: nothing will follow these lines."""


ImageName = Annotated[str, Field(min_length=1, max_length=512, pattern=r"^[^\s\x00]+$")]


class LookForImages(Value):
    """Verb `images`, answered by the agent: are these images here, and how far are those that are being pulled?"""

    images: Annotated[tuple[ImageName, ...], Field(max_length=64)]


class PullImages(LookForImages):
    """Verb `pull`, answered by the agent at once: pull those that are not here, ahead of any engine. Asking twice is asking once."""


class ImageSeen(Value):
    image: ImageName
    state: Literal["here", "pulling", "absent", "failed"]
    pull: PullSeen | None = None
    """How far it is, as soon as that is known."""
    reasons: tuple[Reason, ...] = ()
    """Why it did not come when it was asked for last."""


class ImagesSeen(Value):
    """One for each image of the question."""

    images: tuple[ImageSeen, ...]


class TailService(Value):
    """Verbs `agent-log` and `downloader-log`, answered by the service itself: its own last lines, or those after a place."""

    lines: Annotated[int, Field(ge=1, le=2000)] = 200
    after: str | None = None
    """None: the last lines; else what the answer before said."""
    wait_seconds: Annotated[float, Field(ge=0, le=20)] = 0.0


class ServiceLine(Value):
    at: Instant
    text: str


class ServiceLines(Value):
    lines: tuple[ServiceLine, ...]
    after: str
    skipped: int = 0


MOST_SHARED_BYTES: Final = 512 * 1024
"""Of one answer: it must fit into a message."""


class AskShare(Value):
    """Verb `share`, answered by a downloader to another one: may I have these files, and which of them are there?"""

    file_id: FileId
    known: Annotated[int, Field(ge=-1)] = -1
    """So many files were there at the last answer: one is waited for that says more."""
    wait_seconds: Annotated[float, Field(ge=0, le=30)] = 0.0


class SharedFile(Value):
    name: str
    size: Bytes
    sha256: str | None = None
    is_there: bool = False


class Shared(Value):
    """What a downloader has of these files. Nothing, where it has none, or shares none."""

    state: Literal["none", "coming", "whole"] = "none"
    files: tuple[SharedFile, ...] = ()
    weights: tuple[str, ...] = ()
    model: str | None = None
    directory: str = ""
    addresses: tuple[str, ...] = ()
    port: int | None = None
    ticket: str | None = Field(default=None, repr=False)
    """For these files, for an hour."""
    waits_for: Annotated[tuple[WorkerId, ...], Field(max_length=64)] = ()
    """Whom it waits for itself just now, and whom that one waits for, and so on."""


class ReadShared(Value):
    """Verb `share-bytes`, answered by a downloader to another one with the bytes themselves; with none where it can't."""

    file_id: FileId
    name: str
    offset: Bytes
    length: Annotated[int, Field(ge=1, le=MOST_SHARED_BYTES)]

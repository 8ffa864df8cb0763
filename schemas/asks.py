"""Questions to a worker and their answers: `muster.ask.<worker>.<verb>`, core NATS request and reply. They change nothing."""

from typing import Annotated

from pydantic import Field

from schemas.ids import InstanceId
from schemas.models import ModelWeights, Source
from schemas.reasons import Reason
from schemas.value import Value


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
    """Verb `logs`, answered by the agent: the last lines of an engine's log."""

    instance_id: InstanceId
    attempt: int | None = None
    """None: the newest attempt that the agent knows."""
    lines: Annotated[int, Field(ge=1, le=2000)] = 200


class LogLines(Value):
    found: bool
    attempt: int | None = None
    lines: tuple[str, ...] = ()

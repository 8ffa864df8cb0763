"""The life of a model. The api says what users want; the scheduler says how it goes.

The api's facts are stated under the model's name (`schemas/subjects.py`): taking a name is stating a fact there.
"""

from typing import Annotated, ClassVar

from pydantic import Field

from schemas.asks import InspectModel
from schemas.facts.base import Fact, Owner
from schemas.ids import InstanceId, ModelId, WorkerId
from schemas.models import ModelSpec, ModelWeights
from schemas.reasons import Reason
from schemas.subjects import name_token
from schemas.value import Bytes, Count


class ModelFact(Fact):
    kind: ClassVar[str] = "model"
    owner: ClassVar[Owner] = "scheduler"
    model_id: ModelId

    @property
    def resource_id(self) -> str:
        return self.model_id


class ModelWish(ModelFact):
    """What a user wants of a model."""

    owner: ClassVar[Owner] = "api"

    @property
    def concern(self) -> str:
        return name_token(self.known_as)

    @property
    def known_as(self) -> str:
        """The model's name, which the fact is stated under."""
        raise NotImplementedError  # pragma: no cover - each fact has its own


class SpecifiedModelWish(ModelWish):
    spec: ModelSpec

    @property
    def known_as(self) -> str:
        return self.spec.name


class NamedModelWish(ModelWish):
    name: str

    @property
    def known_as(self) -> str:
        return self.name


class ModelCreated(SpecifiedModelWish):
    """A user wants a model to run."""

    type: ClassVar[str] = "ModelCreated"


class ModelUpdated(SpecifiedModelWish):
    """A user changed what is wanted of a model; the whole new wish."""

    type: ClassVar[str] = "ModelUpdated"


class ModelRenamed(NamedModelWish):
    """The model gives up this name for another one; the whole new wish follows in `ModelUpdated`."""

    type: ClassVar[str] = "ModelRenamed"
    frees_name: ClassVar[bool] = True
    to: str


class ModelScaled(NamedModelWish):
    """A user wants another number of instances of a model."""

    type: ClassVar[str] = "ModelScaled"
    replicas: Annotated[int, Field(ge=0)]


class ModelDeleted(NamedModelWish):
    """A user wants the model no more; its files stay."""

    type: ClassVar[str] = "ModelDeleted"
    frees_name: ClassVar[bool] = True


class ModelInspected(ModelFact):
    """A worker's downloader looked at the model's files: what they weigh, or why they can't be used there."""

    type: ClassVar[str] = "ModelInspected"
    worker_id: WorkerId
    generation: int
    weights: ModelWeights | None = None
    reasons: tuple[Reason, ...] = ()
    question: InspectModel | None = None
    """What was looked at; None (in old facts): the model's files as they were wanted then."""

    @property
    def worker(self) -> str:
        return self.worker_id


class ModelRolledBack(ModelFact):
    """A new revision of the engine did not run; instances run the former one until the model is edited again."""

    type: ClassVar[str] = "ModelRolledBack"
    revision: int
    to_revision: int
    instance_id: InstanceId
    """The instance that tried it."""
    reasons: tuple[Reason, ...]


class ModelQuarantined(ModelFact):
    """The model's engine crashed on a worker again and again: it is not placed there until the model is edited, or the
    quarantine is cleared.
    """

    type: ClassVar[str] = "ModelQuarantined"
    worker_id: WorkerId
    crashes: Annotated[int, Field(ge=1)]

    @property
    def worker(self) -> str:
        return self.worker_id


class ModelQuarantineCleared(NamedModelWish):
    """A user wants the model to be tried again on the workers where it crashed; on one of them, or on all."""

    type: ClassVar[str] = "ModelQuarantineCleared"
    worker_id: WorkerId | None = None


class ModelQuarantineLifted(ModelFact):
    """The model's crashes on these workers are forgotten: it was edited, or a user cleared its quarantine."""

    type: ClassVar[str] = "ModelQuarantineLifted"
    worker_ids: tuple[WorkerId, ...]
    clears: int
    """How often they were to be forgotten, this time included."""


class ModelPeakMeasured(ModelFact):
    """An engine of the model was seen to hold more than was known of its revision, on GPUs of one name and number."""

    type: ClassVar[str] = "ModelPeakMeasured"
    revision: int
    gpu: str
    """The name of its GPUs, as in the inventory; `A + B` where its worker has several of one type; `cpu`: it has none."""
    gpus: Count
    """Of the instance, over all its workers."""
    workers: Annotated[int, Field(ge=1)] = 1
    gpu_layers: Count | None = None
    """Of llama.cpp: how many layers were put on GPUs; None: all."""
    claimed_vram: Bytes
    """By this attempt, on each GPU; the largest."""
    claimed_ram: Bytes
    peak_vram: Bytes | None = None
    """On one GPU, the largest; None: not measured. Of all attempts that are alike, so far."""
    peak_ram: Bytes | None = None
    """On one worker. Of all attempts that are alike, so far."""
    worker_id: WorkerId
    instance_id: InstanceId
    attempt: Annotated[int, Field(ge=1)]
    """What was seen last."""

    @property
    def worker(self) -> str:
        return self.worker_id


class ModelEnded(ModelFact):
    """A model that was deleted has no instance left: nothing more is said of it."""

    type: ClassVar[str] = "ModelEnded"


class ModelPending(ModelFact):
    """Instances are wanted, and none runs or is on its way. Lists the instances' reasons."""

    type: ClassVar[str] = "ModelPending"
    generation: int
    wanted: int
    reasons: tuple[Reason, ...]


class ModelDegraded(ModelFact):
    """Some instances run or are on their way, fewer than wanted. Lists the others' reasons."""

    type: ClassVar[str] = "ModelDegraded"
    generation: int
    wanted: int
    running: int
    reasons: tuple[Reason, ...]


class ModelReady(ModelFact):
    """As many instances run as are wanted."""

    type: ClassVar[str] = "ModelReady"
    generation: int
    running: int

"""The life of a model. The api says what users want; the scheduler says how it goes."""

from typing import Annotated, ClassVar

from pydantic import Field

from schemas.facts.base import Fact, Owner
from schemas.ids import ModelId, WorkerId
from schemas.models import ModelSpec, ModelWeights
from schemas.reasons import Reason


class ModelFact(Fact):
    kind: ClassVar[str] = "model"
    owner: ClassVar[Owner] = "scheduler"
    model_id: ModelId

    @property
    def resource_id(self) -> str:
        return self.model_id


class ModelCreated(ModelFact):
    """A user wants a model to run."""

    type: ClassVar[str] = "ModelCreated"
    owner: ClassVar[Owner] = "api"
    spec: ModelSpec


class ModelUpdated(ModelFact):
    """A user changed what is wanted of a model; the whole new wish."""

    type: ClassVar[str] = "ModelUpdated"
    owner: ClassVar[Owner] = "api"
    spec: ModelSpec


class ModelScaled(ModelFact):
    """A user wants another number of instances of a model."""

    type: ClassVar[str] = "ModelScaled"
    owner: ClassVar[Owner] = "api"
    replicas: Annotated[int, Field(ge=0)]


class ModelDeleted(ModelFact):
    """A user wants the model no more; its files stay."""

    type: ClassVar[str] = "ModelDeleted"
    owner: ClassVar[Owner] = "api"


class ModelInspected(ModelFact):
    """A worker's downloader looked at the model's files: what they weigh, or why they can't be used there."""

    type: ClassVar[str] = "ModelInspected"
    worker_id: WorkerId
    generation: int
    weights: ModelWeights | None = None
    reasons: tuple[Reason, ...] = ()

    @property
    def worker(self) -> str:
        return self.worker_id


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

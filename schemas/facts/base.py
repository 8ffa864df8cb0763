from typing import Any, ClassVar, Literal

from schemas.ids import NOBODY
from schemas.subjects import FactSubject
from schemas.value import Value

Owner = Literal["api", "scheduler"]


class Fact(Value):
    """Something that has happened. Each kind of fact has one owner; nobody else may state it."""

    type: ClassVar[str]
    kind: ClassVar[str]
    owner: ClassVar[Owner]
    version: ClassVar[int] = 1
    frees_name: ClassVar[bool] = False
    """The name that this is stated under may be taken again."""

    @property
    def resource_id(self) -> str:
        """The id of the resource that this is about."""
        raise NotImplementedError  # pragma: no cover - each kind names its own

    @property
    def worker(self) -> str:
        """The worker that this concerns, `-` when none."""
        return NOBODY

    @property
    def concern(self) -> str:
        """What the subject names beside the resource."""
        return self.worker

    @property
    def subject(self) -> str:
        return str(FactSubject(self.owner, self.kind, self.concern, self.resource_id, self.type))

    def to_data(self) -> dict[str, Any]:
        return self.model_dump(mode="json")

"""Who decides. Its last sequence on its exact subject guards every fact of the scheduler."""

from typing import ClassVar

from schemas.facts.base import Fact, Owner


class SchedulerElected(Fact):
    """From here on this scheduler decides; the server refuses what the former one still sends."""

    type: ClassVar[str] = "SchedulerElected"
    kind: ClassVar[str] = "scheduler"
    owner: ClassVar[Owner] = "scheduler"
    replica: str

    @property
    def resource_id(self) -> str:
        return "core"

"""A worker of which one GPU is called broken takes nothing new where the operator wants it so, until it is well."""

from datetime import UTC, datetime

import pytest

from schemas.asks import ModelInspection
from schemas.facts import ModelCreated
from schemas.ids import ModelId, WorkerId
from schemas.models import Gpu, Inventory, ModelSpec, ModelWeights
from schemas.reasons import Reason, WorkerCordoned
from schemas.reports import WorkerObserved
from schemas.sources import LocalPath
from services.scheduler.domain.core import Core, Now
from services.scheduler.domain.fleet import Fleet, evolve
from services.scheduler.domain.instance import Pending, placement_of
from services.scheduler.domain.policy import Policy

GIB = 2**30
W = WorkerId("w-1")
M = ModelId("m-a")
NOW = Now(datetime(2026, 11, 26, tzinfo=UTC), 1000.0)
WEIGHTS = ModelWeights(format="gguf", weight_bytes=GIB, files=("/m",))


class Story:
    def __init__(self, *, cordon_unhealthy: bool) -> None:
        self.core = Core(Fleet(), Policy(cordon_unhealthy=cordon_unhealthy), NOW)
        self.reports = 0

    def sees(self, *unhealthy: str | None) -> None:
        """The agent tells what each GPU's driver says."""
        self.core.heard(self.picture(*unhealthy), NOW)
        self.core.beat(W, "downloader", NOW)
        self.answers()

    def picture(self, *unhealthy: str | None) -> WorkerObserved:
        self.reports += 1
        identity = {"worker_id": W, "boot_id": "b", "counter": self.reports, "observed_at": NOW.at}
        gpus = tuple(
            Gpu(index=index, vendor="nvidia", type="cuda", name="x", memory_total=8 * GIB, unhealthy=problem)
            for index, problem in enumerate(unhealthy)
        )
        inventory = Inventory(
            os="linux", arch="amd64", cpu_count=4, memory_total=8 * GIB, gpus=gpus, backends={"llama.cpp": "1"}
        )
        picture = {"name": "gpu-1", "address": "127.0.0.1", "agent_version": "1", "inventory": inventory, "engines": ()}
        return WorkerObserved.model_validate(identity | picture)

    def answers(self) -> None:
        for question in self.core.questions(NOW):
            self.core.inspected(question, ModelInspection(weights=WEIGHTS), NOW)

    def deploys(self) -> None:
        spec = ModelSpec(name="a", source=LocalPath(path="/a"), backend_parameters=("--ctx-size=1",))
        fact = ModelCreated(model_id=M, spec=spec)
        evolve(self.core.fleet, fact, 100, NOW.at)
        self.core.wished(fact, NOW)
        self.answers()

    @property
    def reasons(self) -> tuple[Reason, ...]:
        (instance,) = self.core.fleet.instances_of(M)
        assert isinstance(instance.state, Pending)
        return instance.state.reasons

    @property
    def gpus(self) -> tuple[int, ...]:
        (instance,) = self.core.fleet.instances_of(M)
        placement = placement_of(instance.state)
        assert placement is not None
        return placement.members[0].gpu_indexes


def test_the_other_gpus_of_the_worker_are_used_unless_it_is_to_be_cordoned() -> None:
    story = Story(cordon_unhealthy=False)
    story.sees("ECC", None)
    story.deploys()
    assert story.gpus == (1,)


@pytest.mark.parametrize("late", [False, True], ids=["it was broken before", "it breaks, is well, and breaks"])
def test_a_worker_with_a_broken_gpu_takes_nothing_until_it_is_well(late: bool) -> None:
    story = Story(cordon_unhealthy=True)
    if late:
        story.sees(None, None)
    story.sees("ECC", None)
    story.deploys()
    assert story.reasons == (WorkerCordoned(worker_id=W, unhealthy_gpus=(0,)),)
    assert story.reasons[0].sentence() == "the worker is cordoned, because its GPU 0 is unhealthy"
    (instance,) = story.core.fleet.instances_of(M)
    assert isinstance(instance.state, Pending)
    assert instance.state.suggestions == (), "to uncordon it is not in the operator's hands"

    story.sees(None, None)
    assert len(story.gpus) == 1


def test_the_next_scheduler_may_be_set_otherwise() -> None:
    story = Story(cordon_unhealthy=False)
    story.sees("ECC", None)
    fleet = story.core.fleet

    Core(fleet, Policy(cordon_unhealthy=True), NOW)

    machine = fleet.machines.get(W)
    assert machine is not None
    assert machine.cordoned
    assert not fleet.operator_of(W).cordoned

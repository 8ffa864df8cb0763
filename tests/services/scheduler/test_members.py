"""What a member of an instance is told about the others."""

import pytest

from schemas.asks import ModelInspection
from schemas.facts import InstanceScheduled, ModelCreated
from schemas.ids import ModelId, WorkerId
from schemas.models import Gpu, GpuNetwork, Inventory, Member, ModelSpec, ModelWeights
from schemas.reports import WorkerObserved
from schemas.sources import LocalPath
from services.scheduler.domain.core import Core
from services.scheduler.domain.fleet import Fleet, evolve
from services.scheduler.domain.policy import Policy
from tests.services.scheduler.placement.fleets import GIB, QWEN3_8B
from tests.services.scheduler.test_unhealthy import NOW

W = WorkerId("w-1")


def scheduled_on(*networks: GpuNetwork | None) -> tuple[Member, ...]:
    """A model that takes all NPUs of a worker."""
    core = Core(Fleet(), Policy(), NOW)
    gpus = tuple(
        Gpu(index=index, vendor="ascend", type="cann", name="910B", memory_total=64 * GIB, network=network)
        for index, network in enumerate(networks)
    )
    backends: dict[str, str | None] = {"MindIE": "2.3.0"}
    inventory = Inventory(os="linux", arch="arm64", cpu_count=4, memory_total=512 * GIB, backends=backends, gpus=gpus)
    identity = {"worker_id": W, "boot_id": "b", "counter": 1, "observed_at": NOW.at}
    picture = {"name": "npu-1", "address": "10.0.0.1", "agent_version": "1", "inventory": inventory, "engines": ()}
    core.heard(WorkerObserved.model_validate(identity | picture), NOW)
    core.beat(W, "downloader", NOW)
    spec = ModelSpec.model_validate(
        {
            "name": "m",
            "source": LocalPath(path="/m"),
            "backend": "MindIE",
            "gpu_selector": {"gpus_per_replica": len(gpus)},
        }
    )
    wish = ModelCreated(model_id=ModelId("m-m"), spec=spec)
    evolve(core.fleet, wish, 100, NOW.at)
    facts = list(core.wished(wish, NOW).facts)
    weights = ModelWeights(format="safetensors", weight_bytes=GIB, config=QWEN3_8B, files=("/m",))
    for question in core.questions(NOW):
        facts += core.inspected(question, ModelInspection(weights=weights), NOW).facts
    (scheduled,) = (fact for fact in facts if isinstance(fact, InstanceScheduled))
    return scheduled.members


def test_the_addresses_of_the_gpus_own_ports_are_told_in_the_order_of_the_gpus() -> None:
    (member,) = scheduled_on(GpuNetwork(address="10.1.0.1"), GpuNetwork(address="10.1.0.2"))
    assert (member.gpu_indexes, member.gpu_addresses) == ((0, 1), ("10.1.0.1", "10.1.0.2"))


@pytest.mark.parametrize("other", [None, GpuNetwork()])
def test_where_one_of_them_is_not_known_none_is_told(other: GpuNetwork | None) -> None:
    (member,) = scheduled_on(GpuNetwork(address="10.1.0.1"), other)
    assert member.gpu_addresses == ()

"""However much is asked for at once, no decision is long: the next one goes on, and nobody is left behind."""

from collections import Counter
from dataclasses import replace

from schemas.asks import ModelInspection
from schemas.facts import InstanceCreated, InstancePending, InstanceScheduled, ModelCreated, ModelDeleted
from schemas.facts.base import Fact
from schemas.ids import ModelId, WorkerId
from schemas.models import Inventory, ModelSpec, ModelWeights
from schemas.reports import WorkerObserved
from schemas.sources import LocalPath
from services.scheduler.domain.core import FACTS_OF_A_LOOK, Core, Decision
from services.scheduler.domain.fleet import Fleet, evolve
from services.scheduler.domain.policy import Policy
from tests.services.scheduler.test_unhealthy import NOW

GIB = 2**30
W = WorkerId("w-1")
MOST = 40
MODELS = 4
REPLICAS = 100
FILES_AND_STATUS = 2 * MODELS
"""Facts that go with the last one of a portion."""


class Asked:
    """A worker with much RAM, and models with many replicas asked for in one moment."""

    def __init__(self, ram: int, most_facts: int = MOST) -> None:
        self.core = Core(Fleet(), Policy(most_facts=most_facts), NOW)
        inventory = Inventory(os="linux", arch="amd64", cpu_count=4, memory_total=ram, backends={"llama.cpp": "1"})
        identity = {"worker_id": W, "boot_id": "b", "counter": 1, "observed_at": NOW.at}
        picture = {"name": "ram-1", "address": "127.0.0.1", "agent_version": "1", "inventory": inventory, "engines": ()}
        self.core.heard(WorkerObserved.model_validate(identity | picture), NOW)
        self.core.beat(W, "downloader", NOW)
        self.facts: list[Fact] = []
        self.longest = 0
        self.order: list[str] = []
        """Models of which something was scheduled, portion by portion."""

    def take(self, decision: Decision) -> None:
        self.facts += decision.facts
        self.longest = max(self.longest, len(decision.facts))
        placed = [fact.instance_id.split("-")[1] for fact in decision.facts if isinstance(fact, InstanceScheduled)]
        self.order += dict.fromkeys(placed)

    def asks(self, names: str, replicas: int = REPLICAS) -> None:
        for number, name in enumerate(names):
            spec = ModelSpec(name=name, source=LocalPath(path="/m"), replicas=replicas)
            fact = ModelCreated(model_id=ModelId(f"m-{name}"), spec=spec)
            evolve(self.core.fleet, fact, 100 + number, NOW.at)
            self.take(self.core.wished(fact, NOW))

    def goes_on(self) -> int:
        """Until nothing is left; how many decisions that took."""
        for count in range(1000):
            if not self.core.has_more:
                return count
            self.take(self.core.time_passed(NOW))
        raise AssertionError("it never ends")

    def answers(self) -> None:
        weights = ModelWeights(format="gguf", weight_bytes=GIB, files=("/m",))
        for question in self.core.questions(NOW):
            self.take(self.core.inspected(question, ModelInspection(weights=weights), NOW))

    @property
    def counts(self) -> Counter[str]:
        return Counter(fact.type for fact in self.facts)


def test_many_instances_are_created_and_placed_in_portions() -> None:
    asked = Asked(ram=8192 * GIB)
    asked.asks("abcd")
    assert asked.core.has_more
    assert asked.counts[InstanceCreated.type] < MODELS * REPLICAS
    assert asked.goes_on() > MODELS * REPLICAS // MOST
    assert asked.counts[InstanceCreated.type] == MODELS * REPLICAS

    asked.answers()
    asked.goes_on()

    assert asked.counts[InstanceScheduled.type] == MODELS * REPLICAS
    assert asked.longest <= MOST + FILES_AND_STATUS


def test_models_take_turns() -> None:
    asked = Asked(ram=8192 * GIB)
    asked.asks("abcd")
    asked.goes_on()
    asked.answers()
    asked.goes_on()
    turns = [asked.order[start : start + MODELS] for start in range(0, len(asked.order), MODELS)]
    assert len(turns) > 2
    assert all(len(set(turn)) == MODELS for turn in turns[1:-1]), asked.order


def test_each_of_many_that_find_no_place_is_told_why() -> None:
    asked = Asked(ram=GIB)
    asked.asks("ab")
    asked.goes_on()
    asked.answers()
    asked.goes_on()

    told = {fact.instance_id: fact for fact in asked.facts if isinstance(fact, InstancePending)}
    assert len(told) == 2 * REPLICAS
    assert {reason.code for fact in told.values() for reason in fact.reasons} == {"not_enough_ram"}
    assert asked.longest <= MOST + FILES_AND_STATUS


def test_a_decision_of_one_fact_goes_on_too() -> None:
    """A search alone is longer than that."""
    assert FACTS_OF_A_LOOK > 1
    asked = Asked(ram=8192 * GIB, most_facts=1)
    asked.asks("ab", replicas=5)
    asked.goes_on()
    asked.answers()
    asked.goes_on()
    assert asked.counts[InstanceScheduled.type] == 10


def test_what_is_left_is_forgotten_with_its_model() -> None:
    asked = Asked(ram=8192 * GIB)
    asked.asks("a")
    fact = ModelDeleted(model_id=ModelId("m-a"), name="a")
    evolve(asked.core.fleet, fact, 200, NOW.at)
    asked.take(asked.core.wished(fact, replace(NOW)))
    asked.goes_on()
    assert asked.core.fleet.instances == {}

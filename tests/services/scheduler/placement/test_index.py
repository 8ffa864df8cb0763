"""The index picks what the specification picks, over any fleet and any history of it; or it says that it does not know."""

import random
from collections import Counter

import pytest

from schemas.ids import ModelId, WorkerId
from schemas.models import Claim
from services.scheduler.domain.candidate import Looked, Request
from services.scheduler.domain.index import GpuIndex
from services.scheduler.domain.machines import Machines
from services.scheduler.domain.peaks import claimed
from services.scheduler.domain.placement import Placed, Refused, place
from tests.services.scheduler.placement.fleets import (
    GIB,
    a_machine,
    a_request,
    a_spec,
    gpus,
    placed,
    random_claim,
    random_fleet,
    random_machine,
    random_request,
    safetensors,
)

FLEETS = 10_000
PARTS = 10
MODELS = [ModelId("m-a"), ModelId("m-b"), ModelId("m-c")]


def compare(request: Request, machines: Machines, index: GpuIndex) -> str:
    """What the two say to one question, in a word."""
    return compared(request, machines, index)[0]


def compared(request: Request, machines: Machines, index: GpuIndex) -> tuple[str, Placed | Refused]:
    """… and the specification's answer."""
    fast = index.place(request, runners_up=3)
    slow = place(request, machines.in_order())
    if fast is None:
        return "asked place", slow
    assert isinstance(slow, Placed), (fast, slow)
    assert (fast.places, fast.take, fast.parallelism, fast.context) == (
        slow.places,
        slow.take,
        slow.parallelism,
        slow.context,
    )
    assert fast.why is not None
    assert slow.why is not None
    assert fast.why.scores == slow.why.scores
    return "placed", slow


def claims_a_peak(request: Request, answer: Placed | Refused) -> bool:
    peaks = {claimed(peak.vram_bytes) for peak in request.peaks.values() if peak.vram_bytes is not None}
    return isinstance(answer, Placed) and answer.take.vram_bytes in peaks


def live(seed: int) -> Counter[str]:
    """A fleet, some requests, and what is promised, released and changed between them."""
    dice = random.Random(seed)
    machines = random_fleet(dice)
    index = GpuIndex(machines)
    held: list[tuple[WorkerId, ModelId, str | None, Claim]] = []
    for machine in list(machines):
        for _ in range(dice.choice([0, 0, 1, 2])):
            kind, claim = random_claim(dice, machine)
            model_id = dice.choice(MODELS)
            machines.promise(machine.id, model_id, kind, claim)
            held.append((machine.id, model_id, kind, claim))
    requests = [random_request(dice, machines, model_id) for model_id in MODELS]
    said: Counter[str] = Counter()
    for _ in range(dice.randint(1, 5)):
        request = dice.choice(requests)
        word, answer = compared(request, machines, index)
        said[word] += 1
        said["from a peak"] += word == "placed" and claims_a_peak(request, answer)
        if isinstance(answer, Placed) and dice.random() < 0.8 and request.model_id is not None:
            for each in answer.places:
                machines.promise(each.worker_id, request.model_id, each.type, each.claim)
                held.append((each.worker_id, request.model_id, each.type, each.claim))
        elif held and dice.random() < 0.5:
            machines.release(*held.pop(dice.randrange(len(held))))
        if dice.random() < 0.1:  # another machine, or the same one with other hardware, state, labels
            number = dice.randrange(12)
            held = [each for each in held if each[0] != f"w-{number}"]
            machines.put(random_machine(dice, number))
        elif dice.random() < 0.05:
            gone = dice.choice(list(machines)).id
            held = [each for each in held if each[0] != gone]
            if len(machines) > 1:
                machines.drop(gone)
            else:
                machines.hear_downloader(gone, alive=dice.random() < 0.5)
    return said


@pytest.mark.parametrize("part", range(PARTS))
def test_it_picks_what_the_specification_picks_over_random_fleets(part: int) -> None:
    said: Counter[str] = Counter()
    for seed in range(part * FLEETS // PARTS, (part + 1) * FLEETS // PARTS):
        try:
            said += live(seed)
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from error
    assert said["placed"] > (said["placed"] + said["asked place"]) // 4, said  # it does know, mostly
    assert said["from a peak"] > 50, said


def test_it_does_not_ask_for_what_is_common() -> None:
    """One GPU and several, both strategies, on a fleet of like machines: no question goes the long way."""
    machines = Machines()
    for number in range(30):
        machines.put(a_machine(f"w{number:02}", gpus(8)))
    index = GpuIndex(machines)
    for number in range(60):
        request = a_request(model_id=ModelId(f"m-{number}"))
        placed = index.place(request)
        assert placed is not None
        for each in placed.places:
            machines.promise(each.worker_id, ModelId(f"m-{number}"), each.type, each.claim)
    assert sum(machine.claims for machine in machines) == 60
    assert {machine.claims for machine in machines} == {2}


def test_a_worker_that_is_full_is_not_taken() -> None:
    machines = Machines()
    machines.put(a_machine("w1", gpus(1)))
    index = GpuIndex(machines)
    request = a_request()
    assert index.place(request) is not None
    machines.promise(WorkerId("w-w1"), ModelId("m-m"), "cuda", Claim(vram={0: 72 * GIB}))
    assert index.place(request) is None
    machines.release(WorkerId("w-w1"), ModelId("m-m"), "cuda", Claim(vram={0: 72 * GIB}))
    assert index.place(request) is not None


def test_what_is_learned_of_the_files_later_counts_from_then_on() -> None:
    """Before anybody had looked, nothing was wrong with the request; 32 heads can't be divided by 3."""
    machines = Machines()
    for name in ("w1", "w2"):
        machines.put(a_machine(name, gpus(4)))
    index = GpuIndex(machines)
    model_id = ModelId("m-m")
    for parameters, fits in ((["-tp=3"], False), (["-tp=2"], True)):
        request = Request(a_spec(backend_parameters=parameters), model_id=model_id)
        assert index.place(request) is None
        request.look(WorkerId("w-w2"), Looked(safetensors(15 * GIB), ()))
        index.look_again(model_id, WorkerId("w-w2"))
        assert (index.place(request) is not None) is fits
        assert isinstance(place(request, machines.in_order()), Placed) is fits


@pytest.mark.parametrize("strategy", ["spread", "binpack"])
def test_a_worker_with_other_files_is_asked_for_itself(strategy: str) -> None:
    """On `a` the directory holds another model: it takes four GPUs there, and one elsewhere."""
    machines = Machines()
    for name in ("a", "b", "c"):
        machines.put(a_machine(name, gpus(4), claims=[(None, "cuda", Claim(vram={0: GIB}))] * (name != "a")))
    small, large = safetensors(15 * GIB), safetensors(200 * GIB)
    request = a_request(a_spec(placement_strategy=strategy), small, looked={"a": large, "b": small, "c": small})
    index = GpuIndex(machines)
    assert compare(request, machines, index) == "placed"
    request.look(WorkerId("w-a"), Looked(small.model_copy(update={"files": ("/elsewhere",)}), ()))
    index.look_again(ModelId("m-m"), WorkerId("w-a"))
    assert compare(request, machines, index) == "placed"
    found = index.place(request)
    assert found is not None
    for worker in ("b", "c", "a"):  # everybody gets the larger one in the end
        request.look(WorkerId(f"w-{worker}"), Looked(large, ()))
        index.look_again(ModelId("m-m"), WorkerId(f"w-{worker}"))
        assert compare(request, machines, index) == "placed"
    assert len(placed(request, *machines).places[0].gpu_indexes) == 4


def test_ram_that_is_overdrawn_is_not_in_the_way_of_what_takes_none() -> None:
    machines = Machines()
    machines.put(a_machine("w1", gpus(1), ram=GIB, inventory={"memory_reserved": 2 * GIB}))
    assert compare(a_request(), machines, GpuIndex(machines)) == "placed"

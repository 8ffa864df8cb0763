"""Of the places that fit, which is taken: each preference decides where the former ones tie, and says that it did."""

from typing import Any

import pytest

from schemas.ids import ModelId, WorkerId
from schemas.models import Claim
from services.scheduler.domain.candidate import Request
from services.scheduler.domain.placement import RunnerUp, Why
from services.scheduler.domain.preferences import BINPACK, SPREAD, preferences_of
from services.scheduler.domain.snapshot import Machine
from tests.services.scheduler.placement.fleets import (
    GIB,
    a_gpu,
    a_machine,
    a_request,
    a_spec,
    gguf,
    gpus,
    placed,
    safetensors,
)

M = ModelId("m-m")
OTHER = ModelId("m-x")
HALF = ["--gpu-memory-utilization=0.5"]
ISLANDS = tuple(a_gpu(index, island=index // 2) for index in range(4))


def holding(size: int, *indexes: int, model: ModelId = OTHER, kind: str | None = "cuda", ram: int = 0) -> Any:
    return (model, kind, Claim(ram=ram, vram=dict.fromkeys(indexes, size * GIB)))


def spread(*parameters: str, **fields: Any) -> Request:
    return a_request(a_spec(backend_parameters=[*HALF, *parameters]), **fields)


def binpack(*parameters: str, **fields: Any) -> Request:
    return a_request(a_spec(backend_parameters=[*HALF, *parameters], placement_strategy="binpack"), **fields)


LLAMA = a_request(a_spec(backend="llama.cpp", cpu_offloading=True), gguf(30 * GIB))

CASES = (
    # request, the place that is taken, the one that is not, the preference that decides
    (LLAMA, a_machine("b", gpus(2, 24 * GIB)), a_machine("a", gpus(1, 24 * GIB)), "on_gpus"),
    (LLAMA, a_machine("b", gpus(1, 24 * GIB)), a_machine("a", ram=64 * GIB), "on_gpus"),
    (
        a_request(weights=safetensors(100 * GIB)),
        a_machine("b", gpus(1, 192 * GIB), claims=[holding(1, 0), holding(1, 0)]),
        a_machine("a", gpus(8)),
        "fewest_gpus",
    ),
    (
        spread("-tp=2"),
        a_machine("b", ISLANDS, claims=[holding(1, 0), holding(1, 1)]),
        a_machine("a", ISLANDS, claims=[holding(41, 0, 2)]),
        "whole_island",
    ),
    (
        spread(),
        a_machine("b", gpus(8), claims=[holding(1, 0), holding(1, 1), holding(1, 2)]),
        a_machine("a", gpus(8), claims=[holding(1, 0, model=M)]),
        "replicas_apart",
    ),
    (
        spread(),
        a_machine("b", gpus(8), claims=[holding(30, 0), holding(30, 1)]),
        a_machine("a", gpus(4), claims=[holding(1, 0), holding(1, 1)]),
        "spread",
    ),
    (
        spread(files_on=frozenset({WorkerId("w-b")})),
        a_machine("b", gpus(1), claims=[holding(30, 0)]),
        a_machine("a", gpus(1), claims=[holding(1, 0)]),
        "files_present",
    ),
    (
        spread(),
        a_machine("b", gpus(1), claims=[holding(20, 0)]),
        a_machine("a", gpus(1), claims=[holding(30, 0)]),
        "most_free",
    ),
    (spread(), a_machine("a", gpus(2)), a_machine("b", gpus(2)), "name"),
    (
        binpack("-tp=2"),
        a_machine("b", ISLANDS),
        a_machine("a", ISLANDS, claims=[holding(41, 0, 2)]),
        "whole_island",
    ),
    (
        binpack(),
        a_machine("b", gpus(2), claims=[holding(30, 1, model=M)]),
        a_machine("a", gpus(2), claims=[holding(20, 1)]),
        "tightest",
    ),
    (
        binpack("-tp=2"),
        a_machine("b", gpus(3)),
        a_machine("a", gpus(4)),
        "tightest",
    ),
    (
        binpack(),
        a_machine("b", gpus(2), claims=[holding(30, 1)]),
        a_machine("a", gpus(2), claims=[holding(30, 1, model=M)]),
        "replicas_apart",
    ),
    (
        binpack(files_on=frozenset({WorkerId("w-b")})),
        a_machine("b", gpus(1)),
        a_machine("a", gpus(1)),
        "files_present",
    ),
    (binpack(), a_machine("a", gpus(1)), a_machine("b", gpus(1)), "name"),
)


@pytest.mark.parametrize(("request_", "taken", "left", "decides"), CASES)
def test_a_preference_decides_where_the_former_ones_tie(
    request_: Request, taken: Machine, left: Machine, decides: str
) -> None:
    """The names would decide otherwise, unless it is they that do."""
    for machines in ((taken, left), (left, taken)):
        answer = placed(request_, *machines)
        assert [each.worker_id for each in answer.places] == [taken.id]
        assert answer.why is not None
        (other,) = answer.why.runners_up
        assert (other.worker_id, other.lost_by) == (left.id, decides)
        names = [like.__name__ for like in preferences_of(request_)]
        assert list(answer.why.scores) == list(other.scores) == names
        former = names[: names.index(decides)] if decides != "name" else names
        assert [answer.why.scores[name] for name in former] == [other.scores[name] for name in former]
        if decides != "name":
            assert answer.why.scores[decides] < other.scores[decides]
            assert taken.name > left.name


def test_every_preference_decides_somewhere() -> None:
    decided = {(case[0].spec.placement_strategy, case[3]) for case in CASES}
    tied = {("spread", like.__name__) for like in SPREAD} | {("binpack", like.__name__) for like in BINPACK}
    assert tied - decided == {
        ("binpack", "on_gpus"),
        ("binpack", "fewest_gpus"),
    }  # as in `spread`, where they are shown


def test_why_tells_how_many_would_have_done_and_the_next_three() -> None:
    machines = [
        a_machine(f"w{number}", gpus(2), claims=[holding(10 * number, 0, 1)] * bool(number)) for number in range(6)
    ]
    answer = placed(a_request(a_spec(backend_parameters=["--gpu-memory-utilization=0.5"])), *machines)
    zero = {"on_gpus": 0, "fewest_gpus": 1, "whole_island": 0, "replicas_apart": 0}

    def scores(load: int, taken: int) -> dict[str, int]:
        return {**zero, "spread": load, "files_present": 1, "most_free": taken}

    assert answer.why == Why(
        scores=scores(0, 0),
        fitting=5,  # of the last one 50 GiB are held
        runners_up=(
            RunnerUp(WorkerId("w-w1"), (0,), scores(10_000, 13), "spread"),
            RunnerUp(WorkerId("w-w2"), (0,), scores(10_000, 25), "spread"),
            RunnerUp(WorkerId("w-w3"), (0,), scores(10_000, 38), "spread"),
        ),
    )


def test_on_the_processor_the_roomier_and_the_less_loaded_is_taken() -> None:
    request = a_request(a_spec(backend="llama.cpp"), gguf(4 * GIB))
    loaded = a_machine("a", ram=512 * GIB, claims=[holding(0, kind=None, ram=GIB)])
    assert placed(request, loaded, a_machine("b", ram=64 * GIB)).places[0].worker_id == "w-b"
    kept = a_machine("a", ram=64 * GIB, inventory={"memory_reserved": 32 * GIB})
    assert placed(request, kept, a_machine("b", ram=64 * GIB)).places[0].worker_id == "w-b"
    tight = a_request(a_spec(backend="llama.cpp", placement_strategy="binpack"), gguf(4 * GIB))
    assert placed(tight, a_machine("a", ram=64 * GIB), a_machine("b", ram=16 * GIB)).places[0].worker_id == "w-b"


def test_the_members_of_a_group_are_the_workers_that_are_liked_best() -> None:
    machines = [a_machine(f"w{number}", gpus(2), claims=[holding(1, 0)] * (number < 2)) for number in range(4)]
    answer = placed(a_request(weights=safetensors(200 * GIB)), *machines)
    assert [each.worker_id for each in answer.places] == ["w-w2", "w-w3"]
    files = a_request(weights=safetensors(200 * GIB), files_on=frozenset({WorkerId("w-w3")}))
    assert [each.worker_id for each in placed(files, *machines).places] == ["w-w3", "w-w2"]

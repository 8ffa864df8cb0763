"""A worker that reports other hardware again and again, or other files, takes the scheduler's memory for nothing."""

import gc
import weakref
from dataclasses import replace
from typing import Any

import pytest

from schemas.ids import ModelId, WorkerId
from services.scheduler.domain import candidate, index, shapes, snapshot
from services.scheduler.domain.candidate import Looked
from services.scheduler.domain.index import GpuIndex
from services.scheduler.domain.machines import Machines
from services.scheduler.domain.placement import Placed, place
from services.scheduler.domain.snapshot import profile_of
from tests.services.scheduler.placement.fleets import GIB, a_machine, a_request, a_spec, gpus, safetensors

REPORTS = 300
SMALL = 40
"""Of each kind of thing that is remembered, in these tests."""


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:  # pyright: ignore[reportUnusedFunction] - pytest uses it
    monkeypatch.setattr(snapshot, "MOST_MAKES", SMALL)
    monkeypatch.setattr(shapes, "MOST_PROFILES", SMALL)
    monkeypatch.setattr(index, "MOST_CHANGES", SMALL)
    for module in (candidate, index):
        monkeypatch.setattr(module, "MOST_LIKENESSES", SMALL)


def size_of(kept: Any) -> int:
    """References that are reachable from it, through containers and objects of ours."""
    seen: dict[int, Any] = {}
    left, count = [kept], 0
    while left:
        one = left.pop()
        is_ours = isinstance(one, dict | list | set | tuple) or type(one).__module__.startswith("services")
        if id(one) not in seen and is_ours:
            seen[id(one)] = one
            referents = gc.get_referents(one)
            left += referents
            count += len(referents)
    return count


def test_profiles_are_one_object_each_while_somebody_has_them() -> None:
    first = profile_of("cuda", "A GPU", 80 * GIB, 79 * GIB)
    assert profile_of("cuda", "A GPU", 80 * GIB, 79 * GIB) is first
    assert profile_of("cuda", "A GPU", 80 * GIB, 78 * GIB) is not first
    gone = weakref.ref(profile_of("cuda", "A GPU", 77 * GIB + 1, 1))
    gc.collect()
    assert gone() is None


def test_like_machines_have_one_make_and_others_another() -> None:
    makes = [a_machine(f"w{number}", gpus(2, (10 + number) * GIB)).make for number in range(REPORTS)]
    assert len(set(makes)) == REPORTS  # whatever was forgotten, no number is given twice
    assert a_machine("a", gpus(2)).make == a_machine("b", gpus(2)).make


@pytest.mark.parametrize("changes", [SMALL, 50_000])
def test_a_worker_that_reports_other_gpus_again_and_again_is_forgotten_as_it_was(
    changes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While models are placed: neither the index nor the requests grow, and both go on answering the same.

    With a long journal one reference is kept of each change.
    """
    monkeypatch.setattr(index, "MOST_CHANGES", changes)
    machines = Machines()
    for name in ("calm", "flaps"):
        machines.put(a_machine(name, gpus(2)))
    gpu_index = GpuIndex(machines)
    requests = [a_request(a_spec(placement_strategy=s), model_id=ModelId(f"m-{s}")) for s in ("spread", "binpack")]
    sizes: list[int] = []
    for number in range(REPORTS):
        machines.put(a_machine("flaps", gpus(2, 40 * GIB + number * 2**20), state="ready" if number % 3 else "lost"))
        for request in requests:
            fast, slow = gpu_index.place(request, runners_up=1), place(request, machines.in_order())
            assert isinstance(slow, Placed)
            assert fast is not None
            assert replace(fast, why=None) == replace(slow, why=None)
        sizes.append(size_of([gpu_index, requests]))
    grown = max(sizes[REPORTS // 2 :]) - max(sizes[: REPORTS // 2])
    assert grown <= (SMALL if changes == SMALL else REPORTS // 2 + SMALL), sizes[:: REPORTS // 10]


def test_a_directory_in_which_other_weights_are_found_again_and_again_leaves_nothing_behind() -> None:
    machine = a_machine("w1", gpus(2))
    request = a_request()
    sizes: list[int] = []
    for number in range(REPORTS):
        request.look(WorkerId("w-w1"), Looked(safetensors(GIB + number), ()))
        assert isinstance(place(request, [machine]), Placed)
        sizes.append(size_of(request))
    assert max(sizes[REPORTS // 2 :]) <= max(sizes[: REPORTS // 2]) * 1.1, sizes[:: REPORTS // 10]

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.models import Gpu, GpuNetwork
from services.agent.domain.accelerators.answers import islands, linked_pairs
from services.agent.domain.accelerators.gpus import (
    STEADY_BYTES,
    each_once,
    gpus,
    held_by_engines,
    steady,
    used_by_others,
)
from services.agent.domain.accelerators.reading import BadOutput, GpuProcess, GpuReading, Problem, RocePort
from services.agent.domain.accelerators.rhythm import after_failures, rest_seconds
from tests.services.agent.accelerators.recordings import PARSERS, read

GIB = 2**30
A_GPU = GpuReading(vendor="nvidia", type="cuda", index=0, name="H100", memory_used_bytes=50 * GIB)


def held_by(*processes: tuple[int, int | None]) -> GpuReading:
    return replace(A_GPU, processes=tuple(GpuProcess(pid, memory) for pid, memory in processes))


def test_memory_of_others_is_what_is_used_less_what_our_engines_hold() -> None:
    reading = held_by((1, 20 * GIB), (2, 25 * GIB), (3, 4 * GIB))
    assert used_by_others(reading, {1, 3}) == 26 * GIB
    assert used_by_others(reading, set()) == 50 * GIB


def test_memory_of_others_is_never_below_nothing() -> None:
    assert used_by_others(held_by((1, 80 * GIB)), {1}) == 0


@pytest.mark.parametrize("reading", [A_GPU, held_by((1, None), (2, 25 * GIB))])
def test_where_a_tool_does_not_tell_what_ours_hold_it_is_what_was_used_before_they_ran(reading: GpuReading) -> None:
    assert used_by_others(reading, {1}, idle_bytes=3 * GIB) == 3 * GIB
    assert used_by_others(reading, {1}) == 0
    assert used_by_others(reading, {1}, idle_bytes=60 * GIB) == 50 * GIB


def test_a_process_of_others_whose_memory_is_not_told_does_not_matter() -> None:
    assert used_by_others(held_by((1, 20 * GIB), (2, None)), {1}) == 30 * GIB


@pytest.mark.parametrize("vendor", PARSERS)
def test_of_every_vendor_our_engine_is_told_from_others(vendor: str) -> None:
    reading = read(vendor, "in_use")[0]
    assert reading.memory_used_bytes is not None
    assert reading.processes is not None
    ours = reading.processes[0].memory_bytes
    assert ours is not None
    assert gpus([reading], {4242})[0].memory_used_by_others == reading.memory_used_bytes - ours


def test_a_reading_becomes_a_gpu_of_the_inventory() -> None:
    (npu,) = read("ascend", "one")
    assert gpus([npu]) == (
        Gpu(
            index=0,
            vendor="ascend",
            type="cann",
            name="910B3",
            memory_total=64 * GIB,
            memory_used_by_others=3439 * 2**20,
            compute_capability="910b",
            driver_version="25.2.0",
            network=GpuNetwork(address="192.168.100.100", up=True),
        ),
    )


def test_islands_of_two_vendors_have_different_numbers() -> None:
    both = (*read("metax", "eight"), *read("amd", "eight"))
    assert [gpu.island for gpu in gpus(both)] == [0] * 4 + [1] * 4 + [2] * 8


def test_what_a_database_cannot_store_is_left_out() -> None:
    odd = replace(A_GPU, name="H\x00100\n", unhealthy="a\ud800b" + "x" * 1000, network=RocePort("\x07"))
    (gpu,) = gpus([odd])
    assert (gpu.name, gpu.network) == ("H 100", GpuNetwork(address=None, up=True))
    assert gpu.unhealthy == "a b" + "x" * 197


@pytest.mark.parametrize("indexes", [[], [0, 0], [256], [-1]])
def test_gpus_without_an_index_of_their_own_are_bad_output(indexes: list[int]) -> None:
    with pytest.raises(BadOutput):
        each_once(replace(A_GPU, index=index) for index in indexes)


def a_gpu(used_by_others: int, **more: object) -> Gpu:
    described = {
        "index": 0,
        "vendor": "nvidia",
        "type": "cuda",
        "name": "H100",
        "memory_used_by_others": used_by_others,
    }
    return Gpu.model_validate(described | more)


def test_memory_that_changes_a_little_is_no_news() -> None:
    known = (a_gpu(GIB),)
    assert steady(known, (a_gpu(GIB + STEADY_BYTES - 1),)) == known
    assert steady(known, (a_gpu(GIB + STEADY_BYTES),)) == (a_gpu(GIB + STEADY_BYTES),)
    assert steady(known, (a_gpu(GIB - 1, unhealthy="lost"),)) == (a_gpu(GIB, unhealthy="lost"),)
    assert steady((), (a_gpu(1),)) == (a_gpu(1),)


def test_each_in_an_island_reaches_each_in_it_directly() -> None:
    cube = [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3), (0, 4), (4, 5), (4, 6), (4, 7), (5, 6), (5, 7), (6, 7)]
    both_ways = cube + [(b, a) for a, b in cube]
    assert islands(range(8), both_ways) == {0: 0, 1: 0, 2: 0, 3: 0, 4: 1, 5: 1, 6: 1, 7: 1}
    assert islands(range(9), both_ways).get(8) is None
    assert islands(range(2), [(0, 1)]) == {}  # said by one of the two only


@given(st.sets(st.tuples(st.integers(0, 9), st.integers(0, 9))))
def test_no_island_is_larger_than_its_links(pairs: set[tuple[int, int]]) -> None:
    found = islands(range(10), pairs)
    members = [(a, b) for a, on in found.items() for b, other in found.items() if a != b and on == other]
    assert set(members) <= pairs


def test_a_matrix_of_two_is_read_though_its_heading_looks_like_a_line() -> None:
    text = "        GPU0    GPU1\nGPU0    X       PIX\nGPU1    PIX     X\n"
    assert list(linked_pairs(text, "GPU", "PIX")) == [(0, 1), (1, 0)]
    assert list(linked_pairs(text, "GPU", "MX")) == []


def test_who_costs_more_is_asked_less_often() -> None:
    assert [rest_seconds(cost) for cost in (0.0, 0.01, 0.1, 1.0, 60.0)] == [2.5, 2.5, 20.0, 200.0, 300.0]


def test_gpus_whose_tool_goes_on_failing_are_unhealthy_and_do_not_vanish() -> None:
    problems = (Problem("NVIDIA", "NVML", "no answer within 15 s", "Install it."),)
    assert after_failures((A_GPU,), 2, problems) == (A_GPU,)
    assert after_failures((A_GPU,), 3, problems) == (replace(A_GPU, unhealthy="NVML: no answer within 15 s"),)
    lost = replace(A_GPU, unhealthy="GPU is lost")
    assert after_failures((lost,), 3, problems) == (lost,)


def test_what_engines_hold_is_added_up_for_each_gpu_and_others_are_left_out() -> None:
    first = held_by((1, 20 * GIB), (2, 25 * GIB), (3, 4 * GIB), (4, None))
    second = replace(held_by((1, GIB)), index=1)
    silent = replace(A_GPU, index=2)
    assert held_by_engines([first, second, silent], {1: 100, 2: 100, 4: "container"}) == {
        100: {("cuda", 0): 45 * GIB, ("cuda", 1): GIB}
    }

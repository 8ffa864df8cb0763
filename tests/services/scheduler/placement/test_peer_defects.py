"""What is known to go wrong in the field's scheduler, each as a case that goes right here (facts of 2026-08)."""

import pytest

from schemas.ids import ModelId, WorkerId
from schemas.models import Claim
from schemas.reasons import (
    BeingInspected,
    GpuShareNotFree,
    InventoryIncomplete,
    ParametersContradict,
    WeightsUnknown,
)
from schemas.wanted import wanted_of
from services.scheduler.domain.launching import assumed
from services.scheduler.domain.machines import Machines
from services.scheduler.domain.placement import Placed, place
from tests.services.scheduler.placement.fleets import (
    GIB,
    SOURCE,
    a_gpu,
    a_machine,
    a_request,
    a_spec,
    gpus,
    placed,
    refused,
    safetensors,
)


def test_a_worker_with_two_kinds_of_gpu_has_both() -> None:
    """There: grouping by a shallow copy leaves every group with the last type's GPUs."""
    machine = a_machine("w1", (*gpus(1), *gpus(1, 192 * GIB, type="rocm")))
    assert [(pool.type, len(pool.gpus)) for pool in machine.pools] == [("cuda", 1), ("rocm", 1)]
    small = placed(a_request(a_spec(gpu_selector={"gpu_ids": ["w1:cuda:0"]})), machine)
    large = placed(a_request(a_spec(gpu_selector={"gpu_ids": ["w1:rocm:0"]})), machine)
    assert [each.places[0].type for each in (small, large)] == ["cuda", "rocm"]


def test_an_instance_that_is_placed_again_does_not_stand_in_its_own_way() -> None:
    """There: its own claim is counted against it, and it stays Pending with a worker, never to be looked at again.

    Here whoever moves is placed on others, and whoever lost its place has released its claim before it is placed.
    """
    machines = Machines()
    machines.put(a_machine("w1", gpus(1)))
    request = a_request()
    first = placed(request, *machines)
    claim = first.places[0].claim
    machines.promise(WorkerId("w-w1"), ModelId("m-m"), "cuda", claim)
    assert not isinstance(place(request, list(machines)), Placed)
    machines.release(WorkerId("w-w1"), ModelId("m-m"), "cuda", claim)
    again = placed(request, *machines)
    assert again == first


def test_the_worker_that_comes_closest_is_the_one_that_does() -> None:
    """There: "the largest available worker" is the last one that was looked at (48 GiB of 24 GiB GPUs, not 640)."""
    weights = safetensors(1000 * GIB)
    large, small = a_machine("large", gpus(8)), a_machine("small", gpus(2, 24 * GIB))
    for machines in ((large, small), (small, large)):
        answer = refused(a_request(weights=weights, distributed=False), *machines)
        assert answer.closest == "w-large"
        (reason,) = answer.workers[0].reasons
        assert reason.code == "not_enough_vram"
        assert (reason.gpus, reason.largest_total_bytes) == (8, 80 * GIB)


@pytest.mark.parametrize("told", [0, None])
def test_one_gpu_without_memory_stops_nobody_else(told: int | None) -> None:
    """There: a division by zero, or None without `total`, for every instance of the cluster."""
    broken = a_machine("a", (a_gpu(0), a_gpu(1).model_validate(a_gpu(1).model_dump() | {"memory_total": told})))
    assert placed(a_request(), broken, a_machine("b", gpus(1))).places[0].worker_id == "w-b"
    assert refused(a_request(), broken).workers[0].reasons == (
        InventoryIncomplete(worker_id=WorkerId("w-a"), field="memory_total", gpu_index=1),
    )


def test_mixed_chunks_are_refused_because_they_are_on() -> None:
    """There: the message asks for the flag that is the problem."""
    spec = a_spec(backend="SGLang", backend_parameters=["--enable-mixed-chunk", "--speculative-algorithm=EAGLE3"])
    (problem,) = wanted_of(spec).problems
    assert isinstance(problem, ParametersContradict)
    assert problem.sentence() == (
        "--speculative-algorithm and --enable-mixed-chunk exclude each other:"
        " mixed chunks must be off for speculative decoding"
    )


def test_an_unknown_size_is_a_reason_and_never_two_gibibytes() -> None:
    """There: it silently becomes a claim of 2 GiB."""
    machine = a_machine("w1", gpus(1))
    unknown = a_request(must_look=True)
    unknown.known = None
    assert refused(unknown, machine).workers[0].reasons == (BeingInspected(worker_id=WorkerId("w-w1")),)
    nothing = a_request(weights=safetensors(0))
    assert refused(nothing, machine).workers[0].reasons == (
        WeightsUnknown(worker_id=WorkerId("w-w1"), path=SOURCE.path),
    )


def test_what_the_system_keeps_makes_no_gpu_unusable() -> None:
    """There: the share is checked against the whole GPU, so that more than 10 % reserved is never 0.9 free."""
    machine = a_machine("w1", gpus(1), inventory={"vram_reserved": 16 * GIB})
    request = a_request()
    answer = placed(request, machine)
    assert answer.take.share == 0.8
    assert answer.places[0].claim == Claim(vram={0: 64 * GIB})
    assert "--gpu-memory-utilization=0.8" in assumed(request, answer)


def test_one_gpu_and_several_are_asked_for_the_same_share() -> None:
    """There: at least the share for one GPU, more than it for several."""
    exactly = [(None, "cuda", Claim(vram={0: 8 * GIB, 1: 8 * GIB}))]
    for count in (1, 2):
        answer = placed(
            a_request(a_spec(backend_parameters=[f"-tp={count}"])), a_machine("w1", gpus(2), claims=exactly)
        )
        assert len(answer.places[0].gpu_indexes) == count


def test_the_refusal_names_every_worker_and_not_the_last_one() -> None:
    """There: one strategy's message is kept, of the worker that was looked at last."""
    machines = [
        a_machine("a", gpus(1), cordoned=True),
        a_machine("b", gpus(1), claims=[(None, "cuda", Claim(vram={0: 9 * GIB}))]),
        a_machine("c"),
    ]
    answer = refused(a_request(), *machines)
    assert {each.name: [reason.code for reason in each.reasons] for each in answer.workers} == {
        "a": ["worker_cordoned"],
        "b": ["gpu_share_not_free"],
        "c": ["no_gpu"],
    }
    (share,) = next(each.reasons for each in answer.workers if each.name == "b")
    assert share == GpuShareNotFree(
        worker_id=WorkerId("w-b"), share=0.9, gpus_needed=1, gpus_free=0, freest_share=0.887, free_bytes=71 * GIB,
        total_bytes=80 * GIB,
    )  # fmt: skip

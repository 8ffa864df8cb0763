"""How an instance lies on GPUs: one, several, those that were selected, over several workers, partly or wholly in RAM."""

import math
import random
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import combinations
from typing import Any, Final

import pytest

from schemas.ids import ModelId, WorkerId
from schemas.models import Claim, GpuNetwork, Launch, ModelSpec, ModelWeights, Needs, Parallelism
from schemas.reasons import (
    ContextDoesNotFit,
    GpuShareNotFree,
    GpuShareTooSmall,
    GpuUnhealthy,
    HeadsNotDivisible,
    NetworkDown,
    NotEnoughVram,
    WorkersDoNotAddUp,
)
from services.scheduler.domain.candidate import Candidate, Looked, Request
from services.scheduler.domain.launching import assumed, launch_of
from services.scheduler.domain.memory.sglang import mem_fraction_static
from services.scheduler.domain.placement import Place, Placed, Refused, place
from services.scheduler.domain.rules import OF_ITS_LIKE, OF_ITS_OWN
from services.scheduler.domain.snapshot import GpuSlot, Machine
from tests.services.scheduler.placement.fleets import (
    GIB,
    QWEN3_8B,
    SOURCE,
    a_gpu,
    a_machine,
    a_request,
    a_spec,
    gguf,
    gpus,
    placed,
    random_claim,
    random_cluster,
    random_fleet,
    random_request,
    refused,
    safetensors,
)

MIB = 2**20
LARGE = safetensors(200 * GIB)
"""242 GiB: no GPU of 80 GiB holds it, four at 0.9 do."""


def part(name: str, indexes: tuple[int, ...], claim: Claim, kind: str | None = "cuda") -> Place:
    return Place(WorkerId(f"w-{name}"), "10.0.0.1", kind, indexes, claim)


def on(indexes: tuple[int, ...], size: int, ram: int = 0) -> Claim:
    return Claim(ram=ram, vram=dict.fromkeys(indexes, size))


# -- one GPU, several GPUs --------------------------------------------------------------------------------------------


def test_one_gpu_is_taken_and_the_engines_share_of_it_is_charged() -> None:
    answer = placed(a_request(), a_machine("w1", gpus(8)))
    assert answer.places == (part("w1", (0,), on((0,), 72 * GIB)),)
    assert (answer.take.share, answer.parallelism, answer.context) == (0.9, Parallelism(), 8192)


def test_no_more_gpus_are_taken_than_the_model_needs() -> None:
    answer = placed(a_request(weights=LARGE), a_machine("w1", gpus(8)))
    assert answer.places == (part("w1", (0, 1, 2, 3), on((0, 1, 2, 3), 72 * GIB)),)
    assert answer.parallelism == Parallelism(tensor=4)


def test_a_number_of_gpus_that_divides_no_heads_is_passed_over() -> None:
    """130 GiB need two and a bit of 72: three GPUs would do, and 32 heads can't be divided by 3."""
    answer = placed(a_request(weights=safetensors(130 * GIB)), a_machine("w1", gpus(8)))
    assert answer.parallelism == Parallelism(tensor=4)


def test_a_model_that_tells_no_heads_is_shared_out_among_powers_of_two() -> None:
    answer = placed(a_request(weights=safetensors(130 * GIB, {})), a_machine("w1", gpus(8)))
    assert answer.parallelism == Parallelism(tensor=4)


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        (["--tensor-parallel-size=4"], Parallelism(tensor=4)),
        (["-tp", "2", "-pp", "2"], Parallelism(tensor=2, pipeline=2)),
        (["--data-parallel-size=4"], Parallelism(data=4)),
        (["-tp=2", "-pp=2", "-dp=2"], Parallelism(tensor=2, pipeline=2, data=2)),
    ],
)
def test_the_users_sizes_are_kept(parameters: list[str], expected: Parallelism) -> None:
    request = a_request(a_spec(backend_parameters=parameters))
    answer = placed(request, a_machine("w1", gpus(8)))
    count = expected.tensor * expected.pipeline * expected.data
    assert answer.places == (part("w1", tuple(range(count)), on(tuple(range(count)), 72 * GIB)),)
    assert answer.parallelism == expected
    assert assumed(request, answer) == ("--gpu-memory-utilization=0.9", "--max-model-len=8192")


def test_data_parallelism_needs_the_whole_model_in_each_copy() -> None:
    """Two GPUs hold half of it each, or with -dp=2 all of it each, for which they are too small."""
    half = safetensors(100 * GIB)
    assert placed(a_request(a_spec(backend_parameters=["-tp=2"]), half), a_machine("w1", gpus(2)))
    answer = refused(a_request(a_spec(backend_parameters=["-dp=2"]), half), a_machine("w1", gpus(2)))
    needed = int(100 * GIB * 1.2) + 2 * GIB
    assert answer.workers[0].reasons == (
        NotEnoughVram(
            worker_id=WorkerId("w-w1"), needed_bytes=needed, largest_free_bytes=80 * GIB, largest_total_bytes=80 * GIB, gpus=2
        ),
    )  # fmt: skip


def test_spread_takes_the_freest_gpus_and_binpack_the_tightest_that_fit() -> None:
    def machine() -> Machine:
        return a_machine("w1", gpus(4), claims=[(None, "cuda", Claim(vram={0: 10 * GIB, 1: 20 * GIB, 2: 60 * GIB}))])

    half = ["--gpu-memory-utilization=0.5"]
    spread = placed(a_request(a_spec(backend_parameters=half)), machine())
    binpack = placed(a_request(a_spec(backend_parameters=half, placement_strategy="binpack")), machine())
    assert (spread.places[0].gpu_indexes, binpack.places[0].gpu_indexes) == ((3,), (1,))
    two = [*half, "-tp=2"]
    spread = placed(a_request(a_spec(backend_parameters=two)), machine())
    binpack = placed(a_request(a_spec(backend_parameters=two, placement_strategy="binpack")), machine())
    assert (spread.places[0].gpu_indexes, binpack.places[0].gpu_indexes) == ((0, 3), (0, 1))


def test_a_whole_island_is_taken_before_a_split_one() -> None:
    of = tuple(a_gpu(index, island=index // 4) for index in range(8))
    busy = [(None, "cuda", Claim(vram={1: 40 * GIB, 3: 40 * GIB, 4: 20 * GIB}))]
    request = a_request(a_spec(backend_parameters=["-tp=4", "--gpu-memory-utilization=0.5"]))
    answer = placed(request, a_machine("w1", of, claims=busy))
    assert answer.places[0].gpu_indexes == (0, 1, 2, 3)  # the least index of two whole islands
    busy = [(None, "cuda", Claim(vram={1: 41 * GIB}))]
    answer = placed(request, a_machine("w1", of, claims=busy))
    assert answer.places[0].gpu_indexes == (4, 5, 6, 7)  # the first island has three left


def test_islands_are_split_when_no_whole_one_is_left() -> None:
    of = tuple(a_gpu(index, island=index // 4) for index in range(8))
    busy = [(None, "cuda", Claim(vram={1: 41 * GIB, 5: 41 * GIB}))]
    request = a_request(a_spec(backend_parameters=["-tp=4", "--gpu-memory-utilization=0.5"]))
    answer = placed(request, a_machine("w1", of, claims=busy))
    assert answer.places[0].gpu_indexes == (0, 2, 3, 4)
    assert answer.why is not None
    assert answer.why.scores["whole_island"] == 1


def test_gpus_of_two_vendors_are_two_pools_and_an_instance_lies_in_one() -> None:
    of = (*gpus(2, 24 * GIB), *gpus(4, 192 * GIB, vendor="amd", type="rocm"))
    machine = a_machine("w1", of)
    assert [(pool.type, len(pool.gpus)) for pool in machine.pools] == [("cuda", 2), ("rocm", 4)]
    small = placed(a_request(weights=safetensors(60 * GIB)), machine)
    assert small.places == (part("w1", (0,), on((0,), int(0.9 * 192 * GIB)), "rocm"),)
    six = refused(a_request(a_spec(backend_parameters=["-tp=8"]), distributed=False), machine)
    assert [reason.code for reason in six.workers[0].reasons] == ["not_enough_gpus"]


def test_of_two_kinds_that_do_the_freer_is_taken_or_the_tighter() -> None:
    of = (*gpus(1, 80 * GIB), *gpus(1, 80 * GIB, vendor="amd", type="rocm"))
    for fuller, freer in (("cuda", "rocm"), ("rocm", "cuda")):
        machine = a_machine("w1", of, claims=[(None, fuller, Claim(vram={0: 8 * GIB}))])
        assert placed(a_request(), machine).places[0].type == freer
        assert placed(a_request(a_spec(placement_strategy="binpack")), machine).places[0].type == fuller


def test_the_same_index_of_another_vendor_is_another_gpu() -> None:
    of = (*gpus(1, 80 * GIB), *gpus(1, 192 * GIB, vendor="amd", type="rocm"))
    machine = a_machine("w1", of, claims=[(None, "rocm", Claim(vram={0: 192 * GIB}))])
    assert placed(a_request(), machine).places == (part("w1", (0,), on((0,), 72 * GIB)),)


def test_of_several_sizes_the_smallest_that_does_is_taken_and_sizes_never_mix_for_a_share() -> None:
    of = (a_gpu(0, 80 * GIB), a_gpu(1, 24 * GIB), a_gpu(2, 80 * GIB), a_gpu(3, 24 * GIB))
    machine = a_machine("w1", of)
    assert placed(a_request(weights=safetensors(10 * GIB)), machine).places[0].gpu_indexes == (1,)
    assert placed(a_request(weights=safetensors(30 * GIB)), machine).places[0].gpu_indexes == (0,)
    assert placed(a_request(weights=safetensors(100 * GIB)), machine).places[0].gpu_indexes == (0, 2)


def test_what_takes_no_share_may_lie_on_gpus_of_several_sizes() -> None:
    of = (a_gpu(0, 80 * GIB), a_gpu(1, 48 * GIB))
    answer = placed(a_request(a_spec(backend="llama.cpp"), gguf(60 * GIB)), a_machine("w1", of))
    assert answer.places[0].gpu_indexes == (0,)
    answer = placed(a_request(a_spec(backend="llama.cpp"), gguf(85 * GIB)), a_machine("w1", of))
    assert answer.places[0].gpu_indexes == (0, 1)


def test_a_broken_gpu_is_passed_over() -> None:
    of = (a_gpu(0, unhealthy="XID 79"), a_gpu(1))
    assert placed(a_request(), a_machine("w1", of)).places[0].gpu_indexes == (1,)


def test_what_the_system_keeps_lowers_the_share_that_is_assumed_and_passed() -> None:
    """The peer's default of 0.9 makes a GPU of which more than 10 % is reserved unusable."""
    request = a_request()
    answer = placed(request, a_machine("w1", gpus(1), inventory={"vram_reserved": 12 * GIB}))
    assert answer.places == (part("w1", (0,), on((0,), int(0.85 * 80 * GIB))),)
    assert "--gpu-memory-utilization=0.85" in assumed(request, answer)


def test_a_gpu_that_the_system_keeps_wholly_is_taken_by_nobody() -> None:
    of = gpus(1, 24 * GIB)
    for spec in (a_spec(), a_spec(gpu_selector={"gpu_ids": ["w1:cuda:0"]}), a_spec(backend="SGLang")):
        answer = refused(a_request(spec), a_machine("w1", of, inventory={"vram_reserved": 24 * GIB}))
        assert [reason.code for reason in answer.workers[0].reasons] == ["not_enough_vram"]


def test_memory_of_others_is_not_free() -> None:
    of = (a_gpu(0, memory_used_by_others=9 * GIB), a_gpu(1, memory_used_by_others=8 * GIB))
    assert placed(a_request(), a_machine("w1", of)).places[0].gpu_indexes == (1,)


# -- packed, and what is passed ---------------------------------------------------------------------------------------


def test_packed_takes_what_the_model_needs_so_that_several_share_a_gpu() -> None:
    """15 GiB, 1.125 of KV cache for 8192 tokens, 1.97 of activations, 0.5 and 1 for the engine: 19.6 of 80 GiB are 25 %."""
    machine = a_machine("w1", gpus(1))
    request = a_request(a_spec(packed=True))
    for count in range(4):
        answer = placed(request, machine)
        assert answer.take.share == 0.25
        assert answer.places[0].claim == on((0,), 20 * GIB)
        assert "--gpu-memory-utilization=0.25" in assumed(request, answer)
        machine.promise(ModelId(f"m-{count}"), "cuda", answer.places[0].claim)
    assert [r.code for r in refused(request, machine).workers[0].reasons] == ["gpu_share_not_free", "not_enough_vram"]


def packed_bytes(size: int, total: int, tensor: int = 1, stages: int = 1) -> int:
    """As vLLM's own start counts it, with its defaults for large and for small GPUs."""
    batch, sequences = (8192, 1024) if total >= 70 * GIB else (2048, 256)
    activations = batch * 2 * (4 * 4096 + 3 * (12288 // tensor)) + sequences * 8 * 151936
    beside = GIB + GIB // 2 + (GIB // 2 if tensor * stages > 1 else 0)
    return -(-size // (tensor * stages)) + kv_bytes(tensor, stages) + activations + beside


def test_packed_on_a_gpu_that_is_just_large_enough_takes_all_of_it() -> None:
    needed = packed_bytes(15 * GIB, 18 * GIB)
    request = a_request(a_spec(packed=True), distributed=False)
    assert placed(request, a_machine("w1", gpus(1, needed))).take.share == 1.0
    assert placed(request, a_machine("w1", gpus(1, 20 * GIB))).take.share == 0.91
    answer = refused(request, a_machine("w1", gpus(1, needed - 1)))
    assert answer.workers[0].reasons == (
        ContextDoesNotFit(
            worker_id=WorkerId("w-w1"),
            context_tokens=8192,
            fitting_tokens=8176,
            cache_bytes=kv_bytes(1),
            room_bytes=kv_bytes(1) - 1,
        ),
    )


def test_what_a_packed_model_lacks_is_told_as_it_is_counted_for_it() -> None:
    machine = a_machine("w1", gpus(1), claims=[(None, "cuda", Claim(vram={0: 70 * GIB}))])
    (share, memory) = refused(a_request(a_spec(packed=True)), machine).workers[0].reasons
    assert share.code == "gpu_share_not_free"
    assert memory == NotEnoughVram(
        worker_id=WorkerId("w-w1"),
        needed_bytes=packed_bytes(15 * GIB, 80 * GIB),
        largest_free_bytes=10 * GIB,
        largest_total_bytes=80 * GIB,
    )


def launched(request: Request, answer: Placed) -> Launch:
    """On machines that are all alike."""
    of = gpus(8, type=answer.places[0].type or "cuda")
    machines = {place.worker_id: a_machine(place.worker_id, of) for place in answer.places}
    return launch_of(request, answer, machines, 7)


@pytest.mark.parametrize("backend", ["vLLM", "SGLang", "MindIE"])
@pytest.mark.parametrize("reserved", [0, 1, 10, 30])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("given", [None, 0.5])
def test_the_share_that_is_passed_is_the_share_that_is_charged(
    backend: str, reserved: int, packed: bool, given: float | None
) -> None:
    flag = {"vLLM": "--gpu-memory-utilization", "SGLang": "--mem-fraction-static", "MindIE": "--npu-memory-fraction"}[
        backend
    ]
    parameters = [] if given is None else [f"{flag} {given}"]
    request = a_request(a_spec(backend=backend, packed=packed, backend_parameters=parameters))
    of = gpus(1, 64 * GIB, type="cann", vendor="ascend")
    answer = placed(request, a_machine("w1", of, inventory={"vram_reserved": reserved * GIB}))
    launch = launched(request, answer)
    passed = [p.replace("=", " ").split() for p in launch.parameters if p.startswith(flag)]
    assert len(passed) == 1  # once: what the user gave is not given again
    share = float(passed[0][1])
    assert answer.places[0].claim.vram == {0: int(share * 64 * GIB)}
    assert launch.memory_fraction == share
    if given is not None:
        assert share == given


def test_what_llama_cpp_is_told_is_what_was_assumed() -> None:
    request = a_request(a_spec(backend="llama.cpp", cpu_offloading=True), gguf(40 * GIB))
    answer = placed(request, a_machine("w1", gpus(1, 24 * GIB)))
    layers = answer.take.gpu_layers
    assert layers is not None
    assert 0 < layers < 32
    assert assumed(request, answer) == ("--ctx-size=4096", f"--n-gpu-layers={layers}")


def test_a_context_of_zero_is_the_models_own_whole_and_is_not_passed_again() -> None:
    """llama.cpp reads `--ctx-size 0` as the model's own length: that is what must fit."""
    request = a_request(
        a_spec(backend="llama.cpp", backend_parameters=["--ctx-size", "0"]), gguf(4 * GIB, context_length=131072)
    )
    answer = placed(request, a_machine("w1", gpus(1)))
    assert answer.context == 131072
    assert answer.places[0].claim.vram[0] == pytest.approx(4 * GIB + 2 * 32 * 8 * 128 * 2 * 131072 + 256 * MIB, abs=64)
    assert assumed(request, answer) == ()


def test_sizes_that_placement_chose_are_passed() -> None:
    request = a_request(weights=LARGE)
    answer = placed(request, a_machine("w1", gpus(8)))
    assert assumed(request, answer) == (
        "--gpu-memory-utilization=0.9",
        "--max-model-len=8192",
        "--tensor-parallel-size=4",
    )
    request = a_request(a_spec(backend="SGLang"), LARGE)
    over = placed(request, a_machine("w1", gpus(2)), a_machine("w2", gpus(2)))
    assert assumed(request, over)[1:] == ("--context-length=8192", "--tp-size=2", "--pp-size=2")


def test_what_the_engine_is_asked_for_travels_with_the_launch() -> None:
    asked = a_spec(
        lora_list=[{"lora_name": "support", "source": SOURCE}],
        speculative_config={"algorithm": "mtp", "draft_tokens": 2},
        extended_kv_cache={"ram_size": 64},
        categories=["embedding"],
        image_name="example.org/vllm:1",
        entrypoint=["vllm", "serve"],
        run_command="{{model_path}}",
    )
    request = a_request(asked)
    answer = placed(request, a_machine("w1", gpus(1)))
    launch = launched(request, answer)
    assert launch == Launch(
        model_name="m",
        generation=7,
        backend="vLLM",
        engine="vLLM",
        image="example.org/vllm:1",
        needs=Needs(writable_root=True),
        entrypoint=("vllm", "serve"),
        run_command="{{model_path}}",
        source=asked.source,
        parameters=launch.parameters,
        categories=("embedding",),
        lora_list=asked.lora_list,
        speculative_config=asked.speculative_config,
        extended_kv_cache=asked.extended_kv_cache,
        memory_fraction=answer.take.share,
        context_length=answer.context,
    )


def test_what_a_model_is_for_is_read_from_its_files_where_the_author_does_not_say() -> None:
    request = a_request()
    answer = placed(request, a_machine("w1", gpus(1)))
    assert request.usual is not None
    assert launched(request, answer).categories == (request.usual.architecture.category,) == ("llm",)


# -- the user's own selection -----------------------------------------------------------------------------------------


def selecting(*ids: str, per: int | None = None, **fields: Any) -> ModelSpec:
    return a_spec(gpu_selector={"gpu_ids": ids, "gpus_per_replica": per}, **fields)


def test_selected_gpus_are_taken_and_no_others() -> None:
    machines = (a_machine("w1", gpus(4)), a_machine("w2", gpus(4)))
    answer = placed(a_request(selecting("w2:cuda:3")), *machines)
    assert answer.places == (part("w2", (3,), on((3,), 72 * GIB)),)


def test_all_selected_gpus_of_one_replica_are_used_as_far_as_they_are_a_power_of_two() -> None:
    machine = a_machine("w1", gpus(8))
    four = placed(a_request(selecting(*(f"w1:cuda:{i}" for i in (1, 3, 5, 7)))), machine)
    assert (four.places[0].gpu_indexes, four.parallelism) == ((1, 3, 5, 7), Parallelism(tensor=4))
    of_three = placed(a_request(selecting(*(f"w1:cuda:{i}" for i in (1, 3, 5)))), machine)
    assert (of_three.places[0].gpu_indexes, of_three.parallelism) == ((1, 3), Parallelism(tensor=2))


def test_several_replicas_share_the_selection_out() -> None:
    machine = a_machine("w1", gpus(4))
    request = a_request(selecting(*(f"w1:cuda:{i}" for i in range(4)), replicas=2))
    first = placed(request, machine)
    machine.promise(ModelId("m-m"), "cuda", first.places[0].claim)
    second = placed(request, machine)
    assert (first.places[0].gpu_indexes, second.places[0].gpu_indexes) == ((0, 1), (2, 3))


def test_gpus_per_replica_says_how_many_of_the_selected_an_instance_has() -> None:
    request = a_request(selecting(*(f"w1:cuda:{i}" for i in range(4)), per=1))
    assert placed(request, a_machine("w1", gpus(4))).places[0].gpu_indexes == (0,)


def test_selected_gpus_of_several_workers_are_one_group() -> None:
    machines = [a_machine(name, gpus(4)) for name in ("w1", "w2", "w3")]
    request = a_request(selecting("w1:cuda:0", "w1:cuda:1", "w3:cuda:2", "w3:cuda:3"))
    answer = placed(request, *machines)
    assert answer.places == (
        part("w1", (0, 1), on((0, 1), 72 * GIB)),
        part("w3", (2, 3), on((2, 3), 72 * GIB)),
    )
    assert answer.parallelism == Parallelism(tensor=2, pipeline=2)


def test_who_selects_gpus_may_overcommit_them_and_it_is_said() -> None:
    answer = placed(a_request(selecting("w1:cuda:0"), safetensors(70 * GIB)), a_machine("w1", gpus(1)))
    assert answer.places[0].claim == on((0,), 72 * GIB)
    assert answer.take.overcommitted
    assert not placed(a_request(selecting("w1:cuda:0")), a_machine("w1", gpus(1))).take.overcommitted


TWENTY_EIGHT = {**QWEN3_8B, "num_attention_heads": 28}
HEADLESS = {"architectures": ["SomethingForCausalLM"], "max_position_embeddings": 4096}


@pytest.mark.parametrize(
    ("backend", "count", "config", "tensor", "pipeline"),
    [
        ("vLLM", 2, QWEN3_8B, 2, 1),
        ("vLLM", 3, QWEN3_8B, 1, 3),
        ("vLLM", 6, QWEN3_8B, 2, 3),
        ("vLLM", 6, {**QWEN3_8B, "vocab_size": 151937}, 1, 6),
        ("vLLM", 8, TWENTY_EIGHT, 4, 2),
        ("vLLM", 6, HEADLESS, 2, 3),
        ("SGLang", 6, QWEN3_8B, 2, 3),
    ],
)
def test_sizes_that_nobody_gave_are_chosen_so_that_they_divide_the_model(
    backend: str, count: int, config: dict[str, Any], tensor: int, pipeline: int
) -> None:
    """The author says how many GPUs; what tensor parallelism can't share out is a pipeline, and the engine is told."""
    request = a_request(a_spec(backend=backend, gpu_selector={"gpus_per_replica": count}), safetensors(GIB, config))
    answer = placed(request, a_machine("w1", gpus(8)))
    assert answer.places[0].gpu_indexes == tuple(range(count))
    assert answer.parallelism == Parallelism(tensor=tensor, pipeline=pipeline)
    names = (
        ("--tp-size", "--pp-size") if backend == "SGLang" else ("--tensor-parallel-size", "--pipeline-parallel-size")
    )
    told = [f"{name}={size}" for name, size in zip(names, (tensor, pipeline), strict=True) if size > 1]
    assert [flag for flag in assumed(request, answer) if "size" in flag] == told


def test_a_pipeline_is_chosen_inside_the_members_of_a_group_too() -> None:
    """Three GPUs of each of two workers: no two of one worker may share a stage with one of the other."""
    spec = a_spec(gpu_selector={"gpus_per_replica": 6})
    answer = placed(a_request(spec), *(a_machine(f"w{number}", gpus(3)) for number in range(2)))
    assert [each.gpu_indexes for each in answer.places] == [(0, 1, 2)] * 2
    assert answer.parallelism == Parallelism(tensor=1, pipeline=6)
    four = a_spec(gpu_selector={"gpus_per_replica": 16})
    answer = placed(a_request(four, safetensors(GIB, TWENTY_EIGHT)), *(a_machine(f"w{n}", gpus(8)) for n in range(2)))
    assert answer.parallelism == Parallelism(tensor=4, pipeline=4)


@pytest.mark.parametrize(
    ("spec", "config"),
    [
        ({"backend": "MindIE"}, QWEN3_8B),
        ({"backend": "SGLang", "backend_parameters": ["--enable-mixed-chunk"]}, QWEN3_8B),
        ({"backend": "SGLang", "speculative_config": {"algorithm": "ngram"}}, QWEN3_8B),
        ({"categories": ("embedding",)}, {**QWEN3_8B, "architectures": ["BertModel"]}),
        ({}, {**QWEN3_8B, "num_hidden_layers": 2}),
    ],
)
def test_where_there_can_be_no_pipeline_a_number_that_divides_nothing_is_refused(
    spec: dict[str, Any], config: dict[str, Any]
) -> None:
    kind = "cann" if spec.get("backend") == "MindIE" else "cuda"
    request = a_request(a_spec(gpu_selector={"gpus_per_replica": 6}, **spec), safetensors(GIB, config))
    answer = refused(request, a_machine("w1", gpus(8, type=kind)))
    assert HeadsNotDivisible(heads=32, tensor_parallel_size=6, field="gpu_selector") in answer.request


def test_a_group_is_no_pipeline_where_parameters_exclude_one() -> None:
    """SGLang does not speculate in stages: its tensor parallelism goes over the workers."""
    workers = [a_machine(f"w{number}", gpus(2)) for number in range(2)]
    for parameters in (["--speculative-algorithm=EAGLE3"], ["--enable-mixed-chunk"]):
        request = a_request(a_spec(backend="SGLang", backend_parameters=parameters), LARGE)
        answer = placed(request, *workers)
        assert answer.parallelism == Parallelism(tensor=4)
        assert assumed(request, answer)[-1] == "--tp-size=4"


def test_another_kind_under_the_selected_index_is_not_selected() -> None:
    of = (*gpus(1), *gpus(1, vendor="amd", type="rocm"))
    machine = a_machine("w1", of, claims=[(None, "cuda", Claim(vram={0: 72 * GIB}))])
    assert isinstance(place(a_request(selecting("w1:cuda:0")), [machine]), Refused)
    assert placed(a_request(selecting("w1:rocm:0")), machine).places[0].type == "rocm"


def test_selected_gpus_that_are_taken_are_not_taken_twice() -> None:
    machine = a_machine("w1", gpus(2), claims=[(None, "cuda", Claim(vram={0: 72 * GIB}))])
    answer = refused(a_request(selecting("w1:cuda:0")), machine)
    assert answer.workers[0].reasons[0] == GpuShareNotFree(
        worker_id=WorkerId("w-w1"), share=0.9, gpus_needed=1, gpus_free=0, freest_share=0.1, free_bytes=8 * GIB,
        total_bytes=80 * GIB,
    )  # fmt: skip


# -- several workers --------------------------------------------------------------------------------------------------


def test_several_workers_run_together_what_none_can_alone() -> None:
    answer = placed(a_request(weights=LARGE), a_machine("w1", gpus(2)), a_machine("w2", gpus(2)))
    assert answer.places == (
        part("w1", (0, 1), on((0, 1), 72 * GIB)),
        part("w2", (0, 1), on((0, 1), 72 * GIB)),
    )
    assert answer.parallelism == Parallelism(tensor=2, pipeline=2)


def test_one_worker_is_taken_before_several() -> None:
    answer = placed(a_request(weights=LARGE), a_machine("a", gpus(2)), a_machine("b", gpus(2)), a_machine("z", gpus(4)))
    assert [each.worker_id for each in answer.places] == ["w-z"]


def test_all_members_find_a_place_or_none_does() -> None:
    busy = [(None, "cuda", Claim(vram={1: 20 * GIB}))]
    answer = refused(a_request(weights=LARGE), a_machine("w1", gpus(2)), a_machine("w2", gpus(2), claims=busy))
    (why,) = answer.request
    assert why == WorkersDoNotAddUp(gpus_needed=4, largest_group=2, accelerator="cuda", largest_if_empty=4)
    assert why.whose == "wait"


def busy(count: int) -> list[tuple[None, str, Claim]]:
    return [(None, "cuda", Claim(vram=dict.fromkeys(range(count), 70 * GIB)))]


@pytest.mark.parametrize(
    ("others", "kind", "largest", "ever", "whose"),
    [
        ([], "rocm", 2, 2, "operator"),
        ([{"cordoned": True}], "rocm", 2, 2, "operator"),
        ([{"state": "unreachable"}], "cuda", 0, 4, "wait"),
        ([{"claims": busy(2)}], "cuda", 0, 4, "wait"),
        ([{"of": gpus(1)}, {"of": gpus(1)}], "cuda", 2, 3, "operator"),
        ([{"of": gpus(1)}, {"of": gpus(1)}, {"of": gpus(1)}], "cuda", 3, 4, "wait"),
    ],
)
def test_who_waits_for_a_group_is_told_whether_waiting_helps(
    others: list[dict[str, Any]], kind: str, largest: int, ever: int, whose: str
) -> None:
    """Four GPUs are needed, two and two or one of each. Both GPUs of `a` are taken, those of `b` are of another kind."""
    fleet = [a_machine("a", gpus(2), claims=busy(2)), a_machine("b", gpus(2, type="rocm"))]
    for number, fields in enumerate(others):
        given: dict[str, Any] = {"of": gpus(2)} | fields
        fleet.append(a_machine(f"c{number}", **given))
    answer = refused(a_request(weights=LARGE), *fleet)
    assert [reason.code for reason in answer.request] == ["workers_do_not_add_up"]
    (why,) = answer.request
    assert why == WorkersDoNotAddUp(gpus_needed=4, largest_group=largest, accelerator=kind, largest_if_empty=ever)
    assert why.whose == whose


def test_members_have_the_same_number_of_gpus() -> None:
    """Two and six do not make four and four; two of each are too few for a pipeline of two."""
    larger = safetensors(330 * GIB)
    answer = refused(a_request(weights=larger), a_machine("w1", gpus(2)), a_machine("w2", gpus(6, 60 * GIB)))
    assert [reason.code for reason in answer.request] == ["workers_do_not_add_up"]
    both = placed(a_request(weights=larger), a_machine("w1", gpus(4)), a_machine("w2", gpus(6)))
    assert [len(each.gpu_indexes) for each in both.places] == [4, 4]


def test_members_have_gpus_of_one_kind_and_size() -> None:
    amd = gpus(2, 80 * GIB, vendor="amd", type="rocm")
    for other in (amd, gpus(2, 96 * GIB)):
        answer = refused(a_request(weights=LARGE), a_machine("w1", gpus(2)), a_machine("w2", other))
        assert [reason.code for reason in answer.request] == ["workers_do_not_add_up"]
    answer = placed(
        a_request(weights=LARGE), a_machine("w1", (*gpus(2), *amd)), a_machine("w2", amd), a_machine("w3", gpus(1))
    )
    assert [(each.worker_id, each.type) for each in answer.places] == [("w-w1", "rocm"), ("w-w2", "rocm")]


@pytest.mark.parametrize("backend", ["vLLM", "Custom"])
def test_members_may_differ_in_what_their_systems_keep(backend: str) -> None:
    """Both have the share free, and it is the same share of the same size."""
    workers = [a_machine(f"w{kept}", gpus(2), inventory={"vram_reserved": kept * GIB}) for kept in (1, 2)]
    request = a_request(a_spec(backend=backend), LARGE)
    for machines in (workers, workers[::-1]):
        answer = placed(request, *machines)
        assert [each.worker_id for each in answer.places] == ["w-w1", "w-w2"]
        assert len({tuple(each.claim.vram.values()) for each in answer.places}) == 1
    kept = [a_machine(f"w{kept}", gpus(2), inventory={"vram_reserved": kept * GIB}) for kept in (1, 16)]
    answer = placed(a_request(weights=safetensors(190 * GIB)), *kept)
    assert answer.take.share == 0.8  # the share is one for all members: the smaller
    assert [set(each.claim.vram.values()) for each in answer.places] == [{64 * GIB}] * 2


def test_who_allows_one_worker_only_gets_one_or_none() -> None:
    request = a_request(a_spec(distributed_inference_across_workers=False), LARGE)
    answer = refused(request, a_machine("w1", gpus(2)), a_machine("w2", gpus(2)))
    assert answer.request == ()


@pytest.mark.parametrize(
    ("parameters", "members", "indexes"),
    [
        (["-tp=8"], 4, (0, 1)),
        (["-tp=2", "-pp=3"], 3, (0, 1)),
        (["-tp=2", "-dp=2"], 2, (0, 1)),
        (["-tp=1", "-pp=3"], 3, (0,)),
    ],
)
def test_the_users_sizes_are_shared_out_among_workers(
    parameters: list[str], members: int, indexes: tuple[int, ...]
) -> None:
    request = a_request(a_spec(backend_parameters=parameters))
    answer = placed(request, *(a_machine(f"w{number}", gpus(2)) for number in range(5)))
    assert [each.gpu_indexes for each in answer.places] == [indexes] * members


def test_heads_are_divided_in_each_member() -> None:
    """Workers with three GPUs each: three divide no heads, so two of each are taken."""
    answer = placed(a_request(weights=LARGE), *(a_machine(f"w{number}", gpus(3)) for number in range(2)))
    assert [each.gpu_indexes for each in answer.places] == [(0, 1), (0, 1)]


def test_no_pipeline_is_longer_than_the_model_has_layers() -> None:
    flat = {**QWEN3_8B, "num_hidden_layers": 2}
    workers = [a_machine(f"w{number}", gpus(1)) for number in range(4)]
    assert len(placed(a_request(weights=LARGE), *workers).places) == 4
    assert isinstance(place(a_request(weights=safetensors(200 * GIB, flat)), workers), Refused)


def ascend(count: int, *, up: bool = True, size: int = 64 * GIB) -> tuple[Any, ...]:
    return gpus(count, size, vendor="ascend", type="cann", network=GpuNetwork(up=up))


def test_mindie_runs_on_powers_of_two_with_the_network_up() -> None:
    request = a_request(a_spec(backend="MindIE"), safetensors(400 * GIB))
    answer = placed(request, *(a_machine(f"w{number}", ascend(3)) for number in range(4)))
    assert [len(each.gpu_indexes) for each in answer.places] == [2, 2, 2, 2]
    assert answer.parallelism == Parallelism(tensor=8)
    assert all(each.claim.ram == 512 * MIB for each in answer.places)


def test_a_network_that_is_down_keeps_a_worker_out_of_groups_and_is_named() -> None:
    request = a_request(a_spec(backend="MindIE"), safetensors(400 * GIB))
    workers = [a_machine("w0", ascend(4, up=False)), a_machine("w1", ascend(4))]
    answer = refused(request, *workers)
    assert answer.request == (
        NetworkDown(worker_id=WorkerId("w-w0"), gpu_indexes=(0, 1, 2, 3)),
        WorkersDoNotAddUp(gpus_needed=8, largest_group=4, accelerator="cann", largest_if_empty=4),
    )
    alone = placed(request, a_machine("w0", ascend(8, up=False)))  # alone it needs no network
    assert alone.parallelism == Parallelism(tensor=8)


def test_a_custom_image_is_divided_evenly_over_several_workers() -> None:
    request = a_request(a_spec(backend="Custom"), safetensors(200 * GIB))
    answer = placed(request, a_machine("w1", gpus(2)), a_machine("w2", gpus(2)))
    needed = int(200 * GIB * 1.2) + 2 * GIB
    assert [each.claim for each in answer.places] == [on((0, 1), -(-needed // 4), needed // 10)] * 2


def test_mindie_takes_no_three_gpus_of_a_worker_even_where_they_divide_the_heads() -> None:
    config = {**QWEN3_8B, "num_attention_heads": 48, "vocab_size": 153600}
    request = a_request(a_spec(backend="MindIE"), safetensors(300 * GIB, config))
    answer = placed(request, *(a_machine(f"w{number}", ascend(3)) for number in range(4)))
    assert [len(each.gpu_indexes) for each in answer.places] == [2, 2, 2]


def test_a_model_that_is_replaced_everywhere_is_shared_out_as_it_is_now() -> None:
    """What a model weighs is what it weighs on the workers, not what it weighed there once."""
    machines = [a_machine(name, gpus(2)) for name in ("a", "b")]
    request = Request(a_spec(), model_id=ModelId("m-m"))
    for size in (15, 200, 210):
        for name in ("a", "b"):
            request.look(WorkerId(f"w-{name}"), Looked(safetensors(size * GIB), ()))
    assert len(placed(request, *machines).places) == 2
    assert request.known == safetensors(210 * GIB)
    request.look(WorkerId("w-a"), Looked(safetensors(220 * GIB), ()))
    assert isinstance(place(request, machines), Refused)  # until the other worker has it, too


def test_members_have_the_same_files() -> None:
    """A worker on which the model weighs something else is in no group with the others."""
    other = safetensors(100 * GIB)
    request = a_request(weights=LARGE, looked={"w2": other})
    assert isinstance(place(request, [a_machine("w1", gpus(2)), a_machine("w2", gpus(2))]), Placed)  # w2 alone holds it
    request = a_request(weights=LARGE, looked={"w2": safetensors(190 * GIB)})
    assert isinstance(place(request, [a_machine("w1", gpus(2)), a_machine("w2", gpus(2))]), Refused)


# -- llama.cpp and custom ---------------------------------------------------------------------------------------------

GGUF_40 = gguf(40 * GIB)
REPEATING = 40 * GIB * 32 // 33
LAYER = -(-(REPEATING + 2 * 32 * 8 * 128 * 2 * 4096) // 32)
REST = 40 * GIB - REPEATING
OVERHEAD = 256 * MIB


def test_llama_cpp_lies_wholly_on_one_gpu_where_it_fits() -> None:
    answer = placed(a_request(a_spec(backend="llama.cpp"), GGUF_40), a_machine("w1", gpus(2)))
    assert answer.places == (part("w1", (0,), on((0,), 32 * LAYER + REST + OVERHEAD, OVERHEAD)),)


def test_llama_cpp_shares_whole_layers_out_among_gpus() -> None:
    answer = placed(a_request(a_spec(backend="llama.cpp"), GGUF_40), a_machine("w1", gpus(4, 24 * GIB)))
    assert answer.places == (part("w1", (0, 1), on((0, 1), 16 * LAYER + REST + OVERHEAD, OVERHEAD)),)


def test_llama_cpp_keeps_in_ram_what_fits_on_no_gpu_where_that_is_allowed() -> None:
    request = a_request(a_spec(backend="llama.cpp", cpu_offloading=True), GGUF_40)
    answer = placed(request, a_machine("w1", gpus(1, 24 * GIB)))
    layers = (24 * GIB - OVERHEAD) // LAYER
    assert answer.places == (
        part("w1", (0,), on((0,), layers * LAYER + OVERHEAD, (32 - layers) * LAYER + REST + OVERHEAD)),
    )
    assert answer.take.gpu_layers == layers


def test_what_does_not_repeat_stays_in_ram_with_a_layer_where_it_alone_is_too_much() -> None:
    """All 32 layers would fit, and what stands once beside them does not."""
    request = a_request(a_spec(backend="llama.cpp", cpu_offloading=True), GGUF_40)
    answer = placed(request, a_machine("w1", gpus(1, 32 * LAYER + OVERHEAD)))
    assert answer.places == (part("w1", (0,), on((0,), 31 * LAYER + OVERHEAD, LAYER + REST + OVERHEAD)),)


def test_llama_cpp_runs_in_ram_where_there_is_no_gpu() -> None:
    answer = placed(a_request(a_spec(backend="llama.cpp"), GGUF_40), a_machine("w1"))
    assert answer.places == (part("w1", (), Claim(ram=32 * LAYER + REST + OVERHEAD), None),)


def test_llama_cpp_does_not_fall_back_to_ram_unasked() -> None:
    answer = refused(a_request(a_spec(backend="llama.cpp"), GGUF_40), a_machine("w1", gpus(1, 24 * GIB)))
    assert answer.workers[0].reasons == (
        NotEnoughVram(
            worker_id=WorkerId("w-w1"),
            needed_bytes=32 * LAYER + REST + OVERHEAD,
            largest_free_bytes=24 * GIB,
            largest_total_bytes=24 * GIB,
        ),
    )


def test_the_users_number_of_layers_is_kept() -> None:
    request = a_request(a_spec(backend="llama.cpp", backend_parameters=["-ngl", "10"]), GGUF_40)
    answer = placed(request, a_machine("w1", gpus(1, 24 * GIB)))
    assert answer.places == (part("w1", (0,), on((0,), 10 * LAYER + OVERHEAD, 22 * LAYER + REST + OVERHEAD)),)
    assert assumed(request, answer) == ("--ctx-size=4096",)
    none = placed(
        a_request(a_spec(backend="llama.cpp", backend_parameters=["-ngl", "0"]), GGUF_40), a_machine("w1", gpus(1))
    )
    assert none.places[0].type is None


def test_a_custom_image_runs_in_ram_only_where_that_is_allowed() -> None:
    needed = int(15 * GIB * 1.2) + 2 * GIB
    answer = refused(a_request(a_spec(backend="Custom")), a_machine("w1"))
    assert [reason.code for reason in answer.workers[0].reasons] == ["no_gpu"]
    answer = placed(a_request(a_spec(backend="Custom", cpu_offloading=True)), a_machine("w1"))
    assert answer.places == (part("w1", (), Claim(ram=needed), None),)


def test_a_custom_image_falls_back_to_ram_where_no_gpu_has_room_and_that_is_allowed() -> None:
    """As llama.cpp does; a GPU anywhere in the fleet comes first, and who asks for GPUs gets GPUs."""
    needed = int(15 * GIB * 1.2) + 2 * GIB
    full = a_machine("a", gpus(1), claims=[(None, "cuda", Claim(vram={0: 79 * GIB}))])
    custom = a_spec(backend="Custom", cpu_offloading=True)
    assert placed(a_request(custom), full).places == (part("a", (), Claim(ram=needed), None),)
    assert placed(a_request(custom), full, a_machine("b", gpus(1))).places[0].worker_id == "w-b"
    short = a_machine("a", gpus(1), ram=8 * GIB, claims=[(None, "cuda", Claim(vram={0: 79 * GIB}))])
    for spec, machine in ((custom, short), (a_spec(backend="Custom"), full)):
        assert [r.code for r in refused(a_request(spec), machine).workers[0].reasons] == ["not_enough_vram"]
    two = [a_machine(name, gpus(1)) for name in ("b", "c")]
    large = a_request(custom, safetensors(100 * GIB))
    assert len(placed(large, *two).places) == 2  # a group of workers comes before RAM, too
    assert placed(large, full, two[0]).places[0].type is None
    asking = a_spec(backend="Custom", cpu_offloading=True, gpu_selector={"gpus_per_replica": 1})
    assert isinstance(place(a_request(asking), [full]), Refused)
    assert [r.code for r in refused(a_request(asking), a_machine("c")).workers[0].reasons] == ["no_gpu"]


def test_embedding_models_take_what_they_need_and_no_share() -> None:
    bert = safetensors(2 * GIB, {"architectures": ["BertModel"], "num_hidden_layers": 12, "num_attention_heads": 12})
    answer = placed(a_request(weights=bert), a_machine("w1", gpus(2)))
    assert answer.places == (part("w1", (0,), on((0,), int(2 * GIB * 1.2) + 512 * MIB)),)
    assert answer.take.share is None


# -- boundaries -------------------------------------------------------------------------------------------------------


def test_exactly_the_share_is_enough_and_a_byte_less_is_not() -> None:
    def machine(others: int) -> Machine:
        return a_machine("w1", gpus(1, memory_used_by_others=others))

    assert placed(a_request(), machine(8 * GIB))
    answer = refused(a_request(), machine(8 * GIB + 1))
    assert answer.workers[0].reasons[0] == GpuShareNotFree(
        worker_id=WorkerId("w-w1"), share=0.9, gpus_needed=1, gpus_free=0, freest_share=0.899, free_bytes=72 * GIB - 1,
        total_bytes=80 * GIB,
    )  # fmt: skip


def test_a_share_that_exactly_holds_the_model_is_enough_and_a_byte_less_is_not() -> None:
    """needed = int(1.2 × w) + 2 GiB; w is chosen so that it is 40 GiB."""
    weights = 34000000000 // 5 * 5
    needed = int(weights * 1.2) + 2 * GIB
    config = {"architectures": ["XForCausalLM"]}
    total = needed * 2

    def spec(share: float) -> ModelSpec:
        return a_spec(backend_parameters=[f"--gpu-memory-utilization={share}"])

    assert placed(a_request(spec(0.5), safetensors(weights, config)), a_machine("w1", gpus(1, total)))
    answer = refused(a_request(spec(0.5), safetensors(weights, config)), a_machine("w1", gpus(1, total - 2)))
    assert answer.workers[0].reasons == (
        GpuShareTooSmall(
            worker_id=WorkerId("w-w1"), share=0.5, share_bytes=needed - 1, needed_bytes=needed, total_bytes=total - 2
        ),
    )


def test_a_context_that_exactly_fits_is_enough_and_a_token_more_is_not() -> None:
    """Beside 15 GiB of weights and 1 GiB of the engine, the half of 80 GiB has room for 24 GiB of cache: 147456 B a token."""
    token = 2 * 36 * 8 * 128 * 2
    room = 24 * GIB
    most = room // token

    def spec(tokens: int) -> ModelSpec:
        return a_spec(backend_parameters=["--gpu-memory-utilization=0.5", f"--max-model-len={tokens}"])

    assert placed(a_request(spec(most)), a_machine("w1", gpus(1))).context == most
    answer = refused(a_request(spec(most + 1)), a_machine("w1", gpus(1)))
    assert answer.workers[0].reasons == (
        ContextDoesNotFit(
            worker_id=WorkerId("w-w1"),
            context_tokens=most + 1,
            fitting_tokens=most // 16 * 16,
            cache_bytes=(most + 1) * token,
            room_bytes=room,
        ),
    )


def test_a_context_that_takes_all_that_is_left_fits() -> None:
    token, tokens = 2 * 36 * 8 * 128 * 2, 170_000
    spec = a_spec(backend_parameters=["--gpu-memory-utilization=0.5", f"--max-model-len={tokens}"])
    exactly = 40 * GIB - GIB - tokens * token
    assert placed(a_request(spec, safetensors(exactly)), a_machine("w1", gpus(1))).context == tokens
    answer = refused(a_request(spec, safetensors(exactly + 1)), a_machine("w1", gpus(1)))
    assert [reason.code for reason in answer.workers[0].reasons] == ["context_does_not_fit"]


def test_a_broken_gpu_that_is_missing_is_named_and_the_others_are_counted_as_they_are() -> None:
    of = (*gpus(7), a_gpu(7, unhealthy="ECC"))
    answer = refused(a_request(a_spec(backend_parameters=["-tp=8"])), a_machine("w1", of))
    assert answer.workers[0].reasons == (GpuUnhealthy(worker_id=WorkerId("w-w1"), gpu_indexes=(7,), problem="ECC"),)


# -- any fleet, any request -------------------------------------------------------------------------------------------

FLEETS = 900


def a_case(seed: int) -> tuple[Request, list[Machine]]:
    """Every third one: workers that are alike, and a model that is larger than each."""
    dice = random.Random(seed)
    if seed % 3 == 0:
        machines, request = random_cluster(dice)
        for machine in machines:
            if dice.random() < 0.1:
                machines.promise(machine.id, ModelId("m-x"), *random_claim(dice, machine))
        return request, list(machines)
    machines = random_fleet(dice)
    for machine in machines:
        for _ in range(dice.choice([0, 0, 1, 2])):
            kind, claim = random_claim(dice, machine)
            machines.promise(machine.id, ModelId("m-x"), kind, claim)
    return random_request(dice, machines, ModelId("m-m")), list(machines)


def ineligible(request: Request, machine: Machine) -> bool:
    candidate = Candidate(request, machine)
    return any(rule(candidate) is not None for rule in OF_ITS_LIKE + OF_ITS_OWN)


def test_whatever_is_answered_can_be_kept() -> None:
    """Nothing is promised that is not free, on GPUs that are usable and alike, on workers that may be used."""
    seen = {"one": 0, "several": 0, "refused": 0}
    for seed in range(FLEETS):
        request, machines = a_case(seed)
        answer = place(request, machines)
        if isinstance(answer, Refused):
            seen["refused"] += 1
            assert answer.reasons, seed
            assert answer.request or all(worker.reasons for worker in answer.workers), seed
            continue
        seen["one" if len(answer.places) == 1 else "several"] += 1
        by_id = {machine.id: machine for machine in machines}
        assert len({each.worker_id for each in answer.places}) == len(answer.places), seed
        assert len({(each.type, len(each.gpu_indexes)) for each in answer.places}) == 1, seed
        for each in answer.places:
            machine = by_id[each.worker_id]
            assert not ineligible(request, machine), seed
            assert each.claim.ram <= max(machine.ram_free, 0), seed
            assert tuple(sorted(each.claim.vram)) == tuple(sorted(set(each.gpu_indexes))), seed
            for index, size in each.claim.vram.items():
                gpu = machine.gpus[each.type or "", index]
                assert gpu.is_usable, seed
                assert 0 < size <= gpu.free, seed
    assert min(seen.values()) > FLEETS // 20, seen


def test_the_answer_depends_neither_on_the_order_of_workers_nor_on_when_it_is_asked() -> None:
    for seed in range(0, FLEETS, 3):
        request, machines = a_case(seed)
        answer = place(request, machines)
        dice = random.Random(seed)
        mixed = list(machines)
        dice.shuffle(mixed)
        assert place(request, mixed) == answer, seed
        again, twins = a_case(seed)
        other = place(again, twins)
        if isinstance(answer, Placed):
            assert isinstance(other, Placed)
            assert replace(other, why=None) == replace(answer, why=None), seed
        else:
            assert other == answer, seed


def kv_bytes(tensor: int, stages: int = 1) -> int:
    return 2 * -(-36 // stages) * max(-(-8 // tensor), 1) * 128 * 2 * 8192


def ways(request: Request, gpu: GpuSlot, count: int) -> Iterator[int]:
    """Bytes that an instance on so many GPUs like this one would take of each: written from the published rules alone."""
    spec, weights = request.spec, request.known
    assert weights is not None
    size = weights.weight_bytes
    total, capacity = gpu.profile.memory_total, gpu.profile.capacity
    needed = int(1.2 * size) + (512 * MIB if spec.categories == ("embedding",) else 2 * GIB)
    given = {name: value for name, _, value in (each.partition("=") for each in spec.backend_parameters)}
    sizes = given.get("--tp-size") or given.get("--tensor-parallel-size")
    chosen = spec.gpu_selector.gpus_per_replica if spec.gpu_selector is not None else None
    fixed = int(sizes) if sizes is not None else chosen
    if fixed not in (None, count):
        return
    tensor = math.gcd(count, 32, 151936) if sizes is None and chosen and spec.backend in ("vLLM", "SGLang") else count
    stages = count // tensor
    if spec.backend == "Custom":
        yield -(-needed // count)
    elif spec.backend == "llama.cpp":
        layers = -(-(size * 32 // 33 + 2 * 32 * 8 * 128 * 2 * 4096) // 32)
        yield -(-32 // count) * layers + (size - size * 32 // 33) + 256 * MIB
    elif 32 % tensor == 0 and 151936 % tensor == 0:
        if spec.backend == "MindIE":
            needed = 3 * GIB + size + kv_bytes(1) + 200 * 128 * 36 * 32 * 128 * 2
        each = -(-needed // count)
        share = 0.9
        if spec.backend == "SGLang":
            share = mem_fraction_static(total, tensor=tensor, pipeline=stages, ascend=gpu.profile.type == "cann")
        left = math.floor(capacity / total * 100) / 100
        share = min(share, left)
        if "--gpu-memory-utilization" in given:
            share = float(given["--gpu-memory-utilization"])
        elif spec.packed:
            each = packed_bytes(size, total, tensor, stages)
            share = min(-(-100 * each // total) / 100, left)
        taken = int(share * total)
        if each <= taken and kv_bytes(tensor, stages) <= taken - -(-size // count) - GIB:
            yield taken


def ram_of(request: Request, weights: ModelWeights) -> int:
    needed = int(1.2 * weights.weight_bytes) + 2 * GIB
    if request.spec.categories == ("embedding",):
        needed = int(1.2 * weights.weight_bytes) + 512 * MIB
    return {"MindIE": 512 * MIB, "llama.cpp": 256 * MIB, "Custom": max(needed // 10, 2 * GIB)}.get(
        request.spec.backend, 0
    )


def fits_somehow(request: Request, machine: Machine) -> bool:
    """Any set of GPUs of one kind on which it would run; sizes mix only where no share is taken."""
    assert request.known is not None
    if ram_of(request, request.known) > max(machine.ram_free, 0):
        return False
    candidate = Candidate(request, machine)
    for pool in candidate.gpus.young:
        usable = [gpu for gpu in pool.gpus if gpu.unhealthy is None]
        for count in range(1, len(usable) + 1):
            for chosen in combinations(usable, count):
                taken = [next(ways(request, gpu, count), None) for gpu in chosen]
                size = taken[0]
                if len(set(taken)) == 1 and size is not None and all(0 < size <= gpu.free for gpu in chosen):
                    return True
    return False


def test_where_it_says_no_nobody_finds_a_place_on_one_worker() -> None:
    tried = 0
    for seed in range(FLEETS):
        request, machines = a_case(seed)
        if request.spec.claim_override:  # the author's numbers; what is published says nothing of them
            continue
        request = replace(request, peaks={})  # nor of what was measured
        answer = place(request, machines)
        if isinstance(answer, Placed) and len(answer.places) == 1:
            continue
        if isinstance(answer, Refused) and any(r.code == "heads_not_divisible" for r in answer.request):
            continue
        for machine in machines:
            if not ineligible(request, machine):
                tried += 1
                assert not fits_somehow(request, machine), (seed, machine.name)
    assert tried > FLEETS // 4


# -- vLLM on processors -----------------------------------------------------------------------------------------------

BUILT_FOR_CPU: Final = {"runtime": "process", "backends": {"vLLM": "0.32.0+cpu"}}
BUILT_FOR_GPUS: Final = {"runtime": "process", "backends": {"vLLM": "0.32.0"}}


def on_processors(*parameters: str, **fields: Any) -> ModelSpec:
    return a_spec(cpu_offloading=True, backend_parameters=parameters, **fields)


def test_vllm_runs_in_ram_where_its_author_allows_it_and_claims_its_cache() -> None:
    machine = a_machine("w1", (), inventory=BUILT_FOR_CPU)
    found = placed(request := a_request(on_processors(), safetensors(10 * GIB)), machine)
    assert (found.places[0].type, found.places[0].gpu_indexes) == (None, ())
    assert found.take.ram_bytes == (12 + 2 + 4) * GIB, "the usual claim, and four GiB of cache"
    assert found.places[0].claim.ram == found.take.ram_bytes
    launch = launch_of(request, found, {machine.id: machine}, 1)
    assert launch.env == {"VLLM_CPU_KVCACHE_SPACE": "4"}
    assert launch.parameters == ("--max-model-len=8192",)
    assert launch.memory_fraction is None


def test_each_rank_on_processors_holds_a_cache_of_the_size_that_the_author_says() -> None:
    spec = on_processors("--tensor-parallel-size=2", env={"VLLM_CPU_KVCACHE_SPACE": "1"})
    machine = a_machine("w1", (), inventory=BUILT_FOR_CPU)
    found = placed(request := a_request(spec, safetensors(10 * GIB)), machine)
    assert found.take.ram_bytes == (12 + 2 + 2 * 1 + 1) * GIB
    assert found.parallelism == Parallelism(tensor=2)
    assert launch_of(request, found, {machine.id: machine}, 1).env == {"VLLM_CPU_KVCACHE_SPACE": "1"}


def test_a_cache_on_processors_holds_one_sequence_of_the_context() -> None:
    """Qwen3-8B: 36 layers × 8 heads × 128 × 2 × 2 bytes are 144 KiB a token, 18 GiB for 131,072."""
    machine = a_machine("w1", (), inventory=BUILT_FOR_CPU)
    found = placed(a_request(on_processors("--max-model-len=131072"), safetensors(10 * GIB)), machine)
    assert found.take.ram_bytes == (12 + 2 + 18) * GIB


@pytest.mark.parametrize(
    ("spec", "inventory", "code"),
    [
        (a_spec(), BUILT_FOR_CPU, "no_gpu"),
        (on_processors(), BUILT_FOR_GPUS, "no_gpu"),
        (on_processors(), BUILT_FOR_CPU | {"memory_total": 16 * GIB}, "not_enough_ram"),
        (on_processors(backend="SGLang"), {}, "no_gpu"),
    ],
    ids=["nobody said so", "a build for GPUs", "too little RAM", "SGLang"],
)
def test_what_does_not_run_on_processors_says_why(spec: ModelSpec, inventory: Mapping[str, Any], code: str) -> None:
    answer = refused(a_request(spec, safetensors(10 * GIB)), a_machine("w1", (), inventory=inventory))
    assert [reason.code for reason in answer.workers[0].reasons] == [code]


def test_gpus_are_taken_before_processors_and_a_full_gpu_is_waited_for() -> None:
    small = safetensors(10 * GIB)
    both = (a_machine("w1", (), inventory=BUILT_FOR_CPU), a_machine("w2", gpus(1)))
    assert placed(a_request(on_processors(), small), *both).places[0].worker_id == "w-w2"
    answer = refused(a_request(on_processors(), safetensors(200 * GIB)), a_machine("w2", gpus(1)))
    assert [reason.code for reason in answer.workers[0].reasons] == ["not_enough_vram"]


def test_containers_run_it_on_processors_too() -> None:
    machine = a_machine("w1", ())
    found = placed(request := a_request(on_processors(), safetensors(10 * GIB)), machine)
    assert launch_of(request, found, {machine.id: machine}, 1).image == "vllm/vllm-openai-cpu:v0.29.0"


# -- RAM beside the cache ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "fields", "expected"),
    [
        ({"ram_size": 64}, {}, 64 * GIB),
        ({"ram_ratio": 0.5}, {}, int(0.5 * int(0.9 * 80 * GIB))),
        ({"ram_size": 64}, {"backend": "SGLang"}, 64 * GIB),
        ({"ram_size": 64}, {"claim_override": {"ram": 5 * GIB}}, 5 * GIB),
    ],
)
def test_what_a_cache_is_extended_into_is_claimed(
    asked: Mapping[str, Any], fields: Mapping[str, Any], expected: int
) -> None:
    spec = a_spec(extended_kv_cache=asked, **fields)
    assert placed(a_request(spec), a_machine("w1", gpus(1))).places[0].claim.ram == expected
    answer = refused(a_request(spec), a_machine("w1", gpus(1), ram=4 * GIB))
    assert [reason.code for reason in answer.workers[0].reasons] == ["not_enough_ram"]


def test_where_no_engine_extends_its_cache_nothing_is_claimed_for_it() -> None:
    spec = a_spec(extended_kv_cache={"ram_size": 64})
    assert placed(a_request(spec), a_machine("w1", gpus(1, type="cann"))).places[0].claim.ram == 0

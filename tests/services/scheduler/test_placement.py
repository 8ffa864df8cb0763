"""Where an instance goes and why not elsewhere: every rule, each alone."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from schemas.ids import InstanceId, WorkerId
from schemas.models import Claim, Gpu, GpuSelector, Inventory, LocalPath, Member, ModelSpec, ModelWeights
from schemas.reasons import (
    BackendNotAvailable,
    BeingInspected,
    DownloaderSilent,
    GpuNotSelected,
    LabelsDoNotMatch,
    ModelNotFound,
    NoGpu,
    NotEnoughRam,
    NotEnoughVram,
    NoWorkers,
    Reason,
    UnsupportedModel,
    WorkerCordoned,
    WorkerNotReady,
)
from services.scheduler.domain.fleet import Fleet, Inspection, OpenClaim, Operator, Worker
from services.scheduler.domain.memory import gguf
from services.scheduler.domain.placement import Placed, Refusal, Request, place
from services.scheduler.domain.policy import Policy
from services.scheduler.domain.restarts import crashes_in_a_row, restart_delay_seconds

GIB = 2**30
W1, W2 = WorkerId("w-1"), WorkerId("w-2")
SOURCE = LocalPath(path="/models/m.gguf")
WEIGHTS = ModelWeights(
    format="gguf",
    weight_bytes=2 * GIB,
    files=("/models/m.gguf",),
    context_length=4096,
    layers=32,
    kv_heads=8,
    head_size=128,
)
NEEDED = 2 * GIB + 2 * 32 * 8 * 128 * 4096 * 2 + 256 * 2**20


def a_spec(**fields: object) -> ModelSpec:
    return ModelSpec.model_validate({"name": "m", "source": SOURCE} | fields)


def a_worker(worker_id: WorkerId, *, ram: int = 8 * GIB, gpus: tuple[Gpu, ...] = (), **fields: object) -> Worker:
    inventory = Inventory(
        os="linux", arch="amd64", cpu_count=4, memory_total=ram, gpus=gpus, backends={"llama.cpp": "1"}
    )
    worker = Worker(worker_id, f"name-of-{worker_id}", "127.0.0.1", "ready", inventory, "1")
    return replace(worker, **fields)  # pyright: ignore[reportArgumentType] - fields of a worker


def a_gpu(index: int = 0, memory: int = 8 * GIB, *, others: int = 0) -> Gpu:
    return Gpu(index=index, vendor="nvidia", type="cuda", name="x", memory_total=memory, memory_used_by_others=others)


def a_fleet(*workers: Worker) -> Fleet:
    return Fleet(workers={worker.id: worker for worker in workers})


def asked(spec: ModelSpec, *workers: WorkerId, weights: ModelWeights | None = WEIGHTS) -> Request:
    return Request(spec, {w: Inspection(SOURCE, 1, weights, ()) for w in workers})


def refused(request: Request, fleet: Fleet, silent: frozenset[WorkerId] = frozenset()) -> tuple[Reason, ...]:
    answer = place(request, fleet, silent)
    assert isinstance(answer, Refusal), answer
    return answer.reasons


def lost(worker: Worker) -> Worker:
    return replace(worker, state="unreachable")


def same(worker: Worker) -> Worker:
    return worker


def test_an_empty_fleet_is_the_only_reason() -> None:
    assert refused(asked(a_spec()), Fleet()) == (NoWorkers(),)


def test_what_is_needed_is_weights_and_cache_and_buffers() -> None:
    assert gguf.needed_bytes(WEIGHTS, gguf.context_of(a_spec(), WEIGHTS)) == NEEDED
    long = WEIGHTS.model_copy(update={"context_length": 131072})
    assert gguf.context_of(a_spec(), long) == 8192
    assert gguf.context_of(a_spec(backend_parameters=["-c", "1024"]), long) == 1024
    assert gguf.context_of(a_spec(backend_parameters=["--ctx_size=2048"]), long) == 2048


@pytest.mark.parametrize(
    ("change", "spec", "silent", "expected"),
    [
        (lost, a_spec(), False, WorkerNotReady(state="unreachable")),
        (same, a_spec(), True, DownloaderSilent()),
        (
            same,
            a_spec(worker_selector={"rack": "1", "os": "linux"}),
            False,
            LabelsDoNotMatch(wanted={"rack": "1"}),
        ),
        (same, a_spec(backend="vLLM"), False, BackendNotAvailable(backend="vLLM", available=("llama.cpp",))),
        (same, a_spec(backend_parameters=["--n-gpu-layers=99"]), False, NoGpu()),
    ],
)
def test_each_rule_alone_is_the_only_reason(
    change: Callable[[Worker], Worker], spec: ModelSpec, silent: bool, expected: Reason
) -> None:
    fleet = a_fleet(change(a_worker(W1)))
    reasons = refused(asked(spec, W1), fleet, frozenset({W1}) if silent else frozenset())
    assert reasons == (expected.model_copy(update={"worker_id": W1}),)


def test_a_cordoned_worker_says_so() -> None:
    fleet = a_fleet(a_worker(W1))
    fleet.operator[W1] = Operator(cordoned=True)
    assert refused(asked(a_spec(), W1), fleet) == (WorkerCordoned(worker_id=W1),)


def test_a_model_that_was_not_looked_at_on_a_worker_is_being_inspected_there() -> None:
    assert refused(Request(a_spec(), {}), a_fleet(a_worker(W1))) == (BeingInspected(worker_id=W1),)


def test_an_inspection_of_other_files_does_not_count() -> None:
    other = Inspection(LocalPath(path="/other.gguf"), 1, WEIGHTS, ())
    assert refused(Request(a_spec(), {W1: other}), a_fleet(a_worker(W1))) == (BeingInspected(worker_id=W1),)


def test_what_the_downloader_found_is_the_reason() -> None:
    missing = Inspection(SOURCE, 1, None, (ModelNotFound(path=SOURCE.path),))
    reasons = refused(Request(a_spec(), {W1: missing}), a_fleet(a_worker(W1)))
    assert reasons == (ModelNotFound(path=SOURCE.path, worker_id=W1),)


def test_safetensors_are_not_for_llama_cpp() -> None:
    weights = WEIGHTS.model_copy(update={"format": "safetensors"})
    reasons = refused(asked(a_spec(), W1, weights=weights), a_fleet(a_worker(W1, gpus=(a_gpu(),))))
    assert reasons == (UnsupportedModel(detail="llama.cpp reads GGUF files, and these are safetensors", worker_id=W1),)


def test_ram_that_is_promised_or_reserved_is_not_free() -> None:
    worker = a_worker(W1, ram=8 * GIB)
    worker = replace(worker, inventory=worker.inventory.model_copy(update={"memory_reserved": GIB}))
    fleet = a_fleet(worker)
    fleet.claims["x"] = OpenClaim(InstanceId("i"), 1, W1, Claim(ram=5 * GIB))
    reasons = refused(asked(a_spec(), W1), fleet)
    assert reasons == (NotEnoughRam(needed_bytes=NEEDED, free_bytes=2 * GIB, total_bytes=8 * GIB, worker_id=W1),)


def test_the_roomiest_gpu_is_named_and_what_strangers_hold_is_not_free() -> None:
    gpus = (a_gpu(0, 3 * GIB, others=2 * GIB), a_gpu(1, 2 * GIB))
    reasons = refused(asked(a_spec(), W1), a_fleet(a_worker(W1, gpus=gpus)))
    assert reasons == (
        NotEnoughVram(needed_bytes=NEEDED, largest_free_bytes=2 * GIB, largest_total_bytes=2 * GIB, worker_id=W1),
    )


def test_a_gpu_selector_names_the_gpus_that_may_be_used() -> None:
    fleet = a_fleet(a_worker(W1, gpus=(a_gpu(0), a_gpu(1))), a_worker(W2, gpus=(a_gpu(0),)))
    chosen = place(asked(a_spec(gpu_selector=GpuSelector(gpu_ids=("name-of-w-1:cuda:1",))), W1, W2), fleet)
    assert isinstance(chosen, Placed)
    assert (chosen.member.worker_id, chosen.member.gpu_indexes) == (W1, (1,))
    wanted = ("nowhere:cuda:0",)
    reasons = refused(asked(a_spec(gpu_selector=GpuSelector(gpu_ids=wanted)), W1, W2), fleet)
    assert reasons == (GpuNotSelected(wanted=wanted, worker_id=W1), GpuNotSelected(wanted=wanted, worker_id=W2))


def test_the_claim_is_what_was_checked() -> None:
    on_cpu = place(asked(a_spec(), W1), a_fleet(a_worker(W1)))
    assert on_cpu == Placed(Member(worker_id=W1, address="127.0.0.1", claim=Claim(ram=NEEDED)), 4096)
    on_gpu = place(asked(a_spec(), W1), a_fleet(a_worker(W1, gpus=(a_gpu(),))))
    assert isinstance(on_gpu, Placed)
    assert on_gpu.member.claim == Claim(ram=256 * 2**20, vram={0: NEEDED})


def test_spread_takes_the_emptier_worker_and_binpack_the_fuller_one() -> None:
    fleet = a_fleet(a_worker(W1, ram=16 * GIB), a_worker(W2, ram=16 * GIB))
    fleet.claims["x"] = OpenClaim(InstanceId("i"), 1, W1, Claim(ram=GIB))
    spread = place(asked(a_spec(), W1, W2), fleet)
    packed = place(asked(a_spec(placement_strategy="binpack"), W1, W2), fleet)
    assert isinstance(spread, Placed)
    assert isinstance(packed, Placed)
    assert (spread.member.worker_id, packed.member.worker_id) == (W2, W1)


def test_ties_are_broken_by_name_whatever_the_order_of_joining() -> None:
    one, two = a_worker(W1), a_worker(W2)
    for fleet in (a_fleet(one, two), a_fleet(two, one)):
        answer = place(asked(a_spec(), W1, W2), fleet)
        assert isinstance(answer, Placed)
        assert answer.member.worker_id == W1


def test_the_closest_worker_has_the_fewest_objections_then_misses_the_least() -> None:
    fleet = a_fleet(a_worker(W1, ram=GIB), a_worker(W2, ram=2 * GIB))
    answer = place(asked(a_spec(), W1, W2), fleet)
    assert isinstance(answer, Refusal)
    assert answer.closest == W2


def test_a_place_that_is_to_be_left_is_not_offered() -> None:
    answer = place(
        Request(a_spec(), asked(a_spec(), W1, W2).inspections, frozenset({W1})), a_fleet(a_worker(W1), a_worker(W2))
    )
    assert isinstance(answer, Placed)
    assert answer.member.worker_id == W2


def test_restarts_double_up_to_a_limit_and_a_long_run_forgets() -> None:
    policy = Policy(restart_base_seconds=1.0, restart_most_seconds=300.0)
    assert [restart_delay_seconds(n, policy) for n in (0, 1, 2, 3, 9, 10, 1000)] == [0, 1, 2, 4, 256, 300, 300]
    assert crashes_in_a_row(5, policy.steady_seconds, policy) == 1
    assert crashes_in_a_row(5, 1.0, policy) == 6

"""Each rule alone, at the number where it begins to object; all of them for every worker; a worker that lies harms itself."""

import itertools
from collections.abc import Sequence
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from schemas.ids import WorkerId
from schemas.models import Claim, Gpu, Inventory, ModelSpec
from schemas.reasons import (
    AcceleratorNotSupported,
    BackendNotAvailable,
    BeingInspected,
    ComputeCapabilityTooLow,
    ContextDoesNotFit,
    DownloaderSilent,
    DriverTooOld,
    GpuMemoryInUseByOthers,
    GpuNotSelected,
    GpuShareNotFree,
    GpuShareTooSmall,
    GpuUnhealthy,
    ImageMissing,
    InventoryIncomplete,
    LabelsDoNotMatch,
    NoGpu,
    NotEnoughDisk,
    NotEnoughGpus,
    NotEnoughRam,
    NotEnoughVram,
    PlatformNotSupported,
    Quarantined,
    Reason,
    ReasonBase,
    UnsupportedModel,
    WeightsUnknown,
    WorkerCordoned,
    WorkerDraining,
    WorkerNotReady,
)
from services.scheduler.domain.candidate import Candidate, Looked, Request
from services.scheduler.domain.placement import Objections, Placed, objections_to, place
from services.scheduler.domain.rules import CAPACITY_CODES, RULES
from services.scheduler.domain.snapshot import Machine
from tests.services.scheduler.placement.fleets import (
    GIB,
    SOURCE,
    a_gpu,
    a_machine,
    a_request,
    a_spec,
    gguf,
    gpus,
    placed,
    refused,
    safetensors,
)

MIB = 2**20
W1 = WorkerId("w-w1")
NEEDED = 20 * GIB
"""15 GiB × 1.2 + 2 GiB."""
TOKEN = 2 * 36 * 8 * 128 * 2
PLAIN = a_spec()
LLAMA = a_spec(backend="llama.cpp")
INSTALLED = {"runtime": "process", "backends": {"llama.cpp": None}}
CUSTOM = a_spec(backend="Custom")
MINDIE = a_spec(backend="MindIE")


def with_parameters(*parameters: str, **fields: Any) -> ModelSpec:
    return a_spec(backend_parameters=parameters, **fields)


def held(**sizes: int) -> list[tuple[None, str, Claim]]:
    """Promised on the GPUs `g0`, `g1` …, and of RAM."""
    ram = sizes.pop("ram", 0)
    return [(None, "cuda", Claim(ram=ram, vram={int(name[1:]): size for name, size in sizes.items()}))]


def npus(**fields: Any) -> tuple[Gpu, ...]:
    return gpus(1, 64 * GIB, type="cann", vendor="ascend", **fields)


def share_short(share: float, free: int, *, total: int = 80 * GIB, reserved: int = 0) -> GpuShareNotFree:
    return GpuShareNotFree(
        share=share, gpus_needed=1, gpus_free=0, freest_share=int(free / total * 1000) / 1000, free_bytes=free,
        total_bytes=total, reserved_bytes=reserved,
    )  # fmt: skip


def case(name: str, spec: ModelSpec, machine: Machine, *expected: ReasonBase, **request: Any) -> Any:
    told = tuple(reason.model_copy(update={"worker_id": W1}) for reason in expected)
    return pytest.param(spec, machine, told, request, id=name)


OBJECTIONS = (
    case("state", PLAIN, a_machine("w1", gpus(1), state="unreachable"), WorkerNotReady(state="unreachable")),
    case("cordoned", PLAIN, a_machine("w1", gpus(1), cordoned=True), WorkerCordoned()),
    case("draining", PLAIN, a_machine("w1", gpus(1), draining=True), WorkerDraining()),
    case("silent downloader", PLAIN, a_machine("w1", gpus(1), downloader_alive=False), DownloaderSilent()),
    case(
        "one of three labels",
        a_spec(worker_selector={"os": "linux", "rack": "1", "arch": "amd64"}),
        a_machine("w1", gpus(1), labels={"rack": "2"}),
        LabelsDoNotMatch(wanted={"rack": "1"}),
    ),
    case(
        "GPU memory not told",
        PLAIN,
        a_machine("w1", (a_gpu(0), a_gpu(7, 0))),
        InventoryIncomplete(field="memory_total", gpu_index=7),
    ),
    case("RAM not told", PLAIN, a_machine("w1", gpus(1), ram=0), InventoryIncomplete(field="memory_total")),
    case(
        "not installed",
        PLAIN,
        a_machine("w1", gpus(1), inventory={"runtime": "process", "backends": {"llama.cpp": "1"}}),
        BackendNotAvailable(backend="vLLM", available=("llama.cpp",)),
    ),
    case(
        "platform",
        PLAIN,
        a_machine("w1", gpus(1), inventory={"os": "darwin", "arch": "aarch64"}),
        PlatformNotSupported(backend="vLLM", platform="darwin/arm64", supported=("linux/amd64", "linux/arm64")),
    ),
    case("no GPU", PLAIN, a_machine("w1"), NoGpu()),
    case(
        "no GPU for layers",
        with_parameters("-ngl", "1", backend="llama.cpp"),
        a_machine("w1"),
        NoGpu(),
        known=gguf(GIB),
    ),
    case(
        "kind of GPU",
        MINDIE,
        a_machine("w1", gpus(1)),
        AcceleratorNotSupported(backend="MindIE", accelerators=("cuda",), supported=("cann",)),
    ),
    case(
        "version for a kind of GPU",
        a_spec(backend_version="0.9.3"),
        a_machine("w1", gpus(1, type="musa")),
        AcceleratorNotSupported(
            backend="vLLM",
            version="0.9.3",
            accelerators=("musa",),
            supported=("cuda", "rocm", "cann", "dtk", "musa", "corex", "maca", "hggc"),
        ),
    ),
    case(
        "no image for the platform",
        LLAMA,
        a_machine("w1", inventory={"arch": "riscv64"}),
        ImageMissing(backend="llama.cpp", accelerators=("cpu",), platform="linux/riscv64"),
        known=gguf(GIB),
    ),
    case(
        "no image of this version",
        a_spec(backend_version="0.9.2"),
        a_machine("w1", gpus(1, type="maca")),
        ImageMissing(backend="vLLM", version="0.9.2", accelerators=("maca",), platform="linux/amd64"),
    ),
    case(
        "no image for GPUs of this name",
        MINDIE,
        a_machine("w1", gpus(1, type="cann", name="Ascend950")),
        ImageMissing(backend="MindIE", accelerators=("cann",), platform="linux/amd64"),
    ),
    case(
        "driver",
        PLAIN,
        a_machine("w1", gpus(1, runtime_version="12.5")),
        DriverTooOld(gpu_index=0, runtime_version="12.5", needed_version="12.6", backend="vLLM"),
    ),
    case(
        "architecture",
        PLAIN,
        a_machine("w1", gpus(1, compute_capability="6.9")),
        ComputeCapabilityTooLow(gpu_index=0, compute_capability="6.9", needed="7.0", backend="vLLM"),
    ),
    case(
        "GPU not selected",
        a_spec(gpu_selector={"gpu_ids": ["w2:cuda:0"]}),
        a_machine("w1", gpus(1)),
        GpuNotSelected(wanted=("w2:cuda:0",)),
    ),
    case("quarantined", PLAIN, a_machine("w1", gpus(1)), Quarantined(crashes=1), crashes={W1: 1}),
    case("not looked at", PLAIN, a_machine("w1", gpus(1)), BeingInspected(), must_look=True),
    case("nobody knows what it weighs", PLAIN, a_machine("w1", gpus(1)), BeingInspected(), known=None),
    case(
        "weights of zero bytes", PLAIN, a_machine("w1", gpus(1)), WeightsUnknown(path=SOURCE.path), known=safetensors(0)
    ),
    case(
        "safetensors, looked at",
        LLAMA,
        a_machine("w1"),
        UnsupportedModel(detail="llama.cpp reads GGUF files, and these are safetensors"),
        looked={W1: Looked(safetensors(GIB, {}), ())},
    ),
    case(
        "safetensors, known",
        LLAMA,
        a_machine("w1"),
        UnsupportedModel(detail="llama.cpp reads GGUF files, and these are safetensors"),
    ),
    case(
        "disk",
        PLAIN,
        a_machine("w1", gpus(1), inventory={"disk_free": 15 * GIB - 1}),
        NotEnoughDisk(needed_bytes=15 * GIB, free_bytes=15 * GIB - 1),
    ),
    case(
        "disk for adapters and a draft too",
        PLAIN,
        a_machine("w1", gpus(1), inventory={"disk_free": 3 * GIB - 1}),
        NotEnoughDisk(needed_bytes=3 * GIB, free_bytes=3 * GIB - 1),
        known=safetensors(GIB, lora_bytes=GIB, draft_bytes=GIB),
    ),
    case("GPUs", with_parameters("-tp=2"), a_machine("w1", gpus(1)), NotEnoughGpus(needed=2, available=1)),
    case(
        "GPUs of one kind",
        with_parameters("-tp=2"),
        a_machine("w1", (*gpus(1), *gpus(1, type="rocm"))),
        NotEnoughGpus(needed=2, available=1),
    ),
    case(
        "all GPUs broken",
        PLAIN,
        a_machine("w1", (a_gpu(0, unhealthy="ECC"), a_gpu(1, unhealthy="XID"))),
        GpuUnhealthy(gpu_indexes=(0, 1), problem="ECC"),
    ),
    case(
        "the free GPU broken",
        PLAIN,
        a_machine("w1", (a_gpu(0), a_gpu(1, unhealthy="ECC")), claims=held(g0=20 * GIB)),
        GpuUnhealthy(gpu_indexes=(1,), problem="ECC"),
        share_short(0.9, 60 * GIB),
    ),
    case(
        "context",
        with_parameters("--max-model-len=1000000"),
        a_machine("w1", gpus(1)),
        ContextDoesNotFit(
            context_tokens=1_000_000,
            fitting_tokens=56 * GIB // TOKEN // 16 * 16,
            cache_bytes=1_000_000 * TOKEN,
            room_bytes=56 * GIB,
        ),
    ),
    case(
        "share too small",
        with_parameters("--gpu-memory-utilization=0.249"),
        a_machine("w1", gpus(1)),
        GpuShareTooSmall(share=0.249, share_bytes=int(0.249 * 80 * GIB), needed_bytes=NEEDED, total_bytes=80 * GIB),
    ),
    case(
        "share not free",
        PLAIN,
        a_machine("w1", gpus(2), claims=held(g0=8 * GIB + 1, g1=9 * GIB)),
        share_short(0.9, 72 * GIB - 1),
    ),
    case(
        "share not free, and nearly all GPUs that are needed",
        with_parameters("-tp=4"),
        a_machine("w1", gpus(4), claims=held(g2=9 * GIB)),
        GpuShareNotFree(
            share=0.9, gpus_needed=4, gpus_free=3, freest_share=1.0, free_bytes=80 * GIB, total_bytes=80 * GIB
        ),
    ),
    case(
        "share kept by the system",
        with_parameters("--gpu-memory-utilization=0.95"),
        a_machine("w1", gpus(1), inventory={"vram_reserved": 4 * GIB + 1}),
        share_short(0.95, 76 * GIB - 1, reserved=4 * GIB + 1),
    ),
    case(
        "memory",
        CUSTOM,
        a_machine("w1", gpus(1), claims=held(g0=60 * GIB + 1)),
        NotEnoughVram(needed_bytes=NEEDED, largest_free_bytes=NEEDED - 1, largest_total_bytes=80 * GIB),
    ),
    case(
        "memory of an empty GPU",
        CUSTOM,
        a_machine("w1", gpus(1, NEEDED - 1)),
        NotEnoughVram(needed_bytes=NEEDED, largest_free_bytes=NEEDED - 1, largest_total_bytes=NEEDED - 1),
    ),
    case(
        "share, and exactly the memory",
        PLAIN,
        a_machine("w1", gpus(1), claims=held(g0=60 * GIB)),
        share_short(0.9, 20 * GIB),
    ),
    case(
        "memory, and others who are not to blame",
        CUSTOM,
        a_machine("w1", gpus(1, 19 * GIB, memory_used_by_others=GIB)),
        NotEnoughVram(needed_bytes=NEEDED, largest_free_bytes=18 * GIB, largest_total_bytes=19 * GIB),
    ),
    case(
        "context, on the roomiest",
        with_parameters("--max-model-len=1000000"),
        a_machine("w1", (a_gpu(0, 40 * GIB), a_gpu(1), a_gpu(2, 40 * GIB))),
        ContextDoesNotFit(
            context_tokens=1_000_000,
            fitting_tokens=56 * GIB // TOKEN // 16 * 16,
            cache_bytes=1_000_000 * TOKEN,
            room_bytes=56 * GIB,
        ),
    ),
    case(
        "memory and share",
        PLAIN,
        a_machine("w1", gpus(1), claims=held(g0=61 * GIB)),
        share_short(0.9, 19 * GIB),
        NotEnoughVram(needed_bytes=NEEDED, largest_free_bytes=19 * GIB, largest_total_bytes=80 * GIB),
    ),
    case(
        "others",
        CUSTOM,
        a_machine("w1", gpus(1, memory_used_by_others=70 * GIB)),
        NotEnoughVram(needed_bytes=NEEDED, largest_free_bytes=10 * GIB, largest_total_bytes=80 * GIB),
        GpuMemoryInUseByOthers(gpu_index=0, used_bytes=70 * GIB, total_bytes=80 * GIB),
    ),
    case(
        "RAM",
        MINDIE,
        a_machine("w1", npus(), ram=8 * GIB, claims=held(ram=8 * GIB - 512 * MIB + 1)),
        NotEnoughRam(needed_bytes=512 * MIB, free_bytes=512 * MIB - 1, total_bytes=8 * GIB),
    ),
    case(
        "RAM beside what the system keeps",
        CUSTOM,
        a_machine("w1", gpus(1), ram=8 * GIB, inventory={"memory_reserved": 6 * GIB + 1}),
        NotEnoughRam(needed_bytes=2 * GIB, free_bytes=2 * GIB - 1, total_bytes=8 * GIB, reserved_bytes=6 * GIB + 1),
    ),
)


def asked(spec: ModelSpec, fields: dict[str, Any]) -> Request:
    given: dict[str, Any] = {
        "known": gguf(15 * GIB) if spec.backend == "llama.cpp" and "looked" in fields else safetensors(15 * GIB),
        "must_look": False,
    } | fields
    return Request(spec.model_copy(update={"distributed_inference_across_workers": False}), **given)


@pytest.mark.parametrize(("spec", "machine", "expected", "fields"), OBJECTIONS)
def test_each_rule_objects_with_its_numbers_and_no_other_does(
    spec: ModelSpec, machine: Machine, expected: tuple[Reason, ...], fields: dict[str, Any]
) -> None:
    assert objections_to(Candidate(asked(spec, fields), machine)) == expected
    assert all(reason.sentence() for reason in expected)


def test_every_rule_is_shown() -> None:
    shown = {reason.code for case in OBJECTIONS for reason in case.values[2]}  # type: ignore[attr-defined] - reasons
    assert {rule.__name__ for rule in RULES} - {"files_unusable"} <= shown


NEIGHBOURS = (
    case(
        "labels, all of them",
        a_spec(worker_selector={"os": "linux", "rack": "1"}),
        a_machine("w1", gpus(1), labels={"rack": "1", "x": "y"}),
    ),
    case("its own name", a_spec(worker_selector={"worker-name": "w1"}), a_machine("w1", gpus(1))),
    case("installed", PLAIN, a_machine("w1", gpus(1), inventory={"runtime": "process", "backends": {"vLLM": None}})),
    case("a container runtime starts anything", PLAIN, a_machine("w1", gpus(1), inventory={"backends": {"x": "1"}})),
    case("arm", PLAIN, a_machine("w1", gpus(1), inventory={"arch": "aarch64"})),
    case(
        "llama.cpp anywhere",
        LLAMA,
        a_machine("w1", inventory={"os": "darwin", "arch": "riscv64"} | INSTALLED),
        known=gguf(GIB),
    ),
    case("an image for the version", a_spec(backend_version="0.9.1"), a_machine("w1", gpus(1, type="maca"))),
    case("llama.cpp in RAM", LLAMA, a_machine("w1"), known=gguf(GIB)),
    case("the version for a kind", a_spec(backend_version="0.9.2"), a_machine("w1", gpus(1, type="musa"))),
    case("one's own image on any kind", a_spec(image_name="x/y"), a_machine("w1", gpus(1, type="neuware"))),
    case(
        "one driver is new enough",
        PLAIN,
        a_machine("w1", (a_gpu(0, runtime_version="12.0"), a_gpu(1, runtime_version="12.6"))),
    ),
    case("driver just new enough", PLAIN, a_machine("w1", gpus(1, runtime_version="12.6"))),
    case("driver that tells nothing", PLAIN, a_machine("w1", gpus(1, runtime_version="unknown"))),
    case(
        "driver of one's own image",
        a_spec(image_name="x/y"),
        a_machine("w1", gpus(1, runtime_version="1.0", compute_capability="3.0")),
    ),
    case("architecture just new enough", PLAIN, a_machine("w1", gpus(1, compute_capability="7.0"))),
    case("capability is NVIDIA's", PLAIN, a_machine("w1", gpus(1, type="rocm", compute_capability="1.0"))),
    case(
        "one GPU is new enough",
        PLAIN,
        a_machine("w1", (a_gpu(0, compute_capability="6.0"), a_gpu(1, compute_capability="8.0"))),
    ),
    case(
        "selected",
        a_spec(gpu_selector={"gpu_ids": ["w1:cuda:0", "w2:cuda:0"], "gpus_per_replica": 1}),
        a_machine("w1", gpus(1)),
    ),
    case("quarantined elsewhere", PLAIN, a_machine("w1", gpus(1)), crashes={WorkerId("w-w2"): 9}),
    case("looked at", PLAIN, a_machine("w1", gpus(1)), must_look=True, looked={W1: Looked(safetensors(GIB), ())}),
    case("its weight is claimed", a_spec(claim_override={"vram": GIB}), a_machine("w1", gpus(1)), known=safetensors(0)),
    case("disk, exactly", PLAIN, a_machine("w1", gpus(1), inventory={"disk_free": 15 * GIB})),
    case("disk, not told", PLAIN, a_machine("w1", gpus(1), inventory={"disk_free": None})),
    case(
        "no disk, and the files are there",
        PLAIN,
        a_machine("w1", gpus(1), inventory={"disk_free": 0}),
        files_on=frozenset({W1}),
    ),
    case("exactly as many GPUs", with_parameters("-tp=2"), a_machine("w1", gpus(2))),
    case("another GPU is broken", PLAIN, a_machine("w1", (a_gpu(0, unhealthy="ECC"), a_gpu(1)))),
    case("a context that fits", with_parameters(f"--max-model-len={56 * GIB // TOKEN}"), a_machine("w1", gpus(1))),
    case("a share that holds it", with_parameters("--gpu-memory-utilization=0.25"), a_machine("w1", gpus(1))),
    case("a share that is free", PLAIN, a_machine("w1", gpus(2), claims=held(g0=8 * GIB, g1=80 * GIB))),
    case(
        "a share that the system leaves",
        with_parameters("--gpu-memory-utilization=0.95"),
        a_machine("w1", gpus(1), inventory={"vram_reserved": 4 * GIB}),
    ),
    case("memory, exactly", CUSTOM, a_machine("w1", gpus(1), claims=held(g0=60 * GIB))),
    case("an empty GPU, exactly", CUSTOM, a_machine("w1", gpus(1, NEEDED))),
    case("others that leave enough", CUSTOM, a_machine("w1", gpus(1, memory_used_by_others=60 * GIB))),
    case("RAM, exactly", MINDIE, a_machine("w1", npus(), ram=8 * GIB, claims=held(ram=8 * GIB - 512 * MIB))),
    case(
        "RAM that is overdrawn by nobody's fault",
        PLAIN,
        a_machine("w1", gpus(1), ram=GIB, inventory={"memory_reserved": 2 * GIB}),
    ),
)


@pytest.mark.parametrize(("spec", "machine", "expected", "fields"), NEIGHBOURS)
def test_no_rule_objects_to_the_neighbouring_case(
    spec: ModelSpec, machine: Machine, expected: tuple[Reason, ...], fields: dict[str, Any]
) -> None:
    request = asked(spec, fields)
    assert objections_to(Candidate(request, machine)) == expected == ()
    assert Candidate(request, machine).layout is not None


# -- all rules, all workers -------------------------------------------------------------------------------------------


def test_nothing_stops_early() -> None:
    """One worker with nearly all that can be wrong says all of it, and the others are asked all the same."""
    wreck = a_machine(
        "w1",
        gpus(1, runtime_version="1.0", compute_capability="1.0"),
        ram=0,
        state="unreachable",
        cordoned=True,
        draining=True,
        downloader_alive=False,
        inventory={"os": "plan9", "runtime": "process", "disk_free": 0},
    )
    request = a_request(a_spec(worker_selector={"a": "b"}), crashes={W1: 3, WorkerId("w-w3"): 4}, distributed=False)
    answer = refused(
        request, a_machine("w2", gpus(1), labels={"a": "b"}, cordoned=True), wreck, a_machine("w3", gpus(1))
    )
    assert [(each.name, [reason.code for reason in each.reasons]) for each in answer.workers] == [
        ("w2", ["worker_cordoned"]),
        ("w3", ["labels_do_not_match", "quarantined"]),
        (
            "w1",
            [
                "worker_not_ready", "worker_cordoned", "worker_draining", "inventory_incomplete", "downloader_silent",
                "backend_not_available", "platform_not_supported", "driver_too_old", "compute_capability_too_low",
                "labels_do_not_match", "quarantined", "not_enough_disk",
            ],
        ),
    ]  # fmt: skip


def test_the_closest_misses_the_least_over_all_gpus_that_it_needs() -> None:
    """One GPU of `a` is wholly free, and the other lacks 32 GiB; each of `b` lacks a little more than 1."""
    request = a_request(a_spec(backend_parameters=["-tp=2"]), distributed=False)
    a = a_machine("a", gpus(2), claims=held(g0=40 * GIB))
    b = a_machine("b", gpus(2), claims=held(g0=9 * GIB, g1=9 * GIB))
    answer = refused(request, a, b)
    assert [(each.name, each.missing_bytes) for each in answer.workers] == [("b", 2 * GIB), ("a", 32 * GIB)]


CORDONED: Final = WorkerCordoned(worker_id=W1)
NO_GPU: Final = NoGpu(worker_id=W1)
FAR: Final[tuple[tuple[str, tuple[Reason, ...], int], ...]] = (
    ("z", (CORDONED,), 0),
    ("y", (CORDONED,), GIB),
    ("x", (CORDONED,), 2 * GIB),
    ("w", (NO_GPU,), 0),
    ("v", (CORDONED, CORDONED), 0),
    ("u", (CORDONED, NO_GPU), 0),
    ("t", (GpuNotSelected(worker_id=W1, wanted=("a:cuda:0",)),), 0),
)
"""Each is farther than the one before, though its name comes first: memory is missing, then more of it; a GPU would have
to be bought; there are more objections; the author wanted other GPUs.
"""


@pytest.mark.parametrize(("nearer", "farther"), tuple(itertools.pairwise(FAR)), ids=lambda each: each[0])
def test_how_far_a_worker_is(nearer: tuple[str, tuple[Reason, ...], int], farther: tuple[Any, ...]) -> None:
    near, far = Objections(W1, *nearer), Objections(W1, *farther)
    assert near.distance < far.distance


def test_the_closest_of_equals_is_the_first_by_name() -> None:
    machines = [a_machine(name, cordoned=True) for name in ("c", "a", "b")]
    assert [each.name for each in refused(a_request(), *machines).workers] == ["a", "b", "c"]


# -- workers that lie -------------------------------------------------------------------------------------------------

ABSURD = st.one_of(st.none(), st.just(0), st.integers(-3, 2), st.integers(2**59, 2**61), st.integers(0, 2**45))
WORDS = st.sampled_from(["", "9" * 5000, "²", "v", "1.", "12.8", "NaN", None, "-1", "8.0.RC3.beta"])


@st.composite
def inventories(draw: st.DrawFn) -> dict[str, Any]:
    described = [
        {
            "index": index, "vendor": "x", "type": draw(st.sampled_from(["cuda", "cann", "x"])), "name": "x",
            "memory_total": draw(ABSURD), "memory_used_by_others": draw(ABSURD), "compute_capability": draw(WORDS),
            "runtime_version": draw(WORDS), "island": draw(st.sampled_from([None, 0, -1, 10**9])),
            "unhealthy": draw(st.sampled_from([None, "", "ECC"])),
        }
        for index in range(draw(st.integers(0, 3)))
    ]  # fmt: skip
    return {
        "os": draw(st.sampled_from(["linux", "", "²"])), "arch": draw(st.sampled_from(["amd64", "", "x" * 99])),
        "cpu_count": 1, "memory_total": draw(ABSURD), "memory_reserved": draw(ABSURD) or 0,
        "vram_reserved": draw(ABSURD) or 0, "disk_free": draw(ABSURD), "gpus": described, "runtime": "docker",
    }  # fmt: skip


SPECS: Sequence[ModelSpec] = (
    PLAIN,
    LLAMA,
    CUSTOM,
    MINDIE,
    a_spec(backend="SGLang"),
    a_spec(packed=True),
    a_spec(gpu_selector={"gpu_ids": ["a-liar:cuda:0"]}),
)


@given(inventories(), st.sampled_from(SPECS))
def test_a_worker_that_tells_nonsense_disturbs_nobody(described: dict[str, Any], spec: ModelSpec) -> None:
    """Nonsense is refused at the door, or makes that worker unfit; the honest worker is placed on all the same."""
    try:
        inventory = Inventory.model_validate(described)
    except ValidationError:
        return
    liar = a_machine("a-liar", inventory=inventory.model_dump())
    honest = a_machine("honest", (*gpus(1), *gpus(1, 64 * GIB, type="cann")))
    weights = gguf(15 * GIB) if spec.backend == "llama.cpp" else safetensors(15 * GIB)
    request = a_request(spec, weights, distributed=False)
    answer = place(request, [liar, honest])
    alone = place(request, [liar])
    assert isinstance(alone, Placed) or alone.reasons
    if spec.gpu_selector is None:
        assert isinstance(alone, Placed) == (not objections_to(Candidate(request, liar)))
        assert isinstance(answer, Placed)
    if isinstance(alone, Placed):
        (there,) = alone.places
        sizes = {gpu.index: gpu.memory_total for gpu in inventory.gpus}
        assert all(0 < size <= sizes[index] for index, size in there.claim.vram.items())
        assert all(gpu.memory_total > 0 for gpu in inventory.gpus)
        assert inventory.memory_total > 0


@pytest.mark.parametrize("index", [0, 3])
def test_one_gpu_that_does_not_tell_its_memory_makes_its_worker_unfit_and_no_other(index: int) -> None:
    of = tuple(a_gpu(each, 0 if each == index else 80 * GIB) for each in range(4))
    assert placed(a_request(), a_machine("a", of), a_machine("b", gpus(1))).places[0].worker_id == "w-b"
    answer = refused(a_request(), a_machine("a", of))
    assert answer.workers[0].reasons == (
        InventoryIncomplete(worker_id=WorkerId("w-a"), field="memory_total", gpu_index=index),
    )


def test_capacity_codes_are_those_that_a_group_may_mend() -> None:
    assert {
        "not_enough_gpus", "gpu_unhealthy", "context_does_not_fit", "gpu_share_too_small", "gpu_share_not_free",
        "not_enough_vram", "gpu_memory_in_use_by_others", "not_enough_ram",
    } == CAPACITY_CODES  # fmt: skip

"""Causes of Pending, injected one by one and in pairs: what is stated, of whom, who must act, and what is said to help.

Each case breaks a fleet in which the model fits. The numbers that are expected are computed here, from the published
rules, and every suggestion is followed: the test applies it in its own way, and the model must then find its place.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Final

import pytest

from schemas.models import ModelWeights
from schemas.reasons import (
    BackendUnknown,
    BackendVersionUnknown,
    GpuNotSelected,
    GpuTypesMixed,
    GpuUnknown,
    HeadsNotDivisible,
    ModelFileTruncated,
    ModelNotFound,
    NetworkDown,
    NoWorkers,
    ParameterInvalid,
    ParametersContradict,
    ReasonBase,
    TooFewGpusSelected,
    TooFewLayers,
    VocabularyNotDivisible,
    WorkersDoNotAddUp,
    WorldSizeDoesNotMatch,
)
from services.scheduler.domain.placement import Placed, Refused, place
from tests.services.scheduler.placement.causes import (
    BACKENDS,
    CONTEXT_FLAG,
    SHARE_FLAG,
    SHARED,
    TENSOR_FLAG,
    WEIGHTS,
    Ask,
    Cause,
    Help,
    a_fleet,
    action,
    an_ask,
    architecture,
    broken,
    check_suggestions,
    context,
    context_of_mindie,
    cordoned,
    disk,
    draining,
    driver,
    files,
    flag,
    gpus_too_small,
    held_by_others,
    labels,
    no_gpu,
    no_ram_told,
    no_vram_told,
    not_installed,
    not_looked_at,
    not_ready,
    other_kind,
    platform,
    quarantine,
    ram,
    ram_alone,
    sets,
    share_beyond_the_reserve,
    share_not_free,
    share_too_small,
    silent,
    too_few_gpus,
    unreadable,
    vram_promised,
    weightless,
)
from tests.services.scheduler.placement.fleets import (
    GIB,
    QWEN3_8B,
    SOURCE,
    safetensors,
)

NOT_FOUND: Final = ModelNotFound(path=SOURCE.path)
TRUNCATED: Final = ModelFileTruncated(path=SOURCE.path, expected_bytes=100, actual_bytes=7)
ON_GPUS: Final = ("vLLM", "SGLang", "MindIE", "Custom")

CAUSES: Final = (
    Cause("unreachable", not_ready("unreachable"), who="wait", pairs=True),
    Cause("registered", not_ready("registered"), ("vLLM",), who="wait"),
    Cause("cordoned", cordoned, helps=(action("uncordon_worker"),), who="operator", pairs=True),
    Cause("draining", draining, who="operator", pairs=True),
    Cause("downloader silent", silent, who="operator", pairs=True),
    Cause(
        "label missing",
        labels({"rack": "1"}, {}),
        helps=(action("label_worker"), sets(worker_selector={"rack": None})),
        who="operator",
        pairs=True,
    ),
    Cause("label wrong", labels({"rack": "1"}, {"rack": "2"}), helps=(action("label_worker"),), who="operator"),
    Cause(
        "two labels missing",
        labels({"a": "1", "b": "2"}, {"x": "y"}),
        ("vLLM",),
        (action("label_worker"),),
        who="operator",
    ),
    Cause(
        "one of two labels missing",
        labels({"a": "1", "b": "2"}, {"a": "1"}),
        ("vLLM",),
        (action("label_worker"),),
        who="operator",
    ),
    Cause(
        "built-in label",
        labels({"worker-name": "nobody"}, {}),
        ("vLLM", "Custom"),
        (sets(worker_selector={"worker-name": None}),),
        who="operator",
    ),
    Cause("tells no RAM", no_ram_told, ON_GPUS, who="operator"),
    Cause("tells no GPU memory", no_vram_told, who="operator"),
    Cause("installed: nothing", not_installed({}), who="operator", pairs=True),
    Cause("installed: another", not_installed({"x": "1", "a": None}), ("vLLM", "llama.cpp"), who="operator"),
    Cause("windows", platform("Windows", "x86_64", "windows/amd64"), ON_GPUS, who="author"),
    Cause("riscv", platform("linux", "riscv64", "linux/riscv64"), ON_GPUS, who="author"),
    Cause("no GPU", no_gpu, ("vLLM", "SGLang", "MindIE"), who="operator"),
    Cause("no GPU for an image", no_gpu, ("Custom",), (sets(cpu_offloading=True),), who="operator"),
    Cause("MLU", other_kind("neuware"), ("vLLM", "SGLang", "MindIE"), who="author"),
    Cause("MLU for llama.cpp", other_kind("neuware"), ("llama.cpp",), (sets(cpu_offloading=True),), who="author"),
    Cause("DCU too new a version", other_kind("dtk", "0.19.0"), ("vLLM",), who="author"),
    Cause("MUSA too new a version", other_kind("musa", "0.10.1"), ("vLLM",), who="author"),
    Cause("old CUDA", driver("cuda", "12.2", {"vLLM": "12.6", "SGLang": "12.8"}), ("vLLM", "SGLang"), who="operator"),
    Cause("old ROCm", driver("rocm", "6.3.9", "6.4"), ("vLLM", "SGLang"), who="operator"),
    Cause(
        "old CANN", driver("cann", "8.0.RC3", {"vLLM": "8.2", "SGLang": "8.3", "MindIE": "8.2"}), SHARED, who="operator"
    ),
    Cause("Pascal", architecture("6.1", "7.0"), ("vLLM",), who="author"),
    Cause("Turing", architecture("7.5", "8.0"), ("SGLang",), who="author"),
    Cause("quarantined", quarantine(5), helps=(action("clear_quarantine"),), who="author", pairs=True),
    Cause("not found", files(NOT_FOUND), who="author"),
    Cause("truncated", files(TRUNCATED), ("vLLM", "llama.cpp"), who="author"),
    Cause("not looked at", not_looked_at, who="wait"),
    Cause("no weights", weightless, ON_GPUS, who="author"),
    Cause("disk", disk(WEIGHTS - 1), closest_is_last=True, who="operator", pairs=True),
    Cause("little disk", disk(GIB), ("vLLM",), closest_is_last=True, who="operator"),
    Cause("safetensors", unreadable, ("llama.cpp",), who="author"),
    Cause("8 of 4 GPUs", too_few_gpus(8, 4), SHARED, (lambda each: each.text == "on one GPU it fits",), who="operator"),
    Cause("2 of 1 GPUs", too_few_gpus(2, 1), SHARED, (lambda each: each.text == "on one GPU it fits",), who="operator"),
    Cause("broken GPU", broken("ECC", 1), ON_GPUS, who="operator"),
    Cause("broken GPUs", broken("XID 79", 8), ("vLLM", "MindIE"), who="operator"),
    Cause("broken GPU, llama.cpp", broken("ECC", 2), ("llama.cpp",), (sets(cpu_offloading=True),), who="operator"),
    Cause(
        "share not free",
        share_not_free(14),
        SHARED,
        (flag(SHARE_FLAG), sets(packed=True), action("delete_instance")),
        closest_is_last=True,
        who="wait",
        pairs=True,
    ),
    Cause(
        "share not free by little",
        share_not_free(14, 1),
        SHARED,
        (flag(SHARE_FLAG), sets(packed=True)),
        closest_is_last=True,
        who="wait",
    ),
    Cause(
        "share nearly free of 8",
        share_not_free(15, 8),
        SHARED,
        (flag(SHARE_FLAG), action("delete_instance")),
        closest_is_last=True,
        who="wait",
    ),
    Cause(
        "neither share nor memory",
        share_not_free(61, 1),
        ("vLLM", "SGLang"),
        (action("delete_instance"),),
        closest_is_last=True,
        who="wait",
    ),
    Cause(
        "others", held_by_others(70), ("vLLM", "SGLang"), (action("free_gpu_memory"),), closest_is_last=True, pairs=True
    ),
    Cause("others on NPUs", held_by_others(60), ("MindIE",), (action("free_gpu_memory"),), closest_is_last=True),
    Cause(
        "others on small GPUs",
        held_by_others(23),
        ("llama.cpp",),
        (action("free_gpu_memory"), sets(cpu_offloading=True)),
        closest_is_last=True,
    ),
    Cause("others, custom", held_by_others(35), ("Custom",), (action("free_gpu_memory"),), closest_is_last=True),
    Cause(
        "memory promised",
        vram_promised(7),
        ("llama.cpp", "Custom"),
        (action("delete_instance"),),
        closest_is_last=True,
        who="wait",
        pairs=True,
    ),
    Cause(
        "all memory promised",
        vram_promised(0.1),
        ("Custom",),
        (action("delete_instance"),),
        closest_is_last=True,
        who="wait",
    ),
    Cause("GPUs too small", gpus_too_small(12), ON_GPUS, closest_is_last=True, who="operator"),
    Cause(
        "GPUs too small, llama.cpp",
        gpus_too_small(12),
        ("llama.cpp",),
        (sets(cpu_offloading=True),),
        closest_is_last=True,
        who="operator",
    ),
    Cause("share too small", share_too_small(0.2), SHARED, (flag(SHARE_FLAG),), who="author"),
    Cause("share far too small", share_too_small(0.01), SHARED, (flag(SHARE_FLAG),), who="author"),
    Cause("share beyond the reserve", share_beyond_the_reserve(6), SHARED, (flag(SHARE_FLAG),), who="author"),
    Cause("context", context(200_000), ("vLLM", "SGLang"), (flag(CONTEXT_FLAG),), who="author", pairs=True),
    Cause("long context", context(10_000_000), ("vLLM", "SGLang"), (flag(CONTEXT_FLAG),), who="author"),
    Cause(
        "context, MindIE",
        context_of_mindie(200_000, 0.5),
        ("MindIE",),
        (flag(CONTEXT_FLAG), flag(SHARE_FLAG)),
        who="author",
    ),
    Cause("long context, MindIE", context_of_mindie(10**7, 0.5), ("MindIE",), (flag(CONTEXT_FLAG),), who="author"),
    Cause(
        "RAM",
        ram(0.2),
        ("MindIE", "llama.cpp", "Custom"),
        (action("delete_instance"),),
        closest_is_last=True,
        who="wait",
        pairs=True,
    ),
    Cause("RAM alone", ram_alone(8), ("llama.cpp",), closest_is_last=True, who="operator"),
)


# -- one cause on every worker ----------------------------------------------------------------------------------------

FLEETS: Final = ((1, "spread"), (4, "binpack"), (20, "spread"))


def singles() -> Iterator[Any]:
    for cause in CAUSES:
        for backend in cause.backends:
            for count, strategy in FLEETS:
                yield pytest.param(cause, backend, count, strategy, id=f"{cause.name}-{backend}-{count}")


SINGLES: Final = tuple(singles())


@pytest.mark.parametrize(("cause", "backend", "count", "strategy"), SINGLES)
def test_one_cause_is_stated_with_its_numbers(cause: Cause, backend: str, count: int, strategy: str) -> None:
    workers, ask = a_fleet(count, backend), an_ask(backend, strategy)
    assert isinstance(place(ask.request(), [worker.machine() for worker in workers]), Placed)
    expected = {worker.id: cause.inject(worker, ask) for worker in workers}
    refused = place(ask.request(), [worker.machine() for worker in workers])
    assert isinstance(refused, Refused)
    assert refused.request == ()
    assert {each.worker_id: each.reasons for each in refused.workers} == expected
    assert refused.closest == workers[-1 if cause.closest_is_last else 0].id
    if cause.who:
        assert {reason.whose for reason in refused.reasons} == {cause.who}
    suggestions = check_suggestions(ask, workers, refused)
    for number, helps in enumerate(cause.helps):
        assert any(helps(each) for each in suggestions), (number, [each.text for each in suggestions])


# -- two causes on the same worker ------------------------------------------------------------------------------------


def by_code(*reasons: ReasonBase) -> dict[str, ReasonBase]:
    return {getattr(reason, "code", ""): reason for reason in reasons}


PAIRED: Final = tuple(cause for cause in CAUSES if cause.pairs)


def pairs() -> Iterator[Any]:
    for one, other in combinations(PAIRED, 2):
        both = [backend for backend in one.backends if backend in other.backends]
        about_memory = {"share not free", "others", "memory promised", "context"}
        if both and not {one.name, other.name} <= about_memory:
            yield pytest.param(one, other, both[len(one.name) % len(both)], id=f"{one.name} and {other.name}")


PAIRS: Final = tuple(pairs())


@pytest.mark.parametrize(("one", "other", "backend"), PAIRS)
def test_two_causes_are_both_stated(one: Cause, other: Cause, backend: str) -> None:
    """The last worker has only one of them, and so is the closest, though it is not the first by name."""
    workers, ask = a_fleet(3, backend), an_ask(backend, "spread")
    expected = {worker.id: by_code(*one.inject(worker, ask), *other.inject(worker, ask)) for worker in workers[:2]}
    expected[workers[2].id] = by_code(*one.inject(workers[2], ask))
    if other.name == "label missing":
        workers[2].fields["labels"] = {"rack": "1"}
    elif other.name == "context":  # which is the request's, and so on all workers
        expected[workers[2].id] |= by_code(*other.inject(workers[2], ask))
    refused = place(ask.request(), [worker.machine() for worker in workers])
    assert isinstance(refused, Refused)
    assert {each.worker_id: by_code(*each.reasons) for each in refused.workers} == expected
    if other.name != "context":
        assert refused.closest == workers[2].id
    check_suggestions(ask, workers, refused)


# -- another cause on each worker -------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("start", range(4))
def test_each_worker_is_told_its_own(backend: str, start: int) -> None:
    """Causes that are not the request's own, one on each worker."""
    own = [cause for cause in CAUSES if backend in cause.backends and cause.is_workers_own][start::4]
    workers, ask = a_fleet(len(own), backend), an_ask(backend, "spread")
    expected = {worker.id: cause.inject(worker, ask) for worker, cause in zip(workers, own, strict=True)}
    refused = place(ask.request(), [worker.machine() for worker in workers])
    assert isinstance(refused, Refused)
    assert {each.worker_id: each.reasons for each in refused.workers} == expected
    assert [len(each.reasons) for each in refused.workers] == sorted(len(each.reasons) for each in refused.workers)
    check_suggestions(ask, workers, refused)


# -- what is wrong with the request -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Wish:
    name: str
    ask: Callable[[], Ask]
    expected: tuple[ReasonBase, ...]
    helps: tuple[Help, ...] = ()
    workers: int = 2


def asking(
    backend: str = "vLLM", *parameters: str, weights: ModelWeights | None = None, **spec: Any
) -> Callable[[], Ask]:
    return lambda: Ask(backend, "spread", spec, weights or safetensors(WEIGHTS), parameters=list(parameters))


def invalid(parameter: str, value: str, expected: str, field: str = "backend_parameters") -> ParameterInvalid:
    return ParameterInvalid(parameter=parameter, value=value, expected=expected, field=field)


def says(text: str) -> Help:
    return lambda suggestion: suggestion.text == text


VISION: Final = {**QWEN3_8B, "vision_config": {"num_heads": 6}}
ODD_VOCABULARY: Final = {**QWEN3_8B, "vocab_size": 151937}
SIZES: Final = "a whole number from 1 to 4096"
A_SHARE: Final = "a share above 0 and at most 1"
CACHE_TYPES: Final = (
    "one of fp8, fp8_e4m3, fp8_e5m2, fp8_inc, int8, bf16, bfloat16, fp16, float16, f16, half, f32, float32, q8_0, q5_1,"
    " q5_0, q4_1, q4_0, iq4_nl, fp4_e2m1"
)
TOKENS: Final = "a number of tokens from 1 to 100000000"
SELECTED: Final = {"gpu_ids": ["a0:cuda:0", "a0:cuda:1"]}

WISHES: Final = (
    *(
        Wish(
            f"heads by {size} on {backend}",
            asking(backend, f"{TENSOR_FLAG[backend]}={size}"),
            (
                HeadsNotDivisible(heads=32, tensor_parallel_size=size),
                VocabularyNotDivisible(vocabulary_size=151936, tensor_parallel_size=size),
            ),
            (flag(TENSOR_FLAG),),
        )
        for backend in ("vLLM", "SGLang")
        for size in (3, 5, 6, 7)
    ),
    Wish(
        "vocabulary",
        asking("vLLM", "-tp=2", weights=safetensors(WEIGHTS, ODD_VOCABULARY)),
        (VocabularyNotDivisible(vocabulary_size=151937, tensor_parallel_size=2),),
        (says("with --tensor-parallel-size=1 it fits"),),
    ),
    Wish(
        "vision heads",
        asking("vLLM", "-tp=4", weights=safetensors(WEIGHTS, VISION)),
        (HeadsNotDivisible(heads=6, tensor_parallel_size=4, of="vision"),),
        (says("with --tensor-parallel-size=2 it fits"),),
    ),
    Wish(
        "heads by the selection",
        asking("SGLang", "--speculative-algorithm=NGRAM", gpu_selector={"gpus_per_replica": 3}),
        (
            HeadsNotDivisible(heads=32, tensor_parallel_size=3, field="gpu_selector"),
            VocabularyNotDivisible(vocabulary_size=151936, tensor_parallel_size=3, field="gpu_selector"),
        ),
        (flag(TENSOR_FLAG),),
    ),
    Wish(
        "more stages than layers",
        asking("SGLang", "--pp-size=40"),
        (TooFewLayers(layers=36, pipeline_parallel_size=40),),
        (flag(TENSOR_FLAG),),
    ),
    Wish(
        "world size",
        asking("vLLM", "-tp=4", gpu_selector=SELECTED),
        (WorldSizeDoesNotMatch(world_size=4, selected=2),),
        (says("with --tensor-parallel-size=2 it fits"), says("without parallel sizes it fits")),
    ),
    Wish(
        "pipeline too",
        asking("vLLM", "-tp=2", "-pp=2", gpu_selector=SELECTED),
        (WorldSizeDoesNotMatch(world_size=4, selected=2),),
        (says("with --tensor-parallel-size=2 it fits"),),
    ),
    Wish(
        "unknown GPU",
        asking("vLLM", gpu_selector={"gpu_ids": ["a0:cuda:9"]}),
        (GpuUnknown(gpu_ids=("a0:cuda:9",)),),
        (sets(gpu_selector=None),),
    ),
    Wish(
        "unknown GPUs among known ones",
        asking("vLLM", gpu_selector={"gpu_ids": ["a0:cuda:0", "x:cuda:0", "b1:cuda:7"]}),
        (GpuUnknown(gpu_ids=("x:cuda:0", "b1:cuda:7")),),
        (sets(gpu_selector=None),),
    ),
    Wish(
        "two kinds",
        asking("vLLM", gpu_selector={"gpu_ids": ["a0:cuda:0", "b1:rocm:0"]}),
        (GpuTypesMixed(types=("cuda", "rocm")), GpuUnknown(gpu_ids=("b1:rocm:0",))),
        (sets(gpu_selector=None),),
    ),
    Wish(
        "too few selected",
        asking("vLLM", gpu_selector=SELECTED | {"gpus_per_replica": 4}),
        (TooFewGpusSelected(needed=4, selected=2),),
        (sets(gpu_selector=None),),
    ),
    Wish(
        "too few for all replicas",
        asking("vLLM", replicas=3, gpu_selector=SELECTED | {"gpus_per_replica": 1}),
        (TooFewGpusSelected(needed=3, selected=2, replicas=3),),
        (sets(gpu_selector=None),),
    ),
    *(
        Wish(
            f"{backend} {name} {value!r}",
            asking(backend, f"{name}={value}"),
            (invalid(first, value, expected),),
            (says(f"without {first} it fits"),),
        )
        for backend, name, first, value, expected in (
            ("vLLM", "--tensor-parallel-size", "--tensor-parallel-size", "two", SIZES),
            ("vLLM", "-tp", "--tensor-parallel-size", "0", SIZES),
            ("vLLM", "-tp", "--tensor-parallel-size", "-1", SIZES),
            ("vLLM", "-pp", "--pipeline-parallel-size", "1.5", SIZES),
            ("vLLM", "--data-parallel-size", "--data-parallel-size", "5000", SIZES),
            ("vLLM", "--gpu-memory-utilization", "--gpu-memory-utilization", "nan", A_SHARE),
            ("vLLM", "--gpu-memory-utilization", "--gpu-memory-utilization", "0", A_SHARE),
            ("vLLM", "--gpu-memory-utilization", "--gpu-memory-utilization", "1.01", A_SHARE),
            ("vLLM", "--gpu-memory-utilization", "--gpu-memory-utilization", "90%", A_SHARE),
            ("vLLM", "--max-model-len", "--max-model-len", "-5", TOKENS),
            ("vLLM", "--max-model-len", "--max-model-len", "many", TOKENS),
            ("SGLang", "--tp", "--tp-size", "x", SIZES),
            ("SGLang", "--mem-fraction-static", "--mem-fraction-static", "-0.5", A_SHARE),
            ("SGLang", "--context-length", "--context-length", "1e9", TOKENS),
            ("SGLang", "--dp", "--dp-size", "inf", SIZES),
        )
    ),
    Wish(
        "cache type",
        asking("vLLM", "--kv-cache-dtype=fp7"),
        (
            invalid(
                "--kv-cache-dtype",
                "fp7",
                CACHE_TYPES,
            ),
        ),
        (says("without --kv-cache-dtype it fits"),),
    ),
    Wish(
        "claim",
        asking("vLLM", env={"GPUSTACK_MODEL_VRAM_CLAIM": "20GB"}),
        (invalid("GPUSTACK_MODEL_VRAM_CLAIM", "20GB", "a number of bytes", "env"),),
        (says("without GPUSTACK_MODEL_VRAM_CLAIM it fits"),),
    ),
    Wish(
        "claim of RAM",
        asking("vLLM", env={"GPUSTACK_MODEL_RAM_CLAIM": "-1"}),
        (invalid("GPUSTACK_MODEL_RAM_CLAIM", "-1", "a number of bytes", "env"),),
        (says("without GPUSTACK_MODEL_RAM_CLAIM it fits"),),
    ),
    Wish(
        "pipeline and speculation",
        asking("SGLang", "--pp-size=2", "--speculative-algorithm=EAGLE3"),
        (
            ParametersContradict(
                parameters=("--pp-size", "--speculative-algorithm"),
                problem="a pipeline of several stages can't speculate",
            ),
        ),
        (says("without --speculative-algorithm it fits"),),
    ),
    Wish(
        "pipeline and speculation by configuration",
        asking("SGLang", "--pp-size=2", speculative_config={"algorithm": "ngram"}),
        (
            ParametersContradict(
                parameters=("--pp-size", "--speculative-algorithm"),
                problem="a pipeline of several stages can't speculate",
            ),
        ),
        (says("without --speculative-algorithm it fits"),),
    ),
    Wish(
        "pipeline and mixed chunks",
        asking("SGLang", "--pp-size=2", "--enable-mixed-chunk"),
        (
            ParametersContradict(
                parameters=("--pp-size", "--enable-mixed-chunk"),
                problem="a pipeline of several stages can't mix chunks",
            ),
        ),
        (says("without --enable-mixed-chunk it fits"),),
    ),
    Wish(
        "speculation and mixed chunks",
        asking("SGLang", "--enable-mixed-chunk", "--speculative-algorithm NGRAM"),
        (
            ParametersContradict(
                parameters=("--speculative-algorithm", "--enable-mixed-chunk"),
                problem="mixed chunks must be off for speculative decoding",
            ),
        ),
        (says("without --enable-mixed-chunk it fits"),),
    ),
    Wish(
        "version",
        asking("vLLM", backend_version="0.99"),
        (BackendVersionUnknown(backend="vLLM", version="0.99", known=("0.8.0", "0.33")),),
        (sets(backend_version=None),),
    ),
    Wish(
        "old version",
        asking("SGLang", backend_version="0.4.0"),
        (BackendVersionUnknown(backend="SGLang", version="0.4.0", known=("0.4.6", "0.5.23")),),
        (sets(backend_version=None),),
    ),
    Wish(
        "no version",
        asking("vLLM", backend_version="latest"),
        (BackendVersionUnknown(backend="vLLM", version="latest", known=("0.8.0", "0.33")),),
        (sets(backend_version=None),),
    ),
    Wish(
        "backend",
        asking("TGI"),
        (BackendUnknown(backend="TGI", known=("llama.cpp", "vLLM", "SGLang", "MindIE", "Custom")),),
    ),
    Wish("nobody", asking(), (NoWorkers(),), workers=0),
    *(
        Wish(
            f"{backend} over {count} workers",
            asking(backend, weights=safetensors(size * GIB), distributed_inference_across_workers=True),
            (
                WorkersDoNotAddUp(
                    gpus_needed=needed, largest_group=2 * count, accelerator="cuda", largest_if_empty=2 * count
                ),
            ),
            workers=count,
        )
        for backend, size, count, needed in (
            ("vLLM", 300, 2, 6),
            ("vLLM", 500, 3, 10),
            ("SGLang", 300, 2, 6),
            ("Custom", 300, 2, 10),
        )
    ),
)


@pytest.mark.parametrize("wish", WISHES, ids=lambda wish: wish.name)
def test_what_is_wrong_with_the_request_is_stated(wish: Wish) -> None:
    ask = wish.ask()
    workers = a_fleet(wish.workers, "Custom" if ask.backend == "Custom" else "vLLM")
    refused = place(ask.request(), [worker.machine() for worker in workers])
    assert isinstance(refused, Refused)
    assert refused.request == wish.expected
    suggestions = check_suggestions(ask, workers, refused)
    for number, helps in enumerate(wish.helps):
        assert any(helps(each) for each in suggestions), (number, [each.text for each in suggestions])


@pytest.mark.parametrize("count", [2, 3, 5])
def test_a_network_that_is_down_is_stated(count: int) -> None:
    ask = Ask("MindIE", "spread", {"distributed_inference_across_workers": True}, safetensors(150 * GIB))
    workers = a_fleet(count, "MindIE")
    for worker in workers[1:]:
        worker.gpu["network"] = {"up": False}
    refused = place(ask.request(), [worker.machine() for worker in workers])
    assert isinstance(refused, Refused)
    assert refused.request[:-1] == tuple(NetworkDown(worker_id=each.id, gpu_indexes=(0, 1)) for each in workers[1:])
    assert refused.request[-1] == WorkersDoNotAddUp(
        gpus_needed=4, largest_group=2, accelerator="cann", largest_if_empty=2
    )
    check_suggestions(ask, workers, refused)


@pytest.mark.parametrize(("backend", "size"), [("vLLM", 100), ("SGLang", 100), ("Custom", 60), ("MindIE", 80)])
def test_several_workers_are_suggested_where_only_one_is_allowed(backend: str, size: int) -> None:
    ask = Ask(backend, "spread", weights=safetensors(size * GIB))
    workers = a_fleet(4, backend)
    for worker in workers:
        worker.count = 1
    refused = place(ask.request(), [worker.machine() for worker in workers])
    assert isinstance(refused, Refused)
    assert {reason.code for reason in refused.reasons} == {"not_enough_vram"}
    suggestions = check_suggestions(ask, workers, refused)
    assert any(sets(distributed_inference_across_workers=True)(each) for each in suggestions)


@pytest.mark.parametrize("count", [1, 8, 20])
def test_who_selects_gpus_is_told_of_them_first(count: int) -> None:
    """Others lack only the selection, and are no closer for that."""
    ask = an_ask("vLLM", "spread")
    workers = a_fleet(count + 1, "vLLM")
    last = workers[-1]
    ask.spec["gpu_selector"] = {"gpu_ids": [f"{last.name}:cuda:0"]}
    expected = share_not_free(70)(last, ask)
    assert len(expected) == 2
    refused = place(ask.request(), [worker.machine() for worker in workers])
    assert isinstance(refused, Refused)
    assert refused.closest == last.id
    assert refused.workers[0].reasons == expected
    wanted = (f"{last.name}:cuda:0",)
    assert {each.reasons for each in refused.workers[1:]} == {
        (GpuNotSelected(worker_id=each.worker_id, wanted=wanted),) for each in refused.workers[1:]
    }
    suggestions = check_suggestions(ask, workers, refused)
    assert any(sets(gpu_selector=None)(each) for each in suggestions)
    assert any(action("delete_instance")(each) for each in suggestions)


def test_two_hundred_causes_and_more_are_tried() -> None:
    tried = len(SINGLES) + len(PAIRS) + len(BACKENDS) * 4 + len(WISHES) + 10
    print(f"{tried} injected causes: {len(SINGLES)} alone, {len(PAIRS)} pairs, {len(WISHES)} of requests")
    assert tried >= 200

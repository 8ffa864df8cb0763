"""What a model's parameters say: every form in which they are written, and what can't be."""

import math
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from schemas.models import ModelSpec
from schemas.reasons import (
    BackendUnknown,
    BackendVersionUnknown,
    GpuTypesMixed,
    HeadsNotDivisible,
    ParameterInvalid,
    ParametersContradict,
    TooFewGpusSelected,
    VocabularyNotDivisible,
    WorldSizeDoesNotMatch,
)
from schemas.wanted import wanted_of
from services.scheduler.domain.placement import wrong_with
from tests.services.scheduler.placement.fleets import (
    GIB,
    QWEN3_8B,
    a_machine,
    a_request,
    a_spec,
    gpus,
    safetensors,
)

BACKENDS = ("llama.cpp", "vLLM", "SGLang", "MindIE", "Custom")


def spec(*parameters: str, backend: str = "vLLM", **fields: Any) -> ModelSpec:
    return a_spec(backend=backend, backend_parameters=parameters, **fields)


# -- forms ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "parameters",
    [
        ["--tensor-parallel-size=4"],
        ["--tensor-parallel-size 4"],
        ["--tensor-parallel-size", "4"],
        ["--tensor_parallel_size=4"],
        ["--tensor_parallel_size 4"],
        ["--tensor_parallel_size", "4"],
        ["-tp", "4"],
        ["-tp=4"],
        ["-tp 4"],
        ["--tensor-parallel-size=2", "-tp=4"],
        ["-tp=2", "--tensor-parallel-size", "4"],
        ["--enforce-eager", "-tp", "4", "--swap-space", "9"],
        ["--hf-overrides", '{"a": {"tensor_parallel_size": 9}}', "-tp", "4"],
        ["--tensor-parallel-size", " 4 "],
        ["--tensor-parallel-size=+4"],
    ],
)
def test_every_form_of_a_parameter_is_read_and_the_last_one_wins(parameters: list[str]) -> None:
    wanted = wanted_of(spec(*parameters))
    assert (wanted.tensor, wanted.problems) == (4, ())


@pytest.mark.parametrize(
    ("backend", "parameters", "field", "value"),
    [
        ("vLLM", ["--gpu-memory-utilization=0.5"], "share", 0.5),
        ("vLLM", ["--gpu_memory_utilization", ".75"], "share", 0.75),
        ("vLLM", ["--gpu-memory-utilization=1"], "share", 1.0),
        ("vLLM", ["--gpu-memory-utilization=9e-1"], "share", 0.9),
        ("SGLang", ["--mem-fraction-static 0.8"], "share", 0.8),
        ("MindIE", ["--npu-memory-fraction=0.8"], "share", 0.8),
        ("vLLM", ["--max-model-len=4096"], "context", 4096),
        ("vLLM", ["--max-model-len=32k"], "context", 32000),
        ("vLLM", ["--max-model-len=32K"], "context", 32768),
        ("vLLM", ["--max-model-len", "1.5k"], "context", 1500),
        ("vLLM", ["--max-model-len=1M"], "context", 2**20),
        ("vLLM", ["--max-model-len=auto"], "context", None),
        ("vLLM", ["--max-model-len", "-1"], "context", None),
        ("SGLang", ["--context-length=100"], "context", 100),
        ("MindIE", ["--max-seq-len", "100"], "context", 100),
        ("llama.cpp", ["-c", "512"], "context", 512),
        ("llama.cpp", ["--ctx-size=512"], "context", 512),
        ("vLLM", ["-pp", "3"], "pipeline", 3),
        ("vLLM", ["-dp=3"], "data", 3),
        ("SGLang", ["--tp", "2"], "tensor", 2),
        ("SGLang", ["--tensor-parallel-size=2"], "tensor", 2),
        ("SGLang", ["--pp-size=2"], "pipeline", 2),
        ("SGLang", ["--dp 2"], "data", 2),
        ("MindIE", ["--tp=2"], "tensor", 2),
        ("vLLM", ["--kv-cache-dtype=fp8"], "cache_bytes", 1),
        ("vLLM", ["--kv-cache-dtype=auto"], "cache_bytes", None),
        ("llama.cpp", ["-ctk", "q8_0"], "cache_bytes", 34 / 32),
        ("vLLM", ["--enforce-eager"], "eager", True),
        ("vLLM", ["--enforce-eager=false"], "eager", False),
        ("SGLang", ["--disable-cuda-graph"], "eager", True),
        ("llama.cpp", ["-ngl", "20"], "gpu_layers", 20),
        ("llama.cpp", ["--gpu-layers=0"], "gpu_layers", 0),
        ("llama.cpp", ["--n-gpu-layers", "all"], "gpu_layers", None),
        ("llama.cpp", ["--n-gpu-layers=-1"], "gpu_layers", None),
        ("vLLM", ["-c", "512"], "context", None),
        ("vLLM", ["-ngl", "9"], "gpu_layers", None),
        ("llama.cpp", ["-tp", "9"], "tensor", None),
        ("Custom", ["--tensor-parallel-size=9"], "tensor", None),
        ("Custom", ["--gpu-memory-utilization=9"], "share", None),
    ],
)
def test_each_engines_own_names_are_known(backend: str, parameters: list[str], field: str, value: object) -> None:
    wanted = wanted_of(spec(*parameters, backend=backend))
    assert (getattr(wanted, field), wanted.problems) == (value, ())


def test_the_world_is_the_product_of_the_sizes() -> None:
    assert wanted_of(spec()).world_size is None
    assert wanted_of(spec("-tp=2", "-pp=3", "-dp=4")).world_size == 24
    assert wanted_of(spec("-pp=3")).gpus == 3


def test_what_the_author_claims_is_taken_from_the_model_or_its_environment() -> None:
    by_env = wanted_of(spec(env={"GPUSTACK_MODEL_VRAM_CLAIM": "123", "GPUSTACK_MODEL_RAM_CLAIM": "45"}))
    assert (by_env.vram_bytes, by_env.ram_bytes) == (123, 45)
    both = wanted_of(spec(env={"GPUSTACK_MODEL_VRAM_CLAIM": "123"}, claim_override={"vram": 7, "ram": 0}))
    assert (both.vram_bytes, both.ram_bytes) == (7, 0)
    assert wanted_of(spec()).vram_bytes is None


@pytest.mark.parametrize(
    ("selector", "replicas", "parameters", "expected"),
    [
        (None, 1, [], None),
        ({"gpus_per_replica": 2}, 1, [], 2),
        ({"gpu_ids": ["a:cuda:0"]}, 1, [], 1),
        ({"gpu_ids": [f"a:cuda:{i}" for i in range(3)]}, 1, [], 2),
        ({"gpu_ids": [f"a:cuda:{i}" for i in range(4)]}, 2, [], 2),
        ({"gpu_ids": [f"a:cuda:{i}" for i in range(7)]}, 2, [], 2),
        ({"gpu_ids": ["a:cuda:0"]}, 4, [], 1),
        ({"gpu_ids": [f"a:cuda:{i}" for i in range(3)]}, 1, ["-tp=1", "-pp=3"], 3),
        ({"gpu_ids": ["a:cuda:0", "a:cuda:0", "a:cuda:1"]}, 1, [], 2),
        ({"gpu_ids": ["a:cuda:0", "a:cuda:1"], "gpus_per_replica": 1}, 2, [], 1),
    ],
)
def test_how_many_gpus_an_instance_is_to_have(
    selector: dict[str, Any] | None, replicas: int, parameters: list[str], expected: int | None
) -> None:
    wanted = wanted_of(spec(*parameters, gpu_selector=selector, replicas=replicas))
    assert (wanted.gpus, wanted.problems) == (expected, ())


# -- what can't be ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    ["0", "-1", "two", "2.0", "2.5", "", "nan", "inf", "1e3", "4097", "9" * 5000, "[" * 50_000, "²", "٣", "0x4", "true", "null"],
)  # fmt: skip
def test_a_size_that_is_none_is_a_problem(text: str) -> None:
    wanted = wanted_of(spec(f"--tensor-parallel-size={text}"))
    assert wanted.tensor is None
    assert wanted.problems == (
        ParameterInvalid(parameter="--tensor-parallel-size", value=text[:80], expected="a whole number from 1 to 4096"),
    )


@pytest.mark.parametrize("text", ["0", "-0.1", "1.0001", "nan", "inf", "-inf", "90%", "", "half", "1e400", "1e-400"])
def test_a_share_that_is_none_is_a_problem(text: str) -> None:
    wanted = wanted_of(spec(f"--gpu-memory-utilization={text}"))
    assert wanted.share is None
    assert wanted.problems == (
        ParameterInvalid(parameter="--gpu-memory-utilization", value=text, expected="a share above 0 and at most 1"),
    )


@pytest.mark.parametrize("text", ["-5", "k", "1.k", "0.1", "²k", "9" * 400 + "k", "10G", "1e9", "", "200M", "0k"])
def test_a_length_that_is_none_is_a_problem(text: str) -> None:
    wanted = wanted_of(spec(f"--max-model-len={text}"))
    assert wanted.context is None
    assert wanted.problems == (
        ParameterInvalid(
            parameter="--max-model-len", value=text[:80], expected="a number of tokens from 1 to 100000000"
        ),
    )


def test_a_number_of_layers_that_is_none_is_a_problem() -> None:
    assert wanted_of(spec("-ngl", "most", backend="llama.cpp")).problems == (
        ParameterInvalid(parameter="--n-gpu-layers", value="most", expected="a number of layers, `auto` or `all`"),
    )


def test_a_flag_without_its_value_is_a_problem() -> None:
    assert wanted_of(spec("--max-model-len", "--enforce-eager")).problems == (
        ParameterInvalid(parameter="--max-model-len", value="", expected="a number of tokens from 1 to 100000000"),
    )


def test_all_problems_are_told_not_only_the_first() -> None:
    wanted = wanted_of(spec("-tp=0", "-pp=x", "--gpu-memory-utilization=2", backend_version="9"))
    assert [problem.code for problem in wanted.problems] == ["parameter_invalid"] * 3 + ["backend_version_unknown"]


def test_a_backend_that_is_unknown_is_the_only_problem() -> None:
    assert wanted_of(spec("-tp=0", backend="TGI")).problems == (BackendUnknown(backend="TGI", known=BACKENDS),)


@pytest.mark.parametrize(
    ("backend", "version", "known"),
    [
        ("vLLM", "0.32.9", True),
        ("vLLM", "v0.10.1", True),
        ("vLLM", "0.8.0", True),
        ("vLLM", "0.7.9", False),
        ("vLLM", "0.34", False),
        ("vLLM", "latest", False),
        ("SGLang", "0.5.23.post1", True),
        ("SGLang", "0.5.24", False),
        ("llama.cpp", "b6000", True),
        ("Custom", "whatever", True),
    ],
)
def test_versions_are_known_as_far_as_there_are_images(backend: str, version: str, known: bool) -> None:
    problems = wanted_of(spec(backend=backend, backend_version=version)).problems
    if known:
        assert problems == ()
    else:
        (problem,) = problems
        assert isinstance(problem, BackendVersionUnknown)
        assert (problem.backend, problem.version, problem.field) == (backend, version, "backend_version")


def test_who_brings_an_image_may_call_its_version_as_he_likes() -> None:
    assert wanted_of(spec(backend_version="mine", image_name="x/y:z")).problems == ()


@pytest.mark.parametrize(
    ("selector", "parameters", "expected"),
    [
        (
            {"gpu_ids": [f"a:cuda:{i}" for i in range(4)]},
            ["-tp=2"],
            WorldSizeDoesNotMatch(world_size=2, selected=4),
        ),
        ({"gpus_per_replica": 2}, ["-tp=2", "-pp=2"], WorldSizeDoesNotMatch(world_size=4, selected=2)),
        ({"gpu_ids": ["a:cuda:0", "b:cuda:0"], "gpus_per_replica": 3}, [], TooFewGpusSelected(needed=3, selected=2)),
        ({"gpu_ids": ["a:cuda:0", "a:rocm:0"]}, [], GpuTypesMixed(types=("cuda", "rocm"))),
        ({"gpu_ids": ["host:1:cuda:0", "host:1:cann:1"]}, [], GpuTypesMixed(types=("cann", "cuda"))),
    ],
)
def test_a_selection_that_contradicts_is_a_problem(
    selector: dict[str, Any], parameters: list[str], expected: object
) -> None:
    assert wanted_of(spec(*parameters, gpu_selector=selector)).problems == (expected,)


def test_several_replicas_may_lie_on_gpus_of_different_kinds() -> None:
    assert wanted_of(spec(gpu_selector={"gpu_ids": ["a:cuda:0", "a:rocm:0"]}, replicas=2)).problems == ()


@pytest.mark.parametrize(
    ("value", "skipped"), [("1", True), ("true", True), ("0", False), ("false", False), ("", False)]
)
def test_the_check_of_the_number_of_gpus_can_be_left_out(value: str, skipped: bool) -> None:
    selector = {"gpu_ids": [f"a:cuda:{i}" for i in range(4)]}
    wanted = wanted_of(spec("-tp=2", gpu_selector=selector, env={"GPUSTACK_SKIP_GPU_COUNT_CHECK": value}))
    assert (wanted.problems == ()) is skipped


@pytest.mark.parametrize(
    ("parameters", "fields", "expected"),
    [
        (["--pp-size=2", "--speculative-algorithm=EAGLE3"], {}, [("--pp-size", "--speculative-algorithm")]),
        (["--pp-size=2"], {"speculative_config": {"algorithm": "mtp"}}, [("--pp-size", "--speculative-algorithm")]),
        (["--pp-size=2", "--enable-mixed-chunk"], {}, [("--pp-size", "--enable-mixed-chunk")]),
        (["--enable-mixed-chunk", "--speculative-algorithm=NGRAM"], {}, [("--speculative-algorithm", "--enable-mixed-chunk")]),
        (
            ["--pp-size=2", "--enable-mixed-chunk", "--speculative-algorithm=NGRAM"],
            {},
            [
                ("--pp-size", "--speculative-algorithm"),
                ("--pp-size", "--enable-mixed-chunk"),
                ("--speculative-algorithm", "--enable-mixed-chunk"),
            ],
        ),
        (["--pp-size=1", "--speculative-algorithm=EAGLE3"], {}, []),
        (["--tp-size=2", "--enable-mixed-chunk"], {}, []),
        (["--pp-size=2", "--enable-mixed-chunk=false"], {}, []),
    ],
)  # fmt: skip
def test_sglang_excludes_what_it_excludes(
    parameters: list[str], fields: dict[str, Any], expected: list[tuple[str, str]]
) -> None:
    problems = wanted_of(spec(*parameters, backend="SGLang", **fields)).problems
    assert [problem.parameters for problem in problems if isinstance(problem, ParametersContradict)] == expected
    assert len(problems) == len(expected)
    assert wanted_of(spec(*parameters, **fields)).problems == ()  # vLLM has no such flags


# -- with the fleet, and with what the files are ----------------------------------------------------------------------


def test_sizes_that_divide_nothing_are_named_with_what_they_do_not_divide() -> None:
    config = {**QWEN3_8B, "num_attention_heads": 28, "vision_config": {"num_heads": 10}, "vocab_size": 1003}
    request = a_request(spec("-tp=8"), safetensors(GIB, config))
    assert wrong_with(request, [a_machine("w1", gpus(8))]) == (
        HeadsNotDivisible(heads=28, tensor_parallel_size=8),
        HeadsNotDivisible(heads=10, tensor_parallel_size=8, of="vision"),
        VocabularyNotDivisible(vocabulary_size=1003, tensor_parallel_size=8),
    )
    assert wrong_with(a_request(spec("-pp=3"), safetensors(GIB, config)), [a_machine("w1", gpus(8))]) == ()


@pytest.mark.parametrize(
    ("replicas", "fields", "expected"),
    [
        (2, {}, ()),
        (3, {}, (TooFewGpusSelected(needed=6, selected=4, replicas=3),)),
        (3, {"packed": True}, ()),
        (3, {"backend_parameters": ["--gpu-memory-utilization=0.4"]}, ()),
        (5, {"backend_parameters": ["--gpu-memory-utilization=0.4"]}, (TooFewGpusSelected(needed=10, selected=4, replicas=5),)),
        (3, {"backend": "Custom"}, ()),
    ],
)  # fmt: skip
def test_the_selection_must_do_for_all_replicas(replicas: int, fields: dict[str, Any], expected: tuple[object]) -> None:
    selector = {"gpu_ids": [f"w1:cuda:{i}" for i in range(4)], "gpus_per_replica": 2}
    request = a_request(a_spec(gpu_selector=selector, replicas=replicas, **fields))
    assert wrong_with(request, [a_machine("w1", gpus(4))]) == expected


# -- anything ---------------------------------------------------------------------------------------------------------

NAMES = (
    "--gpu-memory-utilization", "--mem-fraction-static", "--max-model-len", "--ctx-size", "-c", "-tp", "--tp-size",
    "--tensor_parallel_size", "-pp", "-dp", "--kv-cache-dtype", "-ngl", "--speculative-algorithm", "--enable-mixed-chunk",
    "--chunked-prefill-size", "--cuda-graph-max-bs", "--context-length", "--max-seq-len", "--npu-memory-fraction",
    "--cpu-mem-size", "--max-num-batched-tokens", "--max-num-seqs", "--piecewise-cuda-graph-max-tokens",
)  # fmt: skip
VALUES = st.one_of(
    st.integers().map(str),
    st.floats().map(str),
    st.sampled_from(["", "auto", "8k", "²", "²k", "9" * 5000, "1e400", "-1", "[" * 20_000, "0.5", "4", "nan", "None"]),
    st.text(max_size=12),
)


def in_one(name: str, between: str, value: str) -> str:
    return f"{name}{between}{value}"


PARAMETERS = st.lists(
    st.one_of(
        st.builds(in_one, st.sampled_from(NAMES), st.sampled_from(["=", " "]), VALUES),
        st.sampled_from(NAMES),
        VALUES,
    ),
    max_size=6,
)


@given(PARAMETERS, st.sampled_from((*BACKENDS, "TGI", "")), VALUES, VALUES)
@example(["--chunked-prefill-size=" + "9" * 400, "--cuda-graph-max-bs=²"], "SGLang", "²", "9" * 5000)
def test_no_parameters_are_too_odd(parameters: list[str], backend: str, version: str, claim: str) -> None:
    """Nothing is raised, here or when its place is looked for; and what is read is within its bounds."""
    odd = spec(*parameters, backend=backend, backend_version=version or None, env={"GPUSTACK_MODEL_VRAM_CLAIM": claim})
    wanted = wanted_of(odd)
    assert wanted.share is None or (0 < wanted.share <= 1 and math.isfinite(wanted.share))
    assert all(size is None or 1 <= size <= 4096 for size in (wanted.tensor, wanted.pipeline, wanted.data))
    assert wanted.context is None or 1 <= wanted.context <= 100_000_000
    assert wanted.vram_bytes is None or 0 <= wanted.vram_bytes <= 2**60
    assert wanted_of(odd) == wanted
    request = a_request(odd)
    if request.usual is not None and not wanted.problems:
        profile = a_machine("w1", gpus(1)).pools[0].gpus[0].profile
        request.usual.takes(profile, 8)

"""What-if over a fleet that is described: the contract of the answer, contradictions, and whatever people may write."""

import json
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from schemas.ids import ModelId, WorkerId
from schemas.models import ModelSpec, ModelWeights, Pinned
from schemas.placements import PlacementAnswer, PlacementQuestion
from schemas.reasons import REASONS
from schemas.sources import HuggingFace, LocalPath, ModelScope, Source
from services.scheduler.domain.fleet import Fleet, Inspection, Model, Wish, question_about
from services.scheduler.domain.plan import known_weights, plan_offline
from tests.services.scheduler.placement.fleets import GIB, QWEN3_8B

FIELDS: Final = {reason.model_fields["code"].default: set(reason.model_fields) for reason in REASONS}


def a_gpu(index: int, kind: str = "cuda", gib: int = 80, **fields: Any) -> dict[str, Any]:
    return {"type": kind, "vendor": "v", "index": index, "name": "a GPU", "memory_total": gib * GIB} | fields


def a_worker(name: str, *gpus: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"name": name, "memory_total": 1024 * GIB, "gpus": list(gpus)} | fields


FLEET: Final = (
    a_worker("w1", *(a_gpu(index) for index in range(8))),
    a_worker("w2", a_gpu(0), a_gpu(1), a_gpu(0, "rocm", 192)),
)
FACTS: Final = {"weight_bytes": 15 * GIB, "config": QWEN3_8B}


def asked(
    model: dict[str, Any], fleet: tuple[dict[str, Any], ...] = FLEET, facts: dict[str, Any] = FACTS
) -> PlacementAnswer:
    question = {"model": {"name": "m"} | model, "facts": facts, "fleet": fleet}
    return plan_offline(PlacementQuestion.model_validate_json(json.dumps(question)))


def selecting(*ids: str, per: int | None = None) -> dict[str, Any]:
    return {"gpu_selector": {"gpu_ids": ids, "gpus_per_replica": per}}


EIGHT: Final = tuple(f"w1:cuda:{index}" for index in range(8))


@pytest.mark.parametrize(
    ("model", "code", "numbers"),
    [
        (
            {"backend_parameters": ["-tp=2", "-pp=2"]} | selecting(*EIGHT[:2]),
            "world_size_does_not_match",
            {"world_size": 4, "selected": 2, "field": "gpu_selector"},
        ),
        (
            {"backend_parameters": ["-tp=3"]},
            "heads_not_divisible",
            {"heads": 32, "tensor_parallel_size": 3, "of": "attention", "field": "backend_parameters"},
        ),
        (
            {"backend_parameters": ["-tp=3"]},
            "vocabulary_not_divisible",
            {"vocabulary_size": 151936, "tensor_parallel_size": 3, "field": "backend_parameters"},
        ),
        (
            {"backend": "MindIE", "gpu_selector": {"gpus_per_replica": 6}},
            "heads_not_divisible",
            {"heads": 32, "tensor_parallel_size": 6, "of": "attention", "field": "gpu_selector"},
        ),
        (selecting("w1:cuda:9"), "gpu_unknown", {"gpu_ids": ["w1:cuda:9"], "field": "gpu_selector.gpu_ids"}),
        (
            selecting("w2:cuda:0", "w2:rocm:0"),
            "gpu_types_mixed",
            {"types": ["cuda", "rocm"], "field": "gpu_selector.gpu_ids"},
        ),
        (
            {"replicas": 3} | selecting(*EIGHT, per=4),
            "too_few_gpus_selected",
            {"needed": 12, "selected": 8, "replicas": 3, "field": "gpu_selector"},
        ),
        (
            {"backend_parameters": ["--tensor-parallel-size=-2"]},
            "parameter_invalid",
            {
                "parameter": "--tensor-parallel-size",
                "value": "-2",
                "expected": "a whole number from 1 to 4096",
                "field": "backend_parameters",
            },
        ),
        (
            {"backend": "MindIE", "backend_parameters": ["--cpu-mem-size=-5"]},
            "parameter_invalid",
            {
                "parameter": "--cpu-mem-size",
                "value": "-5",
                "expected": "a whole number from 0 to 1048576",
                "field": "backend_parameters",
            },
        ),
        (
            {"backend_parameters": ["-pp=40"]},
            "too_few_layers",
            {"layers": 36, "pipeline_parallel_size": 40, "field": "backend_parameters"},
        ),
        (
            {"backend": "TGI"},
            "backend_unknown",
            {"backend": "TGI", "known": ["llama.cpp", "vLLM", "SGLang", "MindIE", "Custom"], "field": "backend"},
        ),
        (
            {"backend_version": "99.1"},
            "backend_version_unknown",
            {"backend": "vLLM", "version": "99.1", "known": ["0.8.0", "0.33"], "field": "backend_version"},
        ),
        (
            {"backend_parameters": ["--api_key", "mine"]},
            "flag_is_ours",
            {
                "flag": "--api-key",
                "instead": "leave it out, each attempt gets a key of its own",
                "field": "backend_parameters",
            },
        ),
        (
            {"env": {"CUDA_VISIBLE_DEVICES": "0"}},
            "variable_not_allowed",
            {
                "variable": "CUDA_VISIBLE_DEVICES",
                "why": "which GPUs an engine sees follows from its place",
                "instead": "use gpu_selector",
                "field": "env",
            },
        ),
    ],
)
def test_what_contradicts_is_refused_with_its_code_field_and_numbers(
    model: dict[str, Any], code: str, numbers: dict[str, Any]
) -> None:
    answer = asked(model)
    assert (answer.placed, answer.placements) == (False, ())
    (objection,) = (each for each in answer.objections if each.code == code)
    assert (objection.worker, objection.who, objection.numbers) == (None, "author", numbers)
    assert objection.text in answer.summary or answer.objections[0].code != code


@pytest.mark.parametrize(
    ("fleet", "where", "kind"),
    [
        ((a_worker("w1"), a_worker("w1")), ("fleet",), "duplicate_name"),
        ((a_worker("w1", a_gpu(0), a_gpu(0)),), ("fleet", 0, "gpus"), "duplicate_gpu"),
        ((a_worker("w1", a_gpu(0), claims=[{"vram": {"7": 1}}]),), ("fleet", 0), "claim_elsewhere"),
        ((a_worker("w1", a_gpu(0, memory_total=-1)),), ("fleet", 0, "gpus", 0, "memory_total"), "greater_than_equal"),
    ],
)
def test_a_fleet_that_contradicts_itself_is_no_question(
    fleet: tuple[dict[str, Any], ...], where: tuple[object, ...], kind: str
) -> None:
    with pytest.raises(ValidationError) as caught:
        asked({}, fleet)
    (error,) = caught.value.errors()
    assert (error["loc"], error["type"]) == (where, kind)
    assert not error["msg"].startswith("Value error")


def test_what_nobody_knows_the_weight_of_is_not_being_looked_at_here() -> None:
    """Nobody looks at files for a question: what is unknown is said of every worker, beside its own objections."""
    answer = asked({}, (*FLEET, a_worker("w3", a_gpu(0), cordoned=True)), {})
    assert [(each.worker, each.code) for each in answer.objections] == [
        (None, "weights_unknown"),
        ("w1", "weights_unknown"),
        ("w2", "weights_unknown"),
        ("w3", "worker_cordoned"),
    ]
    assert answer.suggestions == ()


def test_what_the_system_keeps_is_nothing_to_wait_for() -> None:
    """Of 80 GiB it keeps 70: 20 are never free. The same of RAM."""
    kept = a_worker("w1", a_gpu(0), system_reserved={"ram": 0, "vram": 70 * GIB})
    (objection,) = asked({"distributed_inference_across_workers": False}, (kept,)).objections
    assert (objection.code, objection.who, objection.numbers["reserved_bytes"]) == (
        "not_enough_vram",
        "operator",
        70 * GIB,
    )
    ram = a_worker("w1", a_gpu(0), memory_total=8 * GIB, system_reserved={"ram": 7 * GIB, "vram": 0})
    (objection,) = asked({"backend": "Custom"}, (ram,)).objections
    assert (objection.code, objection.who, objection.numbers["reserved_bytes"]) == (
        "not_enough_ram",
        "operator",
        7 * GIB,
    )


# -- anything ---------------------------------------------------------------------------------------------------------

SIZES: Final = st.one_of(st.sampled_from([0, 1, 15 * GIB, 2**50, 2**60 - 1, 2**60]), st.integers(0, 2**60))
NUMBERS: Final = st.one_of(
    st.sampled_from([-1, 0, 1, 7, 32, 1024, 2**18, 2**24, 2**40]), st.text(max_size=2), st.none()
)
NAMES: Final = (
    "--gpu-memory-utilization", "--max-model-len", "--ctx-size", "-tp", "--tp-size", "-pp", "-dp", "--kv-cache-dtype",
    "-ngl", "--context-length", "--max-seq-len", "--cpu-mem-size", "--max-num-batched-tokens", "--max-num-seqs",
    "--chunked-prefill-size", "--cuda-graph-max-bs", "--piecewise-cuda-graph-max-tokens", "--enable-mixed-chunk",
)  # fmt: skip
VALUES: Final = st.sampled_from(
    ["", "-5", "0", "1", "3", "4096", "100000000", "100000001", "9" * 40, "0.5", "1e9", "auto", "fp8", "float32", "8k"]
)
MODELS: Final = st.fixed_dictionaries(
    {},
    optional={
        "backend": st.sampled_from(["vLLM", "SGLang", "MindIE", "llama.cpp", "Custom", "TGI"]),
        "backend_parameters": st.lists(st.builds("{}={}".format, st.sampled_from(NAMES), VALUES), max_size=4),
        "replicas": st.sampled_from([1, 2, 5]),
        "packed": st.booleans(),
        "cpu_offloading": st.booleans(),
        "placement_strategy": st.sampled_from(["spread", "binpack"]),
        "categories": st.lists(st.sampled_from(["llm", "embedding", "text_to_speech", "image"]), max_size=1),
        "gpu_selector": st.fixed_dictionaries(
            {},
            optional={
                "gpu_ids": st.lists(st.sampled_from([*EIGHT, "w2:rocm:0", "x", "w2:cuda:1"]), max_size=6),
                "gpus_per_replica": st.integers(1, 9),
            },
        ),
        "claim_override": st.fixed_dictionaries({}, optional={"vram": SIZES, "ram": SIZES}),
        "env": st.dictionaries(st.sampled_from(["GPUSTACK_MODEL_VRAM_CLAIM"]), VALUES, max_size=1),
    },
)
CONFIGS: Final = st.one_of(
    st.just(QWEN3_8B),
    st.dictionaries(
        st.sampled_from([*QWEN3_8B, "kv_lora_rank", "sliding_window", "text_config", "vision_config", "model_type"]), NUMBERS
    ),
)  # fmt: skip
ALL_FACTS: Final = st.fixed_dictionaries(
    {"weight_bytes": SIZES, "config": CONFIGS},
    optional={
        "lora_bytes": SIZES,
        "draft_bytes": SIZES,
        "layer_bytes": SIZES,
        "layers": st.integers(1, 100_000),
        "kv_heads": st.integers(1, 1_000_000),
        "head_size": st.integers(1, 1_000_000),
        "context_length": st.integers(1, 2**31),
    },
)
WORKERS: Final = st.fixed_dictionaries(
    {},
    optional={
        "memory_total": SIZES,
        "disk_free": SIZES,
        "cordoned": st.booleans(),
        "system_reserved": st.fixed_dictionaries({"ram": SIZES, "vram": SIZES}),
        "claims": st.lists(
            st.fixed_dictionaries({"type": st.just("cuda"), "ram": SIZES, "vram": st.just({"0": 2**60})}), max_size=3
        ),
    },
)


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None, max_examples=400)
@given(MODELS, ALL_FACTS, WORKERS)
@example({"backend": "MindIE", "backend_parameters": ["--cpu-mem-size=-5"]}, FACTS, {})
@example({"backend": "MindIE", "backend_parameters": ["--cpu-mem-size=" + "9" * 17]}, FACTS, {})
@example({}, {"weight_bytes": 2**60, "lora_bytes": 2**60, "draft_bytes": 2**60}, {"disk_free": 5})
@example({"backend": "llama.cpp"}, {"weight_bytes": 1, "layer_bytes": 2**60, "layers": 3}, {})
@example({"backend_parameters": ["-dp=4096"], "claim_override": {"vram": 2**60}}, FACTS, {})
@example(
    {"packed": True, "claim_override": {"vram": 2**60}, "backend_parameters": ["--max-model-len=100000000"]}, FACTS, {}
)
@example(
    {"backend": "llama.cpp", "backend_parameters": ["-ngl=29"]},
    {"weight_bytes": GIB, "layer_bytes": 30 * GIB, "layers": 30},
    {},
)
@example({"packed": True, "claim_override": {"vram": 2**60}, "gpu_selector": {"gpus_per_replica": 1}}, FACTS, {})
def test_whatever_is_asked_there_is_an_answer(
    model: dict[str, Any], facts: dict[str, Any], fields: dict[str, Any]
) -> None:
    """No size is too large and no parameter too odd; and the answer keeps its contract."""
    of = a_worker("w1", *(a_gpu(index) for index in range(8))) | fields
    answer = asked(model, (of, FLEET[1]), facts)
    assert PlacementAnswer.model_validate_json(answer.model_dump_json()) == answer
    if answer.placed:
        assert len(answer.placements) == model.get("replicas", 1)
        assert (answer.objections, answer.suggestions, answer.closest) == ((), (), None)
        return
    assert answer.placements == ()
    assert answer.objections
    for objection in answer.objections:
        assert set(objection.numbers) == FIELDS[objection.code] - {"code", "worker_id"}
    told = {objection.worker for objection in answer.objections}
    assert None in told or {"w1", "w2"} <= told


# -- what is known already ----------------------------------------------------------------------------------------------


def a_fleet_that_runs(source: Source, commit: str) -> tuple[Fleet, ModelWeights]:
    """One model from there, which was pinned to this commit; and what it weighs."""
    weights = ModelWeights(
        format="gguf",
        weight_bytes=GIB,
        pinned=(Pinned(source=source, commit=commit, bytes=GIB),),
    )
    fleet, model_id = Fleet(), ModelId("m-1")
    spec = ModelSpec(name="m", source=source)
    fleet.wishes[model_id] = Wish(spec, 1, 1)
    fleet.models[model_id] = Model(inspections={WorkerId("w-1"): Inspection(question_about(spec), 1, weights, ())})
    return fleet, weights


COMMIT: Final = "9f3c1e7a5b2d4c6e8f0a1b3c5d7e9f1a2b4c6d8e"


@pytest.mark.parametrize(
    ("asked", "is_known"),
    [
        (HuggingFace(repo_id="a/b", filename="q4.gguf"), True),
        (HuggingFace(repo_id="a/b", filename="q4.gguf", revision=COMMIT), True),
        (HuggingFace(repo_id="a/b", filename="q8.gguf", revision=COMMIT), False),
        (HuggingFace(repo_id="a/b", filename="q4.gguf", revision="v2"), False),
        (ModelScope(repo_id="a/b", filename="q4.gguf", revision=COMMIT), False),
        (LocalPath(path="/a/b"), False),
    ],
)
def test_what_a_deployed_model_was_pinned_to_is_known_by_its_branch_and_by_its_commit(
    asked: Source, is_known: bool
) -> None:
    fleet, weights = a_fleet_that_runs(HuggingFace(repo_id="a/b", filename="q4.gguf"), COMMIT)
    assert known_weights(fleet, asked) == (weights if is_known else None)


def test_a_question_says_where_the_files_are_as_a_model_does() -> None:
    for model, field in (
        ({"huggingface_repo_id": "a/b", "local_path": "/m"}, "local_path"),
        ({"source": "model_scope"}, "model_scope_model_id"),
        ({"revision": "v1"}, "source"),
    ):
        with pytest.raises(ValidationError) as refused:
            PlacementQuestion.model_validate({"model": model})
        assert refused.value.errors()[0]["loc"] == ("model", field)
    told = asked({"huggingface_repo_id": "a/b", "revision": "v1"})
    assert told.placed
    unknown = asked({"huggingface_repo_id": "a/b", "revision": "v1"}, facts={})
    assert "no weights were found in huggingface:a/b@v1" in str(unknown.objections)

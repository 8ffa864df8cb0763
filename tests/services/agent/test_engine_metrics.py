"""What engines count, under one set of names."""

from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from services.agent.adapters.engine_metrics import EngineMetrics
from services.agent.domain.engine_metrics import ENGINES, METRICS, Sample, normalised, tokens_made
from tests.services.agent.engines import an_id

RECORDED = Path(__file__).parent / "recorded_metrics"
FILES = {"vLLM": "vllm.txt", "SGLang": "sglang.txt", "llama.cpp": "llama_cpp.txt", "MindIE": "mindie.txt"}


def text_of(engine: str) -> str:
    return (RECORDED / FILES[engine]).read_text(encoding="utf-8")


def simple(engine: str) -> dict[str, float]:
    """All that is no histogram."""
    return {
        s.metric.removeprefix("muster_engine_") + s.suffix: s.value for s in normalised(text_of(engine)) if not s.labels
    }


def test_vllm() -> None:
    assert simple("vLLM") == {
        "requests_running": 5,
        "requests_waiting": 1,
        "kv_cache_usage_ratio": 0.5,
        "prompt_tokens_total": 1000,
        "generation_tokens_total": 300,
        "time_to_first_token_seconds_sum": 1.2,
        "time_to_first_token_seconds_count": 8,
        "inter_token_latency_seconds_sum": 0.4,
        "inter_token_latency_seconds_count": 8,
        "e2e_request_latency_seconds_sum": 12,
        "e2e_request_latency_seconds_count": 8,
        "preemptions_total": 4,
        "prefix_cache_queries_tokens_total": 1000,
        "prefix_cache_hits_tokens_total": 750,
        "speculative_draft_tokens_total": 60,
        "speculative_accepted_tokens_total": 24,
    }


def test_what_a_real_vllm_answers_has_the_same_names() -> None:
    text = (RECORDED / "vllm_cpu.txt").read_text(encoding="utf-8")
    found = {s.metric.removeprefix("muster_engine_") + s.suffix: s.value for s in normalised(text) if not s.labels}
    assert {name: value for name, value in found.items() if not name.endswith("_sum")} == {
        "requests_running": 0,
        "requests_waiting": 0,
        "kv_cache_usage_ratio": 0,
        "prompt_tokens_total": 30,
        "generation_tokens_total": 28,
        "time_to_first_token_seconds_count": 2,
        "inter_token_latency_seconds_count": 26,
        "e2e_request_latency_seconds_count": 2,
        "preemptions_total": 0,
        "prefix_cache_queries_tokens_total": 30,
        "prefix_cache_hits_tokens_total": 0,
    }
    assert tokens_made(text) == 58


def test_buckets_of_several_ranks_are_added_up_in_their_order() -> None:
    found = [
        (dict(s.labels)["le"], s.value)
        for s in normalised(text_of("SGLang"))
        if s.metric == "muster_engine_time_to_first_token_seconds" and s.labels
    ]
    assert found == [("0.1", 20), ("0.4", 100), ("+Inf", 200)]


def test_sglang_whose_ranks_all_count_the_same_requests() -> None:
    found = simple("SGLang")
    assert {name: value for name, value in found.items() if "seconds" not in name} == {
        "requests_running": 3,
        "requests_waiting": 1,
        "kv_cache_usage_ratio": 0.3,
        "prompt_tokens_total": 1000,
        "generation_tokens_total": 1000,
        "preemptions_total": 5,
        "prefix_cache_queries_tokens_total": 1000,
        "prefix_cache_hits_tokens_total": 400,
        "prefix_cache_hit_ratio": 0.4,
        "speculative_acceptance_ratio": 0.6,
    }


def test_llama_cpp() -> None:
    assert simple("llama.cpp") == {
        "requests_running": 0,
        "requests_waiting": 0,
        "prompt_tokens_total": 16,
        "generation_tokens_total": 15,
        "prefix_cache_queries_tokens_total": 16,
        "prefix_cache_hits_tokens_total": 0,
        "speculative_draft_tokens_total": 0,
        "speculative_accepted_tokens_total": 0,
    }


def test_mindie() -> None:
    found = simple("MindIE")
    assert {name: value for name, value in found.items() if "seconds" not in name} == {
        "requests_running": 2,
        "requests_waiting": 1,
        "kv_cache_usage_ratio": 0.75,
        "prompt_tokens_total": 9564,
        "generation_tokens_total": 84425,
        "preemptions_total": 637,
        "prefix_cache_hit_ratio": 0.5,
    }
    assert found["inter_token_latency_seconds_count"] == 85800


@pytest.mark.parametrize(
    ("text", "usage"),
    [
        ("vllm:gpu_cache_usage_perc 0.7\n", 0.7),
        ("vllm:gpu_cache_usage_perc 0.7\nvllm:kv_cache_usage_perc 0.1\n", 0.1),
    ],
)
def test_an_older_name_counts_where_the_newer_one_is_not_there(text: str, usage: float) -> None:
    assert normalised(text) == (Sample("muster_engine_kv_cache_usage_ratio", "", (), usage),)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "<html>no metrics here</html>",
        "vllm:num_requests_running{",
        "vllm:num_requests_running NaN\nvllm:num_requests_waiting +Inf\n",
        "something_else 1\n",
        "\x00\xff",
    ],
)
def test_what_says_nothing_is_nothing(text: str) -> None:
    assert normalised(text) == ()


def test_what_came_before_a_broken_line_counts() -> None:
    assert simple_of("vllm:num_requests_running 3\nvllm:num_requests_waiting{ oops\n") == {"requests_running": 3}


def simple_of(text: str) -> dict[str, float]:
    return {s.metric.removeprefix("muster_engine_") + s.suffix: s.value for s in normalised(text)}


def test_tokens_made_are_those_read_and_those_written() -> None:
    assert tokens_made(text_of("vLLM")) == 1300
    assert tokens_made("something_else 1\n") is None


def test_every_source_belongs_to_an_engine_that_there_is() -> None:
    assert {engine for metric in METRICS for engine in metric.sources} <= set(ENGINES) == set(FILES)


def families(registry: CollectorRegistry) -> dict[str, Any]:
    return {family.name: family for family in text_string_to_metric_families(generate_latest(registry).decode())}


def test_the_agent_shows_them_with_whose_they_are_until_the_engine_is_gone() -> None:
    registry = CollectorRegistry(auto_describe=True)
    metrics = EngineMetrics("gpu-1", registry)
    metrics.tell(an_id(3), "qwen3", normalised(text_of("vLLM")))
    metrics.tell(an_id(1, "i-2"), "tiny", normalised(text_of("llama.cpp")))

    found = families(registry)
    tokens = found["muster_engine_generation_tokens"]
    assert tokens.type == "counter"
    assert [(s.labels, s.value) for s in tokens.samples] == [
        ({"worker": "gpu-1", "model": "qwen3", "instance": "i-1", "attempt": "3"}, 300),
        ({"worker": "gpu-1", "model": "tiny", "instance": "i-2", "attempt": "1"}, 15),
    ]
    first = found["muster_engine_time_to_first_token_seconds"]
    assert first.type == "histogram"
    assert [s.labels["le"] for s in first.samples if s.name.endswith("_bucket")] == ["0.1", "+Inf"]

    metrics.forget(an_id(3))
    assert [s.labels["model"] for s in families(registry)["muster_engine_generation_tokens"].samples] == ["tiny"]
    metrics.close()
    assert families(registry) == {}


def test_agents_of_several_workers_may_live_in_one_process() -> None:
    registry = CollectorRegistry(auto_describe=True)
    for worker in ("gpu-1", "gpu-2"):
        EngineMetrics(worker, registry).tell(an_id(), "tiny", normalised(text_of("llama.cpp")))
    assert b'worker="gpu-2"' in generate_latest(registry)

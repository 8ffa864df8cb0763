"""What engines count, under one set of names: `muster_engine_…`, whatever the engine calls it.

Sources: vLLM, "Production Metrics" (0.6 to 0.32); SGLang, "Production Metrics" (0.4 to 0.5); llama.cpp, `tools/server`
(`/metrics`); MindIE 2.x, "Service monitoring metrics". An engine's own labels (model, rank, why a request ended) are folded
into one series, since worker, model, instance and attempt already say whose it is.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from prometheus_client.parser import text_string_to_metric_families

Kind = Literal["gauge", "counter", "histogram"]
Fold = Literal["sum", "highest", "mean"]
ENGINES: Final = ("vLLM", "SGLang", "llama.cpp", "MindIE")


@dataclass(frozen=True, slots=True)
class EngineMetric:
    name: str
    kind: Kind
    help: str
    sources: Mapping[str, tuple[str, ...]]
    """Engine → names in its own text, newest first: the first that is there counts. Names with ` + ` between them are added up."""
    fold: Fold = "sum"


@dataclass(frozen=True, slots=True)
class Sample:
    metric: str
    """Of `METRICS`."""
    suffix: str
    """`_total` of a counter; `_bucket`, `_sum`, `_count` of a histogram."""
    labels: tuple[tuple[str, str], ...]
    """`le` of a bucket."""
    value: float


_PROMPTS_OF_LLAMA_CPP: Final = "llamacpp:prompt_tokens_total + llamacpp:prompt_tokens_cached_total"
"""It counts the tokens that it computed, and those that it found in a cache."""
METRICS: Final = (
    EngineMetric(
        "muster_engine_requests_running",
        "gauge",
        "Requests that are being computed.",
        {
            "vLLM": ("vllm:num_requests_running",),
            "SGLang": ("sglang:num_running_reqs",),
            "llama.cpp": ("llamacpp:requests_processing",),
            "MindIE": ("num_requests_running",),
        },
    ),
    EngineMetric(
        "muster_engine_requests_waiting",
        "gauge",
        "Requests in the engine's own queue.",
        {
            "vLLM": ("vllm:num_requests_waiting",),
            "SGLang": ("sglang:num_queue_reqs",),
            "llama.cpp": ("llamacpp:requests_deferred",),
            "MindIE": ("num_requests_waiting",),
        },
    ),
    EngineMetric(
        "muster_engine_kv_cache_usage_ratio",
        "gauge",
        "Share of the KV cache that is in use, 0 to 1; of several ranks the fullest.",
        {
            "vLLM": ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"),
            "SGLang": ("sglang:token_usage",),
            "llama.cpp": ("llamacpp:kv_cache_usage_ratio",),
            "MindIE": ("npu_cache_usage_perc",),
        },
        fold="highest",
    ),
    EngineMetric(
        "muster_engine_prompt_tokens",
        "counter",
        "Tokens of prompts, those that were found in a cache included.",
        {
            "vLLM": ("vllm:prompt_tokens_total",),
            "SGLang": ("sglang:prompt_tokens_total",),
            "llama.cpp": (_PROMPTS_OF_LLAMA_CPP,),
            "MindIE": ("prompt_tokens_total",),
        },
    ),
    EngineMetric(
        "muster_engine_generation_tokens",
        "counter",
        "Tokens that were generated.",
        {
            "vLLM": ("vllm:generation_tokens_total",),
            "SGLang": ("sglang:generation_tokens_total",),
            "llama.cpp": ("llamacpp:tokens_predicted_total",),
            "MindIE": ("generation_tokens_total",),
        },
    ),
    EngineMetric(
        "muster_engine_time_to_first_token_seconds",
        "histogram",
        "From a request to its first token.",
        {
            "vLLM": ("vllm:time_to_first_token_seconds",),
            "SGLang": ("sglang:time_to_first_token_seconds",),
            "MindIE": ("time_to_first_token_seconds",),
        },
    ),
    EngineMetric(
        "muster_engine_inter_token_latency_seconds",
        "histogram",
        "Between two tokens of a request.",
        {
            "vLLM": ("vllm:inter_token_latency_seconds", "vllm:time_per_output_token_seconds"),
            "SGLang": ("sglang:inter_token_latency_seconds", "sglang:time_per_output_token_seconds"),
            "MindIE": ("time_per_output_token_seconds",),
        },
    ),
    EngineMetric(
        "muster_engine_e2e_request_latency_seconds",
        "histogram",
        "From a request to its last token.",
        {
            "vLLM": ("vllm:e2e_request_latency_seconds",),
            "SGLang": ("sglang:e2e_request_latency_seconds",),
            "MindIE": ("e2e_request_latency_seconds",),
        },
    ),
    EngineMetric(
        "muster_engine_preemptions",
        "counter",
        "Requests that lost their place in the KV cache and are computed again.",
        {
            "vLLM": ("vllm:num_preemptions_total",),
            "SGLang": ("sglang:num_retracted_requests_total",),
            "MindIE": ("num_preemptions_total",),
        },
    ),
    EngineMetric(
        "muster_engine_prefix_cache_queries_tokens",
        "counter",
        "Tokens of prompts that were looked up in the prefix cache.",
        {
            "vLLM": ("vllm:prefix_cache_queries_total", "vllm:gpu_prefix_cache_queries_total"),
            "SGLang": ("sglang:prompt_tokens_total",),
            "llama.cpp": (_PROMPTS_OF_LLAMA_CPP,),
        },
    ),
    EngineMetric(
        "muster_engine_prefix_cache_hits_tokens",
        "counter",
        "Tokens of prompts that were found in the prefix cache.",
        {
            "vLLM": ("vllm:prefix_cache_hits_total", "vllm:gpu_prefix_cache_hits_total"),
            "SGLang": ("sglang:cached_tokens_total",),
            "llama.cpp": ("llamacpp:prompt_tokens_cached_total",),
        },
    ),
    EngineMetric(
        "muster_engine_prefix_cache_hit_ratio",
        "gauge",
        "Share of the prefix cache's look-ups that hit, 0 to 1, where the engine tells only that.",
        {
            "SGLang": ("sglang:cache_hit_rate",),
            "MindIE": ("npu_prefix_cache_hit_rate",),
        },
        fold="mean",
    ),
    EngineMetric(
        "muster_engine_speculative_draft_tokens",
        "counter",
        "Tokens that speculative decoding proposed.",
        {
            "vLLM": ("vllm:spec_decode_num_draft_tokens_total",),
            "llama.cpp": ("llamacpp:spec_decode_num_draft_tokens_total",),
        },
    ),
    EngineMetric(
        "muster_engine_speculative_accepted_tokens",
        "counter",
        "… and that were accepted.",
        {
            "vLLM": ("vllm:spec_decode_num_accepted_tokens_total",),
            "llama.cpp": ("llamacpp:spec_decode_num_accepted_tokens_total",),
        },
    ),
    EngineMetric(
        "muster_engine_speculative_acceptance_ratio",
        "gauge",
        "Share of the proposed tokens that were accepted lately, 0 to 1, where the engine tells only that.",
        {"SGLang": ("sglang:spec_accept_rate",)},
        fold="mean",
    ),
)
MOST_SAMPLES: Final = 100_000
MOST_BUCKETS: Final = 200
_SUFFIXES: Final[Mapping[Kind, tuple[str, ...]]] = {
    "gauge": ("",),
    "counter": ("_total",),
    "histogram": ("_bucket", "_sum", "_count"),
}
_FOLDS: Final[Mapping[Fold, Callable[[list[float]], float]]] = {
    "sum": math.fsum,
    "highest": max,
    "mean": lambda values: math.fsum(values) / len(values),
}

_SAME: Final = frozenset({"le", "tp_rank", "pp_rank", "moe_ep_rank"})
"""Labels of ranks that compute the same requests together, and each count them."""

Values = dict[str, dict[str, dict[frozenset[tuple[str, str]], float]]]
"""An engine's own name → `le` (empty where there is none) → what is left of its labels → the value."""


def normalised(text: str) -> tuple[Sample, ...]:
    """`text`: of an engine's `/metrics`, in Prometheus's format. What can't be read, or is no number, is left out."""
    values = _read(text)
    return tuple(sample for metric in METRICS for sample in _samples(metric, values))


def tokens_made(text: str) -> float | None:
    """Read and generated, since the engine started; None: it does not count them."""
    counted = ("muster_engine_prompt_tokens", "muster_engine_generation_tokens")
    found = [sample.value for sample in normalised(text) if sample.metric in counted]
    return math.fsum(found) if found else None


def _samples(metric: EngineMetric, values: Values) -> Iterable[Sample]:
    for engine in ENGINES:
        for source in metric.sources.get(engine, ()):
            found = tuple(_of(metric, source, values))
            if found:
                return found
    return ()


def _of(metric: EngineMetric, source: str, values: Values) -> Iterable[Sample]:
    fold = _FOLDS[metric.fold]
    for suffix in _SUFFIXES[metric.kind]:
        found: dict[str, list[float]] = {}
        for name in source.split(" + "):
            for bound, series in values.get(name if metric.kind == "counter" else name + suffix, {}).items():
                found.setdefault(bound, []).extend(series.values())
        for bound in sorted(found, key=_as_number)[-MOST_BUCKETS:]:
            yield Sample(metric.name, suffix, (("le", bound),) if bound else (), fold(found[bound]))


def _as_number(bound: str) -> float:
    try:
        return float(bound)
    except ValueError:
        return math.inf


def _read(text: str) -> Values:
    values: Values = {}
    count = 0
    try:
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                count += 1
                if count > MOST_SAMPLES:
                    return values
                if math.isfinite(sample.value):
                    of_bound = values.setdefault(sample.name, {}).setdefault(sample.labels.get("le", ""), {})
                    whose = frozenset((name, value) for name, value in sample.labels.items() if name not in _SAME)
                    of_bound[whose] = max(sample.value, of_bound.get(whose, -math.inf))
    except (ValueError, KeyError, IndexError, TypeError):  # the rest is no such text: what came before it counts
        pass
    return values

"""docs/reference/engine-metrics.md: what engines count, under Muster's names, and where each comes from."""

from collections.abc import Iterator

from docs.making.words import GENERATED, table
from services.agent.adapters.engine_metrics import LABELS
from services.agent.domain.engine_metrics import ENGINES, METRICS, EngineMetric
from services.agent.process import METRICS_SECONDS

FOLDS = {"sum": "added up", "highest": "the highest", "mean": "the mean"}


def page() -> str:
    return "\n".join(_lines())


def _lines() -> Iterator[str]:
    yield GENERATED
    yield from (
        "# Engine metrics",
        "",
        f"An agent asks each healthy engine for its metrics every {METRICS_SECONDS:g} seconds and shows them on its own `/metrics`",
        "(set `MUSTER_HEALTH_PORT`; with `muster up`, the api's), under one set of names whatever the engine calls them. Labels:",
        f"{', '.join(f'`{label}`' for label in LABELS)}. Labels of the engine's own are folded into one series: what its ranks and",
        "kinds of requests count is added up unless the table says otherwise; tensor- and pipeline-parallel ranks that count the same",
        "requests count once. An engine that does not answer, answers with more than 4 MiB, or is not healthy shows nothing.",
        "",
        "A counter's name ends in `_total` there, a histogram's in `_bucket`, `_sum`, `_count`; buckets are the engine's own.",
        "",
    )
    yield from table(
        ("Metric", "Kind", "", "Several series"), ((f"`{m.name}`", m.kind, m.help, FOLDS[m.fold]) for m in METRICS)
    )
    yield from (
        "## Where they come from",
        "",
        "The first name that an engine has counts. llama.cpp's were recorded from the engine that comes with Muster; those of vLLM,",
        "SGLang and MindIE follow their documentation and were not tried on a running engine. Custom engines: those of the four whose",
        "names they use.",
        "",
    )
    yield from table(("Metric", *ENGINES), ((f"`{metric.name}`", *_sources(metric)) for metric in METRICS))
    yield ""


def _sources(metric: EngineMetric) -> Iterator[str]:
    for engine in ENGINES:
        names = metric.sources.get(engine, ())
        yield ", else ".join(" + ".join(f"`{part}`" for part in name.split(" + ")) for name in names)

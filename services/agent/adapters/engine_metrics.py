"""The engines' metrics as the agent's own `/metrics` shows them: the last that each healthy engine told."""

from collections.abc import Iterator
from typing import Final

from prometheus_client.core import Metric
from prometheus_client.registry import REGISTRY, Collector, CollectorRegistry

from services.agent.domain.engine_metrics import METRICS, Sample
from services.agent.domain.runtime import EngineId

LABELS: Final = ("worker", "model", "instance", "attempt")


class EngineMetrics(Collector):
    def __init__(self, worker: str, registry: CollectorRegistry = REGISTRY) -> None:
        """`worker`: its name."""
        self._worker, self._registry = worker, registry
        self._told: dict[EngineId, tuple[str, tuple[Sample, ...]]] = {}
        registry.register(self)

    def tell(self, engine: EngineId, model: str, samples: tuple[Sample, ...]) -> None:
        self._told[engine] = (model, samples)

    def forget(self, engine: EngineId) -> None:
        self._told.pop(engine, None)

    def close(self) -> None:
        self._registry.unregister(self)

    def collect(self) -> Iterator[Metric]:
        told = list(self._told.items())  # collected in whatever thread serves it
        for metric in METRICS:
            family = Metric(metric.name, metric.help, metric.kind)
            for engine, (model, samples) in told:
                labels = self._labels(engine, model)
                for sample in samples:
                    if sample.metric == metric.name:
                        family.add_sample(metric.name + sample.suffix, labels | dict(sample.labels), sample.value)
            if family.samples:
                yield family

    def _labels(self, engine: EngineId, model: str) -> dict[str, str]:
        values = (self._worker, model, engine.instance_id, str(engine.attempt))
        return dict(zip(LABELS, values, strict=True))

"""Counters for Prometheus."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from spatialembed.serve.model import Model

BUCKETS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20)
"""Seconds."""


class Metrics:
    """What was answered and refused, and how the models are."""

    def __init__(self, models: Mapping[str, Model]) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._answers = Counter(
            "spatialembed_answers", "Answers", ["model", "kind"], registry=self.registry
        )
        self._refusals = Counter(
            "spatialembed_refusals", "Errors", ["code"], registry=self.registry
        )
        self._seconds = Histogram(
            "spatialembed_seconds", "Time of a stage", ["model", "stage"],
            buckets=BUCKETS, registry=self.registry,
        )  # fmt: skip
        self.registry.register(_Models(models))

    def answered(self, model: str, kind: str, seconds: Mapping[str, float]) -> None:
        """Count an answer and the seconds of its stages."""
        self._answers.labels(model, kind).inc()
        for stage, value in seconds.items():
            self._seconds.labels(model, stage).observe(value)

    def refused(self, code: str) -> None:
        """Count an error."""
        self._refusals.labels(code).inc()


class _Models(Collector):
    """State and queue of each model at the moment of asking."""

    def __init__(self, models: Mapping[str, Model]) -> None:
        self.models = models

    def collect(self) -> Iterable[Metric]:
        """The families."""
        ready = GaugeMetricFamily("spatialembed_ready", "Model is ready", labels=["model"])
        queue = GaugeMetricFamily("spatialembed_waiting", "Images that wait", labels=["model"])
        accepted = GaugeMetricFamily(
            "spatialembed_accepted", "Images that wait, and the one at work", labels=["model"]
        )
        restarts = CounterMetricFamily("spatialembed_restarts", "Processes", labels=["model"])
        for name, model in self.models.items():
            ready.add_metric([name], float(model.state == "ready"))
            queue.add_metric([name], len(model.waiting))
            accepted.add_metric([name], len(model.waiting) + model.working)
            restarts.add_metric([name], model.restarts)
        return ready, queue, accepted, restarts

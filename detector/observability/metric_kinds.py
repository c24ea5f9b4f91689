"""Kinds of metrics that Prometheus' client has not: of whole columns, of what may be absent, asked at a scrape."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import ArrayLike
from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector


class ArrayHistogram(Collector):
    """A histogram that takes a whole column at once: one event at a time would cost more than scoring it."""

    def __init__(self, name: str, documentation: str, registry: CollectorRegistry, buckets: Sequence[float]) -> None:
        """Count values up to and including each of `buckets` (ascending), and those beyond."""
        self._name = name
        self._documentation = documentation
        self._bounds = np.asarray(buckets, np.float64)  # [buckets]
        self._labels = [str(float(bound)) for bound in buckets] + ["+Inf"]
        self._counts = np.zeros(len(buckets) + 1, np.int64)  # [buckets + 1] not cumulative
        self._sum = 0.0
        self._lock = threading.Lock()
        registry.register(self)

    def observe(self, values: ArrayLike) -> None:
        """Count values, a number or an array of any shape; they must be finite."""
        column = np.asarray(values, np.float64).ravel()
        counts = np.bincount(np.searchsorted(self._bounds, column), minlength=len(self._counts))
        with self._lock:
            self._counts += counts
            self._sum += float(column.sum())

    @property
    def bounds(self) -> list[float]:
        """Return the buckets' upper bounds, ascending; the last bucket, beyond them, has none."""
        return [float(bound) for bound in self._bounds]

    def counts(self) -> list[int]:
        """Return how many values each bucket has, the last one beyond all bounds."""
        with self._lock:
            return [int(count) for count in self._counts]

    def collect(self) -> Iterator[Metric]:
        """Give Prometheus what was counted."""
        with self._lock:
            cumulative, total = self._counts.cumsum(), self._sum
        buckets = [(label, float(count)) for label, count in zip(self._labels, cumulative, strict=True)]
        yield HistogramMetricFamily(self._name, self._documentation, buckets=buckets, sum_value=total)


class OptionalGauge(Collector):
    """A gauge that is not there before its first value: 0 would be read as one."""

    def __init__(self, name: str, documentation: str, registry: CollectorRegistry) -> None:
        self._name, self._documentation = name, documentation
        self._value: float | None = None
        registry.register(self)

    def set(self, value: float) -> None:
        """Take a value; one that is not finite takes the gauge away again."""
        self._value = value if math.isfinite(value) else None

    def collect(self) -> Iterator[Metric]:
        """Give Prometheus the value, if there is one."""
        yield GaugeMetricFamily(self._name, self._documentation, value=self._value)


class AskedGauge(Collector):
    """A gauge whose labels and values are asked for at each scrape: those of what is no longer there are gone."""

    def __init__(self, name: str, documentation: str, registry: CollectorRegistry, labels: Sequence[str]) -> None:
        self._name, self._documentation, self._labels = name, documentation, labels
        self._values: Callable[[], Iterable[tuple[Sequence[str], float]]] = tuple
        registry.register(self)

    def set_function(self, values: Callable[[], Iterable[tuple[Sequence[str], float]]]) -> None:
        """Ask this for labels and values, on the thread that scrapes."""
        self._values = values

    def collect(self) -> Iterator[Metric]:
        """Give Prometheus what there is."""
        family = GaugeMetricFamily(self._name, self._documentation, labels=self._labels)
        for labels, value in self._values():
            family.add_metric(labels, value)
        yield family

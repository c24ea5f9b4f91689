"""How the whole daemon is doing, now and over the last hour: a point every ten seconds, kept whether anyone looks."""

from __future__ import annotations

import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from prometheus_client import Counter

from detector.observability.metrics import Metrics
from training.retrain.result import RetrainResult

POINT_SECONDS = 10.0
POINTS = 360
RECENT = 60  # looks, a second apart, that a present rate is the mean of: events come in gusts, up to a minute apart
LATENCIES = 6  # points that present latencies are of
_PAGE = os.sysconf("SC_PAGE_SIZE")


class Point(NamedTuple):
    """The fleet at one moment."""

    time: float  # Unix, s
    events_per_second: float
    lag: int  # records
    latency_p99: float | None  # s, of the events since the point before; None: there were none
    resident_bytes: int


class Now(NamedTuple):
    """The fleet at present."""

    events_per_second: float
    lag: int
    latency: tuple[float, float] | None  # s, median and 99th percentile of the last minute
    rejected_share: float  # of all records since the start
    late_share: float  # likewise
    resident_bytes: int


class Retraining(NamedTuple):
    """How the last retraining ended."""

    at: float  # Unix, s
    result: RetrainResult


class Fleet:
    """Looks at the metrics. `look` and `retrained` are for the loop, everything else for any thread."""

    def __init__(self, metrics: Metrics, clock: Callable[[], float] = time.time) -> None:
        self._metrics, self._clock = metrics, clock
        self._lock = threading.Lock()
        self._points: deque[Point] = deque(maxlen=POINTS)
        self._recent: deque[tuple[float, float]] = deque(maxlen=RECENT)  # time, events
        self._latencies: deque[list[int]] = deque(maxlen=LATENCIES)  # counts by bucket, a point apart
        self._at, self._events, self._lag = 0.0, 0.0, 0
        self.last_retraining: Retraining | None = None

    def look(self, lag: int) -> None:
        """Take the present figures in; to be called every second or so."""
        now, events = self._clock(), _value(self._metrics.events)
        with self._lock:
            self._lag = lag
            self._recent.append((now, events))
            if not self._at:
                self._at, self._events = now, events
                self._latencies.append(self._metrics.end_to_end_latency.counts())
            elif now - self._at >= POINT_SECONDS:
                counts = self._metrics.end_to_end_latency.counts()
                since = [a - b for a, b in zip(counts, self._latencies[-1], strict=True)]
                rate = (events - self._events) / (now - self._at)
                self._points.append(Point(now, rate, lag, self._quantile(since, 0.99), resident_bytes()))
                self._latencies.append(counts)
                self._at, self._events = now, events

    def retrained(self, result: RetrainResult) -> None:
        """Note how a retraining ended."""
        self.last_retraining = Retraining(self._clock(), result)

    def points(self) -> list[Point]:
        """Return the last hour, oldest first."""
        with self._lock:
            return list(self._points)

    def now(self) -> Now:
        """Return the present."""
        counts, m = self._metrics.end_to_end_latency.counts(), self._metrics
        with self._lock:
            rate = 0.0
            if len(self._recent) > 1:
                (first, before), (last, after) = self._recent[0], self._recent[-1]
                rate = (after - before) / (last - first) if last > first else 0.0
            since = [a - b for a, b in zip(counts, self._latencies[0], strict=True)] if self._latencies else counts
            median, high = self._quantile(since, 0.5), self._quantile(since, 0.99)
            lag = self._lag
        read, late = _value(m.events), _value(m.events_late)
        rejected = sum(map(_value, m.events_rejected.values()))
        return Now(
            events_per_second=rate,
            lag=lag,
            latency=None if median is None or high is None else (median, high),
            rejected_share=rejected / (read + rejected) if rejected else 0.0,
            late_share=late / read if read else 0.0,
            resident_bytes=resident_bytes(),
        )

    def _quantile(self, counts: list[int], share: float) -> float | None:
        """Return about the value that a share of values is below, from counts by bucket; None: there are none."""
        total = sum(counts)
        if not total:
            return None
        bounds = self._metrics.end_to_end_latency.bounds
        wanted, below = share * total, 0
        for bucket, count in enumerate(counts):
            if count and below + count >= wanted:
                upper = bounds[min(bucket, len(bounds) - 1)]
                lower = bounds[bucket - 1] if 0 < bucket < len(bounds) else upper / 3 if not bucket else upper
                return lower * math.pow(upper / lower, (wanted - below) / count)  # even within it, as on a log scale
            below += count
        return None


def resident_bytes() -> int:
    """Return the memory that this process occupies."""
    try:
        with open("/proc/self/statm", "rb") as file:  # noqa: PTH123 - each second
            return int(file.read().split()[1]) * _PAGE
    except OSError:
        return 0


def _value(counter: Counter) -> float:
    """Return a counter's value."""
    return float(next(iter(next(iter(counter.collect())).samples)).value)

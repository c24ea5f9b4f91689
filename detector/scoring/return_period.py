"""Severity -> return period: log10 of how many events pass between peaks as high, learnt from the stream's own peaks.

The 98 % quantile of log severity is followed by stochastic approximation (Robbins and Monro 1951). Above it lie peaks:
their rate is counted, one a cluster (runs declustering, as in Coles 2001, 5.3), and their excess is exponential, its
mean learnt from excesses cut at WINSOR means and corrected for the cut: an estimator that takes anomalies in full
learns them as its tail, and finds none.
"""

from __future__ import annotations

import math

import numpy as np

from detector.scoring.units import Record
from training.network.compiled import compiled

LOG10_E = 1.0 / math.log(10.0)
ABOVE = 0.02  # share of events whose severity lies above the bound
COMMON = -math.log10(ABOVE)
CLUSTER_GAP = 8.0  # events at or below the bound before a peak is over: a long incident is one peak
MEMORY, MAX_MEMORY = 20_000.0, 200_000.0  # events: at least; and at most, or a step were lost in rounding
MEMORY_SECONDS = 172_800.0  # likewise at least: a tail that has seen no night takes its noise for news each evening
PEAK_MEMORY = int(0.006 * MEMORY)  # peaks
WINSOR = 2.5  # means that a peak's excess counts for at most
MIN_MEAN = 0.02  # nats


def _unbiased() -> float:
    """Return the factor from the mean of an exponential cut at WINSOR times that mean, to its own mean."""
    share = 0.9
    for _ in range(300):
        share = 1.0 - math.exp(-WINSOR * share)
    return 1.0 / share


CUT_CORRECTION = _unbiased()

PERIOD = np.dtype(
    [
        ("events", np.int32),
        ("bound", np.float32),  # log severity that a share ABOVE of events exceeds
        ("excess", np.float32),  # mean of what they exceed it by
        ("rate", np.float32),  # peaks an event
        ("peak_excess", np.float32),  # mean of what a peak exceeds the bound by, cut at WINSOR means
        ("peak", np.float32),  # excess of the open peak
        ("open", np.bool_),
        ("calm", np.uint8),  # events at or below the bound since
        ("peaks", np.uint8),  # learnt, up to PEAK_MEMORY
    ],
    align=True,
)


@compiled
def begin(q: Record, bound: float, excess: float, rate: float) -> None:
    """Set what a PERIOD record takes for usual before it knows."""
    q.bound, q.excess, q.rate, q.peak_excess = bound, excess, rate, excess


@compiled
def memory_of(interval: float) -> float:
    """Return how many events a tail remembers, where one usually comes each `interval` seconds; 0: not known yet."""
    return min(max(MEMORY_SECONDS / interval, MEMORY), MAX_MEMORY) if interval > 0.0 else MEMORY


@compiled
def return_period(q: Record, y: float, memory: float = MEMORY) -> float:
    """Return log10 of the events between peaks as high as log severity `y`, by the past of `q`, PERIOD; learn it.

    `memory`: events, see memory_of.
    """
    q.events += 1
    n = float(q.events)
    weight = max(1.0 / (n + 20.0), 1.0 / memory)
    rate_weight = max(1.0 / (n + 50.0), 1.0 / memory)
    bound, excess = float(q.bound), float(q.excess)
    if y > bound:
        beyond = LOG10_E * (y - bound) / (q.peak_excess * CUT_CORRECTION)
        period = max(-math.log10(max(float(q.rate), 1e-9)) + beyond, COMMON)
        cut = min(y - bound, 5.0 * excess + 0.05)
        q.bound = bound + excess * weight / ABOVE * (1.0 - ABOVE)
        q.excess = max(excess + max(1.0 / (n * ABOVE + 3.0), 1.0 / (memory * ABOVE)) * (cut - excess), MIN_MEAN)
        q.peak = max(q.peak if q.open else 0.0, y - q.bound, 0.0)
        q.open, q.calm = True, 0
        q.rate -= rate_weight * q.rate
        return period
    period = max(COMMON + LOG10_E * (y - bound) / excess, 0.0)
    q.bound = bound - excess * weight
    ended = 0.0
    if q.open:
        q.calm += 1
        if q.calm > CLUSTER_GAP:
            ended = 1.0
            q.peaks = min(q.peaks + 1, PEAK_MEMORY)
            mean = float(q.peak_excess)
            step = max(1.0 / (q.peaks + 3.0), 1.0 / PEAK_MEMORY) * (min(q.peak, WINSOR * mean + MIN_MEAN) - mean)
            q.peak_excess = max(mean + step, MIN_MEAN)
            q.open = False
    q.rate += rate_weight * (ended - q.rate)
    return period

"""What of an event lies outside the subspace its stream usually moves in: principal components, kept up to date.

Good at a feature that leaves its fellows; says nothing on fewer than four features, and is left out beyond
SUBSPACE_LIMIT of them, where its cost (features squared an event) would be all of it.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from detector.scoring.calibration import (
    REFRESH,
    SLOW_GROWTH,
    UNIT_LIMIT,
    UNIT_QUANTILE,
    UNIT_WARMUP,
    Record,
    grow,
    learn,
    quantile,
)
from training.network.compiled import compiled

MEMORY = 20_000  # events the means and covariances remember
VARIANCE_KEPT = 0.9
SOFTENING = 0.05  # added to a feature's deviation: what never moved must not count as infinitely odd
FAR = 50.0  # deviations a feature may be off
FAR_LEARNT = 10.0  # ... and as much of it as the covariance learns
SETTLED = 20  # events before outliers can be distinguished from mere youth
FIRST_FIT, FIT_EVERY = 200, 4000  # events; in between, at every doubling
SUBSPACE_LIMIT = 128  # features
MIN_UNIT = 0.01


@compiled
def _fit(s: Record, many: Record, first_row: int, matrices: NDArray[np.float32]) -> None:
    """Find the components that hold VARIANCE_KEPT of the correlation matrix."""
    size, capacity = s.lanes, s.capacity
    covariance = matrices[: capacity * capacity].reshape(capacity, capacity)
    components = matrices[capacity * capacity :].reshape(capacity, capacity)
    correlation = np.zeros((size, size))
    for i in range(size):
        q = many[first_row + i]
        q.fit_mean, q.fit_deviation = q.z_mean, math.sqrt(max(covariance[i, i], 0.0)) + SOFTENING
    for i in range(size):
        for j in range(size):
            product = many[first_row + i].fit_deviation * many[first_row + j].fit_deviation
            correlation[i, j] = covariance[i, j] / product
    values, vectors = np.linalg.eigh(correlation)
    total = max(values.sum(), 1e-12)
    kept, s.components = 0.0, 0
    for k in range(size - 1, -1, -1):
        if kept >= VARIANCE_KEPT * total:
            break
        kept += max(values[k], 0.0)
        for i in range(size):
            components[s.components, i] = vectors[i, k]
        s.components += 1


@compiled
def outside(
    s: Record,  # STREAM, one record
    many: Record,  # many_score; a stream's rows lie together
    matrices: NDArray[np.float32],  # covariance [capacity, capacity], components [capacity, capacity]; or empty
    place: NDArray[np.int64],  # [features of the event]
    many_row: NDArray[np.int64],  # [features of the event]
    value: NDArray[np.float64],  # [features of the event]
) -> NDArray[np.float64]:
    """Return each feature's residual in its own units, 0..UNIT_LIMIT; then learn the event."""
    count = len(value)
    result = np.zeros(count)
    capacity = s.capacity
    if len(matrices) == 0 or count == 0:
        return result
    first_row = many_row[0] - place[0]
    if s.events >= max(s.fit_at, FIRST_FIT):
        _fit(s, many, first_row, matrices)
        s.fit_at = s.events + min(s.events, FIT_EVERY)
    covariance = matrices[: capacity * capacity].reshape(capacity, capacity)
    components = matrices[capacity * capacity :].reshape(capacity, capacity)
    z = np.zeros(count)
    for i in range(count):
        q = many[many_row[i]]
        deviation = max(math.sqrt(q.variance), 0.01 * abs(q.mean), 1e-12)
        if q.seen > 1:
            z[i] = min(max((value[i] - q.mean) / deviation, -FAR), FAR)
    if s.components > 0:
        w = np.zeros(count)
        for i in range(count):
            q = many[many_row[i]]
            if q.fit_deviation > 0.0:
                w[i] = (z[i] - q.fit_mean) / q.fit_deviation
        rest = w.copy()
        for k in range(s.components):
            dot = 0.0
            for i in range(count):
                dot += components[k, place[i]] * w[i]
            for i in range(count):
                rest[i] -= components[k, place[i]] * dot
        for i in range(count):
            q = many[many_row[i]]
            size = abs(rest[i])
            if q.outside_events >= UNIT_WARMUP:
                unit = max(q.outside_unit, MIN_UNIT)
                result[i] = min(size / unit, UNIT_LIMIT)
            grow(q.outside_histogram, SLOW_GROWTH)
            learn(q.outside_histogram, size)
            if q.outside_events % REFRESH == 0:
                q.outside_unit = quantile(q.outside_histogram, UNIT_QUANTILE)
            q.outside_events += 1

    share = max(1.0 / (s.events + 1), 1.0 / MEMORY)
    for i in range(count):
        z[i] = min(max(z[i], -FAR_LEARNT), FAR_LEARNT) - many[many_row[i]].z_mean
    for i in range(count):
        a, row = share * z[i], place[i]
        for j in range(count):
            covariance[row, place[j]] += np.float32(a * z[j] - share * covariance[row, place[j]])
    for i in range(count):
        q = many[many_row[i]]
        q.z_mean += share * z[i]
        q.seen += 1
        if q.seen == 1:
            q.mean = value[i]
            continue
        weight = max(1.0 / q.seen, 1.0 / MEMORY)
        deviation = max(math.sqrt(q.variance), 0.01 * abs(q.mean), 1e-12)
        difference = value[i] - q.mean
        if q.seen > SETTLED:
            bound = max(5.0 * deviation, 0.1 * abs(difference))
            difference = min(max(difference, -bound), bound)
        q.mean += weight * difference
        q.variance = (1.0 - weight) * (q.variance + weight * difference * difference)
    return result

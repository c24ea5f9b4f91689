"""The coupling channel's statistic: what of a feature the stream's other features do not explain.

Features, standardised, are followed by two principal directions (CCIPCA: Weng, Zhang and Hwang 2003); how far an event
lies along each is taken, for every feature, from all the others (leave one out): a feature cannot explain itself.

Finds a feature that parts from the others though each looks usual alone. Needs features that arrive in one event.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from detector.scoring.units import COUPLING, WARM_UP_EVENTS, Record
from training.network.compiled import compiled

DIRECTIONS = 2  # as many as the equations are written for
MIN_SHARE = 0.05  # of a direction that all other features are taken to have
MEMORY = 20_000.0  # events
AMNESIA = 2.0  # how many times more a recent event weighs while the directions are young
LIMIT = 8.0  # deviations that a value counts for at most
MIN_EVENTS = 20  # of a lane before its mean and deviation are used
MAX_DEVIATIONS = 5.0  # that mean and deviation learn of a value

COUPLING_STATE = np.dtype(
    [
        ("mean", np.float64),
        ("variance", np.float64),
        ("direction", np.float32, DIRECTIONS),  # the lane's component of each
        ("score", np.float32),  # the lane's standardised value of this event, and what is left of it
    ],
    align=True,
)


@compiled
def measure_coupling(
    lanes: Record,  # lane table
    lane: NDArray[np.int64],  # rows in it of the event's numbers
    first_lane: int,  # of the stream
    value: NDArray[np.float64],
    events: int,  # of the stream before this one
    measured: Record,  # MEASURED
    at: NDArray[np.int64],  # rows in it of the event's numbers
) -> None:
    """Measure one event of a stream of several features: write the size of what is not explained of each."""
    count = len(lane)
    for k in range(count):
        r = lanes[lane[k]].score
        c = r.coupling
        if r.events == 0:
            for d in range(DIRECTIONS):
                c.direction[d] = 1.0 if d == 0 else math.cos((d + 1.0) * (lane[k] - first_lane + 1.0))
        c.score = 0.0
        if measured[at[k]].known and r.events > MIN_EVENTS:
            deviation = math.sqrt(c.variance) + 1e-12
            c.score = min(max((value[k] - c.mean) / deviation, -LIMIT), LIMIT)
    _explain_by_others(lanes, lane, measured, at)
    weight = max(1.0 / MEMORY, AMNESIA / (events + 20.0))
    for d in range(DIRECTIONS):
        projection = norm = 0.0
        for k in range(count):
            c = lanes[lane[k]].score.coupling
            projection += float(c.direction[d]) * c.score
            norm += float(c.direction[d]) * c.direction[d]
        norm = math.sqrt(norm) + 1e-12
        projection /= norm
        for k in range(count):
            c = lanes[lane[k]].score.coupling
            share = c.direction[d] / norm
            c.direction[d] += weight * (projection * c.score - c.direction[d])
            c.score -= projection * share


@compiled
def _explain_by_others(lanes: Record, lane: NDArray[np.int64], measured: Record, at: NDArray[np.int64]) -> None:
    """Write what the others let expect of each lane, and the size of what they leave."""
    first = second = both = first_sum = second_sum = 0.0
    for k in range(len(lane)):
        c = lanes[lane[k]].score.coupling
        u, v, z = float(c.direction[0]), float(c.direction[1]), float(c.score)
        first += u * u
        second += v * v
        both += u * v
        first_sum += u * z
        second_sum += v * z
    first, second = math.sqrt(first) + 1e-12, math.sqrt(second) + 1e-12
    both, first_sum, second_sum = both / (first * second), first_sum / first, second_sum / second
    for k in range(len(lane)):
        m = measured[at[k]]
        if not m.known:
            continue
        c = lanes[lane[k]].score.coupling
        u, v, z = float(c.direction[0]) / first, float(c.direction[1]) / second, float(c.score)
        along = (first_sum - u * z) / max(1.0 - u * u, MIN_SHARE)
        across = (second_sum - v * z - along * (both - u * v)) / max(1.0 - v * v, MIN_SHARE)
        explained = u * along + v * across
        m.sizes[COUPLING] = abs(z - explained)
        m.coupled = c.mean + explained * math.sqrt(c.variance)


@compiled
def learn_moments(c: Record, events: int, x: float, least: float) -> None:
    """Carry a lane's slow mean and variance on; `events` of the lane before this one."""
    if events == 0:
        c.mean, c.variance = x, 1e-12
        return
    weight = max(1.0 / MEMORY, 1.0 / (events + 1.0))
    difference = x - c.mean
    furthest = MAX_DEVIATIONS * math.sqrt(c.variance) + least
    square = difference * difference
    if events > WARM_UP_EVENTS:
        square = min(square, MAX_DEVIATIONS**2 * c.variance + least * least)
    c.variance += weight * (square - c.variance)
    c.mean += weight * (min(max(difference, -furthest), furthest) if events > MIN_EVENTS else difference)

"""The level channel's statistic: by how much the level of late differs from what is usual at this hour.

The usual of each hour is a running mean of its daily means, which an hour's own values join only when it is over;
between the middles of two hours it is interpolated. Working days and weekends are kept beside all days, and take their
place for as long as they miss less: a stream with a week has its own weekends from the second one on, any other keeps
the steadier mean of all days. The level of late is a running mean of the differences.

Finds standstills at a value that is usual at another hour, drift, shifts, bursts at night. Says nothing before the
second day, and does not find what is over within a few events.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from detector.scoring.units import LEVEL, Record
from training.network.compiled import compiled
from training.network.profile import learn, learnt, profile, refit, usual_value

HOURS = 24
HOUR_NS = 3_600_000_000_000
SMOOTHING = 1.0 / 16.0  # weight of the newest difference
WORKING, WEEKEND = 1, 2  # kinds of days; 0: all of them
MISS_WEIGHT = 1.0 / 168.0  # of the newest hour in how much the kinds missed
SHIFTED = 0.25  # of the difference: where an hour before or after differs by less, the clock has changed
BETTER = 0.8  # of what all days miss: what working days and weekends, on half the data, must miss less than
MIN_DAYS = 2  # of its kind before an hour counts by it: one weekend was seen

LEVEL_STATE = np.dtype(
    [
        ("difference", np.float64),  # of late
        ("shifted", np.float32, 2),  # from what is usual an hour before, and an hour after
        ("sum", np.float64),  # of the values of this hour
        ("hour", np.int32),  # since 1970, plus 1; 0: none
        ("count", np.int32),
        ("missed", np.float32, 2),  # by all days, and by days of a kind, at the hours that both know
        ("usual", profile(3 * HOURS)),  # by kind of day; three days are remembered
    ],
    align=True,
)


@compiled
def measure_level(r: Record, time: int, x: float, clocks: NDArray[np.float64]) -> tuple[float, float]:
    """Return the difference of late from the usual, and the usual of now, NaN while that is not known. Learn `x`.

    And write to `clocks` [3] the difference from what is usual now, an hour before, and an hour after; NaN: not known.
    """
    hour = time // HOUR_NS
    usual = usual_at(r, time)
    difference = math.nan
    clocks[:] = math.nan
    if not math.isnan(usual):
        r.difference += SMOOTHING * (x - usual - r.difference)
        difference = clocks[0] = r.difference
    for k in range(2):
        other = usual_at(r, time + (2 * k - 1) * HOUR_NS)
        if not math.isnan(other):
            r.shifted[k] += SMOOTHING * (x - other - r.shifted[k])
            clocks[1 + k] = r.shifted[k]
    if r.hour != hour + 1:
        if r.count > 0:
            _learn_hour(r, r.hour - 1, r.sum / r.count)
        r.hour, r.sum, r.count = hour + 1, 0.0, 0
    r.sum += x
    r.count += 1
    return difference, usual


@compiled
def excuse_changed_clock(measured: Record, rows: NDArray[np.int64]) -> None:
    """Take back what the level says of an event's features, rows of MEASURED, where a changed clock explains it.

    All of them together must be met so much better an hour before or after: one feature that is elsewhere is news,
    though its level be that of another hour.
    """
    for k in range(1, 3):
        here = there = 0.0
        for row in rows:
            m = measured[row]
            if m.levelled:
                here += m.clocks[0] ** 2
                there += m.clocks[k] ** 2
        if there < SHIFTED**2 * here:  # not where one is not known
            for row in rows:
                measured[row].units[LEVEL], measured[row].levelled = 0.0, False
            return


@compiled
def usual_at(r: Record, time: int) -> float:
    """Return what is usual at a time; NaN while that is not known."""
    hour = time // HOUR_NS
    part = (time - hour * HOUR_NS) / HOUR_NS
    weight = abs(part - 0.5)
    return (1.0 - weight) * _usual(r, hour) + weight * _usual(r, hour + 1 if part >= 0.5 else hour - 1)


@compiled
def hourly_trend(r: Record) -> float:
    """Return how far the last two whole hours of a lane's first day lie apart; 0 where they are not known."""
    last, former = (r.hour - 2) % HOURS, (r.hour - 3) % HOURS
    if learnt(r.usual, last) == 0 or learnt(r.usual, former) == 0:
        return 0.0
    return usual_value(r.usual, last) - usual_value(r.usual, former)


@compiled(inline="always")
def _kind(hour: int) -> int:
    return WEEKEND if (hour // HOURS + 3) % 7 >= 5 else WORKING  # 1970 began on a Thursday


@compiled
def _usual(r: Record, hour: int) -> float:
    slot = hour % HOURS
    own = _kind(hour) * HOURS + slot
    if r.missed[1] < BETTER * r.missed[0] and learnt(r.usual, own) >= MIN_DAYS:
        return usual_value(r.usual, own)
    return usual_value(r.usual, slot) if learnt(r.usual, slot) > 0 else math.nan


@compiled
def _learn_hour(r: Record, hour: int, mean: float) -> None:
    slot = hour % HOURS  # of all days
    own = _kind(hour) * HOURS + slot
    if learnt(r.usual, own) >= MIN_DAYS:
        r.missed[0] += MISS_WEIGHT * (abs(mean - usual_value(r.usual, slot)) - r.missed[0])
        r.missed[1] += MISS_WEIGHT * (abs(mean - usual_value(r.usual, own)) - r.missed[1])
    learn(r.usual, slot, mean)
    learn(r.usual, own, mean)
    refit(r.usual, mean, math.inf)

"""Prediction error and novelty -> a stream's severity -> return period -> score.

Three scans over a batch whose observations lie sorted by stream, each with its own carried state:

1. `measure`: a lane's prediction error, in units of what is usual for that lane (unit-free: worth more than the
   network itself).
2. `judge_many`: a stream of two or more features. The largest of three error channels per feature, a limit on what one
   feature may say alone, their L2 norm with the residual outside the principal subspace, and the return period of its
   declustered peaks.
3. `judge_single`: a stream of one feature. Gap novelty of the value and of the prediction error, weighed by how well
   the network predicted lately; the return period of the error joins where history is long and prediction good.

Both families end as log10 of a return period in events. The constants were measured on public benchmarks and are the
same for every stream; `docs/scoring.md` says what each part brought.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detector.scoring.batch import Forecasts, Numbers
from detector.scoring.calibration import (
    HISTOGRAM,
    REFRESH,
    SLOW_GROWTH,
    UNIT,
    UNIT_LIMIT,
    UNIT_QUANTILE,
    UNIT_WARMUP,
    Record,
    grow,
    in_units,
    learn,
    quantile,
    return_period,
)
from detector.scoring.novelty import MEMORY, damped, gap, remember
from detector.scoring.subspace import outside
from training.network.compiled import compiled
from training.network.horizons import HORIZONS
from training.network.inputs import LIMIT, to_unit

SMOOTHING, SLOW_SMOOTHING = 0.3, 0.03  # weights of the smoothed error and of a far horizon's slow error
MIN_UNIT_MANY, MIN_UNIT_SINGLE = 0.002, 0.0004  # of the lane's range: an error below is never an event
RANGE_EVENTS = 50_000  # the lane's range is of the last one to two times so many: wild values must not own it for ever
STRETCH = 10.0  # ... nor one of them at once: a value widens the range by at most so many times itself
BAND_WARMUP_DEVIATIONS = 2.58  # until errors have a unit the band is the normal distribution's 99 %

SINGLE_LIMIT = 6.0  # a lone jump in an otherwise constant feature is the typical false alarm
SUBSPACE_WEIGHT = 0.3
FEW = 4  # below so many features severity is no sum worth a term of its own
SEVERITY_SCALE = 10.0  # severity that adds nothing to the return period
RETURN_WARMUP = UNIT_WARMUP + 150  # events until return periods mean something
SHARED_BUDGET = 0.3  # two channels share one budget: log10 2

NOVELTY_WARMUP = 50
LEVEL_WARMUP = 200  # levels: means of 32 values each, so six that have nothing in common
ALARMING_NOVELTY = 0.007  # novelty that counts as once in 1000 events
ALARMING_RETURN = 3.0  # log10 of 1000 events
RETURN_HISTORY = 10_000  # no claim of a return period of 1000 events before ten times as many were seen
RETURN_SKILL = 0.4  # and only where the network's error is this share of the series' own spread
VALUE_REACH, ERROR_REACH = 8000, 4000  # events remembered
CONTEXT_DECAY = 1.0 - 2.0 ** (-1.0 / 80.0)
SKILL_DECAY = 1.0 - 2.0 ** (-1.0 / 2000.0)
ROLL = 32  # events of the rolling mean and minimum
DOUBT_DECAY = 2.0 ** (-1.0 / 2000.0)

FAR = np.dtype(  # errors of the forecasts of one far horizon
    [("unit", UNIT), ("slow_histogram", HISTOGRAM), ("slow_unit", np.float64)], align=True
)


def lane_score(horizons: Sequence[int]) -> np.dtype[Any]:
    """Return what is remembered of a lane's errors. The layout depends on how many forecasts wait for their event.

    A forecast made on arrival of event t for the tenth event after t-1 waits nine arrivals.
    """
    far = horizons[1:]
    return np.dtype(
        [
            ("events", np.int64),  # errors seen
            ("ahead", np.float64, (max(sum(far) - len(far), 1),)),  # forecasts that wait, a ring for each far horizon
            ("smoothed", np.float64),
            ("slow", np.float64, (max(len(far), 1),)),
            ("unit", UNIT),  # of the one-step error
            ("low", np.float64),  # range of the values since the last turn of RANGE_EVENTS ...
            ("high", np.float64),
            ("former_low", np.float64),  # ... and between the last two
            ("former_high", np.float64),
        ],
        align=True,
    )


def many_score(horizons: Sequence[int]) -> np.dtype[Any]:
    """Return what is remembered, beside `lane_score`, of a lane of a stream of two or more features."""
    return np.dtype(
        [
            ("smoothed_unit", UNIT),
            ("far", FAR, (max(len(horizons) - 1, 1),)),
            ("outside_histogram", HISTOGRAM),
            ("outside_unit", np.float64),
            ("outside_events", np.int64),
            ("mean", np.float64),  # slow running mean and variance, for the subspace
            ("variance", np.float64),
            ("events", np.int64),  # errors learnt
            ("seen", np.int64),  # values learnt
            ("z_mean", np.float64),
            ("fit_mean", np.float64),  # as of the last fit
            ("fit_deviation", np.float64),
        ],
        align=True,
    )


LANE_SCORE, MANY_SCORE = lane_score(HORIZONS), many_score(HORIZONS)  # unless other horizons are asked for

SINGLE_SCORE = np.dtype(  # beside LANE_SCORE, for the lane of a stream of one feature
    [
        ("value", MEMORY),
        ("error", MEMORY),
        ("doubted", MEMORY),  # errors again, but what is new is doubted a while before it is remembered
        ("level", MEMORY),  # rolling mean less the hour's profile
        ("floor", MEMORY),  # rolling minimum
        ("context", np.float64),  # B: how surprising the recent past was
        ("doubt", np.float64),
        ("error_size", np.float64),
        ("mean", np.float64),
        ("spread", np.float64),
        ("events", np.int64),
        ("recent", np.float64, ROLL),
        ("recent_level", np.float64, ROLL),
        ("hour", np.float64, 24),
        ("hour_count", np.uint8, 24),
        ("this_hour", np.int64),
        ("hour_sum", np.float64),
        ("hour_events", np.int64),
    ],
    align=True,
)


@compiled
def _tail_probability(t: float, nu: float, log_beta: float) -> float:
    """Return P(|T| >= t) for a Student-t: the incomplete beta function by its continued fraction (Lentz)."""
    a, b = 0.5 * nu, 0.5
    x = nu / (nu + t * t)
    swap = x > (a + 1.0) / (a + b + 2.0)
    if swap:
        a, b, x = b, a, 1.0 - x
    if x <= 0.0:
        return 1.0 if swap else 0.0
    front = math.exp(a * math.log(x) + b * math.log1p(-x) - log_beta) / a
    c, d = 1.0, 1.0 / max(1.0 - (a + b) * x / (a + 1.0), 1e-300)
    h = d
    for m in range(1, 60):
        numerator = m * (b - m) * x / ((a + 2 * m - 1.0) * (a + 2 * m))
        d = 1.0 / (1.0 + numerator * d)
        c = 1.0 + numerator / c
        h *= d * c
        numerator = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1.0))
        d = 1.0 / (1.0 + numerator * d)
        c = 1.0 + numerator / c
        h *= d * c
        if abs(d * c - 1.0) < 1e-6:
            break
    return 1.0 - front * h if swap else front * h


@compiled(inline="always")
def _in_data_unit(location: float, mean: float, deviation: float, low: float, high: float) -> float:
    value = mean + deviation * math.sinh(min(max(location, -LIMIT), LIMIT))
    return min(max(value, low), high)


@compiled(inline="always")
def _meet(r: Record, ring: int, wait: int, far: int, x: float, ahead: float) -> tuple[float, float]:
    """Let the forecast meet its event that was made `wait` arrivals ago, and the new one, `ahead`, take its place.

    Returns the size of its error, 0 where there was no such forecast yet, and the slow average of that.
    """
    slot = ring + r.events % wait
    error = abs(x - r.ahead[slot]) if r.events >= wait else 0.0
    r.ahead[slot] = ahead
    r.slow[far] += SLOW_SMOOTHING * (error - r.slow[far])
    return error, r.slow[far]


@compiled
def measure(
    lanes: Record,  # lane_score
    many: Record,  # many_score
    numbers: Numbers,
    forecasts: Forecasts,
    first: int,
    last: int,
    measured: Record,  # out MEASURED [observations]
) -> None:
    """Scan numbers first..last: what was expected, and how wrong that was in the lane's own units."""
    horizons, outputs, frames = forecasts.horizons, forecasts.outputs, forecasts.frames
    lane, many_row, value, at = numbers.lane, numbers.many_row, numbers.value, numbers.at
    count = len(horizons)
    for j in range(first, last):
        r = lanes[lane[j]]
        out = measured[at[j]]
        out.units = out.slow_units = out.tail = out.surprise = out.contribution = out.error = 0.0
        frame = frames[j]
        x = value[j]
        mean, deviation = frame.mean, frame.deviation
        if math.isnan(mean):
            out.expected = out.lower = out.upper = math.nan
            continue
        location, log_scale, nu = float(outputs[j, 0]), float(outputs[j, count]), float(outputs[j, 2 * count])
        low, high = frame.low, frame.high
        expected = _in_data_unit(location, mean, deviation, low, high)
        error = x - expected
        r.smoothed += SMOOTHING * (error - r.smoothed)

        scale = math.exp(log_scale)
        t = (to_unit(x, mean, deviation) - location) / scale
        log_beta = math.lgamma(0.5 * nu) + 0.5723649429247001 - math.lgamma(0.5 * (nu + 1.0))
        out.surprise = log_beta + 0.5 * math.log(nu) + log_scale + 0.5 * (nu + 1.0) * math.log1p(t * t / nu)
        out.expected, out.error = expected, error
        band = max(r.unit.slow_unit, r.unit.fast_unit)
        if r.events < UNIT_WARMUP:
            band = BAND_WARMUP_DEVIATIONS * scale * deviation
        out.lower, out.upper = expected - band, expected + band

        row = many_row[j]
        if r.events % RANGE_EVENTS == 0:
            r.former_low, r.former_high = (x, x) if r.events == 0 else (r.low, r.high)
            r.low, r.high = math.inf, -math.inf
        span = max(r.high, r.former_high) - min(r.low, r.former_low)
        reach = STRETCH * span if span > 0.0 else math.inf
        r.low = min(r.low, max(x, min(r.low, r.former_low) - reach))
        r.high = max(r.high, min(x, max(r.high, r.former_high) + reach))
        least = (MIN_UNIT_SINGLE if row < 0 else MIN_UNIT_MANY) * span
        if row < 0:
            out.tail = min(-math.log10(max(_tail_probability(abs(t), nu, log_beta), 1e-12)), 12.0)
            out.units = in_units(r.unit, r.events, abs(error), least, True)
        else:
            q = many[row]
            one = in_units(r.unit, q.events, abs(error), least, True)
            two = in_units(q.smoothed_unit, q.events, abs(r.smoothed), least, True)
            out.units = max(one, two)
        ring = 0
        for k in range(1, count):
            ahead = _in_data_unit(float(outputs[j, k]), mean, deviation, low, high)
            far_error, slow = _meet(r, ring, horizons[k] - 1, k - 1, x, ahead)
            ring += horizons[k] - 1
            if row >= 0:
                f = many[row].far[k - 1]
                events = many[row].events
                out.units = max(out.units, in_units(f.unit, events, far_error, least, True))
                if events >= UNIT_WARMUP:
                    unit = max(f.slow_unit, least)
                    out.slow_units = max(out.slow_units, UNIT_LIMIT if slow >= UNIT_LIMIT * unit else slow / unit)
                grow(f.slow_histogram, SLOW_GROWTH)
                learn(f.slow_histogram, slow)
                if events % REFRESH == 0:
                    f.slow_unit = quantile(f.slow_histogram, UNIT_QUANTILE)
        if row >= 0:
            many[row].events += 1
        r.events += 1


@compiled
def judge_many(
    s: Record,  # STREAM, one record
    many: Record,
    matrices: NDArray[np.float32],  # the stream's own: covariance and components, flat
    place: NDArray[np.int64],  # [features of the event] position of each among the stream's lanes
    many_row: NDArray[np.int64],  # [features of the event]
    value: NDArray[np.float64],
    measured: Record,
) -> tuple[float, float, bool]:
    """Judge one event of two or more features: return score, surprise and whether the stream is still warming."""
    count = len(value)
    residual = outside(s, many, matrices, place, many_row, value)
    largest = second = 0.0
    for i in range(count):
        u = measured[i].units
        if u > largest:
            largest, second = u, largest
        elif u > second:
            second = u
    few = s.lanes < FEW
    square = slow_square = surprise = 0.0
    for i in range(count):
        u = measured[i].units if few else min(measured[i].units, second + SINGLE_LIMIT)
        c = u * u
        if not few:
            c += (SUBSPACE_WEIGHT * residual[i]) ** 2
        measured[i].contribution = c
        square += c
        slow_square += measured[i].slow_units ** 2
        surprise += measured[i].surprise
    severity = math.sqrt(square)
    period = return_period(s.severity, severity)
    if few:
        period = max(period, return_period(s.slow_severity, math.sqrt(slow_square))) - SHARED_BUDGET
    elif severity > 0.0:
        period += math.log10(severity / SEVERITY_SCALE)
    warming = s.events < RETURN_WARMUP
    return (period if period > 0.0 and not warming else 0.0), surprise / max(count, 1), warming


@compiled
def _hour_profile(n: Record, hour: int, x: float) -> float:
    """Return the hour of day's usual value, NaN of an hour never seen; a past hour's mean joins as the next begins."""
    if n.events == 0:
        n.this_hour = hour
    elif hour != n.this_hour:
        slot = n.this_hour % 24
        if n.hour_events > 0:
            if n.hour_count[slot] < 255:
                n.hour_count[slot] += 1
            n.hour[slot] += max(0.3, 1.0 / n.hour_count[slot]) * (n.hour_sum / n.hour_events - n.hour[slot])
        n.this_hour, n.hour_sum, n.hour_events = hour, 0.0, 0
    n.hour_sum += x
    n.hour_events += 1
    return float(n.hour[hour % 24]) if n.hour_count[hour % 24] > 0 else math.nan


@compiled
def judge_single(
    s: Record,  # STREAM, one record
    n: Record,  # SINGLE_SCORE, one record
    x: float,
    time: int,
    m: Record,  # MEASURED, one record
    repeats: bool,  # alerting.repeated_anomalies = "flag"
) -> tuple[float, float, bool]:
    """Judge one event of one feature: return score, surprise and whether the stream is still warming."""
    weight = max(SKILL_DECAY, 1.0 / (n.events + 1))
    skill = n.error_size / n.spread if n.spread > 0.0 else 1.0
    context = (0.5 / (n.context + 0.1)) ** 0.75
    gate = min(1.0, m.tail)
    young = n.events < NOVELTY_WARMUP

    g = gap(n.value, x, VALUE_REACH, young)
    novelty = damped(n.value, g * context * gate)
    remember(n.value, x)

    g = gap(n.error, m.error, ERROR_REACH, young)
    novelty = max(novelty, 0.15 * damped(n.error, g * context))
    remember(n.error, m.error)

    share, limit, budget = (0.6, 0.05, 30.0) if repeats else (0.3, 0.03, 10.0)
    g = gap(n.doubted, m.error, ERROR_REACH, young)
    trust = min(max((0.40 - skill) / 0.1, 0.0), 1.0)
    novelty = max(novelty, share * trust * damped(n.doubted, g * context))
    n.doubt *= DOUBT_DECAY
    if g <= limit or n.doubt >= budget:
        remember(n.doubted, m.error)
    if g > limit:  # counted whether doubted or not: where all is new all the time, nothing is worth a doubt
        n.doubt += 1.0

    slot = n.events % ROLL
    n.recent_level[slot] = x - _hour_profile(n, time // 3_600_000_000_000, x)
    n.recent[slot] = x
    if n.events >= ROLL - 1:
        level, lowest = 0.0, math.inf
        for k in range(ROLL):
            level += n.recent_level[k]
            lowest = min(lowest, n.recent[k])
        level /= ROLL
        if not math.isnan(level):  # all its hours are known: from the second day on
            if n.level.events == 0:
                n.level.quiet = LEVEL_WARMUP
            novelty = max(novelty, 0.1 * damped(n.level, gap(n.level, level, VALUE_REACH, young) * context))
            remember(n.level, level)
        novelty = max(novelty, 0.05 * damped(n.floor, gap(n.floor, lowest, VALUE_REACH, young) * context))
        remember(n.floor, lowest)

    n.context += max(CONTEXT_DECAY, 1.0 / (n.events + 1)) * (min(m.tail, LIMIT) - n.context)
    n.error_size += weight * (abs(m.error) - n.error_size)
    n.mean += weight * (x - n.mean)
    n.spread += weight * (abs(x - n.mean) - n.spread)
    n.events += 1

    period = return_period(s.severity, m.units)
    if young:
        return 0.0, m.surprise, True
    m.contribution = 1.0
    score = math.log10(novelty / ALARMING_NOVELTY) + ALARMING_RETURN if novelty > 0.0 else 0.0
    if n.events > RETURN_HISTORY and skill < RETURN_SKILL:
        score = max(score, period)
    return max(score, 0.0), m.surprise, False

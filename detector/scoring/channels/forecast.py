"""The forecast channel's statistics: by how much the network was wrong, in the data's own unit.

Three sizes of error a lane: of the forecast of this event, of the running mean of such errors (a shift, a burst), and
of what was forecast of this event nine events ago (a slow rise that one step at a time never surprises). The forecast
is clipped to the range seen lately. Beside them stands the network's own word: how rare it held such an error to be.

Finds spikes, bursts, shifts and noise. Does not find what stays within usual errors: a standstill at a usual value.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from detector.scoring.student import BAND_DEVIATE, log_normaliser, normal_deviate, rarity, student_deviate
from detector.scoring.units import ERROR, FAR, HAIR, SLOW, SMOOTHED, Record
from training.network.compiled import compiled
from training.network.inputs import LIMIT, to_unit

SMOOTHING = 0.4  # weight of the newest error in the running mean
SLOW_SMOOTHING = 0.03  # and of the far error in its slow mean, for the rank
RANGE_EVENTS = 4000  # the range is that of the last one to two times so many events
REACH = 3.0  # a value widens the range by at most so many times itself: one wild value widens nothing
MIN_UNIT = 0.01  # of the range: an error below is never an event


def forecast_state(horizon: int) -> np.dtype[Any]:
    """Return what is remembered of a lane's errors; `horizon`: how many events ahead the farthest forecast is."""
    return np.dtype(
        [
            ("smoothed", np.float64),
            ("slow", np.float64),
            ("low", np.float64),  # range of the values since the last turn of RANGE_EVENTS ...
            ("high", np.float64),
            ("former_low", np.float64),  # ... and between the last two
            ("former_high", np.float64),
            ("ahead", np.float32, max(horizon - 1, 1)),  # forecasts that wait for their event; NaN: none
        ],
        align=True,
    )


@compiled
def _widen_range(r: Record, events: int, x: float) -> tuple[float, float]:
    """Return the lane's range before a value, and take that in; `r` is the forecast state."""
    if events % RANGE_EVENTS == 0:
        r.former_low, r.former_high = (x, x) if events == 0 else (r.low, r.high)
        r.low, r.high = math.inf, -math.inf
    low, high = min(r.low, r.former_low), max(r.high, r.former_high)
    reach = REACH * (high - low) if high > low else math.inf
    r.low, r.high = min(r.low, max(x, low - reach)), max(r.high, min(x, high + reach))
    return low, high


class Forecast(NamedTuple):
    """What the network said of an event, and of the farthest that it forecasts; locations are in the frame's unit."""

    location: float
    log_scale: float
    freedom: float
    far_location: float


@compiled(inline="always")
def forecast_of(output: NDArray[np.float32]) -> Forecast:
    """Take apart what the network said: locations, log scales, degrees of freedom, by horizon."""
    count = len(output) // 3
    return Forecast(float(output[0]), float(output[count]), float(output[2 * count]), float(output[count - 1]))


@compiled
def measure_errors(
    lane: Record,  # lane_score, before this event
    x: float,
    frame: Record,
    said: Forecast,
    wait: int,  # arrivals until the event of the far forecast; 0: there is none
    gap: bool,  # the event ends a gap
    m: Record,  # out MEASURED
) -> tuple[float, float]:
    """Measure one event's errors; what is wrong by less than a hair is not wrong. Return the range seen before it."""
    r, events, last = lane.forecast, lane.events, lane.last
    location, log_scale, freedom, far_location = said
    mean, deviation = frame.mean, frame.deviation
    if events == 0:
        r.ahead[:] = math.nan
    low, high = _widen_range(r, events, x)
    hair = HAIR * abs(mean)
    m.least = max(MIN_UNIT * (high - low), hair, 1e-12)
    lowest, highest = (low, high) if events > 0 else (-math.inf, math.inf)  # else a forecast would know its own event
    expected = in_data_unit(location, mean, deviation, lowest, highest)
    error = x - expected

    scale = math.exp(log_scale)
    t = (to_unit(x, mean, deviation) - location) / scale
    log_spread = math.log1p(t * t / freedom)
    m.surprise = (  # -log of the density of Student's t
        log_normaliser(freedom) + log_scale + 0.5 * (freedom + 1.0) * log_spread
    )
    if abs(x - mean) <= hair and abs(x - last) <= hair:
        log_spread = 0.0
    m.tail = rarity(normal_deviate(log_spread, freedom))
    m.expected, m.error = expected, error

    # that a mean takes in: it would take hundreds of events to forget one wild value
    furthest = REACH * (high - low) if high > low else math.inf
    if gap:
        r.smoothed = 0.0
        r.ahead[:] = math.nan
    else:
        r.smoothed += SMOOTHING * (min(max(error, -furthest), furthest) - r.smoothed)
    m.far_error = math.nan
    if wait > 0:
        place = events % wait
        m.far_error = x - r.ahead[place]
        if abs(m.far_error) <= hair:  # what waits is rounded
            m.far_error = 0.0
        r.ahead[place] = math.nan if gap else in_data_unit(far_location, mean, deviation, lowest, highest)
    if not math.isnan(m.far_error):
        r.slow += SLOW_SMOOTHING * (min(abs(m.far_error), furthest) - r.slow)
        m.sizes[FAR], m.sizes[SLOW] = abs(m.far_error), r.slow
    m.smoothed_error = r.smoothed
    m.sizes[ERROR], m.sizes[SMOOTHED] = abs(error), abs(r.smoothed)
    return low, high


@compiled
def largest_error(m: Record) -> tuple[int, float]:
    """Return the statistic, of ERROR, SMOOTHED and FAR, that is largest in units, and the error; `m` is MEASURED."""
    if m.units[SMOOTHED] > m.units[ERROR] and m.units[SMOOTHED] >= m.units[FAR]:
        return SMOOTHED, m.smoothed_error
    if m.units[FAR] > m.units[ERROR]:
        return FAR, m.far_error
    return ERROR, m.error


@compiled
def network_band(frame: Record, output: NDArray[np.float32], expected: float) -> tuple[float, float]:
    """Return the ends of the network's own 99 % band for the next event, in the data's unit.

    It takes in what is `expected`: the forecast may have been clipped to beyond its own band.
    """
    location, log_scale, freedom, _ = forecast_of(output)
    edge = math.exp(log_scale) * student_deviate(BAND_DEVIATE, freedom)
    low, high = max(location - edge, -LIMIT), min(location + edge, LIMIT)
    low, high = frame.mean + frame.deviation * math.sinh(low), frame.mean + frame.deviation * math.sinh(high)
    return min(low, expected), max(high, expected)


@compiled(inline="always")
def in_data_unit(location: float, mean: float, deviation: float, low: float, high: float) -> float:
    """Return a location in the data's unit, within the range seen lately."""
    value = mean + deviation * math.sinh(min(max(location, -LIMIT), LIMIT))
    return min(max(value, low), high)

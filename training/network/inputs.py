"""What the network sees of one lane: causal normalisation, recent averages, day and week profiles, time.

A lane is one feature of one stream. Its `NORMALISER` record is all that is kept of it here: O(1) in the length of the
stream. `featurise` is one scan over a batch; cutting the batch differently changes nothing.

A row of inputs is made when an event arrives, for the forecast *of* that event: what the lane's last event was
(columns 0-3) together with what is known of the new one beforehand, its time (columns 4-10). The observed value itself
only enters the record, and so the next row. That is "one pass over the sequence, shifted by one".

Good at level, scale and calendar. It knows no holidays, and follows a lasting change of scale only at the pace of its
memory (`MEMORY` events).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from training.network.compiled import compiled
from training.network.memory import prefetch, unowned
from training.network.profile import learn, learnt, profile, refit, usual_value

INPUTS = (
    "value",  # asinh of the last value in running standard deviations from the running mean
    "change",  # its difference to the value before
    "average_fast",  # exponentially weighted averages of "value"
    "average_slow",
    "day_profile",  # what was seen at this time of day, in the same unit as "value"; 0 where never
    "day_known",
    "week_profile",
    "week_known",
    "sin_day",  # time of day, by the lanes' clock
    "cos_day",
    "gap",  # log of the time since the lane's last event over its running interval
)
INPUT_SIZE = len(INPUTS)
VALUE = INPUTS.index("value")

MEMORY = 2000  # events the running mean and deviation remember: long against a day of 5-minute data (288)
LIMIT = 6.0  # every input and target is clipped to +-6: asinh(200) deviations; beyond, only "far" is known
DAY_SLOTS = 96  # 15 minutes each
WEEK_SLOTS = 168  # an hour each
REFIT_EVENTS = 64  # between two looks at how fine the profiles' steps may be
FAST, SLOW = 0.2, 0.03  # weights of the two running averages: about 5 and 33 events
MAX_INCREMENT = 5.0  # an increment moves the running mean and deviation by at most this many deviations
WARM_UP_EVENTS = 20  # before these, a lane knows too little of itself to call a value an outlier
LASTING_OUTLIERS = 50  # in a row: then they are the new normal, and may move mean and deviation ever further:
# without it a lane that was constant for days and then moves stays off the scale for 3,500 events
MAX_DEVIATIONS = math.sinh(LIMIT)  # the unit expresses no more, so a profile may learn no more
MAX_VALUE = 1e30  # its square must stay finite
INTERVAL_MEMORY = 200  # events the running interval remembers
LONG_PAUSE = 5.0  # intervals that a pause counts for at most: a night without data must not change the interval
MIN_STEP_SECONDS = 1e-6  # seconds
GAP_LIMIT = 3.0  # log of a time 20 times the usual one
AHEAD = 4  # observations whose lanes are on their way to the cache
NS = 1e-9

NORMALISER = np.dtype(
    [
        ("events", np.int64),  # seen so far
        ("time", np.int64),  # of the last one, ns
        ("mean", np.float64),
        ("variance", np.float64),
        ("interval", np.float64),  # running mean time between events, seconds
        ("value", np.float32),  # the inputs' carried parts
        ("change", np.float32),
        ("average_fast", np.float32),
        ("average_slow", np.float32),
        ("outliers", np.int32),  # in a row, up to now
        ("profile", profile(DAY_SLOTS + WEEK_SLOTS)),  # of the day, and then of the week
    ],
    align=True,
)

FRAME = np.dtype([("mean", np.float64), ("deviation", np.float64)])
"""The unit in which a forecast is made: the lane's normaliser just before the event."""


class Observations(NamedTuple):
    """Values of lanes; a lane's own in the order of their events."""

    lane: NDArray[np.int64]  # [observations] row of the lanes' table
    time: NDArray[np.int64]  # [observations] ns
    value: NDArray[np.float64]  # [observations]
    local: NDArray[np.int64]  # [observations] ns, by the clock that the lanes' days and weeks follow


@compiled(inline="always")
def _clip(x: float, limit: float) -> float:
    return min(max(x, -limit), limit)


@compiled(inline="always")
def deviation_of(mean: float, variance: float) -> float:
    """Return the running standard deviation, held off zero for a series that has never moved."""
    return max(math.sqrt(variance), 1e-6 * abs(mean), 1e-12)


@compiled(inline="always")
def to_unit(x: float, mean: float, deviation: float) -> float:
    """Return asinh((x - mean) / deviation), clipped: linear near the mean, logarithmic far from it."""
    return _clip(math.asinh((x - mean) / deviation), LIMIT)


@compiled(inline="always")
def carried_interval(interval: float, events: int, step: float) -> float:
    """Return the running mean time between events once one more has come, `step` seconds after the last of `events`.

    A step back in time takes away what the step forward before it has added: a time that was wrong leaves no trace.
    """
    if step >= 0.0:
        step = max(step, MIN_STEP_SECONDS)
    if events == 1:
        return max(step, MIN_STEP_SECONDS)
    if events > WARM_UP_EVENTS:
        step = min(max(step, (2.0 - LONG_PAUSE) * interval), LONG_PAUSE * interval)
    carried = interval + max(1.0 / events, 1.0 / INTERVAL_MEMORY) * (step - interval)
    return carried if carried > 0.0 else interval


@compiled
def featurise(
    lanes: NDArray[np.void],  # NORMALISER [lanes]
    observations: Observations,
    first: int,
    last: int,
    inputs: NDArray[np.float32],  # out [observations, INPUT_SIZE]
    frames: NDArray[np.void],  # out FRAME [observations]
) -> None:
    """Scan observations first..last: write the network's inputs for each, and learn its value.

    A lane's first observation gets zeros and a frame of NaN: nothing can be forecast yet.
    """
    lane, time, value, local = unowned(observations)
    lanes, inputs, frames = unowned(lanes), unowned(inputs), unowned(frames)
    day_slot = week_slot = 0
    sine = cosine = 0.0
    for j in range(first, last):
        if j + AHEAD < last:
            prefetch(lanes, lane[j + AHEAD])
        r = lanes[lane[j]]
        x = _clip(value[j], MAX_VALUE)
        if j == first or local[j] != local[j - 1]:
            seconds = local[j] * NS
            day_slot = math.floor(seconds / 900.0) % DAY_SLOTS
            # 1970-01-01 was a Thursday: a fixed shift
            week_slot = DAY_SLOTS + math.floor(seconds / 3600.0) % WEEK_SLOTS
            angle = 2.0 * math.pi * (seconds / 86400.0 - math.floor(seconds / 86400.0))
            sine, cosine = math.sin(angle), math.cos(angle)
        row = inputs[j]
        if r.events == 0:
            row[:] = 0.0
            frames[j].mean = frames[j].deviation = math.nan
            r.mean = x
        else:
            deviation = deviation_of(r.mean, r.variance)
            frames[j].mean, frames[j].deviation = r.mean, deviation
            row[0], row[1], row[2], row[3] = r.value, r.change, r.average_fast, r.average_slow
            row[4] = row[5] = row[6] = row[7] = 0.0
            if learnt(r.profile, day_slot) > 0:
                row[4] = to_unit(usual_value(r.profile, day_slot), r.mean, deviation)
                row[5] = 1.0
            if learnt(r.profile, week_slot) > 0:
                row[6] = to_unit(usual_value(r.profile, week_slot), r.mean, deviation)
                row[7] = 1.0
            row[8], row[9] = sine, cosine
            row[10] = 0.0
            step = (time[j] - r.time) * NS
            if r.events > 1 and step >= 0.0:  # after a step back nobody knows how long it was
                row[10] = _clip(math.log(max(step, MIN_STEP_SECONDS) / r.interval), GAP_LIMIT)
            r.interval = carried_interval(r.interval, r.events, step)

        r.events += 1
        r.time = time[j]
        weight = max(1.0 / r.events, 1.0 / MEMORY)
        increment = x - r.mean
        if r.events > WARM_UP_EVENTS:
            furthest = MAX_INCREMENT * deviation_of(r.mean, r.variance)
            if abs(increment) <= furthest:
                r.outliers = 0
            else:
                r.outliers += 1
                if r.outliers > LASTING_OUTLIERS:
                    furthest *= 2.0 ** min(r.outliers - LASTING_OUTLIERS, 200)
                increment = _clip(increment, furthest)
        r.mean += weight * increment
        r.variance = (1.0 - weight) * (r.variance + weight * increment * increment)
        deviation = deviation_of(r.mean, r.variance)
        unit = to_unit(x, r.mean, deviation)
        if r.events == 1:
            r.value = r.average_fast = r.average_slow = unit
        r.change = _clip(unit - r.value, LIMIT)
        r.value = unit
        r.average_fast += FAST * (unit - r.average_fast)
        r.average_slow += SLOW * (unit - r.average_slow)
        if r.events > WARM_UP_EVENTS:  # a wild value must not own its time of day for weeks
            x = r.mean + _clip(x - r.mean, MAX_DEVIATIONS * deviation)
        learn(r.profile, day_slot, x)
        learn(r.profile, week_slot, x)
        if r.events % REFIT_EVENTS == 0:
            refit(r.profile, r.mean, MAX_DEVIATIONS * deviation)


def inputs_of(observations: Observations) -> tuple[NDArray[np.float32], NDArray[np.void]]:
    """Return inputs [observations, INPUT_SIZE] and FRAME [observations] of lanes 0, 1, ... from their beginning."""
    count = len(observations.lane)
    inputs, frames = np.empty((count, INPUT_SIZE), np.float32), np.empty(count, FRAME)
    lanes = np.zeros(int(observations.lane.max(initial=-1)) + 1, NORMALISER)
    featurise(lanes, observations, 0, count, inputs, frames)
    return inputs, frames


@compiled
def targets(
    value: NDArray[np.float64],  # [rows] one lane's values
    frames: NDArray[np.void],  # FRAME [rows]
    horizon: int,
    out: NDArray[np.float32],  # [rows]
) -> None:
    """Write the target of each row's forecast `horizon` events ahead, in the row's own unit; NaN where there is none.

    Row t forecasts event t + horizon - 1: its inputs were made before event t was seen.
    """
    for t in range(len(value)):
        ahead = t + horizon - 1
        if ahead >= len(value) or math.isnan(frames[t].mean):
            out[t] = math.nan
        else:
            out[t] = to_unit(_clip(value[ahead], MAX_VALUE), frames[t].mean, frames[t].deviation)

"""The recent window of a lane: what retraining learns from, and what new weights are warmed up with.

A ring of WINDOW events, six bytes each, since most of a row of inputs follows from the others: the change and the
averages from the values, by the recursion that made them. What was known of the time of day and of the week is kept as
it was then: today's profiles have seen the event itself. `unroll` gives back rows of inputs, with an error of half a
step of the column's code.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.network.compiled import compiled
from training.network.inputs import (
    AHEAD,
    FAST,
    GAP_LIMIT,
    INPUT_SIZE,
    INPUTS,
    LASTING_OUTLIERS,
    LIMIT,
    MAX_INCREMENT,
    MEMORY,
    SLOW,
    VALUE,
    WARM_UP_EVENTS,
)
from training.network.memory import prefetch, unowned

WINDOW = 128  # events of a lane's ring: enough for a hidden state to warm up, at 0.8 KB a lane
VALUE_STEP = LIMIT / 32767.0  # fine, since targets are made from the values: see `undo_normaliser`
PROFILE_STEP, GAP_STEP = LIMIT / 127.0, GAP_LIMIT / 127.0
DAY_STEPS = 256  # of the time of day: 6 minutes, an error of 0.012 in its sine
NEAR = 4  # rows by which a run of masked ones may lie beside where it is looked for
NOT_KNOWN = -128  # a profile's code
DAY_PROFILE, WEEK_PROFILE = INPUTS.index("day_profile"), INPUTS.index("week_profile")  # each followed by its "known"
SINE, GAP = INPUTS.index("sin_day"), INPUTS.index("gap")  # the cosine comes after the sine

_ROW = np.dtype(
    [
        ("value", np.int16),  # in VALUE_STEP
        ("day_profile", np.int8),  # in PROFILE_STEP, or NOT_KNOWN
        ("week_profile", np.int8),
        ("time_of_day", np.uint8),  # in DAY_STEPS
        ("gap", np.int8),  # in GAP_STEP
    ]
)
INPUT_HISTORY = np.dtype(
    [
        ("events", np.int64),  # written so far; row e is at e % WINDOW
        ("value", np.float32),  # of the row before the oldest, as are its averages: what the recursion begins with
        ("average_fast", np.float32),
        ("average_slow", np.float32),
        ("rows", _ROW, WINDOW),
        ("masked", np.uint8, WINDOW // 8),  # a bit a row: the event was part of an incident and is not learnt
    ],
    align=True,
)
"""The target of a row is the "value" of a later one, because that is the value of the event before its row."""


@compiled(inline="always")
def _profile_code(x: float, known: float) -> np.int8:
    return np.int8(round(x / PROFILE_STEP) if known > 0.0 else NOT_KNOWN)


@compiled
def record(
    histories: Any,  # INPUT_HISTORY [lanes]
    lane: NDArray[np.int64],  # [observations]
    inputs: NDArray[np.float32],  # [observations, INPUT_SIZE]
    masked: NDArray[np.bool_],  # [observations]
    first: int,
    last: int,
) -> None:
    """Write observations first..last into their lanes' rings."""
    histories, lane, inputs, masked = unowned(histories), unowned(lane), unowned(inputs), unowned(masked)
    time_of_day = np.uint8(0)
    for j in range(first, last):
        if j + 2 * AHEAD < last:
            prefetch(histories.events, lane[j + 2 * AHEAD])
        if j + AHEAD < last:
            soon = histories[lane[j + AHEAD]]
            prefetch(soon.rows, soon.events % WINDOW)
            prefetch(soon.masked, soon.events % WINDOW >> 3)
        h, x = histories[lane[j]], inputs[j]
        slot = h.events % WINDOW
        row = h.rows[slot]
        if h.events >= WINDOW:
            value = np.float32(row.value * VALUE_STEP)
            h.average_fast += np.float32(FAST) * (value - h.average_fast)
            h.average_slow += np.float32(SLOW) * (value - h.average_slow)
            h.value = value
        row.value = np.int16(round(x[VALUE] / VALUE_STEP))
        row.day_profile = _profile_code(x[DAY_PROFILE], x[DAY_PROFILE + 1])
        row.week_profile = _profile_code(x[WEEK_PROFILE], x[WEEK_PROFILE + 1])
        if j == first or x[SINE] != inputs[j - 1, SINE] or x[SINE + 1] != inputs[j - 1, SINE + 1]:
            turn = math.atan2(x[SINE], x[SINE + 1]) / (2.0 * math.pi)
            time_of_day = np.uint8(round(turn * DAY_STEPS) % DAY_STEPS)
        row.time_of_day = time_of_day
        row.gap = np.int8(round(x[GAP] / GAP_STEP))
        bit = np.uint8(1 << (slot & 7))
        h.masked[slot >> 3] = (h.masked[slot >> 3] & ~bit) | (bit if masked[j] else np.uint8(0))
        h.events += 1


@compiled
def _unroll(histories: NDArray[np.void], inputs: NDArray[np.float32], masked: NDArray[np.bool_]) -> None:
    for lane in range(len(histories)):
        h = histories[lane]
        count = min(h.events, WINDOW)
        before, fast, slow = h.value, h.average_fast, h.average_slow
        for t in range(WINDOW - count, WINDOW):
            event = h.events - WINDOW + t
            slot = event % WINDOW
            masked[lane, t] = (h.masked[slot >> 3] >> (slot & 7)) & 1
            if event == 0:  # nothing is known before the first one
                continue
            row, x = h.rows[slot], inputs[lane, t]
            value = np.float32(row.value * VALUE_STEP)
            fast += np.float32(FAST) * (value - fast)
            slow += np.float32(SLOW) * (value - slow)
            x[VALUE], x[VALUE + 1] = value, min(max(value - before, -LIMIT), LIMIT)
            x[VALUE + 2], x[VALUE + 3] = fast, slow
            before = value
            if row.day_profile != NOT_KNOWN:
                x[DAY_PROFILE], x[DAY_PROFILE + 1] = row.day_profile * PROFILE_STEP, 1.0
            if row.week_profile != NOT_KNOWN:
                x[WEEK_PROFILE], x[WEEK_PROFILE + 1] = row.week_profile * PROFILE_STEP, 1.0
            angle = row.time_of_day * (2.0 * math.pi / DAY_STEPS)
            x[SINE], x[SINE + 1] = math.sin(angle), math.cos(angle)
            x[GAP] = row.gap * GAP_STEP


def unroll(histories: NDArray[np.void]) -> tuple[NDArray[np.float32], NDArray[np.bool_], NDArray[np.int64]]:
    """Return the rings of some lanes in the order of time: inputs, masked and the number of rows.

    Inputs are [lanes, WINDOW, INPUT_SIZE] and masked [lanes, WINDOW]; a young lane's rows are the last, after zeros
    that are masked.
    """
    inputs = np.zeros((len(histories), WINDOW, INPUT_SIZE), np.float32)
    masked = np.ones((len(histories), WINDOW), np.bool_)
    _unroll(histories, inputs, masked)
    return inputs, masked, np.minimum(histories["events"], WINDOW)


def undo_normaliser(
    unit: NDArray[np.float32], events: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Undo the running normaliser of full rings, up to a shift and a scale of each lane, by stepping it along them.

    The lane's own mean and deviation are not in the ring and need not be: values up to shift and scale are all that a
    target asks for. Not restored exactly: values beyond the limit (clipped, as their targets are), and lanes whose
    deviation is at its minimum.

    unit: the "value" column [lanes, WINDOW], oldest first; events: written so far [lanes].
    Returns the values of events 0..WINDOW-2 of the ring [lanes, WINDOW - 1], and the mean and the deviation before
    each of its rows [lanes, WINDOW]. Before a lane's WARM_UP_EVENTS-th event they mean little.
    """
    lanes = len(unit)
    value = np.empty((lanes, WINDOW - 1))
    mean, deviation = np.zeros((lanes, WINDOW)), np.ones((lanes, WINDOW))
    outliers = np.zeros(lanes)
    with np.errstate(all="ignore"):  # what is not finite is never a target
        for t in range(WINDOW - 1):
            number = events - WINDOW + t + 1  # [lanes] of this event in its lane, from 1
            weight = np.maximum(1.0 / np.maximum(number, 1), 1.0 / MEMORY)
            seen = np.sinh(unit[:, t + 1].astype(np.float64))  # in the unit of the normaliser after the event
            # Not clipped: mean' = mean + w z s, s'^2 = (1 - w)(1 + w z^2) s^2, and so seen = z sqrt((1-w)/(1+w z^2)).
            left = 1.0 - weight - weight * seen**2
            z = np.where(left > 0, seen / np.sqrt(np.abs(left)), np.copysign(np.inf, seen))
            outliers = np.where(np.abs(z) > MAX_INCREMENT, outliers + 1, 0)
            limit = MAX_INCREMENT * 2.0 ** np.maximum(outliers - LASTING_OUTLIERS, 0)
            limit = np.where(number > WARM_UP_EVENTS, limit, np.inf)
            spread = np.sqrt((1.0 - weight) * (1.0 + weight * limit**2))
            far = seen * spread + np.copysign(weight * limit, seen)  # clipped: the increment was the limit itself
            z = np.where(np.abs(z) > limit, far, z)
            increment = np.clip(z, -limit, limit)
            value[:, t] = mean[:, t] + deviation[:, t] * z
            mean[:, t + 1] = mean[:, t] + weight * deviation[:, t] * increment
            deviation[:, t + 1] = deviation[:, t] * np.sqrt((1.0 - weight) * (1.0 + weight * increment**2))
    return value, mean, deviation


def clear_masked(histories: NDArray[np.void], lanes: NDArray[np.int64], back: int) -> None:
    """Let one run of masked rows of each of these lanes be learnt after all.

    That whose last row is nearest to the one `back` rows before the newest, but for a quarter of that or a few rows:
    rows have no times, and the intervals between events vary.
    """
    rows = np.arange(WINDOW)
    for lane in lanes.tolist():
        h = histories[lane]
        count = min(int(h["events"]), WINDOW)
        slots = (int(h["events"]) - 1 - rows[:count]) % WINDOW  # newest first
        masked = (h["masked"][slots >> 3] >> (slots & 7)) & 1
        edges = np.flatnonzero(np.diff(masked.astype(np.int8), prepend=0, append=0)).reshape(-1, 2)
        if not len(edges):
            continue
        first, after = edges[np.argmin(np.abs(edges[:, 0] - back))]
        if abs(first - back) <= max(back / 4, NEAR):
            run = slots[first:after]
            np.bitwise_and.at(h["masked"], run >> 3, ~(1 << (run & 7)).astype(np.uint8))

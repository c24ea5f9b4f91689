"""How large is large for this lane: each statistic of its errors in units of what is usual.

A statistic's unit is the size that one in a hundred of its own past exceeds: measured worth more than the network
itself. Its past is a histogram of log size that forgets by a half-life in events; each value is shared between its two
nearest bins, so that quantiles move smoothly with the data. Errors have a second one, which forgets fast: a lane that
turned noisy has its new unit within hours, and a burst is not told again and again.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.network.compiled import compiled

Record = Any  # a row of a structured array, or an array of rows: compiled code reads its fields as attributes

STATISTICS = ("error", "smoothed_error", "far_error", "level", "coupling", "slow_error")
ERROR, SMOOTHED, FAR, LEVEL, COUPLING, SLOW = range(len(STATISTICS))
FAST_STATISTICS = 3  # the first so many have the fast memory, too

HAIR = 1e-6  # of a value's size: a lesser difference is none
TINY = 1e-35  # a lesser size is none: units are float32
BINS = 40
WIDTH = 0.4  # nats a bin: 40 bins hold seven decades, around the first size at first
SLOW_HALF_LIFE, FAST_HALF_LIFE = 15_000.0, 250.0  # events
SLOW_GROWTH, FAST_GROWTH = 2.0 ** (1.0 / SLOW_HALF_LIFE), 2.0 ** (1.0 / FAST_HALF_LIFE)
FIRST_WEIGHT = 256.0  # counts that the first value is worth: a young histogram is as fine as 16 bits allow
MAX_MASS = 65_000.0  # counts; then all are halved: one bin may hold them all
ROUNDING, SHARING = 0.5 * (math.sqrt(5.0) - 1.0), math.sqrt(2.0) - 1.0  # multiples of these modulo 1 are even in [0, 1)
QUANTILE = 0.01  # share of a statistic's past above its unit
REFRESH = 16  # events between two looks at a quantile: it moves slowly, and looking costs a scan
WARM_UP_EVENTS, LEVEL_WARM_UP_EVENTS = 60, 200  # before a statistic has a unit; levels change slowly
MIN_COUPLING_UNIT = 0.02  # running deviations of the lane
LINEAR_UNITS = 15.0  # beyond so many units a size counts by its logarithm only ...
LOG_UNITS = 1.5  # ... so many units for each factor of e: a larger surprise is always a larger score

UNITS = np.dtype(
    [
        ("slow_weight", np.float32),  # of the next value, in counts: it grows, so that nothing old needs to be touched
        ("fast_weight", np.float32),
        ("slow_mass", np.float32),  # counts that a bin may hold by now
        ("fast_mass", np.float32),
        ("origin", np.float32, len(STATISTICS)),  # log of bin 0's value; exactly 0: nothing above zero was seen
        ("slow_unit", np.float32, len(STATISTICS)),
        ("fast_unit", np.float32, FAST_STATISTICS),
        ("slow", np.uint16, (len(STATISTICS), BINS)),
        ("fast", np.uint16, (FAST_STATISTICS, BINS)),
        ("seen", np.int32, len(STATISTICS)),  # values learnt
    ],
    align=True,
)


@compiled
def to_units(r: Record, sizes: NDArray[np.float64], least: float, m: Record) -> None:
    """Say in units how large one event's statistics are (`m.units`, `m.slow_units`), then learn them.

    `r` is UNITS, `sizes` [STATISTICS] of the event, NaN where one is not known: what is not known teaches nothing.
    `least` is the smallest unit of an error, `m` MEASURED.
    """
    r.slow_weight = FIRST_WEIGHT if r.slow_weight == 0.0 else r.slow_weight * SLOW_GROWTH
    r.fast_weight = FIRST_WEIGHT if r.fast_weight == 0.0 else r.fast_weight * FAST_GROWTH
    r.slow_mass += r.slow_weight
    r.fast_mass += r.fast_weight
    if r.slow_mass > MAX_MASS:
        _halve(r.slow)
        r.slow_weight, r.slow_mass = 0.5 * r.slow_weight, 0.5 * r.slow_mass
    if r.fast_mass > MAX_MASS:
        _halve(r.fast)
        r.fast_weight, r.fast_mass = 0.5 * r.fast_weight, 0.5 * r.fast_mass
    worst = square = 0.0
    for c in range(len(STATISTICS)):
        size = sizes[c]
        if math.isnan(size):
            continue
        smallest = MIN_COUPLING_UNIT if c == COUPLING else least
        if r.seen[c] >= (LEVEL_WARM_UP_EVENTS if c == LEVEL else WARM_UP_EVENTS):
            unit = max(r.slow_unit[c], smallest)
            slow = softened(size / unit)
            m.units[c] = slow
            if c < FAST_STATISTICS:
                worst = max(worst, slow)
                if r.fast_unit[c] > unit:
                    m.units[c] = softened(size / r.fast_unit[c])
            elif c != LEVEL:
                square += slow * slow
        r.seen[c] += 1
        position = 0.0
        if size > TINY:
            if r.origin[c] == 0.0:
                r.origin[c] = math.log(size) - 0.5 * BINS * WIDTH + 1e-6
            position = (math.log(size) - r.origin[c]) / WIDTH
            if position > BINS - 1.0 or position < 0.0:
                position -= _move(r, c, position)
            position = min(max(position, 0.0), BINS - 1.0)
        lower = int(position)
        part = position - lower
        _learn(r.slow[c], lower, part, float(r.slow_weight), r.seen[c])
        if c < FAST_STATISTICS:
            _learn(r.fast[c], lower, part, float(r.fast_weight), r.seen[c])
        if r.seen[c] % REFRESH == c:
            r.slow_unit[c] = _quantile(r.slow[c], r.origin[c])
            if c < FAST_STATISTICS:
                r.fast_unit[c] = _quantile(r.fast[c], r.origin[c])
    m.slow_units = math.sqrt(worst * worst + square)


@compiled(inline="always")
def _learn(bins: NDArray[np.uint16], lower: int, part: float, weight: float, seen: int) -> None:
    """Share a value's weight between two bins, in whole counts; what rounding adds and takes evens out over events."""
    turn = seen * ROUNDING
    whole = int(weight + turn - math.floor(turn))
    if part > 0.0:
        turn = seen * SHARING
        upper = min(int(weight * part + turn - math.floor(turn)), whole)
        bins[lower + 1] += np.uint16(upper)
        whole -= upper
    bins[lower] += np.uint16(whole)


@compiled(inline="always")
def unit_of(r: Record, error: int, least: float) -> float:
    """Return the unit of one of the first FAST_STATISTICS, the larger of both memories; `r` is UNITS."""
    return max(r.slow_unit[error], r.fast_unit[error], least)


@compiled(inline="always")
def softened(units: float) -> float:
    """Return a size in units, in logarithms beyond LINEAR_UNITS."""
    return units if units <= LINEAR_UNITS else LINEAR_UNITS + LOG_UNITS * math.log(units / LINEAR_UNITS)


@compiled(inline="always")
def hard(units: float) -> float:
    """Return a size in units that is in logarithms nowhere: the reverse of `softened`."""
    return units if units <= LINEAR_UNITS else LINEAR_UNITS * math.exp(min((units - LINEAR_UNITS) / LOG_UNITS, 300.0))


@compiled
def _move(r: Record, c: int, position: float) -> int:
    """Move a statistic's bins to where its sizes are, and return by how many; `position` lies beside them.

    They stand around the first size seen, which may have been rounding dust or a wild value. They move up when a
    hundredth of the sizes lies above them, and down when nothing but what lies below has a share worth a unit.
    """
    unit = r.slow_unit[c]
    if c < FAST_STATISTICS:
        unit = max(unit, r.fast_unit[c])
    by = 0
    if position > 0.0:
        if unit >= math.exp(r.origin[c] + (BINS - 1.5) * WIDTH):
            by = BINS // 2
    elif unit == 0.0 and r.seen[c] > WARM_UP_EVENTS:
        by = int(position) - BINS // 2
    if by != 0:
        r.origin[c] += by * WIDTH
        _shift(r.slow[c], by)
        if c < FAST_STATISTICS:
            _shift(r.fast[c], by)
    return by


@compiled
def _shift(bins: NDArray[np.uint16], by: int) -> None:
    """Shift a histogram by so many bins; what falls off joins the last on that side, and bin 0 stays bin 0."""
    old = bins.copy()
    bins[:] = 0
    bins[0] = old[0]
    for b in range(1, BINS):
        bins[min(max(b - by, 0), BINS - 1)] += old[b]


@compiled
def _halve(bins: NDArray[np.uint16]) -> None:
    """Halve counts; half a count that is left over goes to the next bin."""
    for c in range(bins.shape[0]):
        left: Any = 0
        for b in range(BINS):
            count = np.int64(bins[c, b]) + left
            bins[c, b] = np.uint16(count >> 1)
            left = count & 1


@compiled
def _quantile(bins: NDArray[np.uint16], origin: float) -> float:
    """Return the size that a share QUANTILE of the mass lies above; 0 where that is bin 0."""
    mass = 0.0
    for b in range(BINS):
        mass += bins[b]
    wanted, above = QUANTILE * mass, 0.0
    for b in range(BINS - 1, 0, -1):
        inside = float(bins[b])
        if inside > 0.0 and above + inside >= wanted:
            return math.exp(origin + (b + 0.5 - (wanted - above) / inside) * WIDTH)
        above += inside
    return 0.0

"""Which values were met before: a grid of cells over their range, each with the least and largest place and an age.

It answers how far a value lies from the nearest remembered one, in 296 bytes, of errors in 104. The grid doubles as the
range grows and halves as an eighth of it holds everything; a cell that was not met for a while is forgotten.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detector.scoring.units import HAIR, Record
from training.network.compiled import compiled

CELLS, ERROR_CELLS = 128, 32
NARROW = 1.0 / 8.0  # of the cells: what they hold is given narrower ones
PLACES = 16  # in a cell: four bits each for its least and its largest value
AGES = 255  # 8 bits, 0 for an empty cell
REACH = 8000  # events after which a cell is forgotten
TICK = REACH // 128  # events that an age stands for
SWEEP = 32  # events between two looks for what is too old
WARM_UP_EVENTS = 50
STRETCH = 10.0  # a value stretches the grid by at most so many ranges
FINEST = 1e-12  # of the value's size: a cell is never narrower, or places were rounding dust
TINY = 1e-290  # a lesser difference is none: a cell's width would be nothing to divide by
DAMPING = 2.0 ** (-1.0 / 300.0)  # of the recent highest distance


def grid(cells: int) -> np.dtype[Any]:
    """Return a record of so many cells; zeros: nothing is remembered."""
    return np.dtype(
        [
            ("origin", np.float64),  # where the first cell begins; while all values were alike, that value
            ("width", np.float64),  # of a cell; 0: all values were alike
            ("low", np.float64),  # range of what is remembered
            ("high", np.float64),
            ("highest", np.float32),  # distance of late
            ("age", np.uint8, cells),
            ("ends", np.uint8, cells),
        ],
        align=True,
    )


@compiled
def compare(g: Record, x: float, events: int, weight: float) -> tuple[float, float, float, float]:
    """Return how new a value is: its damped distance, the plain one, the nearest value met before, and that one's age.

    The plain distance is over the range of all that is remembered, 0 to 1; the damped one is that times `weight`,
    damped by its own recent highest. The age is in events, coarse; NaN where nothing is near. `events` are those of the
    lane before this one.
    """
    now = _now(events)
    plain, nearest, age = 0.0, math.nan, math.nan
    if g.width > 0.0 and events % SWEEP == 0:
        _sweep(g, now)
    if events >= WARM_UP_EVENTS:
        if g.width == 0.0:
            plain = 0.0 if abs(x - g.origin) <= max(HAIR * abs(g.origin), TINY) else 1.0
            nearest, age = g.origin, 1.0
        else:
            near, nearest, cell = _nearest(g, x)
            if cell >= 0:
                age = float((now - np.int64(g.age[cell])) % AGES) * TICK
            narrow = NARROW * len(g.age) * g.width  # within less, where a value lay were too coarse
            extent = max(max(g.high, x) - min(g.low, x), narrow)
            plain = min(near / extent, 1.0)
    raw = plain * weight
    damped = raw * raw / (raw + 2.0 * g.highest + 1e-12)
    g.highest = max(g.highest * DAMPING, raw)
    return damped, plain, nearest, age


@compiled
def distance(g: Record, x: float, events: int, weight: float) -> tuple[float, float, float]:
    """Compare a value and remember it: return its damped distance, the nearest value met before, and that one's age."""
    damped, _, nearest, age = compare(g, x, events, weight)
    remember(g, x, events)
    return damped, nearest, age


@compiled(inline="always")
def _now(events: int) -> int:
    return 1 + (events // TICK) % AGES


@compiled
def remember(g: Record, x: float, events: int) -> None:
    """Take a value in; `events` of the lane before this one."""
    now = _now(events)
    if g.width == 0.0:
        change = abs(x - g.origin)
        if events <= 1 or change == 0.0:
            g.origin = x
            return
        if change <= max(HAIR * abs(g.origin), TINY):
            return
        first = g.origin
        g.width = change * 4.0 / len(g.age)
        g.origin = min(x, first) - 1.5 * change
        g.low, g.high = min(x, first), max(x, first)
        _store(g, first, now)
    span = g.high - g.low
    if events > WARM_UP_EVENTS:
        x = min(max(x, g.low - STRETCH * span), g.high + STRETCH * span)
    while x < g.origin:
        _widen(g, True, now)
    while x >= g.origin + len(g.age) * g.width:
        _widen(g, False, now)
    _store(g, x, now)
    g.low, g.high = min(g.low, x), max(g.high, x)


@compiled
def _nearest(g: Record, x: float) -> tuple[float, float, int]:
    """Return the distance to the nearest value remembered, that value, and its cell; -1: nothing is remembered."""
    cells = len(g.age)
    place = min(max((x - g.origin) / g.width, -1.0), cells + 1.0)
    home = min(max(int(place), 0), cells - 1)
    best, value, found = 1e300, math.nan, -1
    for k in range(cells):
        if (k - 1) * g.width > best or best == 0.0:
            break
        for side in range(2):
            cell = home - k if side == 0 else home + k
            if cell < 0 or cell >= cells or g.age[cell] == 0:
                continue
            least, largest = _places(g.ends[cell])
            low = g.origin + (cell + least / PLACES) * g.width
            high = g.origin + (cell + (largest + 1) / PLACES) * g.width
            near = low - x if x < low else (x - high if x > high else 0.0)
            if near < best:
                best, found = near, cell
                value = min(max(x, low), high)
    return best, value, found


@compiled(inline="always")
def _places(ends: np.uint8) -> tuple[Any, Any]:
    """Return the least and the largest place in a cell."""
    return np.int64(ends) >> 4, np.int64(ends) & 15


@compiled
def _put(g: Record, cell: int, low: Any, high: Any, age: Any) -> None:
    if g.age[cell] != 0:
        least, largest = _places(g.ends[cell])
        low, high = min(low, least), max(high, largest)
    g.ends[cell] = (low << 4) | high
    g.age[cell] = age


@compiled
def _store(g: Record, x: float, age: int) -> None:
    place = (x - g.origin) / g.width
    cell = min(max(math.floor(place), 0), len(g.age) - 1)
    part = int(min(max((place - cell) * PLACES, 0.0), PLACES - 1.0))
    _put(g, cell, part, part, age)


@compiled
def _newer(a: int, b: int, now: int) -> int:
    if a == 0:
        return b
    if b == 0:
        return a
    return a if (now - a) % AGES < (now - b) % AGES else b


@compiled
def _join(g: Record, cell: int, to: int, now: int) -> None:
    """Make one cell of two that lie side by side."""
    x, y = np.int64(g.age[cell]), np.int64(g.age[cell + 1])
    low: Any = 0
    high: Any = 0
    if x != 0 or y != 0:
        left, right = _places(g.ends[cell]), _places(g.ends[cell + 1])
        half = PLACES // 2
        low = left[0] // 2 if x != 0 else half + right[0] // 2
        high = half + right[1] // 2 if y != 0 else left[1] // 2
    g.ends[to] = (low << 4) | high
    g.age[to] = _newer(x, y, now)


@compiled
def _widen(g: Record, down: bool, now: int) -> None:
    """Double the cells' width; the grid grows downwards or upwards."""
    half = len(g.age) // 2
    if down:
        g.origin -= len(g.age) * g.width
        for k in range(half - 1, -1, -1):
            _join(g, 2 * k, half + k, now)
        g.age[:half] = 0
    else:
        for k in range(half):
            _join(g, 2 * k, k, now)
        g.age[half:] = 0
    g.width *= 2.0


@compiled
def _sweep(g: Record, now: int) -> None:
    """Drop what is too old, measure the range again, and halve the cells where an eighth of them holds everything."""
    first = last = -1
    for k in range(len(g.age)):
        if g.age[k] != 0:
            if (now - np.int64(g.age[k])) % AGES > REACH // TICK:
                g.age[k] = 0
            else:
                first = k if first < 0 else first
                last = k
    if first < 0:
        return
    g.low = g.origin + (first + (_places(g.ends[first])[0] + 0.5) / PLACES) * g.width
    g.high = g.origin + (last + (_places(g.ends[last])[1] + 0.5) / PLACES) * g.width
    if last - first < NARROW * len(g.age) and g.width > FINEST * max(abs(g.low), abs(g.high), TINY):
        _halve(g, first, last)


@compiled
def _halve(g: Record, first: int, last: int) -> None:
    """Make two cells of each from first to last; they come to lie in the middle."""
    age: NDArray[np.uint8] = g.age[first : last + 1].copy()
    ends: NDArray[np.uint8] = g.ends[first : last + 1].copy()
    at = len(g.age) // 2 - len(age)
    g.origin += (first - 0.5 * at) * g.width
    g.width *= 0.5
    g.age[:] = 0
    half = PLACES // 2
    for k in range(len(age)):
        if age[k] == 0:
            continue
        low, high = _places(ends[k])
        if low < half:
            _put(g, at + 2 * k, 2 * low, min(2 * high + 1, PLACES - 1), age[k])
        if high >= half:
            _put(g, at + 2 * k + 1, max(2 * (low - half), 0), 2 * (high - half) + 1, age[k])

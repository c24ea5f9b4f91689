"""Gap novelty: how far a value lies from everything this stream has shown before, over the range it moved in.

Good at what the eye calls new: a level, a spike or a residual never seen. Blind to the familiar at a wrong time, which
is the forecast's business; and on streams of many features it hurts, so it judges streams of one feature only.

A memory holds about the last `reach` events in CELLS cells of a value grid: a cell keeps the last value that fell into
it and when. The grid doubles its width when a value falls outside. O(1) in the length of the stream, 4 bytes a cell.
"""

from __future__ import annotations

import math

import numpy as np

from detector.scoring.calibration import Record
from training.network.compiled import compiled

CELLS = 1024
SWEEP = 32  # events between two sweeps that drop what is too old and measure the range again
TICK = 8  # events a stamp counts: 16 bits then reach far beyond any memory's length
ROUND = 0xFFFF  # stamps go round in 16 bits; 0 marks an empty cell
FRACTION = 65536.0  # positions inside a cell
COARSE = 16  # cells: where all that is remembered lies in fewer, one wild value had stretched the grid
QUIET = 50  # events after a fresh start in which nothing counts as new, as at a stream's beginning
DAMPING_DECAY = 2.0 ** (-1.0 / 300.0)  # half-life 300 events: a burst raises its own bar, and not for long

MEMORY = np.dtype(
    [
        ("events", np.int64),
        ("first", np.float64),  # the only value seen while width is 0
        ("origin", np.float64),  # lower edge of cell 0
        ("width", np.float64),  # of a cell; 0 until two different values were seen
        ("low", np.float64),  # range of what is remembered
        ("high", np.float64),
        ("highest", np.float64),  # H: decayed maximum of the novelties, for damping
        ("quiet", np.int64),  # events until novelties count again
        ("stamp", np.uint16, CELLS),
        ("place", np.uint16, CELLS),
    ],
    align=True,
)


@compiled(inline="always")
def _stamp(events: int) -> int:
    return max((events // TICK) & ROUND, 1)


@compiled(inline="always")
def _value(m: Record, cell: int) -> float:
    return m.origin + (cell + (m.place[cell] + 0.5) / FRACTION) * m.width


@compiled
def _store(m: Record, value: float, stamp: int) -> None:
    position = (value - m.origin) / m.width
    cell = min(max(int(position), 0), CELLS - 1)
    m.stamp[cell] = stamp
    m.place[cell] = int(min(max((position - cell) * FRACTION, 0.0), FRACTION - 1.0))


@compiled
def _merge(m: Record, even: int, odd: int) -> tuple[int, int]:
    """Return stamp and place, in a cell twice as wide, of the newer of two neighbours."""
    now = _stamp(m.events)
    a, b = int(m.stamp[even]), int(m.stamp[odd])
    if a == 0 and b == 0:
        return 0, 0
    newer_is_even = b == 0 or (a != 0 and ((now - a) & ROUND) < ((now - b) & ROUND))
    if newer_is_even:
        return a, int(m.place[even]) // 2
    return b, int(m.place[odd]) // 2 + int(FRACTION) // 2


@compiled
def _widen(m: Record, downwards: bool) -> None:
    """Double the cells' width in place; the old values go to the upper half if the grid must grow downwards."""
    half = CELLS // 2
    if downwards:
        m.origin -= CELLS * m.width
        for k in range(half - 1, -1, -1):
            m.stamp[half + k], m.place[half + k] = _merge(m, 2 * k, 2 * k + 1)
        m.stamp[:half] = 0
    else:
        for k in range(half):
            m.stamp[k], m.place[k] = _merge(m, 2 * k, 2 * k + 1)
        m.stamp[half:] = 0
    m.width *= 2.0


@compiled
def remember(m: Record, value: float) -> None:
    """Put a value into the memory."""
    if m.width == 0.0:
        change = abs(value - m.first)
        if change == 0.0 or m.events <= 1:
            m.first = value
            return
        m.width = max(change * 4.0 / CELLS, 1e-300)
        m.origin = min(value, m.first) - 1.5 * change
        m.low, m.high = min(value, m.first), max(value, m.first)
        _store(m, m.first, _stamp(m.events))
    while value < m.origin:
        _widen(m, True)
    while value >= m.origin + CELLS * m.width:
        _widen(m, False)
    _store(m, value, _stamp(m.events))
    m.low, m.high = min(m.low, value), max(m.high, value)


@compiled
def _sweep(m: Record, reach: int) -> None:
    now = _stamp(m.events)
    oldest = reach // TICK
    first, last = -1, -1
    for k in range(CELLS):
        if m.stamp[k] != 0:
            if ((now - int(m.stamp[k])) & ROUND) > oldest:
                m.stamp[k] = 0
            else:
                if first < 0:
                    first = k
                last = k
    if first < 0:
        return
    m.low, m.high = _value(m, first), _value(m, last)
    if last - first < COARSE:  # a cell keeps one value, so these few would make everything new: begin again
        m.events, m.width, m.quiet = 1, 0.0, QUIET
        m.stamp[:] = 0


@compiled
def gap(m: Record, value: float, reach: int, young: bool) -> float:
    """Return the distance to the nearest remembered value over the range of all remembered and this, 0..1.

    Counts the event; the caller decides whether the value is to be remembered. In a young stream everything is new,
    and so nothing is: 0.
    """
    m.events += 1
    if young or m.events == 1:
        return 0.0
    if m.quiet > 0:
        m.quiet -= 1
        return 0.0
    if m.width == 0.0:
        return 0.0 if value == m.first else 1.0
    if m.events % SWEEP == 0:
        _sweep(m, reach)
        if m.width == 0.0:
            return 0.0
    home = min(max(int(min(max((value - m.origin) / m.width, -1.0), CELLS + 1.0)), 0), CELLS - 1)
    best = math.inf
    for k in range(CELLS):
        if (k - 1) * m.width > best:
            break
        if home - k >= 0 and m.stamp[home - k] != 0:
            best = min(best, abs(value - _value(m, home - k)))
        if home + k < CELLS and m.stamp[home + k] != 0:
            best = min(best, abs(value - _value(m, home + k)))
    if best <= m.width / FRACTION:  # as near as places can tell: the same value
        return 0.0
    extent = max(m.high, value) - min(m.low, value)
    return min(best / extent, 1.0) if extent > 0.0 else 0.0


@compiled
def damped(m: Record, g: float) -> float:
    """Return g weighed against the stream's own recent novelties, which it then joins."""
    result = g * g / (g + 2.0 * m.highest + 1e-12)
    m.highest = max(m.highest * DAMPING_DECAY, g)
    return result

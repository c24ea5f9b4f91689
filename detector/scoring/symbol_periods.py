"""How rare a symbol's surprise is: log10 of how many events pass between such, from decayed histograms.

Surprises have few sizes and long rests, which the exponential tail of `return_period` does not follow: here every
severity and every peak is counted. A histogram's bins are logarithmic, so it needs no unit; each value is shared
between its two nearest bins, so that quantiles move smoothly with the data (a value's last bit can never jump a bin).
"""

from __future__ import annotations

import math

import numpy as np

from detector.scoring.units import Record
from training.network.compiled import compiled

BINS = 192
WIDTH = 0.18  # nats a bin: 192 bins hold 15 decades around the first value seen
HALF_LIFE = 15_000  # events; long, so that one long incident does not become the norm
GROWTH = 2.0 ** (1.0 / HALF_LIFE)
REFRESH = 16  # events between two looks at a quantile: it moves slowly, and looking costs a scan

PEAK_QUANTILE = 0.97  # severities above are peaks
STILL = 200  # events after which a bound of 0 is believed: who never erred must not be blind to the first error
PEAK_GAP = 8  # events at or below before a peak is over: a long incident is one peak, whatever its length
BEYOND = 0.3  # what a severity beyond every former peak adds, per decade over the peak bound

HISTOGRAM = np.dtype(
    [
        ("origin", np.float64),  # log of bin 0's value; NaN until something above zero was seen
        ("weight", np.float64),  # of the next value: it grows, so that nothing old needs to be touched
        ("mass", np.float64),  # sum of the bins
        ("bins", np.float32, BINS),
    ],
    align=True,
)

RETURN = np.dtype(
    [
        ("rows", HISTOGRAM),  # of every event's severity
        ("peaks", HISTOGRAM),  # of each peak's maximum
        ("events", np.int64),
        ("bound", np.float64),  # severities above it are peaks
        ("peak", np.float64),  # maximum of the open peak; 0: none is open
        ("calm", np.int64),  # events at or below the bound since
    ],
    align=True,
)


@compiled
def grow(h: Record, growth: float) -> None:
    """Let one event's time pass: whatever is learnt from now on weighs `growth` times more."""
    h.weight = 1.0 if h.weight == 0.0 else h.weight * growth
    if h.weight > 1e6:
        factor = 1.0 / h.weight
        for b in range(BINS):
            h.bins[b] *= np.float32(factor)
        h.mass *= factor
        h.weight = 1.0


@compiled(inline="always")
def _position(h: Record, x: float) -> float:
    return min(max((math.log(x) - h.origin) / WIDTH, 0.0), BINS - 1.0)


@compiled
def learn(h: Record, x: float) -> None:
    """Add x >= 0 at the current weight."""
    position = 0.0
    if x > 0.0:
        if h.origin == 0.0:  # exactly 0 is never a real origin: it is the fresh record's
            h.origin = math.log(x) - 0.5 * BINS * WIDTH + 1e-9
        position = _position(h, x)
    lower = int(position)
    part = position - lower
    h.bins[lower] += np.float32(h.weight * (1.0 - part))
    if part > 0.0:
        h.bins[lower + 1] += np.float32(h.weight * part)
    h.mass += h.weight


@compiled
def quantile(h: Record, q: float) -> float:
    """Return the value that a share q of the mass lies below; 0 where that is bin 0."""
    wanted = (1.0 - q) * h.mass
    above = 0.0
    for b in range(BINS - 1, 0, -1):
        inside = float(h.bins[b])
        if inside > 0.0 and above + inside >= wanted:
            return math.exp(h.origin + (b + 0.5 - (wanted - above) / inside) * WIDTH)
        above += inside
    return 0.0


@compiled(fastmath={"reassoc"})  # a sum that vectorises; the same in every batch
def mass_above(h: Record, x: float) -> float:
    """Return the mass at or above x, in units of the current weight."""
    if h.weight == 0.0:
        return 0.0
    if x <= 0.0:
        return h.mass / h.weight
    if h.origin == 0.0:
        return 0.0
    position = _position(h, x) + 0.5
    first = int(position)
    above = np.float32(0.0)
    for b in range(first + 1, BINS):
        above += h.bins[b]
    if first < BINS:
        above += h.bins[first] * np.float32(1.0 - (position - first))
    return float(above) / h.weight


@compiled
def return_period(c: Record, severity: float) -> float:
    """Return log10 of how many events pass between peaks as high as `severity`, judged by the past; then learn it."""
    common = -math.log10(1.0 - PEAK_QUANTILE)
    is_peak = severity > c.bound and (c.bound > 0.0 or c.events >= STILL)
    result = 0.0
    mass = c.rows.mass / c.rows.weight if c.rows.weight > 0.0 else 0.0
    if mass > 0.0:
        if is_peak:
            higher = mass_above(c.peaks, severity)
            result = max(-math.log10(min((higher + 0.5) / mass, 1.0)), common)
            if higher <= 1e-9 and c.bound > 0.0:
                result += BEYOND * math.log10(severity / c.bound)
        else:
            result = min(-math.log10(min((mass_above(c.rows, severity) + 0.5) / (mass + 0.5), 1.0)), common)

    grow(c.rows, GROWTH)
    grow(c.peaks, GROWTH)
    learn(c.rows, severity)
    if is_peak:
        c.peak = max(c.peak, severity)
        c.calm = 0
    elif c.peak > 0.0:
        c.calm += 1
        if c.calm > PEAK_GAP:
            learn(c.peaks, c.peak)
            c.peak = 0.0
    if c.events % REFRESH == 0:
        c.bound = quantile(c.rows, PEAK_QUANTILE)
    c.events += 1
    return result

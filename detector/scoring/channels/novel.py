"""The novel channel's claim: how far a value, or an error of the forecast, lies from all that were met before.

The distance to the nearest remembered value over the range remembered, damped by its own recent highest, and weighed
by how well the network did of late: novelty in a series that surprises all the time is no news. What comes with an
unusual error and lies hardly beyond what was met is noise's next extreme, and weighs less.

Where the network predicts well, a third memory doubts: an error far from all it knows is not taken into it at first,
and so is told again when it comes back. Up to MAX_DOUBT of late; what is new all the time is worth no doubt.

Finds the never seen, also inside the range. Most false alarms on clean noise are its; a value seen before is never one.
"""

from __future__ import annotations

import math

import numpy as np

from detector.scoring.channels.value_grid import CELLS, ERROR_CELLS, PLACES, compare, distance, grid, remember
from detector.scoring.units import HAIR, Record
from training.network.compiled import compiled

ALARMING = 0.007  # distance that counts as once in 1,000 events
ALARMING_PERIOD = 3.0  # log10 of 1,000
FAR_AWAY = ALARMING_PERIOD + math.log10(1.0 / 3.0 / ALARMING)  # claim of what lies a third of the range from all met
NOISE = 0.2  # units of the error: noise's next extreme lies about so far beyond the last
CALM, NOISY = 0.6, 1.0  # units: a value comes of noise if its error is the larger, not if it is the lesser
LEAST_SHARE = 0.05  # of a distance, that noise cannot explain
ERROR_WEIGHT = 0.15  # a new error is worth less than a new value
CONTEXT_WEIGHT = 1.0 - 2.0 ** (-1.0 / 80.0)  # of the newest tail in how surprising the recent past was
MAX_TAIL = 6.0
DOUBT_WEIGHT = 0.2  # an error that only the doubting memory has not met is worth so much of a new value
DOUBTFUL = 0.03  # distance from which on an error is doubted
MAX_DOUBT = 4.0  # doubted errors of late, beyond which all are remembered
DOUBT_DECAY = 2.0 ** (-1.0 / 2000.0)
SKILL_WEIGHT = 1.0 - DOUBT_DECAY  # of the newest error in their usual size
SKILLED, ABLE = 0.15, 0.25  # usual error over the values' spread: at most so much for full trust, and for any

NOVEL_STATE = np.dtype(
    [
        ("context", np.float32),
        ("doubt", np.float32),
        ("size", np.float32),  # usual, of errors
        ("spread", np.float32),  # of values: mean distance from their mean
        ("mean", np.float64),  # of values
        ("value", grid(CELLS)),
        ("error", grid(ERROR_CELLS)),
        ("doubted", grid(ERROR_CELLS)),
    ],
    align=True,
)


@compiled
def measure_novelty(r: Record, events: int, x: float, size: float, unit: float, gap: bool, m: Record) -> None:
    """Write how rare it is that a value is so new: log10 of events, 0 where it is not.

    `size` is that of the lane's values, `unit` that of its errors; 0: not known yet.

    At a gap's end the forecast is no yardstick: its error teaches nothing, and only a value out of the range speaks.
    """
    skill = 0.5 / (r.context + 0.1)
    skill = math.sqrt(skill * math.sqrt(skill))  # to the power of 3/4
    inside = r.value.low <= x <= r.value.high
    m.nearest_within = r.value.width / PLACES
    far, m.nearest, m.nearest_age = distance(r.value, x, events, skill * min(1.0, m.tail))
    if far > 0.0:
        far *= _beyond_noise(abs(x - m.nearest), abs(m.error), unit)
    if gap:
        if inside:
            far = 0.0
    else:
        error = m.error if abs(m.error) > HAIR * size else 0.0
        by_error, _, _ = distance(r.error, error, events, skill)
        by_error = max(ERROR_WEIGHT * by_error, DOUBT_WEIGHT * _doubt(r, events, error, skill))
        if by_error > far:  # not the value is new but its distance from the forecast
            far, m.nearest, m.nearest_age = by_error, math.nan, math.nan
        _learn_skill(r, events, x, abs(m.error))
        r.context += max(CONTEXT_WEIGHT, 1.0 / (events + 1.0)) * (min(m.tail, MAX_TAIL) - r.context)
    m.novel = max(math.log10(far / ALARMING) + ALARMING_PERIOD, 0.0) if far > 0.0 else 0.0


@compiled
def _beyond_noise(beyond: float, error: float, unit: float) -> float:
    """Return the share of a value's newness that noise does not explain, by how far it lies beyond the nearest met."""
    if unit <= 0.0 or math.isnan(beyond):
        return 1.0
    noisy = min(max((error / unit - CALM) / (NOISY - CALM), 0.0), 1.0)
    return float(min(max(beyond / (NOISE * unit), LEAST_SHARE), 1.0) ** noisy)


@compiled
def _doubt(r: Record, events: int, error: float, skill: float) -> float:
    """Return how new an error is to the memory that doubts, as far as the network is to be trusted.

    Its distance is over the range of all errors met, doubted or not: else a small one among smaller ones were new.
    """
    scale = min(_extent(r.doubted, error) / max(_extent(r.error, error), 1e-300), 1.0)
    far, plain, _, _ = compare(r.doubted, error, events, skill * scale)
    plain *= scale
    r.doubt *= DOUBT_DECAY
    if plain <= DOUBTFUL or r.doubt >= MAX_DOUBT:
        remember(r.doubted, error, events)
    if plain > DOUBTFUL:  # counted whether doubted or not: where all is new all the time, nothing is worth a doubt
        r.doubt += 1.0
    trust = (ABLE - SKILLED) * r.spread
    if r.size >= ABLE * r.spread or trust <= 0.0:  # nothing, where the spread is next to it
        return 0.0
    return far * min((ABLE * r.spread - r.size) / trust, 1.0)


@compiled(inline="always")
def _extent(g: Record, x: float) -> float:
    return max(g.high, x) - min(g.low, x)


@compiled
def _learn_skill(r: Record, events: int, x: float, size: float) -> None:
    weight = max(SKILL_WEIGHT, 1.0 / (events + 1.0))
    r.size += weight * (size - r.size)
    r.mean += weight * (x - r.mean)
    r.spread += weight * (abs(x - r.mean) - r.spread)

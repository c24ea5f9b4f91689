"""The novel channel's claim: how far a value, or an error of the forecast, lies from all that were met before.

The distance to the nearest remembered value over the range remembered, damped by its own recent highest, and weighed
by how well the network did of late: novelty in a series that surprises all the time is no news.

Finds the never seen, also inside the range. Most false alarms on clean noise are its; a value seen before is never one.
"""

from __future__ import annotations

import math

import numpy as np

from detector.scoring.channels.value_grid import GRID, distance
from detector.scoring.units import HAIR, Record
from training.network.compiled import compiled

ALARMING = 0.007  # distance that counts as once in 1,000 events
ALARMING_PERIOD = 3.0  # log10 of 1,000
ERROR_WEIGHT = 0.15  # a new error is worth less than a new value
CONTEXT_WEIGHT = 1.0 - 2.0 ** (-1.0 / 80.0)  # of the newest tail in how surprising the recent past was
MAX_TAIL = 6.0

NOVEL_STATE = np.dtype(
    [
        ("context", np.float64),
        ("value", GRID),
        ("error", GRID),
    ],
    align=True,
)


@compiled
def measure_novelty(r: Record, events: int, x: float, size: float, gap: bool, m: Record) -> None:
    """Write how rare it is that a value is so new: log10 of events, 0 where it is not; `size` of the lane's values.

    At a gap's end the forecast is no yardstick: its error teaches nothing, and only a value out of the range speaks.
    """
    skill = (0.5 / (r.context + 0.1)) ** 0.75
    inside = r.value.low <= x <= r.value.high
    far, m.nearest, m.nearest_age = distance(r.value, x, events, skill * min(1.0, m.tail))
    if gap:
        if inside:
            far = 0.0
    else:
        error = m.error if abs(m.error) > HAIR * size else 0.0
        by_error, _, _ = distance(r.error, error, events, skill)
        if ERROR_WEIGHT * by_error > far:  # not the value is new but its distance from the forecast
            far, m.nearest, m.nearest_age = ERROR_WEIGHT * by_error, math.nan, math.nan
        r.context += max(CONTEXT_WEIGHT, 1.0 / (events + 1.0)) * (min(m.tail, MAX_TAIL) - r.context)
    m.novel = max(math.log10(far / ALARMING) + ALARMING_PERIOD, 0.0) if far > 0.0 else 0.0

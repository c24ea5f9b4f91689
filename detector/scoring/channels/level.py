"""The level channel's statistic: by how much the level of late differs from what is usual at this hour.

The usual of each hour is a running mean of its daily means, which an hour's own values join only when it is over;
between the middles of two hours it is interpolated. The level of late is a running mean of the differences.

Finds standstills at a value that is usual at another hour, drift, shifts, bursts at night. Says nothing before the
second day, and does not find what is over within a few events.
"""

from __future__ import annotations

import math

import numpy as np

from detector.scoring.units import Record
from training.network.compiled import compiled

HOURS = 24
HOUR_NS = 3_600_000_000_000
SMOOTHING = 1.0 / 16.0  # weight of the newest difference
DAY_WEIGHT = 0.3  # of the newest day in the usual: about three days are remembered

LEVEL_STATE = np.dtype(
    [
        ("difference", np.float64),  # of late
        ("usual", np.float64, HOURS),
        ("days", np.uint8, HOURS),  # learnt, up to 255
        ("hour", np.int64),  # since 1970, plus 1; 0: none
        ("sum", np.float64),  # of the values of this hour
        ("count", np.int64),
    ],
    align=True,
)


@compiled
def measure_level(r: Record, time: int, x: float) -> tuple[float, float]:
    """Return the difference of late from the usual, and the usual of now; NaN while that is not known. Learn `x`."""
    hour = time // HOUR_NS
    part = (time - hour * HOUR_NS) / HOUR_NS
    slot = hour % HOURS
    neighbour = (slot + 1) % HOURS if part >= 0.5 else (slot + HOURS - 1) % HOURS
    difference = usual = math.nan
    if r.days[slot] > 0 and r.days[neighbour] > 0:
        weight = abs(part - 0.5)
        usual = (1.0 - weight) * r.usual[slot] + weight * r.usual[neighbour]
        r.difference += SMOOTHING * (x - usual - r.difference)
        difference = r.difference
    if r.hour != hour + 1:
        if r.count > 0:
            over = (r.hour - 1) % HOURS
            r.days[over] = min(r.days[over] + 1, 255)
            r.usual[over] += max(DAY_WEIGHT, 1.0 / r.days[over]) * (r.sum / r.count - r.usual[over])
        r.hour, r.sum, r.count = hour + 1, 0.0, 0
    r.sum += x
    r.count += 1
    return difference, usual

"""What is remembered of a lane for its score, and one event of it measured by every channel."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from detector.scoring.channels.coupling import COUPLING_STATE, learn_moments
from detector.scoring.channels.forecast import forecast_of, forecast_state, measure_errors, network_band
from detector.scoring.channels.level import LEVEL_STATE, measure_level
from detector.scoring.channels.novel import NOVEL_STATE, measure_novelty
from detector.scoring.channels.still import STILL_STATE, measure_still
from detector.scoring.units import ERROR, LEVEL, LEVEL_WARM_UP_EVENTS, UNITS, WARM_UP_EVENTS, Record, to_units, unit_of
from training.network.compiled import compiled
from training.network.horizons import HORIZONS


def lane_score(horizons: Sequence[int] = HORIZONS) -> np.dtype[Any]:
    """Return what is remembered of a lane; the layout depends on how many forecasts wait for their event."""
    return np.dtype(
        [
            ("events", np.int64),
            ("last", np.float64),  # value
            ("since", np.int64),  # ns: when it came, the first of equal ones
            ("units", UNITS),
            ("still", STILL_STATE),  # here it needs no padding
            ("forecast", forecast_state(horizons[-1])),
            ("level", LEVEL_STATE),
            ("coupling", COUPLING_STATE),
            ("novel", NOVEL_STATE),
        ],
        align=True,
    )


class Arrival(NamedTuple):
    """A number as it came: when, in ns, and by its stream's clock; what; if it ends a gap."""

    time: int
    local: int
    value: float
    gap: bool


@compiled
def measure_lane(
    r: Record,  # lane_score
    arrival: Arrival,
    frame: Record,
    output: NDArray[np.float32],  # what the network said: locations, log scales, degrees of freedom, by horizon
    horizons: NDArray[np.int64],
    m: Record,  # out MEASURED
) -> None:
    """Measure one event of a lane and learn it; at a gap's end no unit learns, and only novelty speaks."""
    time, local, x, gap = arrival
    low, high = measure_errors(r, x, frame, forecast_of(output), horizons[len(horizons) - 1] - 1, gap, m)
    within = min(max(x, low), high)  # else one wild value fills its hour
    difference, m.usual = measure_level(r.level, local, within, m.clocks)
    m.sizes[LEVEL] = abs(difference)
    m.still = measure_still(r.still, r.events, x, r.last)
    learn_moments(r.coupling, r.events, x, m.least)
    band = unit_of(r.units, ERROR, m.least) if r.units.seen[ERROR] >= WARM_UP_EVENTS else 0.0
    measure_novelty(r.novel, r.events, x, abs(frame.mean), band, gap, m)
    if band == 0.0:
        m.lower, m.upper = network_band(frame, output, m.expected)
    else:
        m.lower, m.upper = m.expected - band, m.expected + band
    if x != r.last or r.events == 0:
        r.last, r.since = x, time
    r.events += 1
    if not gap:
        to_units(r.units, m.sizes, m.least, m)
    unit = max(r.units.slow_unit[LEVEL], m.least)
    for k in range(3):
        m.clocks[k] /= unit
    m.levelled = not math.isnan(m.usual) and r.units.seen[LEVEL] > LEVEL_WARM_UP_EVENTS

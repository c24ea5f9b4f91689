"""The numbers an alert's sentence is made of, from the channel that spoke."""

from __future__ import annotations

import math

from detector.scoring.channels.forecast import largest_error
from detector.scoring.channels.still import usual_longest
from detector.scoring.channels.value_grid import TICK
from detector.scoring.claims import COUPLING, FORECAST, LEVEL, NOVEL, STILL
from detector.scoring.units import LEVEL as LEVELLED
from detector.scoring.units import Record, unit_of
from training.network.compiled import compiled


@compiled
def explain(
    v: Record, m: Record, lane: Record, x: float, time: int, interval: float, band: tuple[float, float]
) -> None:
    """Write to `v`, VERDICT, what the leading observation `m` of its lane says; NaN for what the channel has not.

    NaN, too, is what would belie an alert: a band that holds the value, a usual pause that is no shorter. By channel:
    forecast: observed, expected, band of the statistic that is largest. level: today's level, the hour's usual, its
    band. still: for how long, and the usual longest, in seconds. coupling: observed, and what the others let expect.
    novel: observed, the nearest value met before and how long ago at most, in seconds; where it is the error that is
    new, what was forecast, and NaN. `band` is the network's, lower and upper.
    """
    v.observed = v.expected = v.lower = v.upper = v.seconds = v.usual_seconds = math.nan
    if not m.known:  # a symbol
        return
    u = lane.units
    v.observed, v.expected = x, m.expected
    if v.channel == FORECAST:
        statistic, error = largest_error(m)
        unit = unit_of(u, statistic, m.least)
        v.expected = x - error
        v.lower, v.upper = v.expected - unit, v.expected + unit
        if v.lower <= x <= v.upper:
            v.expected, v.lower, v.upper = m.expected, *band
    elif v.channel == LEVEL:
        unit = max(u.slow_unit[LEVELLED], m.least)
        v.observed, v.expected = m.usual + lane.level.difference, m.usual
        v.lower, v.upper = m.usual - unit, m.usual + unit
    elif v.channel == STILL:
        v.seconds = (time - lane.since) * 1e-9
        usual = usual_longest(lane.still) * interval
        if 0.0 < usual < v.seconds:
            v.usual_seconds = usual
    elif v.channel == COUPLING:
        v.expected = m.coupled
    elif v.channel == NOVEL and not math.isnan(m.nearest):
        v.expected, v.seconds = _met(m.nearest, m.nearest_within, x), (m.nearest_age + TICK) * interval
    if v.lower <= v.observed <= v.upper:  # many features can be unusual together, and each within its own band
        v.lower = v.upper = math.nan


@compiled
def _met(edge: float, within: float, x: float) -> float:
    """Return a value as it will have been met: it lay up to `within` beyond `edge`, seen from `x`.

    The middle of where it may have lain, without the digits that are not known: 5 and not 5.008.
    """
    if within <= 0.0:
        return edge
    middle = edge + math.copysign(0.5 * within, edge - x)
    power = math.floor(math.log10(within))
    if power < 0:
        return round(middle * 10.0**-power) / 10.0**-power
    return round(middle / 10.0**power) * 10.0**power

"""What ended an incident: the old level came back, or the new one was taken as normal.

The level of late is held against two expectations of now: had nothing happened, and had the change stayed. Both move
with what is usual at the hour, or, while that is not known, with the trend before: on a series that rises or falls the
values of the incident's beginning say nothing any more.
"""

from __future__ import annotations

import math

import numpy as np

from detector.scoring.channels.level import HOURS, hourly_trend, usual_at
from detector.scoring.claims import LEVEL, NOVEL, STILL
from detector.scoring.units import LEVEL as LEVELLED
from detector.scoring.units import LEVEL_WARM_UP_EVENTS, Record
from training.network.compiled import compiled
from training.network.profile import LEAST_WEIGHT

FOLLOW_WEIGHT = 0.2  # of the newest value in the level of late
HOUR_NS = 3_600_000_000_000
NORMAL = 2 * HOURS  # hours after which the usual has learnt half of a level: then it counts as normal

CHANGE = np.dtype(
    [
        ("lead", np.int32),  # the lane that led as the incident fired, by its place in the stream; -1: not known
        ("channel", np.int8),  # that led
        ("levelled", np.bool_),  # the level was told, too
        ("begun", np.int64),  # ns by the stream's clock, as is `local`
        ("observed", np.float64),  # of that lane, then
        ("expected", np.float64),
        ("usual", np.float64),  # of that hour; NaN: not known
        ("trend", np.float64),  # an hour, where the usual is not known
        ("level", np.float64),  # of that lane since
    ],
    align=True,
)


@compiled
def begin_change(c: Record, v: Record, m: Record, level: Record, local: int) -> None:
    """Remember what an incident began with: `v` is its VERDICT, `m` and `level` the leading MEASURED and LEVEL_STATE.

    The lane itself is written by the caller.
    """
    c.channel, c.begun, c.levelled = v.channel, local, False
    c.observed, c.expected = v.observed, v.expected
    if v.channel == NOVEL:  # what was met before is no expectation
        c.expected = v.observed - m.error
    c.usual = m.usual if m.known else math.nan
    c.trend = hourly_trend(level) if math.isnan(c.usual) else 0.0
    c.level = c.observed


@compiled
def follow(c: Record, x: float) -> None:
    """Carry the level of an open incident's leading lane on."""
    c.level += FOLLOW_WEIGHT * (x - c.level)


@compiled
def _expectations(c: Record, level: Record, local: int) -> tuple[float, float]:
    """Return where the lane would be now had nothing happened, and where had the change stayed.

    What the usual has learnt of the change by now is no part of how the usual moves.
    """
    hours = (local - c.begun) / HOUR_NS
    usual = usual_at(level, local)
    if math.isnan(usual) or math.isnan(c.usual):
        moved = c.trend * hours
    else:
        learnt = 1.0 - (1.0 - LEAST_WEIGHT) ** math.floor(hours / HOURS)
        moved = usual - c.usual - learnt * (c.observed - c.expected)
    return c.expected + moved, c.observed + moved


@compiled
def is_back(c: Record, told: Record, level: Record, local: int) -> bool:
    """Whether the old level is back as an incident ends; `told` as in STREAM_SCORE, `level` the leading LEVEL_STATE."""
    if c.channel == STILL:
        return bool(told[STILL] == 0.0)
    return _is_nearer_back(c, level, local, c.level)


@compiled
def _is_nearer_back(c: Record, level: Record, local: int, x: float) -> bool:
    back, stayed = _expectations(c, level, local)
    apart = abs(x - stayed)
    if c.levelled:  # an outage stays where it is, whatever the hour
        apart = min(apart, abs(x - c.observed))
    return bool(not apart < abs(x - back))  # what is not known is a symbol


@compiled
def ends(c: Record, v: Record, lane: Record, x: float, time: int, local: int) -> bool:
    """Whether news is only that an incident's leading lane goes back, or that it still is where it went.

    An outage that was told as one value far off, or at night, is off by more when its level or its standstill speak.

    `v` is the VERDICT of an event that the same lane leads, `lane` that, lane_score, `x` its value; it came at `time`.
    """
    if v.channel == STILL and lane.since - time <= c.begun - local:
        return True
    if c.channel == STILL:  # whatever it moves to, but what was never seen
        return bool(v.channel != NOVEL and lane.still.run == 0)
    if c.levelled and v.channel in (LEVEL, STILL) and not _is_nearer_back(c, lane.level, local, c.level):
        return True
    back, _ = _expectations(c, lane.level, local)
    return bool(v.channel != STILL and abs(x - back) < 0.5 * abs(x - c.level))


@compiled
def lasts(c: Record, told: Record, lane: Record, local: int) -> bool:
    """Whether a condition that was told lasts still: the same value, or a level that is not the hour's.

    A level that no channel finds odd any more lasts until it is back or normal: an outage's is usual at night. And
    nothing is over at an event that contradicts the level before it. `lane` is the leading one's lane_score.
    """
    level = lane.level
    c.levelled = c.levelled or c.channel == LEVEL or told[LEVEL] > 0.0 or _is_unusual(lane, local)
    if told[STILL] > 0.0 or told[LEVEL] > 0.0:
        return True
    back = is_back(c, told, level, local)
    if c.channel != STILL and _is_nearer_back(c, level, local, lane.last) != back:
        return True
    return bool(c.levelled and (local - c.begun) / HOUR_NS < NORMAL and not back)


@compiled
def _is_unusual(lane: Record, local: int) -> bool:
    """Whether a lane's level of late is further from the hour's usual than it is once in a hundred events."""
    units = lane.units
    if units.seen[LEVELLED] <= LEVEL_WARM_UP_EVENTS or math.isnan(usual_at(lane.level, local)):
        return False
    return bool(abs(lane.level.difference) > units.slow_unit[LEVELLED])

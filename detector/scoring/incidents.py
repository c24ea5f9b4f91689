"""Score -> alert: confirmation, refractory, incident.

One incident is one alert: it fires once, follows its peak, and resolves when its stream has brought no news for long
enough, or has fallen silent (admission.silence_of). An event is an alert (`alert`) if it fires one or tops its peak by
half. Everything counts events or event time, never the wall clock.
"""

from __future__ import annotations

import hashlib
import math
from typing import NamedTuple

import numpy as np

from connectors.batches import HELD_BACK
from detector.scoring.claims import NOVEL, STILL
from detector.scoring.news import AGAIN
from detector.scoring.resolution import CHANGE
from detector.scoring.units import Record
from training.network.compiled import compiled

NONE, FIRES, PEAKS, RESOLVES, RENEWS = range(5)  # VERDICT.change: what becomes of the stream's incident; the last one
# ends it and fires another
FREE, YOUNG, FLEET, FALSE = range(len(HELD_BACK))  # VERDICT.held_back

REFRACTORY = 20  # events without news after which an incident is over: a lasting condition must not blind the stream
RECENT = 0b11111  # confirmation, for several features: two of the last five events ...
CLEAR = 0.2  # ... or one that is above the threshold by so many decades


INCIDENT = np.dtype(
    [
        ("open", np.bool_),
        ("on", np.bool_),  # the last event was above the threshold, news or not
        ("recent", np.uint8),  # one bit for each of the last events: above the threshold or not
        ("calm", np.uint8),  # events since the last news, up to REFRACTORY
        ("peak", np.float32),
        ("since", np.int64),  # ns: when the present run above the threshold began
        ("begun", CHANGE),  # what it began with
    ],
    align=True,
)


class AlertRules(NamedTuple):
    """What an operator asks of a stream's alerts. `direction`: 1 above the expectation only, -1 below only, 0 both."""

    alerts_per_stream_per_week: float = 3.0
    fleet_alerts_per_day: float = 50.0  # of all streams together
    fixed_threshold: float = math.nan  # a score; NaN: from the budget
    direction: int = 0
    min_deviation_absolute: float = 0.0  # of observed from expected, in the data's unit
    min_deviation_relative: float = 0.0  # share of the expected value
    min_duration_seconds: float = 0.0
    critical_above_threshold: float = 1.0  # a score so far above the threshold is critical: ten times as rare
    silence: bool = False  # whether a stream that stops is told
    min_silence_seconds: float = 300.0  # that it must say nothing, whatever its rhythm
    max_silence_seconds: float = math.inf  # after which it has stopped, whatever its rhythm


class Case(NamedTuple):
    """What an event's score stands for."""

    time: int  # ns
    above: bool  # a claim stands above the threshold, news or not
    several: bool  # the stream's events have several features
    lasts: bool  # what an open incident told lasts still
    ends: bool  # it is only the end of what an open incident told, or goes on with it
    deviation: float  # observed - expected of the feature that contributes most
    expected: float
    false: bool = False  # a person called an alert on such an error false


class Limits(NamedTuple):
    """What a score is held against, whatever the stream's age."""

    own: float  # threshold by the stream's budget alone
    fleet: float  # threshold by that of all streams


@compiled
def watch(s: Record, v: Record, case: Case, limits: Limits, rule: Record) -> None:
    """Carry one stream's incident on by one event.

    `s` is its STREAM record, `v` the event's VERDICT: score, threshold, channel in; alert, held_back, change out.
    `rule` is the RULE that holds for the stream.
    """
    time, above, several, lasts, ends, deviation, expected, false = case
    own, fleet = limits
    i = s.incident
    v.alert, v.change = False, NONE
    wanted = (
        not (s.muted or rule.muted or false)
        and (rule.direction == 0 or deviation * rule.direction >= 0.0)
        and abs(deviation) >= rule.min_deviation_absolute
        and abs(deviation) >= rule.min_deviation_relative * abs(expected)
    )
    v.held_back = FREE
    if wanted and own < v.score <= v.threshold and s.score.told[v.channel] == 0.0:  # else it is told already
        v.held_back = FLEET if v.score <= fleet else YOUNG
    elif false:
        v.held_back = FALSE
    news = wanted and v.score > v.threshold
    i.recent = ((i.recent << 1) | above) & RECENT
    if above and (not i.on or time < i.since):  # the stream's time may have moved back
        i.since = time
    i.on = above
    confirmed = news and (time - i.since) * 1e-9 >= rule.min_duration_seconds
    if several and v.channel not in (NOVEL, STILL):
        lone = (i.recent & (i.recent - 1)) == 0
        confirmed = confirmed and (not lone or v.score > v.threshold + CLEAR)

    if is_active(i):
        i.calm = 0 if news else min(i.calm + 1, REFRACTORY)
        if confirmed and v.score > i.peak * AGAIN:
            i.peak = v.score
            v.alert, v.change = True, PEAKS
    elif i.open and news and ends:
        i.calm, i.peak = 0, max(i.peak, v.score)
    elif confirmed:
        v.alert, v.change = True, RENEWS if i.open else FIRES
        i.open, i.peak, i.calm = True, v.score, 0
    elif v.score > v.threshold and not false:  # not told after all, so it is news still
        s.score.told[v.channel] = 0.0
    if i.open and not is_active(i) and not lasts:
        i.open, i.peak = False, 0.0
        v.change = RESOLVES


@compiled
def is_active(i: Record) -> bool:
    """Whether an incident brought news of late. One that is open without only waits for what it told to be over."""
    return bool(i.open and i.calm < REFRACTORY)


@compiled
def end_incident(s: Record) -> None:
    """End the open incident of a stream, one STREAM record, that has fallen silent; what comes next is another."""
    i = s.incident
    i.open = i.on = False
    i.peak, i.recent, i.calm = 0.0, 0, 0


def alert_id(stream: str, started_at: int) -> str:
    """Return the incident's name: the same after any restart, and wherever the stream is read from."""
    return hashlib.blake2b(f"{stream}\0{started_at}".encode(), digest_size=12).hexdigest()

"""Score -> alert: confirmation, refractory, incident.

One incident is one alert: it fires once, follows its peak, and resolves when its stream has been calm for long enough,
or has fallen silent (admission.silence_of).
An event is part of the alert (`alert`) while the score stands above the threshold; what flares up again before the
incident is over stays silent unless it tops the peak. Everything counts events or event time, never the wall clock.
"""

from __future__ import annotations

import hashlib
import math
from typing import NamedTuple

from detector.scoring.calibration import Record
from training.network.compiled import compiled

NONE, FIRES, PEAKS, RESOLVES = 0, 1, 2, 3  # VERDICT.change: what becomes of the stream's incident

REFRACTORY_MANY, REFRACTORY_SINGLE = 60, 30  # calm events after which an incident is over
RECENT = 0b11111  # confirmation: two of the last five events ...
CLEAR = 0.3  # ... or one that is above the threshold by a factor of two
CLAIM = 4.0  # a threshold of "once in 1,000" is not for a stream younger than a quarter of that
FLARE = 0.5  # what flares up in an incident must top its peak by a factor of three


class AlertRules(NamedTuple):
    """What an operator asks of alerts. `direction`: 1 above the expectation only, -1 below only, 0 both."""

    alerts_per_stream_per_week: float = 7.0
    fixed_threshold: float = math.nan  # a score; NaN: from the budget
    direction: int = 0
    min_deviation_absolute: float = 0.0  # of observed from expected, in the data's unit
    min_deviation_relative: float = 0.0  # share of the expected value
    min_duration_seconds: float = 0.0
    critical_above_threshold: float = 1.0  # a score so far above the threshold is critical: ten times as rare
    flag_repeats: bool = False


@compiled
def watch(
    s: Record,  # STREAM, one record
    v: Record,  # VERDICT, one record: score, threshold, warming in; alert, young, change out
    time: int,
    deviation: float,  # observed - expected of the feature that contributes most
    expected: float,
    rules: AlertRules,
) -> None:
    """Carry one stream's incident on by one event."""
    i = s.incident
    v.alert, v.change = False, NONE
    over = (
        v.score > v.threshold
        and not v.warming
        and not s.muted
        and (rules.direction == 0 or deviation * rules.direction >= 0.0)
        and abs(deviation) >= rules.min_deviation_absolute
        and abs(deviation) >= rules.min_deviation_relative * abs(expected)
    )
    v.young = over and math.isnan(rules.fixed_threshold) and v.threshold > math.log10(CLAIM * max(s.events, 1))
    over = over and not v.young
    i.recent = ((i.recent << 1) | over) & RECENT
    if over and (not i.on or time < i.since):  # the stream's time may have moved back
        i.since = time
    confirmed = over and (time - i.since) * 1e-9 >= rules.min_duration_seconds
    if s.lanes > 1:
        lone = (i.recent & (i.recent - 1)) == 0
        confirmed = confirmed and (not lone or v.score > v.threshold + CLEAR)

    if not i.open:
        i.on = over
        if confirmed:
            i.open, i.peak, i.calm = True, v.score, 0
            v.alert, v.change = True, FIRES
        return
    if over:
        i.calm = 0
        running = i.on
        i.on = running or v.score > i.peak + FLARE
        v.alert = i.on
        if v.score > i.peak:
            i.peak = v.score
            v.change = PEAKS
        return
    i.on = False
    i.calm += 1
    if i.calm >= (REFRACTORY_SINGLE if s.lanes == 1 else REFRACTORY_MANY):
        i.open, i.peak = False, 0.0
        v.change = RESOLVES


@compiled
def end_incident(s: Record) -> None:
    """End the open incident of a stream, one STREAM record, that has fallen silent; what comes next is another."""
    i = s.incident
    i.open = i.on = False
    i.peak, i.recent, i.calm = 0.0, 0, 0


def alert_id(stream: str, started_at: int) -> str:
    """Return the incident's name: the same after any restart, and wherever the stream is read from."""
    return hashlib.blake2b(f"{stream}\0{started_at}".encode(), digest_size=12).hexdigest()

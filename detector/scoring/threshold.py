"""The threshold of a stream: the score that about as many of its events exceed as budgets of alerts allow.

A score is log10 of a return period in events, so the threshold is log10 of the events a week over the alerts a week. It
rises with the rate of events: a stream at one a second has 60 times as many chances of a false alarm as one at one a
minute. The fleet's threshold is the same of all streams' events together; the higher of the two holds.
"""

from __future__ import annotations

import math

from training.network.compiled import compiled

WEEK_SECONDS, DAY_SECONDS = 604_800.0, 86_400.0
MIN_THRESHOLD_SEVERAL = 2.8  # once in 630 events: rarer data than hourly would else alert on noise
YOUTH = 0.2  # of the decades that a young stream's past lacks, added to its threshold: see `youth`
LIFT_STEP = 1 / 32  # decades that a step of STREAM.lift adds: what verdicts on a stream's alerts have taught
MIN_THRESHOLD_ONE = 3.0  # novelty's own anchor: see channels.novel.ALARMING


@compiled
def threshold_of(interval: float, per_week: float, fixed: float, several: bool) -> float:
    """Return the score above which a stream may alert: its budget of alerts at its own rate of events.

    `interval` is the running mean time between events as of the event that is judged, in seconds; 0: not known yet.
    `several`: its events have several features.
    """
    if not math.isnan(fixed):
        return fixed
    least = MIN_THRESHOLD_SEVERAL if several else MIN_THRESHOLD_ONE
    if interval <= 0.0:
        return least
    return max(math.log10(WEEK_SECONDS / interval / per_week), least)


@compiled
def fleet_threshold(events_per_day: float, alerts_per_day: float) -> float:
    """Return the score above which any stream may alert: all streams' budget together.

    0, which holds nothing back, where the rate of all streams' events is not known (0).
    """
    if events_per_day <= 0.0:
        return 0.0
    return max(math.log10(events_per_day / alerts_per_day), 0.0)


@compiled
def youth(threshold: float, events: float) -> float:
    """Return the decades that a stream's past lacks: from `events` alone nobody knows what comes once in more.

    A claim must exceed the threshold by YOUTH of them, so that a young stream may speak if what it says is large; that
    a value is new says little where little was seen, and must exceed it by all.
    """
    return max(threshold - math.log10(max(events, 1.0)), 0.0)

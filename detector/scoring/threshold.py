"""The threshold of a stream: the score that about as many of its events exceed as its budget of alerts allows.

A score is log10 of a return period in events, so the threshold is log10 of the events a week over the alerts a week. It
rises with the rate of events: a stream at one a second has 60 times as many chances of a false alarm as one at one a
minute.
"""

from __future__ import annotations

import math

from detector.scoring.calibration import Record
from training.network.compiled import compiled

WEEK_SECONDS = 604_800.0
MIN_THRESHOLD_MANY = 2.0  # once in 100 events: rarer data than hourly would else alert on noise
MIN_THRESHOLD_SINGLE = 3.0  # the score's own anchor for one feature: see judge.ALARMING_NOVELTY


@compiled
def threshold_of(s: Record, interval: float, per_week: float, fixed: float) -> float:
    """Return the score above which a stream may alert: its budget of alerts at its own rate of events.

    `interval` is the running mean time between events as of the event that is judged, in seconds; 0: not known yet.
    """
    if not math.isnan(fixed):
        return fixed
    least = MIN_THRESHOLD_SINGLE if s.lanes == 1 else MIN_THRESHOLD_MANY
    if interval <= 0.0:
        return least
    return max(math.log10(WEEK_SECONDS / interval / per_week), least)

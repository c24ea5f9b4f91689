"""The still channel's claim: for how long a value has not changed, against the lane's usual pauses.

Runs of equal values have an exponential tail of their own over log length, learnt beyond the length that one run in
twenty exceeds. Finds stuck sensors and counters that stopped. Says nothing of a series that never repeats a value
until it has changed some twenty times, nor of one that always rests, nor of a rest that is usual: among the many short
runs of one burst the long ones before and after it are too few for the tail, but most events lie in them.
"""

from __future__ import annotations

import math

import numpy as np

from detector.scoring.return_period import LOG10_E
from detector.scoring.units import Record
from training.network.compiled import compiled

LONG = 0.05  # share of runs that are long: those whose tail is learnt
MEMORY = 2000.0  # runs
REST_MEMORY = 20_000.0  # events: of the mean run that an event lies in
MIN_RUNS, MIN_EVENTS = 20, 60  # before a run can be called long
MIN_SCALE = 0.15  # nats of log length
FIRST_SCALE, NEVER_SCALE = 0.5, 0.188  # before any long run was seen, and where of many runs none was longer than one

STILL_STATE = np.dtype(
    [
        ("run", np.int32),  # events in a row that repeated the value
        ("runs", np.int32),  # ended
        ("bound", np.float32),  # log length that a share LONG of runs exceeds
        ("scale", np.float32),  # mean of what they exceed it by; 0: none yet
        ("rest", np.float32),  # mean log length of the run that an event lies in
    ],
    align=True,
)


@compiled
def measure_still(r: Record, events: int, x: float, last: float) -> float:
    """Return log10 of the events between runs as long as the present one, 0 for a usual length; learn ended runs."""
    scale = float(r.scale) if r.scale > 0.0 else FIRST_SCALE
    if x == last and events > 0:
        r.run += 1
    else:
        if events > 1:
            y = math.log(r.run + 1.0)
            r.runs += 1
            r.rest += min((r.run + 1.0) / min(events, REST_MEMORY), 1.0) * (y - r.rest)
            weight = max(1.0 / (r.runs + 20.0), 1.0 / MEMORY)
            bound = float(r.bound)
            if y > bound:
                excess = min(y - bound, 5.0 * scale + 0.05)
                r.bound = bound + scale * weight * (1.0 - LONG) / LONG
                step = max(1.0 / (r.runs * LONG + 3.0), 1.0 / (MEMORY * LONG))
                scale = max(scale + step * (excess - scale), MIN_SCALE)
            else:
                r.bound = max(bound - scale * weight, 0.0)
                if bound == 0.0:  # no tail to learn from: the value hardly ever stays
                    scale += weight * (min(NEVER_SCALE, scale) - scale)
        r.run = 0
    r.scale = scale
    if r.run == 0 or events <= MIN_EVENTS or r.runs <= MIN_RUNS:
        return 0.0
    y = math.log(r.run + 1.0)
    if y <= max(r.bound, r.rest):
        return 0.0
    return max(-math.log10(r.runs / (events + 1.0) * LONG + 1e-9) + LOG10_E * (y - r.bound) / scale, 0.0)


@compiled
def usual_longest(r: Record) -> float:
    """Return about the longest run to be expected of so many, or that most events lie in, in events."""
    return math.exp(max(r.bound + r.scale * math.log(max(r.runs * LONG, 1.0)), r.rest))

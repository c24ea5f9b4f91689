"""News: a channel that has told a peak is silent while it lasts.

A pause is one thing, however long: it is news once, and so is what the level makes of it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from connectors.batches import CHANNELS
from detector.scoring.claims import LEVEL, NOVEL, STILL
from detector.scoring.units import Record
from training.network.compiled import compiled

AGAIN = 1.5  # a peak that grows by half is news
QUIET = 15  # events below the threshold after which a channel may tell again
OLD = 0.95  # of the threshold: what a claim is worth that is no news


@compiled
def newest(
    s: Record, claims: NDArray[np.float64], threshold: float, opened: bool, more: float
) -> tuple[float, int, bool]:
    """Return the score, the channel that leads it (-1: none), and whether any claim stands above the threshold.

    `s` is STREAM_SCORE, `opened`: its incident is open. The score is the largest claim; one that was told already
    counts for less than the threshold, and a new value that does not exceed it by `more`, for no more than it.
    """
    score, lead, above = 0.0, -1, False
    for c in range(len(CHANNELS)):
        value = claims[c]
        if c == NOVEL and threshold < value <= threshold + more:
            value = threshold
        if value > threshold:
            above = True
            s.quiet[c] = 0
            lasts = c == STILL and not opened and s.told[c] > 0.0
            explained = c == LEVEL and s.told[STILL] > 0.0
            if lasts or (s.told[c] > 0.0 and value <= s.told[c] * AGAIN):
                value = OLD * threshold
            elif explained:
                s.told[c], value = value, OLD * threshold
            else:
                s.told[c] = value
        elif s.told[c] > 0.0:
            s.quiet[c] += 1
            if s.quiet[c] >= QUIET:
                s.told[c] = 0.0
        if value > score:
            score, lead = value, c
    return score, lead, above

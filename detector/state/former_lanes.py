"""What rows that former versions left say of a lane: its normaliser in float32, its window as whole rows of inputs."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from detector.scoring.units import Record
from training.network.compiled import compiled
from training.network.history import INPUT_HISTORY, WINDOW, record
from training.network.inputs import (
    DAY_SLOTS,
    FAST,
    INPUT_SIZE,
    LIMIT,
    MAX_DEVIATIONS,
    NORMALISER,
    SLOW,
    VALUE,
    WEEK_SLOTS,
    deviation_of,
)
from training.network.profile import LEARNT, learn, refit

FORMER_NORMALISER = np.dtype(
    [
        ("events", np.int64),
        ("time", np.int64),
        ("outliers", np.int64),
        ("mean", np.float64),
        ("variance", np.float64),
        ("low", np.float64),
        ("high", np.float64),
        ("origin", np.float64),  # the profiles' values are differences to it
        ("interval", np.float64),
        ("value", np.float32),
        ("change", np.float32),
        ("average_fast", np.float32),
        ("average_slow", np.float32),
        ("day", np.float32, DAY_SLOTS),
        ("week", np.float32, WEEK_SLOTS),
        ("day_count", np.uint8, DAY_SLOTS),
        ("week_count", np.uint8, WEEK_SLOTS),
    ],
    align=True,
)
FORMER_HISTORY = np.dtype(
    [
        ("events", np.int64),
        ("inputs", np.int16, (WINDOW, INPUT_SIZE)),  # row e is at e % WINDOW
        ("masked", np.uint8, WINDOW),
    ],
    align=True,
)
_STEP = np.float32(LIMIT / 32767.0)


def present_normaliser(former: NDArray[np.void]) -> NDArray[np.void]:
    """Return FORMER_NORMALISER [lanes] as NORMALISER [lanes]."""
    present = np.zeros(len(former), NORMALISER)
    for name in ("events", "time", "mean", "variance", "interval", "value", "change", "average_fast", "average_slow"):
        present[name] = former[name]
    present["outliers"] = np.minimum(former["outliers"], np.iinfo(np.int32).max)
    values = former["origin"][:, None] + np.concatenate((former["day"], former["week"]), axis=1).astype(np.float64)
    counts = np.minimum(np.concatenate((former["day_count"], former["week_count"]), axis=1), LEARNT)
    for lane in range(len(former)):
        _learn_profile(present[lane], values[lane], counts[lane])
    return present


@compiled
def _learn_profile(r: Record, values: NDArray[np.float64], counts: NDArray[np.uint8]) -> None:
    for slot in range(len(values)):
        for _ in range(counts[slot]):
            learn(r.profile, slot, values[slot])
    refit(r.profile, r.mean, MAX_DEVIATIONS * deviation_of(r.mean, r.variance))


def present_history(former: NDArray[np.void]) -> NDArray[np.void]:
    """Return FORMER_HISTORY [lanes] as INPUT_HISTORY [lanes]."""
    present = np.zeros(len(former), INPUT_HISTORY)
    for lane, ring in enumerate(former):
        events = int(ring["events"])
        count = min(events, WINDOW)
        order = np.arange(events - count, events) % WINDOW
        inputs, h = ring["inputs"][order] * _STEP, present[lane : lane + 1]
        h["events"] = events - count
        record(h, np.zeros(count, np.int64), inputs, ring["masked"][order] != 0, 0, count)
        if count:
            # the recursion is turned round by one row
            value, change, fast, slow = inputs[0, VALUE : VALUE + 4]
            h["value"] = value - change
            h["average_fast"] = (fast - FAST * value) / (1.0 - FAST)
            h["average_slow"] = (slow - SLOW * value) / (1.0 - SLOW)
    return present

"""A usual value for each time of day or week, in 16 bits: 14 of value, in steps from an origin, and two that count.

A step is a power of two, so that what is near the origin stays exact. It grows at once when a value lies out of reach,
and all slots with it; `refit` moves the origin and makes the step finer again where the slots' values allow it.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from training.network.compiled import compiled

LEARNT = 3  # repetitions that are counted: from the fourth on each weighs LEAST_WEIGHT
LEAST_WEIGHT = 0.3  # of the newest value in a slot: about three repetitions are remembered
FARTHEST = 8191  # steps
FINE = 12  # bits that the first difference has
LEAST_STEP = -300  # as a power of two: what is finer is nothing


def profile(slots: int) -> np.dtype[Any]:
    """Return a record of so many slots; zeros: nothing is known."""
    return np.dtype(
        [
            ("origin", np.float64),
            ("step", np.float64),  # 0: nothing was learnt; below: all values were alike
            ("code", np.int16, slots),  # steps from the origin times 4, plus what was learnt up to LEARNT
        ],
        align=True,
    )


@compiled(inline="always")
def learnt(p: Any, slot: int) -> int:
    """Return how many values a slot has learnt, up to LEARNT."""
    return p.code[slot] & 3


@compiled(inline="always")
def usual_value(p: Any, slot: int) -> float:
    """Return the value of a slot that has learnt one."""
    return float(p.origin + (p.code[slot] >> 2) * p.step)


@compiled
def learn(p: Any, slot: int, x: float) -> None:
    """Take a value in: a slot's first one as it is, later ones by a weight that falls to LEAST_WEIGHT."""
    if p.step == 0.0:
        p.origin, p.step = x, -1.0
    old, count = p.code[slot] >> 2, p.code[slot] & 3
    difference = x - p.origin
    place = 0.0
    if difference != 0.0 or p.step > 0.0:
        if p.step < 0.0:
            p.step = math.ldexp(1.0, max(math.frexp(difference)[1] - FINE, LEAST_STEP))
        weight = LEAST_WEIGHT if count == LEARNT else 1.0 / (count + 1.0)
        place = old + weight * (difference / p.step - old)
        coarser = math.frexp(place / FARTHEST)[1]
        if coarser > 0:
            place = math.ldexp(place, -coarser)
            _coarsen(p, coarser)
    p.code[slot] = (round(place) << 2) | min(count + 1, LEARNT)


@compiled
def _coarsen(p: Any, by: int) -> None:
    """Multiply the step by two so many times."""
    p.step = math.ldexp(p.step, by)
    by = min(by, FINE + 3)
    for slot in range(len(p.code)):
        steps = ((p.code[slot] >> 2) + (1 << (by - 1))) >> by
        p.code[slot] = (steps << 2) | (p.code[slot] & 3)


@compiled
def refit(p: Any, center: float, farthest: float) -> None:
    """Let the steps be as fine as the slots' values allow; what lies farther than that from the center is cut."""
    if p.step <= 0.0:
        return
    least = math.ceil(min(max((center - farthest - p.origin) / p.step, -FARTHEST), FARTHEST))
    most = math.floor(max(min((center + farthest - p.origin) / p.step, FARTHEST), -FARTHEST))
    low, high = FARTHEST, -FARTHEST
    for slot in range(len(p.code)):
        if p.code[slot] & 3:
            steps = min(max(p.code[slot] >> 2, least), most)
            low, high = min(low, steps), max(high, steps)
    finer = 0
    while (high - low) << (finer + 1) <= FARTHEST and finer < FINE:
        finer += 1
    if finer < 2 or math.frexp(p.step)[1] - finer <= LEAST_STEP:  # not for a little: values go up and down
        return
    middle = (low + high) >> 1
    p.origin += middle * p.step
    p.step = -1.0 if low == high else math.ldexp(p.step, -finer)
    for slot in range(len(p.code)):
        if p.code[slot] & 3:
            steps = (min(max(p.code[slot] >> 2, least), most) - middle) << finer
            p.code[slot] = ((0 if low == high else steps) << 2) | (p.code[slot] & 3)

"""Errors like one whose alert a person called false are not told again.

They are one more kind of what a stream shows at times, so the record of recurring errors keeps them: at the size that
was called false, for the same sign, and for the channel that had told it.
"""

from __future__ import annotations

import math

from detector.scoring.claims import FORECAST, LEVEL, NOVEL
from detector.scoring.recurrence import CALLED, CYCLE, KINDS, SCALE, WAYS
from detector.scoring.units import Record
from training.network.compiled import compiled

AS_LARGE = 1.25  # factor between sizes that are alike: what is larger may be an incident, and so may what is smaller


@compiled
def has_kinds(channel: int, error: float) -> bool:
    """Whether this channel tells of errors that have a size, as this one has."""
    return _bit(channel) > 0 and error != 0.0 and math.isfinite(error)


@compiled
def was_called_false(r: Record, place: int, error: float, channel: int) -> bool:
    """Whether an alert of this channel on such an error was called false.

    `r` is RECURRENCE, `place` that of the lane in its stream, `error` observed - expected.
    """
    if not has_kinds(channel, error):
        return False
    k = _kind(r, place, error)
    return k >= 0 and r.clock[k] & _bit(channel) != 0


@compiled
def call_false(r: Record, place: int, error: float, channel: int, time: int) -> None:
    """Let errors like this one, of a channel that `has_kinds`, not be told again; `time` is now, ns.

    Once more comes to the same.
    """
    k = _kind(r, place, error)
    if k < 0:
        now, longest = time // 1_000_000_000 % CYCLE, -1
        for i in range(KINDS):
            since = (now - int(r.last[i])) % CYCLE
            age = 3 * CYCLE if r.count[i] == 0 else since if r.clock[i] >= CALLED else since + CYCLE
            if age > longest:
                k, longest = i, age
        r.key[k], r.count[k], r.first[k], r.last[k], r.clock[k] = (WAYS * place + (error > 0.0)) % 256, 1, now, now, 0
    if r.clock[k] < CALLED:
        r.size[k] = round(SCALE * math.log(abs(error)))
    r.clock[k] |= _bit(channel)


@compiled
def take_back(r: Record, place: int, error: float, channel: int) -> None:
    """Undo call_false: it was said in error."""
    k = _kind(r, place, error)
    if k >= 0 and r.clock[k] & _bit(channel):
        r.clock[k] -= _bit(channel)


@compiled
def _bit(channel: int) -> int:
    """Return the channel's bit in RECURRENCE's `clock`; 0: what it tells has no size."""
    if channel == FORECAST:
        return CALLED
    if channel == LEVEL:
        return 2 * CALLED
    return 4 * CALLED if channel == NOVEL else 0


@compiled
def _kind(r: Record, place: int, error: float) -> int:
    """Return the kind whose size is nearest to the error's, and alike; -1: there is none."""
    key, step = (WAYS * place + (error > 0.0)) % 256, SCALE * math.log(abs(error))
    nearest, found = SCALE * math.log(AS_LARGE), -1
    for k in range(KINDS):
        away = abs(r.size[k] - step)
        if r.count[k] > 0 and r.key[k] == key and away <= nearest:
            nearest, found = away, k
    return found

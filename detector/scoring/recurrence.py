"""What comes again and again: an error that a stream has shown before is as rare as it has been, and no rarer.

The tail of a return period learns a large peak with caution, or it would take anomalies for usual; so a nightly job and
a counter that restarts would be told each time. Therefore a stream remembers its large errors, by their size in the
data's own unit, and what has come before claims no more than the mean time between such. Where they come by the clock,
or so often that a stream's budget were spent on them alone, that holds as it is. Where they do not, each may be an
incident of its own: then it may still exceed the threshold of its stream, and only the fleet is spared.

What follows a large error at once, and is no larger, is what that leaves behind, whatever its sign: a forecast that
finds back, a job's end, a level that is only now counted. It is of the same kind, and needs no place of its own.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from detector.scoring.units import Record
from training.network.compiled import compiled

KINDS = 4  # of errors that a stream remembers
LARGE = 0.5  # below the stream's own threshold: the claim from which on an error is remembered
TOLD = 0.5  # above it: what recurs without habit may still claim ...
OFTEN = 0.7  # ... unless its return period is so far below it: what comes five times as often as the stream may tell
WAYS = 3  # in which a lane errs: too high, too low, by its level
ALIKE = 2.0  # factor between the sizes of errors of a kind
DOUBT = 4.0  # what came once counts for one in so many, for it might be chance; what came so often, in full
FAR_LARGER = 10.0  # factor beyond which a larger error is no sign of a smaller: one wild value excuses nothing
APART, APART_SECONDS = 20.0, 300.0  # usual intervals, and seconds, without such an error before the next is another
TOGETHER = 84  # in place of a lane: of several features all together, whichever leads
SCALE = 16.0  # steps of a remembered size, a nat
MOST = 250  # errors counted of a kind
DAY, CLOCK = 1440, 15  # min; by which two errors at the same time of day may differ
DAILY = 0.8  # of a day: mean time between errors from which on the time of day tells something
WEEKLY = 5.0  # days: mean time between errors from which on the day of the week must be the same, too
HABIT = 2048  # added to a time of day: what came then came by the clock
CALLED = 4096  # and from here on, a bit for each channel whose alert of this kind was called false: called_false.py
KEPT = 16  # times as long as others a kind that was called false keeps its place
CYCLE = 2**32  # s

RECURRENCE = np.dtype(
    [
        ("first", np.uint32, KINDS),  # s since 1970, in cycles of CYCLE
        ("last", np.uint32, KINDS),
        ("clock", np.uint16, KINDS),  # min of the day at which the last began, with HABIT and CALLED
        ("size", np.int16, KINDS),  # log size, mean, in steps
        ("key", np.uint8, KINDS),  # the lane, the channel and the sign
        ("count", np.uint8, KINDS),  # errors; 0: no kind is here
    ],
    align=True,
)


class Bounds(NamedTuple):
    """Between what a claim that came before is lowered."""

    own: float  # threshold of the stream by its budget
    floor: float  # what recurs without habit is not lowered below


@compiled
def recurring(r: Record, key: int, size: float, time: int, interval: float) -> tuple[float, bool]:
    """Return log10 of the events between large errors of this size or above, infinity: it is the first. Learn it.

    And whether they come by the clock. `r` is RECURRENCE, `key` is WAYS times the lane plus the way, `size` is above
    0, `time` in ns, `interval` the usual one between events, s.
    """
    if interval <= 0.0:
        return math.inf, False
    now, apart = time // 1_000_000_000 % CYCLE, max(APART * interval, APART_SECONDS)
    key = key % 256
    step = SCALE * math.log(size)
    alike, far = SCALE * math.log(ALIKE), SCALE * math.log(FAR_LARGER)
    clock = now // 60 % DAY
    count, span, nearest, habit = 0, 0, CYCLE, False
    mine, follows, place, unused = -1, False, 0, -1.0
    for k in range(KINDS):
        if r.count[k] == 0:
            if unused < math.inf:
                place, unused = k, math.inf
            continue
        since = (now - int(r.last[k])) % CYCLE
        weight = int(r.count[k]) * (KEPT if r.clock[k] >= CALLED else 1)
        if since > unused * weight:
            place, unused = k, since / weight
        wake = since <= apart and r.key[k] // WAYS == key // WAYS and r.size[k] >= step - alike
        if not wake and (r.key[k] != key or not step - alike <= r.size[k] <= step + far):
            continue
        before = int(r.count[k]) - wake
        if wake:
            mine, follows, habit = k, True, bool(r.clock[k] & HABIT)
        elif not follows:
            if r.size[k] <= step + alike:
                mine = k
            if since < nearest:
                nearest, habit = since, (clock - r.clock[k] % HABIT + CLOCK) % DAY <= 2 * CLOCK
        if before > 0:
            count, span = count + before, max(span, (now - int(r.first[k])) % CYCLE)
    if not follows and span >= WEEKLY * 60 * DAY * count:  # what comes on Mondays may be news on a Sunday
        habit = habit and (nearest // 60 + DAY // 2) // DAY % 7 == 0
    called = r.clock[mine] // CALLED * CALLED if mine >= 0 else 0
    if follows:
        if not called:
            r.size[mine] = max(r.size[mine], np.int16(step))
    elif mine < 0:
        mine = place
        r.key[mine], r.size[mine], r.count[mine], r.first[mine] = key, step, 1, now
    else:
        r.count[mine] += 1
        if not called:
            r.size[mine] += np.int16((step - r.size[mine]) / min(r.count[mine], 8))
        if r.count[mine] >= MOST:  # half of them, and half of their time, are forgotten
            r.count[mine] = MOST // 2
            r.first[mine] = (now - (now - int(r.first[mine])) % CYCLE // 2) % CYCLE
    r.last[mine] = now
    if not follows:
        r.clock[mine] = clock + HABIT * habit + called
    if count == 0:
        return math.inf, False
    period = math.log10(max(span / interval, 1.0) / (count * min(count / DOUBT, 1.0)))
    return period, habit and span >= DAILY * 60 * DAY * count

"""Silence: after how long a stream that sends nothing has stopped, by its own pauses and by the others' time.

What is remembered of a stream are the longest pauses of two fortnights, the present one and that before, and on how
many days it spoke. It is judged once it is known for a week, so that nights and weekends without events are among its
pauses; then it has stopped once it pauses for two to five times its longest: twice, where it keeps time or rests
regularly, more where it comes at random, most where little is known.

Time is that of a partition's own events, and what counts is how far it advances between two events of a stream: clocks
that differ do no harm. It is as late as several events say, and advances by no more at once than it usually does: a
pause of all, an outage or a few wrong times are nobody's silence. Nor is a stream's own pause, where only its own
events tell the time.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from detector.scoring.units import Record
from training.network.compiled import compiled
from training.network.memory import unowned

Int64 = NDArray[np.int64]
Float64 = NDArray[np.float64]

DAY_NS = 86_400_000_000_000
SPAN_NS = 14 * DAY_NS  # two weekends at least are among the pauses of a stream that spoke for so long
# A pause is kept as an eighth of an octave, rounded up: 1/16 s to seven years in a byte; 0 is none
STEPS, LEAST_OCTAVE = 8, -4
PAUSE_SECONDS = np.concatenate(([0.0], 2.0 ** (np.arange(255) / STEPS + LEAST_OCTAVE)))
PRESENT, FORMER, TOLD, DAYS = range(4)  # STREAM_SCORE.pauses: of this fortnight, of the one before, one that was told
# as silence and counts only once such a pause comes again, and on how many days events came
GONE = 255  # in the place of TOLD: its silence is not told any more, whatever its length

KNOWN_DAYS = 7  # on which a stream spoke before it is judged
KNOWN_EVENTS = 20
MANY_EVENTS = 60  # from which on its longest pause says much
REGULAR = 1.5  # usual intervals that the longest pause has of a stream that keeps time
RESTS = 20.0  # usual intervals from which on a pause is no accident: at random, one in e^20 is as long
ALIKE = 1  # step by which the longest pauses of two fortnights may differ, a tenth, to be the same rest
TWICE, RANDOM, UNSURE = 2.0, 3.0, 5.0  # longest pauses after which a stream has stopped
GONE_SECONDS = 7 * 86_400.0  # after which one that was told is taken to be gone for good

WITNESSES = 4  # events that say how late it is: a few times that are wrong say nothing
LEAST_STEP, USUAL_STEPS = 10.0, 1.5  # it advances by so many seconds at once, or by so many times its longest step;
# what is more is a gap of all, and counts as one such step
FIRST_STEPS = 16  # of a new clock, which tell what is usual
STEP_MEMORY = 256  # steps that this one remembers
ASTRAY = 4096  # events in a row that are all earlier than a partition's time, after which it was wrong

CLOCK = np.dtype(
    [
        ("time", np.int64),  # of the partition's events, ns; 0: not known
        ("seconds", np.float64),  # that it has advanced
        ("step", np.float64),  # the longest of late, seconds
        ("steps", np.int64),  # so far
        ("looked", np.float64),  # seconds by which all that had stopped was told
        ("first_time", np.int64),  # these as they were when this worker took the partition up
        ("first_seconds", np.float64),
        ("first_looked", np.float64),
        ("latest", np.int64, WITNESSES),  # of the events' times, ascending, ns
        ("behind", np.int64),  # events in a row that are earlier
        ("highest", np.int64),  # of their times, ns
    ],
    align=True,
)
FOUND, ENDED = 1, 2  # it was silent before its event, which nobody was told; or was told


class Heard(NamedTuple):
    """When streams were last heard, by slot, in the seconds of their partitions' clocks."""

    at: Float64  # NaN: before what is known here
    due: Float64  # when they have stopped; infinite: never. Of one that was told: when it is gone
    clock: NDArray[np.int32]  # row of CLOCK


class Told(NamedTuple):
    """How late it is in an event's partition as it comes; columns are [events]."""

    now: Float64  # seconds of its clock
    time: Int64  # ns
    reached: Float64  # seconds of its clock once that has come to the event's own time


class Coming(NamedTuple):
    """Admitted events, sorted by stream; columns are [events]."""

    slot: Int64
    time: Int64  # ns
    before: Int64  # the stream's time until then, ns; 0: it is new
    interval: Float64  # running mean time between its events, this one included; seconds
    clock: NDArray[np.int32]
    told: Told
    muted: NDArray[np.bool_]


class Ends(NamedTuple):
    """What the events end; columns are [events]."""

    kind: NDArray[np.int8]  # FOUND, ENDED or 0
    after: Float64  # seconds without events after which the stream had stopped
    interval: Float64  # usual until then, seconds
    longest: Float64  # pause until then, seconds


@compiled
def code_of(seconds: float) -> int:
    """Return a pause as a byte, rounded up."""
    if seconds <= 0.0:
        return 0
    return int(min(max(1.0 + math.ceil(STEPS * (math.log2(seconds) - LEAST_OCTAVE) - 1e-9), 1.0), 255.0))


@compiled
def longest_pause(q: Record) -> float:
    """Return the longest pause that is remembered of a stream, STREAM_SCORE, in seconds."""
    return float(PAUSE_SECONDS[max(q.pauses[PRESENT], q.pauses[FORMER])])


@compiled
def stops_after(q: Record, rule: Record, interval: float, events: int) -> float:
    """Return after how many seconds without events a stream, STREAM_SCORE, has stopped; infinite: nobody is told.

    `interval` and `events` are those of the record, which is a little behind in the middle of a batch.
    """
    if not rule.silence or rule.muted:
        return math.inf
    after, longest = math.inf, longest_pause(q)
    if q.pauses[DAYS] >= KNOWN_DAYS and events >= KNOWN_EVENTS and longest > 0.0 and interval > 0.0:
        apart = abs(np.int64(q.pauses[PRESENT]) - np.int64(q.pauses[FORMER]))  # bytes know no less than 0
        if longest <= REGULAR * interval or (longest > RESTS * interval and apart <= ALIKE):
            times = TWICE
        else:
            times = RANDOM if events >= MANY_EVENTS else UNSURE
        after = max(times * longest, rule.min_silence_seconds)
    return min(after, rule.max_silence_seconds)


@compiled
def remember_pause(q: Record, before: int, time: int, told: bool) -> None:
    """Take in how long a stream, STREAM_SCORE, said nothing; times are ns.

    `told`: as silence, so that it is no pause unless it recurs.
    """
    pauses, now, last = q.pauses, time // SPAN_NS, before // SPAN_NS
    if now == last + 1:
        pauses[FORMER], pauses[PRESENT] = pauses[PRESENT], 0
    elif now > last:  # longer than a fortnight: what is known is known still
        pauses[FORMER], pauses[PRESENT] = max(pauses[PRESENT], pauses[FORMER]), 0
    if time // DAY_NS != before // DAY_NS and pauses[DAYS] < 255:
        pauses[DAYS] += 1
    seconds = (time - before) * 1e-9
    if seconds <= PAUSE_SECONDS[pauses[PRESENT]]:
        return
    code = code_of(seconds)
    if not told:
        pauses[PRESENT] = code
    elif pauses[TOLD] and code <= pauses[TOLD] + STEPS // 2:
        pauses[PRESENT], pauses[TOLD] = code, 0
    else:
        pauses[TOLD] = code


@compiled
def _most(c: Record) -> float:
    """Return by how many seconds a partition's time, CLOCK, advances at most with one event."""
    return float(max(LEAST_STEP, USUAL_STEPS * c.step))


@compiled
def _ahead(c: Record, time: int) -> float:
    """Return how far a partition's time, CLOCK, will have advanced, in seconds, once it is `time`, ns; 0: it is."""
    return min(max(time - c.time, 0) * 1e-9, WITNESSES * _most(c))


@compiled
def tell_time(clocks: Record, clock: NDArray[np.int32], time: Int64, told: Told) -> None:
    """Carry partitions' clocks, CLOCK, on by events in the order in which they came; note how late it was at each.

    clock: [events] row of its partition; time: [events] ns.
    """
    clocks = unowned(clocks)
    for e in range(len(time)):
        c, t = clocks[clock[e]], time[e]
        if c.time == 0:
            c.time = c.first_time = t
            c.latest[:] = t
            c.first_seconds = c.first_looked = c.looked = c.seconds
        elif t > c.latest[0]:
            k = 0
            while k + 1 < WITNESSES and c.latest[k + 1] < t:
                c.latest[k] = c.latest[k + 1]
                k += 1
            c.latest[k] = t
            c.behind = 0
        elif t < c.latest[0]:
            c.highest = t if c.behind == 0 else max(c.highest, t)
            c.behind += 1
            if c.behind >= ASTRAY:
                c.latest[:] = c.time = c.highest
                c.behind = 0
        if c.latest[0] > c.time:
            step = (c.latest[0] - c.time) * 1e-9
            most = _most(c) if c.steps >= FIRST_STEPS else step
            c.seconds += step if step <= most else c.step
            c.step = max(min(step, most), c.step * (1.0 - 1.0 / STEP_MEMORY))
            c.steps += 1
            c.time = c.latest[0]
        told.now[e], told.time[e], told.reached[e] = c.seconds, c.time, c.seconds + _ahead(c, t)


@compiled
def heard_at(c: Record, time: int, now: float, partition_time: int) -> float:
    """Return when a stream was heard whose last event, at `time`, nobody here saw come; in the seconds of CLOCK `c`.

    `now` and `partition_time` are how late it is there.
    """
    if time > partition_time:
        return now + _ahead(c, time)
    before = max(c.first_time - time, 0) * 1e-9
    since = max(partition_time - max(time, c.first_time), 0) * 1e-9
    return float(now - before - min(since, now - c.first_seconds))


@compiled
def place(streams: Record, rules: Record, clocks: Record, clock: NDArray[np.int32], heard: Heard) -> None:
    """Note when streams, STREAM [n], were heard whose events nobody here saw come; columns of `heard` are [n].

    clock: [n] row of its partition, -1: not known, and nothing is noted.
    """
    streams, rules, clocks = unowned(streams), unowned(rules), unowned(clocks)
    for i in range(len(streams)):
        if clock[i] < 0 or clocks[clock[i]].time == 0:
            continue
        s, c = streams[i], clocks[clock[i]]
        at = heard_at(c, s.admission.time, c.seconds, c.time)
        heard.at[i], heard.clock[i] = at, clock[i]
        after = stops_after(s.score, rules[s.rule], s.score.interval, s.score.events)
        heard.due[i] = due_of(s, at, after, c)


@compiled
def due_of(s: Record, at: float, after: float, c: Record) -> float:
    """Return when a stream, STREAM, stops that was heard at `at` by the clock; of one that has, when it is gone.

    What had stopped before this worker took the partition up was told then, or its clock is another, or nobody wanted
    to know: never, so that nothing is said of it before it speaks.
    """
    if s.silent:
        return at + (after if after < math.inf else 0.0) + GONE_SECONDS
    known = s.score.pauses[TOLD] != GONE and c.first_looked <= at + after
    return at + after if known else math.inf


@compiled
def use_rules(streams: Record, rules: Record, clocks: Record, heard: Heard, slots: Int64) -> None:
    """Let other rules hold for streams, STREAM by slot; what stopped while nobody wanted to know is not told."""
    streams, rules, clocks = unowned(streams), unowned(rules), unowned(clocks)
    for slot in slots:
        s = streams[slot]
        if math.isfinite(heard.at[slot]) and not s.silent:
            due = heard.at[slot] + stops_after(s.score, rules[s.rule], s.score.interval, s.score.events)
            if math.isinf(heard.due[slot]) and due <= clocks[heard.clock[slot]].seconds:
                due = math.inf
            heard.due[slot] = due


@compiled
def remember_pauses(streams: Record, slot: Int64, time: Int64, before: Int64) -> None:
    """Take in how long streams, STREAM, said nothing before events, [events], though nobody wants to know."""
    streams = unowned(streams)
    for i in range(len(slot)):
        if before[i] != 0 and time[i] > before[i]:
            remember_pause(streams[slot[i]].score, before[i], time[i], False)


@compiled
def hear(streams: Record, rules: Record, clocks: Record, heard: Heard, coming: Coming, out: Ends) -> int:
    """Note that streams, STREAM, are heard; return how many of the events end a silence that is told.

    `rules` is RULE by a stream's number, `clocks` CLOCK.
    """
    streams, rules, clocks = unowned(streams), unowned(rules), unowned(clocks)
    ended = 0
    for i in range(len(coming.slot)):
        slot, time, before, now = coming.slot[i], coming.time[i], coming.before[i], coming.told.now[i]
        s, number = streams[slot], coming.clock[i]
        rule, q = rules[s.rule], s.score
        if i == 0 or coming.slot[i - 1] != slot:
            interval, events = q.interval, q.events
        out.kind[i] = 0
        if before != 0:
            told = s.silent
            after = stops_after(q, rule, interval, events)
            if told:
                s.silent = False
                out.kind[i] = ENDED
            elif q.pauses[TOLD] == GONE:
                q.pauses[TOLD] = 0
                told = True
            elif after < math.inf and not coming.muted[i]:
                at, due = heard.at[slot], heard.due[slot]
                if math.isnan(at):
                    c = clocks[number]
                    at = heard_at(c, before, now, coming.told.time[i])
                    due = due_of(s, at, after, c)
                elif heard.clock[slot] != number:  # another partition's seconds
                    due = math.inf
                if now > due:
                    told = True
                    out.kind[i] = FOUND
            if out.kind[i]:
                out.after[i], out.interval[i], out.longest[i] = after, interval, longest_pause(q)
                ended += 1
            if time > before:
                remember_pause(q, before, time, told)
        interval, events = coming.interval[i], events + 1
        at = coming.told.reached[i]
        heard.at[slot], heard.clock[slot] = at, number
        heard.due[slot] = at + stops_after(q, rule, interval, events)
    return ended

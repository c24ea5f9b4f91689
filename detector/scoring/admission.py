"""Who is admitted: the one rule about late and duplicate events, and what a stream remembers for it.

By default an event counts that is later than all before it in its stream. Where a clock was ahead and has been mended,
that would drop everything until time has caught up. So late events that come one after the other and agree among
themselves move the stream back to their time: each later than the one before, at the stream's own rhythm, and none of
them admitted before. A backlog that is sent once more is dropped still: its events are recognised, by time and values,
as far as the last REMEMBERED of them reach back.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from connectors.batches import EventBatch
from detector.scoring.batch import Ids
from detector.scoring.units import Record
from training.network.compiled import compiled
from training.network.inputs import INTERVAL_MEMORY, LONG_PAUSE, carried_interval
from training.network.memory import prefetch, unowned

Int64 = NDArray[np.int64]
UInt64 = NDArray[np.uint64]

ADMITTED, DUPLICATE, LATE, MOVED_BACK = 0, 1, 2, 3  # MOVED_BACK: admitted, and the stream's time with it

IN_RHYTHM, ASCENDING = 4, 1  # what a late event counts for that follows another at the stream's rhythm, or does not
ENOUGH = 5 * IN_RHYTHM  # then the stream moves back
MAX_RHYTHM_INTERVALS = 20.0  # intervals between two events that are still the stream's rhythm
REMEMBERED = 128  # admitted events that are recognised at least, and twice as many at most
AHEAD = 8  # events whose streams are on their way to the cache
SEEN_BITS = 512  # for so many of them: one late event in three is taken for one seen before, at worst
BLOCKED = 20  # events dropped in a row after which a stream counts as one that drops everything

DIGIT = 11  # bits by which slots are sorted at once
DIGIT_MASK = (1 << DIGIT) - 1

MIN_SILENCE = 300.0  # seconds: a restart of a producer, a rebalance and a slow network are no silence
PAUSES = 10.0  # silence is so many times the longest of the stream's late pauses

ADMISSION = np.dtype(
    [
        ("arrived", np.int64),  # events admitted
        ("time", np.int64),  # of the newest, ns
        ("interval", np.float64),  # running mean time between events, seconds
        ("pause", np.float64),  # the longest time between two of the last few hundred events, seconds
        ("partition", np.int64),  # hash of the partition it was last seen on
        ("late", np.int64),  # time of the last late event, ns
        ("dropped", np.int32),  # events in a row that were dropped, up to now
        ("agreement", np.int32),  # of the late events in a row; moves the stream back once it is ENOUGH
        ("seen", np.uint8, (2, SEEN_BITS // 8)),  # a bit for each event of the present and the former REMEMBERED
    ],
    align=True,
)


@compiled
def _mixed(x: np.uint64) -> np.uint64:
    """Return 64 bits that each depend on all of x (the end of splitmix64)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@compiled
def _agrees(r: Record, time: int, known: bool) -> bool:
    """Take a late event in; return whether it and those before it move the stream back."""
    if r.agreement == 0 or time <= r.late:
        r.agreement = 0 if known else IN_RHYTHM
    elif not known:
        in_rhythm = r.interval <= 0.0 or (time - r.late) * 1e-9 <= MAX_RHYTHM_INTERVALS * r.interval
        r.agreement += IN_RHYTHM if in_rhythm else ASCENDING
    r.late = time
    return bool(r.agreement >= ENOUGH)


@compiled
def silence_of(r: Record) -> float:
    """Return after how long, in seconds, a stream that says nothing has fallen silent.

    Told by its longest pause and not by its mean interval: a stream of bursts pauses for many times its mean, a regular
    one never.
    """
    return max(MIN_SILENCE, PAUSES * r.pause)


class Arrivals(NamedTuple):
    """Events as they came; columns are in the batch's order but for `order`."""

    order: Int64  # [events] indices of events, sorted by stream; each stream's events as they came
    slot: Int64  # [events]
    time: Int64  # [events] ns
    partition: Int64  # [events] hash
    start: Int64  # [events + 1] first observation of each
    content: UInt64  # [observations] what tells one value from another


class Fates(NamedTuple):
    """What became of events; columns are [events], in the order of `Arrivals.order`."""

    fate: NDArray[np.int8]  # ADMITTED and so on
    keep: NDArray[np.bool_]  # it is to be scored
    repartitioned: NDArray[np.bool_]  # the stream was last seen on another partition
    blocked: NDArray[np.bool_]  # the stream counts from here on as one that drops everything
    before: Int64  # the stream's time until then, ns
    lapse: Int64  # when the stream had fallen silent before it came, ns; 0: it had not
    interval: NDArray[np.float64]  # running mean time between events, this one included; seconds


@compiled
def stable_order(key: Int64) -> Int64:
    """Return what sorts keys >= 0, equal ones as they came: a sort by digits, a third of argsort's time."""
    order, sorted_order = np.arange(len(key)), np.empty(len(key), np.int64)
    largest = key.max() if len(key) else 0
    for shift in range(0, 63, DIGIT):
        if shift and largest >> shift == 0:
            break
        place = np.zeros((1 << DIGIT) + 1, np.int64)
        for k in key:
            place[((k >> shift) & DIGIT_MASK) + 1] += 1
        for digit in range(1 << DIGIT):
            place[digit + 1] += place[digit]
        for e in order:
            digit = (key[e] >> shift) & DIGIT_MASK
            sorted_order[place[digit]] = e
            place[digit] += 1
        order, sorted_order = sorted_order, order
    return order


@compiled
def _admit(rows: Record, arrivals: Arrivals, keep_duplicates: bool, keep_late: bool, out: Fates) -> None:
    """Tell each event's fate and carry its stream's time and rhythm on; `rows` are ADMISSION, by slot."""
    rows = unowned(rows)
    order, slot, time, partition, start, content = unowned(arrivals)
    fate, keep, repartitioned, blocked, before, lapse, interval = unowned(out)
    for i in range(len(order)):
        if i + AHEAD < len(order):
            prefetch(rows, slot[order[i + AHEAD]])
        e = order[i]
        r, t = rows[slot[e]], time[e]
        repartitioned[i] = r.partition != 0 and r.partition != partition[e]
        r.partition = partition[e]
        mark = np.uint64(t)
        for j in range(start[e], start[e + 1]):
            mark += _mixed(content[j])
        bit = np.int64(_mixed(mark) % np.uint64(SEEN_BITS))
        place, mask = bit >> 3, np.uint8(1 << (bit & 7))

        before[i], lapse[i], fate[i] = r.time, 0, ADMITTED
        if r.arrived > 0:
            if t == r.time:
                fate[i] = DUPLICATE
            elif t < r.time:
                known = (r.seen[0, place] | r.seen[1, place]) & mask != 0
                fate[i] = MOVED_BACK if _agrees(r, t, known) else LATE
        admitted = fate[i] == ADMITTED or fate[i] == MOVED_BACK
        keep[i] = admitted or (fate[i] == DUPLICATE and keep_duplicates) or (fate[i] == LATE and keep_late)
        if admitted:
            if r.arrived > 0:
                step = (t - r.time) * 1e-9
                silence = silence_of(r)
                if step > silence:
                    lapse[i] = r.time + np.int64(silence * 1e9)
                r.interval = carried_interval(r.interval, r.arrived, step)
                if step > 0.0:
                    r.pause = max(step, r.pause * (1.0 - 1.0 / INTERVAL_MEMORY))
                else:  # what looked like a pause was the clock
                    r.pause = min(r.pause, LONG_PAUSE * r.interval)
            present = r.arrived // REMEMBERED % 2
            if r.arrived % REMEMBERED == 0:
                r.seen[present, :] = 0
            r.seen[present, place] |= mask
            r.arrived += 1
            r.time = t
            r.agreement = 0
        r.dropped = 0 if keep[i] else r.dropped + 1
        blocked[i] = r.dropped == BLOCKED
        interval[i] = r.interval


class MovedBack(NamedTuple):
    """A stream that has taken the earlier time of its late events; times are ns."""

    stream: str
    former: int
    time: int


class Taken(NamedTuple):
    """Events that are to be scored, sorted by stream; columns are [events]."""

    event: Int64  # index into the batch
    interval: NDArray[np.float64]  # its stream's, by then; seconds
    lapse: Int64  # as in Fates
    before: Int64  # likewise

    def at(self, rows: NDArray[np.bool_] | slice) -> Taken:
        """Return some of them."""
        return Taken(self.event[rows], self.interval[rows], self.lapse[rows], self.before[rows])


class Admitted(NamedTuple):
    """What came of a batch at the door."""

    taken: Taken
    duplicates: int
    late: int
    repartitioned: list[str]  # streams seen on another partition than before
    moved_back: list[MovedBack]
    blocked: list[str]  # streams of which BLOCKED events in a row have been dropped by now


def admit_events(rows: Record, batch: EventBatch, ids: Ids, *, duplicates: bool, late: bool) -> Admitted:
    """Admit a batch's events; `rows` are ADMISSION, by slot. Duplicate and late ones are scored where that is asked."""
    content = batch.value.view(np.uint64)
    if batch.symbols:
        content = np.where(ids.symbol != 0, ids.symbol.view(np.uint64), content)
    order = stable_order(ids.slot)
    arrivals = Arrivals(order, ids.slot, batch.time, ids.partition, batch.start, content)
    fates = _fates(rows, arrivals, duplicates=duplicates, late=late)

    def named(where: NDArray[np.bool_]) -> list[str]:
        return sorted({batch.streams[code] for code in batch.stream[order[where]].tolist()})

    back = fates.fate == MOVED_BACK
    return Admitted(
        Taken(order[fates.keep], fates.interval[fates.keep], fates.lapse[fates.keep], fates.before[fates.keep]),
        duplicates=int((fates.fate == DUPLICATE).sum()),
        late=int((fates.fate == LATE).sum()),
        repartitioned=named(fates.repartitioned),
        moved_back=[
            MovedBack(batch.streams[batch.stream[e]], former, int(batch.time[e]))
            for e, former in zip(order[back].tolist(), fates.before[back].tolist(), strict=True)
        ],
        blocked=named(fates.blocked),
    )


def admitted_of(
    stream: Int64, time: Int64, start: Int64, value: NDArray[np.float64], *, duplicates: bool, late: bool
) -> NDArray[np.bool_]:
    """Return which events of a whole history, [events], would be scored; streams are numbered from 0.

    time: ns [events]; start: [events + 1] first value of each event; value: [observations].
    """
    order = stable_order(stream)
    arrivals = Arrivals(order, stream, time, np.zeros(len(order), np.int64), start, value.view(np.uint64))
    rows = np.zeros(int(stream.max(initial=-1)) + 1, ADMISSION)
    kept = np.empty(len(order), np.bool_)
    kept[order] = _fates(rows, arrivals, duplicates=duplicates, late=late).keep
    return kept


def _fates(rows: Record, arrivals: Arrivals, *, duplicates: bool, late: bool) -> Fates:
    count = len(arrivals.order)
    keep, repartitioned, blocked = np.empty((3, count), np.bool_)
    before, lapse = np.empty((2, count), np.int64)
    fates = Fates(np.empty(count, np.int8), keep, repartitioned, blocked, before, lapse, np.empty(count))
    _admit(rows, arrivals, duplicates, late, fates)
    return fates

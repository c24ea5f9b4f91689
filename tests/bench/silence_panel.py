"""False alarms of silence by kind of rhythm, a stream and day, and how soon a stream is told that has stopped.

.venv/bin/python -m tests.bench.silence_panel [STREAMS OF EACH KIND] [DAYS]

No network is asked: silence knows of events only when they came. All streams share a partition.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from connectors.batches import EventBatch
from detector.scoring.admission import admit_events
from detector.scoring.batch import Ids
from detector.scoring.incidents import AlertRules
from detector.scoring.rules import StreamRules
from detector.scoring.silence import CLOCK, ENDED, FOUND, Coming, Ends, Heard, Told, hear, tell_time
from detector.state.records import STREAM

Seconds = NDArray[np.float64]
Rng = np.random.Generator

HOUR, DAY, START = 3600.0, 86_400.0, 1_790_000_000 // 86_400 * 86_400  # a Monday's midnight
SECOND = 1_000_000_000


def every(step: float, jitter: float = 0.02, lost: float = 0.0) -> Callable[[Rng, float], Seconds]:
    """Return what makes the times of a stream that keeps time; `lost`: share of events that never come."""

    def make(rng: Rng, end: float) -> Seconds:
        times = np.arange(rng.uniform(0, step), end, step)
        times = times + step * jitter * rng.standard_normal(len(times))
        return np.sort(times[rng.random(len(times)) >= lost])

    return make


def renewal(draw: Callable[[Rng, int], Seconds], mean: float) -> Callable[[Rng, float], Seconds]:
    """Return what makes the times of a stream whose intervals are independent; `draw` has any mean."""

    def make(rng: Rng, end: float) -> Seconds:
        steps = draw(rng, int(3 * end / mean) + 100)
        times = np.cumsum(steps * mean / steps.mean())
        return times[times < end]

    return make


def at_hours(first: float, last: float, step: float, days: int = 7) -> Callable[[Rng, float], Seconds]:
    """Return what makes the times of a stream that works from one hour to another, so many days a week."""

    def make(rng: Rng, end: float) -> Seconds:
        parts = []
        for day in range(int(end / DAY)):
            if day % 7 < days:
                begins, ends = day * DAY + HOUR * first, day * DAY + HOUR * last
                begins, ends = begins + rng.exponential(300.0), ends + rng.exponential(300.0)
                parts.append(np.arange(begins, max(ends, begins + 1.0), step))
        return np.concatenate(parts)

    return make


def by_day(mean: float, night: float) -> Callable[[Rng, float], Seconds]:
    """Return what makes the times of a stream that comes at random, at night so much more rarely."""

    def make(rng: Rng, end: float) -> Seconds:
        times = np.sort(rng.uniform(0, end, rng.poisson(end / mean)))
        awake = 0.5 - 0.5 * np.cos(2 * np.pi * (times / DAY))
        return times[rng.random(len(times)) < night + (1.0 - night) * awake]

    return make


KINDS: dict[str, Callable[[Rng, float], Seconds]] = {
    "every minute": every(60.0),
    "every minute, 3 of 10 lost": every(60.0, lost=0.3),
    "every hour": every(HOUR, 0.05),
    "once a day": every(DAY, 0.02),
    "office hours, every minute": at_hours(8, 18, 60.0),
    "office hours on weekdays": at_hours(8, 18, 60.0, days=5),
    "a nightly job of an hour": at_hours(2, 3, 20.0),
    "a daily job on weekdays": at_hours(5, 5, DAY, days=5),
    "at random, every 5 minutes": renewal(lambda rng, n: rng.exponential(1.0, n), 300.0),
    "at random, every hour": renewal(lambda rng, n: rng.exponential(1.0, n), HOUR),
    "at random, 3 a day": renewal(lambda rng, n: rng.exponential(1.0, n), 8 * HOUR),
    "at random, rarer at night": by_day(600.0, 0.02),
    "bursts (log-normal, sigma 2)": renewal(lambda rng, n: rng.lognormal(0.0, 2.0, n), 600.0),
    "bursts (Pareto, alpha 1.5)": renewal(lambda rng, n: rng.pareto(1.5, n) + 1.0, 600.0),
}


def run(events: list[Seconds], end: float, first_judged: float) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return how often each stream was told, [streams], and after how long it would be told at the end, [streams]."""
    count = len(events)
    rows, clocks = np.zeros(count, STREAM), np.zeros(1, CLOCK)
    heard = Heard(np.full(count, np.nan), np.full(count, np.inf), np.full(count, -1, np.int32))
    rules = StreamRules(AlertRules(silence=True)).table().of
    stream = np.repeat(np.arange(count), [len(times) for times in events])
    time = (START * SECOND + np.concatenate(events) * SECOND).astype(np.int64)
    order = np.argsort(time, kind="stable")
    stream, time = stream[order], time[order]
    told = np.zeros(count, np.int64)
    for begin in np.arange(0.0, end, DAY):
        first, last = np.searchsorted(time, [int((START + begin + more) * SECOND) for more in (0.0, DAY)])
        part, at = stream[first:last], time[first:last]
        size = len(part)
        if not size:
            continue
        batch = EventBatch.of_table([str(k) for k in range(count)], ["x"], part, at, np.arange(size)[:, None])
        ids = Ids(part, np.ones(size, np.int64), np.zeros(size, np.int64), np.zeros(size, np.int64))
        taken = admit_events(rows["admission"], batch, ids, duplicates=False, late=False).taken
        clock = np.zeros(size, np.int32)
        late = Told(np.empty(size), np.empty(size, np.int64), np.empty(size))
        tell_time(clocks, clock, at, late)
        e = taken.event
        late = Told(late.now[e], late.time[e], late.reached[e])
        coming = Coming(part[e], at[e], taken.before, taken.interval, clock[e], late, np.zeros(len(e), np.bool_))
        out = Ends(np.zeros(len(e), np.int8), np.zeros(len(e)), np.zeros(len(e)), np.zeros(len(e)))
        hear(rows, rules, clocks, heard, coming, out)
        if begin >= first_judged:
            told += np.bincount(part[e][np.isin(out.kind, (FOUND, ENDED))], minlength=count)
        rows["score"]["interval"], rows["score"]["events"] = rows["admission"]["interval"], rows["admission"]["arrived"]
    return told, heard.due - heard.at


def main() -> None:
    """Print a line for each kind."""
    each = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    days = int(sys.argv[2]) if len(sys.argv) > 2 else 60
    rng, end, first = np.random.default_rng(7), days * DAY, 7 * DAY
    print(f"{each} streams of each kind, {days} days, judged from the eighth on")
    print("| rhythm | false alarms a stream and day | streams with any | told after (median) | never |")
    print("|---|---|---|---|---|")
    events = [make(rng, end) for make in KINDS.values() for _ in range(each)]
    told, after = run(events, end, first)
    for number, name in enumerate(KINDS):
        rows = slice(number * each, (number + 1) * each)
        known = after[rows][np.isfinite(after[rows])]
        median = f"{np.median(known) / HOUR:.2g} h" if len(known) else "-"
        rate, some = told[rows].sum() / (each * (days - 7)), np.count_nonzero(told[rows])
        print(f"| {name} | {rate:.5f} | {some} of {each} | {median} | {each - len(known)} |")


if __name__ == "__main__":
    main()

"""Do budgets hold? Clean streams of every kind at every step, a fleet with planted incidents, and how true scores are.

    python -m tests.bench.budgets streams [--seeds 3] [--features 1]
    python -m tests.bench.budgets changes [--seeds 3] [--features 1]
    python -m tests.bench.budgets fleet [--streams 10000] [--features 1] [--days 14] [--step 300] [--budgets 10 50 200]

`streams`: alerts of clean streams in the first day and after it, against the budget. `changes`: of streams whose level
or size changes for good, in the week that begins 200 events later (tests/bench/clean.py). `fleet`: streams of all clean
kinds; some get one incident each in their first feature, 12 deviations of noise once or an hour at a standstill. The
rate of the fleet's events is given to the engine, so that a part of the fleet at a time can be scored: a sample of
1,000 streams at a tenth of the budgets has the thresholds of 10,000. A stream's first half is for learning; what is
counted comes after it, but for what says so. Tails: the share of events whose claim exceeds a score, over what the
score says, and of peaks (one in a run, over once 8 events stay below).
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from connectors.batches import CHANNELS, EventBatch, Scores
from detector.engine.engine import Engine, EngineSettings
from detector.scoring.incidents import AlertRules
from tests.bench.clean import after_changes, clean_kinds, clean_streams
from tests.bench.panel import MONDAY
from tests.bench.panel_kinds import DAY, HOUR, KINDS, ROWS, Frame
from training.evaluate import Bool, Float64

SECOND = 1_000_000_000
TOGETHER = 500  # streams scored at a time
EVENTS_TOGETHER = 50_000
SIZE = 12.0  # of a planted spike, in deviations of the noise
# An incident is planted where somebody would see it: noise of deviation 1 about a level, and counts by day
PLANTED_IN = ("flat noise", "daily wave", "slow walk", "Poisson by day")
DEVIATION = {"Poisson by day": 7.0}  # of the noise at noon; 1 in the others, of a walk's step 0.9
UNJUDGED_AFTER = 100  # rows after an incident
LEVELS = (2, 3, 4)  # scores whose tail is measured
PEAK_GAP = 8
NO_ALERTS = 1e-290  # a fleet's budget that nothing exceeds, so that claims are seen as they are


# --- The fleet --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Span(Frame):
    """A frame of any length."""

    length: int = field(default=0)

    @property
    def rows(self) -> int:
        return self.length


class Incident(NamedTuple):
    """What was planted in a stream, and the rows in which it may be found."""

    kind: str
    found_in: slice


class Part(NamedTuple):
    """Some streams of a fleet."""

    values: Float64  # [rows, streams, features]; NaN: no event
    quiet: Bool  # [rows, streams] an alert that begins here is false
    incidents: dict[int, Incident]  # by stream
    kinds: list[str]


def parts(
    streams: int, rows: int, step: int, share_planted: float, without: Sequence[str], seed: int, features: int = 1
) -> Iterator[Part]:
    """Make a fleet, TOGETHER streams at a time; each kind as often as any other."""
    kinds = [name for name in clean_kinds(step, features) if name not in without]
    for first in range(0, streams, TOGETHER):
        count = min(TOGETHER, streams - first)
        values, quiet = np.empty((rows, count, features)), np.ones((rows, count), np.bool_)
        incidents: dict[int, Incident] = {}
        names = [kinds[(first + k) % len(kinds)] for k in range(count)]
        for k, name in enumerate(names):
            rng = np.random.default_rng([seed, first + k])
            series = KINDS[name].make(Span(step, features, rng, rows))
            values[:, k] = series.values
            for span in series.unjudged:
                quiet[span, k] = False
            if series.absent is not None:
                values[series.absent, k] = np.nan
            if name in PLANTED_IN and rng.random() < share_planted:
                incidents[k] = _plant(values[:, k, 0], quiet[:, k], name, step, rng)
        yield Part(values, quiet, incidents, names)


def _plant(value: Float64, quiet: Bool, kind: str, step: int, rng: np.random.Generator) -> Incident:
    """Plant an incident in the last third of a stream; counts stand still by day, when there would be some."""
    rows, hour = len(value), max(round(HOUR / step), 2)
    day = int(rng.integers(round(0.67 * rows * step / DAY), rows * step // DAY - 1))
    at = round((day * DAY + rng.uniform(9, 14) * HOUR) / step)
    if rng.random() < 0.5:
        value[at] += SIZE * DEVIATION.get(kind, 1.0)
        incident = Incident("12 deviations", slice(at, at + 2))
    else:
        value[at : at + hour] = 0.0 if kind in DEVIATION else value[at]
        incident = Incident("1 hour at a standstill", slice(at, at + hour + 5))
    quiet[at : at + hour + UNJUDGED_AFTER] = False
    return incident


def batches(part: Part, step: int) -> Iterator[EventBatch]:
    """Yield a part's events in batches."""
    rows, count, features = part.values.shape
    at_once = max(EVENTS_TOGETHER // count, 1)
    names, columns = [f"s{k}" for k in range(count)], [f"f{k}" for k in range(features)]
    for first in range(0, rows, at_once):
        value = part.values[first : first + at_once]
        row, stream = np.nonzero(~np.isnan(value[:, :, 0]))
        time = (MONDAY + (row + first) * step) * SECOND
        yield EventBatch.of_table(names, columns, stream, time, value[row, stream])


class Seen(NamedTuple):
    """What an engine said of a part, [rows, streams]."""

    score: Float64
    channel: NDArray[np.int8]
    alert: Bool  # fires or tops its peak
    fires: Bool


def _score(part: Part, step: int, rules: AlertRules, rate: float) -> Seen:
    shape = part.quiet.shape
    seen = Seen(np.zeros(shape), np.full(shape, -1, np.int8), np.zeros(shape, np.bool_), np.zeros(shape, np.bool_))
    engine = Engine(settings=EngineSettings(rules=rules))
    engine.fleet_events_per_day = rate
    for batch in batches(part, step):
        done = engine.step(batch)
        scores: Scores = done.scores
        where = (batch.time[scores.event] // SECOND - MONDAY) // step, batch.stream[scores.event]
        seen.score[where], seen.channel[where], seen.alert[where] = scores.score, scores.channel, scores.alert
        for alert in done.alerts:
            if alert.status == "firing":
                seen.fires[(alert.started_at // SECOND - MONDAY) // step, int(alert.stream[1:])] = True
    return seen


class Tail:
    """How often claims exceed a score, beside what the score says."""

    def __init__(self) -> None:
        self.events, self.exceeded, self.peaks = 0, np.zeros(len(LEVELS)), np.zeros(len(LEVELS))

    def add(self, score: Float64, judged: Bool) -> None:
        """Take in the claims of streams, [rows, streams]."""
        self.events += int(judged.sum())
        for k, level in enumerate(LEVELS):
            above = (score > level) & judged
            self.exceeded[k] += above.sum()
            recent = np.cumsum(above, axis=0)
            before = np.zeros_like(recent)
            before[1:] = recent[:-1]
            before[PEAK_GAP + 1 :] -= recent[: -PEAK_GAP - 1]
            self.peaks[k] += (above & (before == 0)).sum()

    def table(self) -> str:
        """Return the ratios of events, and of peaks, to what is nominal."""
        nominal = self.events * 10.0 ** -np.array(LEVELS)
        return "\n".join(
            f"{name} over nominal at "
            + " / ".join(f"1e-{level}" for level in LEVELS)
            + ": "
            + " / ".join(f"{ratio:.2f}" for ratio in counts / max(nominal.max(), 1e-9) * nominal.max() / nominal)
            for name, counts in (("events", self.exceeded), ("peaks", self.peaks))
        )


def fleet(
    streams: int,
    days: int,
    step: int,
    budgets: Sequence[float],
    share_planted: float,
    weekly: float,
    without: Sequence[str] = (),
    features: int = 1,
) -> str:
    """Return false alarms a day and shares found, for a fleet at each of the budgets, and the tail's calibration."""
    rows = days * DAY // step
    rate = streams * DAY / step
    half, judged_days = rows // 2, (rows - rows // 2) * step / DAY
    tail = Tail()
    false, early = np.zeros(len(budgets)), np.zeros(len(budgets))
    channels = np.zeros((len(budgets), len(CHANNELS)))
    kinds: list[dict[str, int]] = [{} for _ in budgets]
    found: list[dict[str, list[bool]]] = [{} for _ in budgets]
    highest: dict[str, list[float]] = {}  # claim of each incident
    for part in parts(streams, rows, step, share_planted, without, 7, features):
        quiet = part.quiet & ~np.isnan(part.values[:, :, 0])
        late = quiet.copy()
        late[:half] = False
        unheard = AlertRules(alerts_per_stream_per_week=weekly, fleet_alerts_per_day=NO_ALERTS)
        claims = _score(part, step, unheard, rate).score
        tail.add(claims, late)
        for stream, incident in part.incidents.items():
            highest.setdefault(incident.kind, []).append(claims[incident.found_in, stream].max())
        for k, budget in enumerate(budgets):
            rules = AlertRules(alerts_per_stream_per_week=weekly, fleet_alerts_per_day=budget)
            seen = _score(part, step, rules, rate)
            wrong = seen.fires & late
            false[k] += wrong.sum()
            early[k] += (seen.fires & quiet & ~late).sum()
            channels[k] += np.bincount(seen.channel[wrong], minlength=len(CHANNELS))[: len(CHANNELS)]
            for stream in np.nonzero(wrong)[1].tolist():
                kinds[k][part.kinds[stream]] = kinds[k].get(part.kinds[stream], 0) + 1
            for stream, incident in part.incidents.items():
                hit = bool(seen.alert[incident.found_in, stream].any())
                for name in (incident.kind, f"{incident.kind} in {part.kinds[stream]}"):
                    found[k].setdefault(name, []).append(hit)
    lines = [
        f"{streams:,} streams of {features}, an event each {step} s ({rate:,.0f} a day), {days} days, judged in the"
        f" last {judged_days:.1f}; {weekly:g} alerts a stream and week"
    ]
    for k, budget in enumerate(budgets):
        shares = ", ".join(f"{kind}: {sum(hits)} of {len(hits)}" for kind, hits in sorted(found[k].items()))
        by_channel = ", ".join(
            f"{name} {count:.0f}" for name, count in zip(CHANNELS, channels[k], strict=True) if count
        )
        by_kind = ", ".join(f"{name} {count}" for name, count in sorted(kinds[k].items(), key=lambda pair: -pair[1]))
        threshold = math.log10(rate / budget)
        lines += [
            f"{budget:g} a day for the fleet (threshold {threshold:.2f}): {false[k] / judged_days:.1f} false a day"
            f" ({early[k] / (days - judged_days):.1f} in the first half); found {shares}",
            f"  false by channel: {by_channel or 'none'}; by kind: {by_kind or 'none'}",
        ]
    for kind, claimed in sorted(highest.items()):
        tenth, middle = np.quantile(claimed, (0.1, 0.5))
        lines.append(f"claims of {kind}: half above {middle:.2f}, nine in ten above {tenth:.2f}")
    return "\n".join([*lines, tail.table()])


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("streams", "changes", "fleet"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, nargs="+", default=list(ROWS))
    parser.add_argument("--features", type=int, default=1)
    parser.add_argument("--streams", type=int, default=10_000)
    parser.add_argument("--days", type=int, default=14)
    parser.add_argument("--step", type=int, default=300, help="seconds between the events of a stream")
    parser.add_argument("--budgets", type=float, nargs="+", default=[10.0, 50.0, 200.0], help="of the fleet, a day")
    parser.add_argument("--weekly", type=float, default=3.0, help="budget of a stream")
    parser.add_argument("--planted", type=float, default=0.5, help="share of the streams that can have an incident")
    parser.add_argument("--without", nargs="*", default=[], metavar="KIND", help="kinds left out of the fleet")
    options = parser.parse_args(arguments)
    measures: dict[str, Callable[[], str]] = {
        "streams": lambda: clean_streams(options.steps, options.seeds, options.features, options.weekly),
        "changes": lambda: after_changes(options.steps, options.seeds, options.features, options.weekly),
        "fleet": lambda: fleet(
            options.streams,
            options.days,
            options.step,
            options.budgets,
            options.planted,
            options.weekly,
            options.without,
            options.features,
        ),
    }
    print(measures[options.what]())


if __name__ == "__main__":
    main()

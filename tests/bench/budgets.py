"""Do budgets hold? Clean streams of every kind at every step, a fleet with planted incidents, and how true scores are.

    python -m tests.bench.budgets streams [--seeds 3] [--features 1]
    python -m tests.bench.budgets fleet [--streams 10000] [--days 14] [--step 300] [--budgets 10 50 200]

`streams`: alerts of clean streams in the first day and after it, against the budget. `fleet`: one-feature streams of
all clean kinds; some get one incident each, 12 deviations of noise once or an hour at a standstill. The rate of the
fleet's events is given to the engine, so that a part of the fleet at a time can be scored: a sample of 1,000 streams at
a tenth of the budgets has the thresholds of 10,000. A stream's first half is for learning; what is counted comes after
it, but for what says so. Tails: the share of events whose claim exceeds a score, over what the score says, and of peaks
(one in a run, over once 8 events stay below).
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from connectors.batches import CHANNELS, EventBatch, Partition, Scores
from detector.engine.engine import Engine, EngineSettings
from detector.scoring.incidents import AlertRules
from tests.bench.panel import MONDAY, TIMES_BUDGET, TIMES_BUDGET_FIRST_DAY, PanelSeries, Told, judge, made
from tests.bench.panel_kinds import DAY, HOUR, KINDS, ROWS, Frame, Kind
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


# --- Clean streams ----------------------------------------------------------------------------------------------------


def clean_kinds(step: int, features: int) -> list[str]:
    """Return the kinds whose series have nothing that somebody has to be told."""
    return [
        name
        for name, kind in KINDS.items()
        if step in kind.steps and features >= kind.features and made_once(kind, step, features)
    ]


def made_once(kind: Kind, step: int, features: int) -> bool:
    """Whether a kind's series are clean."""
    series = kind.make(Frame(step, features, np.random.default_rng(0)))
    return series.due is None and series.once is None


def clean_streams(steps: Sequence[int], seeds: int, features: int, budget: float) -> str:
    """Return how clean streams keep to their budget, by step and kind."""
    lines, every = [f"{'alerts a week: day 1, later; shares':<34}{'streams':>8}{'day 1':>8}{'later':>8}"], []
    for step in steps:
        told: list[Told] = []
        for name in clean_kinds(step, features):
            mine = []
            for seed in range(100, 100 + seeds):
                one = made(name, step, features, seed)
                mine.append(judge(one, _alerts(one, budget)))
            told += mine
            lines.append(_told_row(f"  {step} s, {name}", mine))
        lines.append(_told_row(f"{step} s", told) + f"   within: {_within(told, budget)}")
        every += told
    return "\n".join([*lines, _told_row("all", every) + f"   within: {_within(every, budget)}"])


def _alerts(one: PanelSeries, budget: float) -> Bool:
    columns = {f"f{k}": one.values[:, k] for k in range(one.features)}
    engine = Engine(settings=EngineSettings(rules=AlertRules(alerts_per_stream_per_week=budget)))
    batch = EventBatch.of_columns(one.stream, one.times.astype("datetime64[ns]"), columns)
    scores = engine.step(batch).scores
    alert = np.zeros(len(one.times), np.bool_)
    alert[batch.offset[scores.event]] = scores.alert
    return alert


def _told_row(name: str, told: Sequence[Told]) -> str:
    rates = []
    for part in (0, 1):
        weeks = sum(one.weeks[part] for one in told)
        rates.append(f"{sum(one.false[part] for one in told) / weeks:.2f}" if weeks else "-")
    return f"{name:<34}{len(told):>8}" + "".join(f"{rate:>8}" for rate in rates)


def _within(told: Sequence[Told], budget: float) -> str:
    """Return the shares of streams within their multiples of the budget; one alert is always within."""
    shares = []
    for part, times in ((0, TIMES_BUDGET_FIRST_DAY), (1, TIMES_BUDGET)):
        known = [one.false[part] <= max(1.0, times * budget * one.weeks[part]) for one in told if one.weeks[part]]
        shares.append(f"{np.mean(known):.2f}" if known else "-")
    return f"{shares[0]} day 1 ({TIMES_BUDGET_FIRST_DAY} x), {shares[1]} later ({TIMES_BUDGET} x)"


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

    values: Float64  # [rows, streams]; NaN: no event
    quiet: Bool  # [rows, streams] an alert that begins here is false
    incidents: dict[int, Incident]  # by stream
    kinds: list[str]


def parts(
    streams: int, rows: int, step: int, share_planted: float, without: Sequence[str], seed: int
) -> Iterator[Part]:
    """Make a fleet, TOGETHER streams at a time; each kind as often as any other."""
    kinds = [name for name in clean_kinds(step, 1) if name not in without]
    for first in range(0, streams, TOGETHER):
        count = min(TOGETHER, streams - first)
        values, quiet = np.empty((rows, count)), np.ones((rows, count), np.bool_)
        incidents: dict[int, Incident] = {}
        names = [kinds[(first + k) % len(kinds)] for k in range(count)]
        for k, name in enumerate(names):
            rng = np.random.default_rng([seed, first + k])
            series = KINDS[name].make(Span(step, 1, rng, rows))
            values[:, k] = series.values[:, 0]
            for span in series.unjudged:
                quiet[span, k] = False
            if series.absent is not None:
                values[series.absent, k] = np.nan
            if name in PLANTED_IN and rng.random() < share_planted:
                incidents[k] = _plant(values[:, k], quiet[:, k], name, step, rng)
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
    rows, count = part.values.shape
    at_once = max(EVENTS_TOGETHER // count, 1)
    names = [f"s{k}" for k in range(count)]
    for first in range(0, rows, at_once):
        value = part.values[first : first + at_once]
        row, stream = np.nonzero(~np.isnan(value))
        time = (MONDAY + (row + first) * step) * SECOND
        yield EventBatch(
            streams=names,
            features=["value"],
            partitions=[Partition("", 0)],
            stream=stream.astype(np.int32),
            time=time,
            received=time,
            partition=np.zeros(len(row), np.int32),
            offset=np.arange(len(row)),
            start=np.arange(len(row) + 1),
            feature=np.zeros(len(row), np.int32),
            value=value[row, stream],
        )


class Seen(NamedTuple):
    """What an engine said of a part, [rows, streams]."""

    score: Float64
    channel: NDArray[np.int8]
    alert: Bool  # fires or tops its peak
    fires: Bool


def _score(part: Part, step: int, rules: AlertRules) -> Seen:
    shape = part.values.shape
    seen = Seen(np.zeros(shape), np.full(shape, -1, np.int8), np.zeros(shape, np.bool_), np.zeros(shape, np.bool_))
    engine = Engine(settings=EngineSettings(rules=rules))
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
    for part in parts(streams, rows, step, share_planted, without, seed=7):
        quiet = part.quiet & ~np.isnan(part.values)
        late = quiet.copy()
        late[:half] = False
        unheard = AlertRules(
            alerts_per_stream_per_week=weekly, fleet_alerts_per_day=NO_ALERTS, fleet_events_per_day=rate
        )
        claims = _score(part, step, unheard).score
        tail.add(claims, late)
        for stream, incident in part.incidents.items():
            highest.setdefault(incident.kind, []).append(claims[incident.found_in, stream].max())
        for k, budget in enumerate(budgets):
            rules = AlertRules(
                alerts_per_stream_per_week=weekly, fleet_alerts_per_day=budget, fleet_events_per_day=rate
            )
            seen = _score(part, step, rules)
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
        f"{streams:,} streams, an event each {step} s ({rate:,.0f} a day), {days} days, judged in the last"
        f" {judged_days:.1f}; {weekly:g} alerts a stream and week"
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
    parser.add_argument("what", choices=("streams", "fleet"))
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
        "fleet": lambda: fleet(
            options.streams,
            options.days,
            options.step,
            options.budgets,
            options.planted,
            options.weekly,
            options.without,
        ),
    }
    print(measures[options.what]())


if __name__ == "__main__":
    main()

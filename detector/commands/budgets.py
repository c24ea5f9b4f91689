"""What each budget of alerts would have cost: an engine for each over the same history, and a table.

An alert at another budget cannot be read from scores: what is news, and when an incident ends, hangs on the threshold.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from connectors.batches import CHANNELS, Alert, Float64, Int64, Scores, numbered
from detector.config.settings import Settings
from detector.scoring.threshold import MIN_THRESHOLD_ONE, MIN_THRESHOLD_SEVERAL

BUDGETS = (0.5, 1.0, 3.0, 7.0, 20.0)  # alerts a stream and week
NOISIEST = 10  # streams that have a row
WEEK_NS = 604_800_000_000_000
NAME_WIDTH = 42


class Alerted(NamedTuple):
    """An alert that fired, as far as it is counted."""

    stream: str
    channel: str


class Trial:
    """A budget tried on the batches of a backtest, by an engine of its own."""

    def __init__(self, budget: float, step: Callable[[Scores], Iterable[Alert]]) -> None:
        """`step` scores a batch, given the scores of another engine, and returns the alerts."""
        self.budget, self._step = budget, step
        self.alerted: list[Alerted] = []

    def add(self, scores: Scores) -> None:
        """Take a batch in."""
        self.take(self._step(scores))

    def take(self, alerts: Iterable[Alert]) -> None:
        """Count those that fire."""
        self.alerted += [Alerted(alert.stream, alert.channel) for alert in alerts if alert.status == "firing"]


class Spans:
    """From when to when each stream has events."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}  # by name
        self._first, self._last = np.zeros(0, np.int64), np.zeros(0, np.int64)  # [streams] ns

    def add(self, scores: Scores) -> None:
        """Take a batch in."""
        batch = scores.batch
        stream: Int64 = numbered(batch.streams, self._numbers)[batch.stream[scores.event]]
        more = len(self._numbers) - len(self._first)
        self._first = np.pad(self._first, (0, more), constant_values=np.iinfo(np.int64).max)
        self._last = np.pad(self._last, (0, more), constant_values=np.iinfo(np.int64).min)
        np.minimum.at(self._first, stream, batch.time[scores.event])
        np.maximum.at(self._last, stream, batch.time[scores.event])

    @property
    def weeks(self) -> dict[str, float]:
        """How long each stream's history is."""
        known = np.maximum(self._last - self._first, 0) / WEEK_NS
        return {name: float(known[number]) for name, number in self._numbers.items()}

    @property
    def all_weeks(self) -> float:
        """From the first event to the last one."""
        return float(self._last.max() - self._first.min()) / WEEK_NS


def budget_table(trials: Sequence[Trial], spans: Spans, settings: Settings) -> str:
    """Return the table: alerts a week by budget, of all streams, by channel, and of the noisiest streams."""
    weeks, everywhere = spans.weeks, spans.all_weeks
    stream_weeks = sum(weeks.values())
    totals = _column([len(trial.alerted) for trial in trials])
    lines = [
        f"alerts a week in {everywhere:.1f} weeks of history, {len(weeks):,} streams; of all streams together at most"
        f" about {7 * settings.alerting.fleet_alerts_per_day:g} (alerting.fleet_alerts_per_day)",
        "",
        _row("alerting.alerts_per_stream_per_week", [f"{trial.budget:g}" for trial in trials]),
        "-" * (NAME_WIDTH + 9 * len(trials)),
        _row("alerts in all", [f"{count:,.0f}" for count in totals]),
        _row("a stream and week", _rates(totals, stream_weeks)),
        _row("a week, all streams", _rates(totals, everywhere)),
    ]
    by_channel = [Counter(alert.channel for alert in trial.alerted) for trial in trials]
    lines += [
        _row(f"  {channel}", _rates(_column([counts[channel] for counts in by_channel]), everywhere))
        for channel in CHANNELS
        if any(counts[channel] for counts in by_channel)
    ]
    by_stream = [Counter(alert.stream for alert in trial.alerted) for trial in trials]
    noisiest = sorted(weeks, key=lambda name: [-counts[name] for counts in reversed(by_stream)])[:NOISIEST]
    noisiest = [name for name in noisiest if any(counts[name] for counts in by_stream)]
    if noisiest:
        lines.append(f"a week, those with most alerts ({len(noisiest)} of {len(weeks):,})")
    for name in noisiest:
        counts = _column([counts[name] for counts in by_stream])
        shown = name if len(name) <= NAME_WIDTH - 4 else f"{name[: NAME_WIDTH - 7]}..."
        lines.append(_row(f"  {shown}", _rates(counts, weeks[name])))
    if len(trials[-1].alerted) == len(trials[-2].alerted):
        least = f"{MIN_THRESHOLD_ONE:g} (several features: {MIN_THRESHOLD_SEVERAL:g})"
        lines += ["", f"no threshold is below {least}: a larger budget changes nothing"]
    return "\n".join(lines)


def _column(counts: Sequence[int]) -> Float64:
    return np.array(counts, np.float64)


def _rates(counts: Float64, weeks: float) -> list[str]:
    """Return counts as a week's; a history of one moment has none."""
    return [f"{count / weeks:.2f}" if weeks > 0.0 else "-" for count in counts.tolist()]


def _row(name: str, cells: Sequence[str]) -> str:
    return f"{name:<{NAME_WIDTH}}" + "".join(f"{cell:>9}" for cell in cells)

"""The behaviour panel: every kind at every step and number of features, judged and printed."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from tests.bench.data import SECOND, Series
from tests.bench.measures import WEEK
from tests.bench.panel_kinds import DAY, KINDS, ROWS, Frame
from tests.bench.scored import Detector, ScoredRows
from training.evaluate import Bool, segments

MONDAY = 1_789_948_800  # 2026-09-21T00:00:00Z
STEPS = tuple(ROWS)
FEATURES = (1, 2, 4, 12)
FEATURES_AT_1_S = (1, 4)  # these series are long
TIMES_BUDGET, TIMES_BUDGET_FIRST_DAY = 2, 3  # alerts that a clean stream may have


@dataclass(frozen=True, slots=True)
class PanelSeries(Series):
    """A made series and what is expected in its rows; a row may be none of the three."""

    kind: str
    step: int  # s
    due: Bool  # [rows] an alert in any of these finds it
    once: Bool  # [rows] the first alert that begins in these is right, and each further is false
    quiet: Bool  # [rows] an alert that begins in these is false

    @property
    def features(self) -> int:
        return self.values.shape[1]


def made(kind: str, step: int, features: int, seed: int) -> PanelSeries:
    """Make one series; the same arguments give the same one."""
    drawn = np.random.default_rng([seed, step, features, zlib.crc32(kind.encode())])
    frame = Frame(step, features, drawn)
    series = KINDS[kind].make(frame)
    due, once, absent, quiet = (np.zeros(frame.rows, np.bool_) for _ in range(4))
    for rows, span in ((due, series.due), (once, series.once), (absent, series.absent)):
        if span is not None:
            rows[span] = True
    happens = due | once
    quiet[: int(np.argmax(happens)) if happens.any() else frame.rows] = True
    for span in series.unjudged:
        quiet[span] = False
    times = (MONDAY + frame.seconds) * SECOND
    columns = (column[~absent] for column in (times, series.values, due, once, quiet))
    times, values, due, once, quiet = columns
    name = f"{kind} {step} s, {features} features, seed {seed}".replace(",", "")
    return PanelSeries(name, times, values, kind, step, due, once, quiet)


def groups(
    seeds: Sequence[int], steps: Sequence[int], features: Sequence[int], kinds: Sequence[str]
) -> Iterator[list[PanelSeries]]:
    """Yield the panel in parts that fit into memory: all kinds of a step and a number of features."""
    for seed in seeds:
        for step in steps:
            for count in (count for count in features if step > 1 or count in FEATURES_AT_1_S):
                fitting = [name for name in kinds if step in KINDS[name].steps and count >= KINDS[name].features]
                if fitting:
                    yield [made(name, step, count, seed) for name in fitting]


class Told(NamedTuple):
    """What a detector told of one series."""

    kind: str
    step: int  # s
    features: int
    due: bool
    found: bool
    false: tuple[int, int]  # alarms in the first day, and after it
    weeks: tuple[float, float]  # that are judged in the first day, and after it

    @property
    def clean(self) -> bool:
        return not self.due


def judge(one: PanelSeries, alert: Bool) -> Told:
    """Judge one series; an alarm is a run of alerted rows, and is false or not by the row in which it begins."""
    begins = np.zeros(len(alert), np.bool_)
    begins[segments(alert)[:, 0]] = True
    false, allowed = begins & one.quiet, begins & one.once
    if allowed.any():
        false |= allowed
        false[np.argmax(allowed)] = False
    first_day, judged = one.times < one.times[0] + DAY * SECOND, one.quiet | one.once

    def weeks(rows: Bool) -> float:
        return int(rows.sum()) * one.step / WEEK

    return Told(
        one.kind,
        one.step,
        one.features,
        bool(one.due.any()),
        bool((alert & one.due).any()),
        (int((false & first_day).sum()), int((false & ~first_day).sum())),
        (weeks(judged & first_day), weeks(judged & ~first_day)),
    )


def judge_all(series: Iterable[PanelSeries], scored: dict[str, ScoredRows]) -> list[Told]:
    """Judge series by the alerts of a detector."""
    return [judge(one, scored[one.stream].on(one.times).alert) for one in series]


# --- The table --------------------------------------------------------------------------------------------------------


def found_table(told: Sequence[Told]) -> str:
    """Return how many were found, by kind and number of features."""
    due = [one for one in told if one.due]
    counts = sorted({one.features for one in due})
    lines = [f"{'found, by features':<30}" + "".join(f"{count:>9}" for count in counts)]
    for kind in dict.fromkeys(one.kind for one in due):
        cells = []
        for count in counts:
            mine = [one.found for one in due if one.kind == kind and one.features == count]
            cells.append(f"{f'{sum(mine)}/{len(mine)}' if mine else '-':>9}")
        lines.append(f"  {kind:<28}" + "".join(cells))
    return "\n".join(lines)


def false_table(told: Sequence[Told]) -> str:
    """Return the false alarms a stream and week of clean kinds by step: in the first day, and after it."""
    clean = [one for one in told if one.clean]
    steps = sorted({one.step for one in clean})
    lines = [f"{'false a week: day 1, later':<30}" + "".join(f"{f'{step} s':>14}" for step in steps)]
    for kind in dict.fromkeys(one.kind for one in clean):
        cells = []
        for step in steps:
            mine = [one for one in clean if one.kind == kind and one.step == step]
            cells.append(f"{f'{rate(mine, 0)} {rate(mine, 1)}' if mine else '-':>14}")
        lines.append(f"  {kind:<28}" + "".join(cells))
    return "\n".join(lines)


def rate(told: Sequence[Told], part: int) -> str:
    """Return the false alarms a week: part 0 of the first day, 1 later."""
    weeks = sum(one.weeks[part] for one in told)
    return f"{sum(one.false[part] for one in told) / weeks:.2f}" if weeks else "-"


def keeps(false: int, weeks: float, most: float) -> bool:
    """Whether so many false alarms are within `most` a week; one is always within."""
    return false <= max(1.0, most * weeks)


def summary(told: Sequence[Told], budget: float) -> str:
    """Return the panel in three lines: what was found, the false alarms of all series, and who keeps the budget."""
    due, clean = [one for one in told if one.due], [one for one in told if one.clean]
    false, weeks = sum(sum(one.false) for one in told), sum(sum(one.weeks) for one in told)
    within, within_first = (
        _share(keeps(one.false[part], one.weeks[part], times * budget) for one in clean if one.weeks[part])
        for part, times in ((1, TIMES_BUDGET), (0, TIMES_BUDGET_FIRST_DAY))
    )
    return (
        f"found {sum(one.found for one in due)} of {len(due)} ({_share(one.found for one in due):.3f}); "
        f"{false} false alarms in {weeks:,.0f} stream-weeks ({false / max(weeks, 1e-9):.2f} a week)\n"
        f"clean streams within {TIMES_BUDGET} times the budget of {budget:g} a week after the first day: {within:.2f}; "
        f"within {TIMES_BUDGET_FIRST_DAY} times in it: {within_first:.2f} (one alert is always within)"
    )


def _share(which: Iterable[bool]) -> float:
    judged = list(which)
    return sum(judged) / len(judged) if judged else math.nan


def run(parts: Iterable[list[PanelSeries]], detectors: dict[str, Detector]) -> dict[str, list[Told]]:
    """Show each part to each detector that can take it; returns what those told, by name."""
    told: dict[str, list[Told]] = {}
    for series in parts:
        for name, detector in detectors.items():
            if detector.lacks(series) is None:
                told.setdefault(name, []).extend(judge_all(series, detector.score(series)))
    return told

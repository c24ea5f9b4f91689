"""One stream judged, and a set of them: the columns of the table that `make bench-quality` prints."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from tests.bench.counts import Counts, delayed_point_counts, delays, event_counts, no_nan
from tests.bench.data import LabelledSeries
from tests.bench.scored import ScoredRows
from training.evaluate import Int64, average_precision, roc_auc

WEEK = 604_800  # s
SOON = 7  # points of a segment within which it has to be found to count as found in time
NOMINAL = (2, 3, 4)  # a score is calibrated if it exceeds each of these on one unlabelled row in 10 to that power


@dataclass(frozen=True, slots=True)
class Judged:
    """One stream's figures on the rows that are judged."""

    stream: str
    events: Counts
    events_soon: Counts  # a segment counts only if found within its first SOON points
    points_soon: Counts  # the AIOps challenge's points, k = SOON
    delays: Int64  # [segments found] points
    average_precision: float
    roc_auc: float
    highest_is_labelled: bool  # of all rows the one of highest rank
    unlabelled: int  # rows
    unlabelled_weeks: float
    exceeded: Int64  # [NOMINAL] unlabelled rows


def step_seconds(times: Int64) -> float:
    """Return a stream's usual time between events."""
    return float(np.median(np.diff(times))) / 1e9


def judge(one: LabelledSeries, scored: ScoredRows) -> Judged:
    """Judge what a detector said of a stream, whose rows may be fewer than those that it read.

    Raises ValueError where it said NaN.
    """
    said, first, label = scored.on(one.times), one.judged_from, one.label
    score, alert, rank = said.score[first:], said.alert[first:], said.rank[first:]
    no_nan(score)
    no_nan(rank)
    late, unlabelled = delays(alert, label), int((~label).sum())
    return Judged(
        one.stream,
        event_counts(alert, label),
        event_counts(alert, label, SOON),
        delayed_point_counts(alert, label, SOON),
        late[late >= 0],
        average_precision(rank, label),
        roc_auc(rank, label),
        bool(label[np.argmax(rank)]),
        unlabelled,
        unlabelled * step_seconds(one.times) / WEEK,
        np.array([(score[~label] >= nominal).sum() for nominal in NOMINAL]),
    )


def judge_all(series: Sequence[LabelledSeries], scored: dict[str, ScoredRows]) -> list[Judged]:
    """Judge a set; raises ValueError where a stream was not scored."""
    missing = [one.stream for one in series if one.stream not in scored]
    if missing:
        raise ValueError(f"{len(missing)} of {len(series)} streams were not scored: {', '.join(missing[:3])} ...")
    return [judge(one, scored[one.stream]) for one in series]


# --- Of a set ---------------------------------------------------------------------------------------------------------


def _pooled(counts: Callable[[Judged], Counts]) -> Callable[[Sequence[Judged]], float]:
    return lambda judged: sum((counts(one) for one in judged), Counts()).f1


def _mean(figure: Callable[[Judged], float]) -> Callable[[Sequence[Judged]], float]:
    def mean(judged: Sequence[Judged]) -> float:
        known = [value for value in map(figure, judged) if not math.isnan(value)]  # a stream without labels has none
        return float(np.mean(known)) if known else math.nan

    return mean


def _delay(judged: Sequence[Judged]) -> float:
    found = np.concatenate([one.delays for one in judged])
    return float(np.median(found)) if len(found) else math.nan


def _false_a_week(judged: Sequence[Judged]) -> float:
    weeks = sum(one.unlabelled_weeks for one in judged)
    return sum(one.events.false_positives for one in judged) / weeks if weeks else math.nan


def _calibration(column: int) -> Callable[[Sequence[Judged]], float]:
    def ratio(judged: Sequence[Judged]) -> float:
        nominal = sum(one.unlabelled for one in judged) * 10.0 ** -NOMINAL[column]
        return sum(int(one.exceeded[column]) for one in judged) / nominal if nominal else math.nan

    return ratio


EVENT_F1, SOON_F1, POINTS_F1, HIGHEST = "event F1", "F1 k=7", "point F1 k=7", "highest rank labelled"
RANK_AP, RANK_ROC = "rank AP", "rank ROC"
CALIBRATION = tuple(f"1e-{nominal}" for nominal in NOMINAL)
MEASURES: dict[str, Callable[[Sequence[Judged]], float]] = {
    EVENT_F1: _pooled(lambda one: one.events),
    SOON_F1: _pooled(lambda one: one.events_soon),
    "false/wk": _false_a_week,
    "delay": _delay,
    RANK_AP: _mean(lambda one: one.average_precision),
    RANK_ROC: _mean(lambda one: one.roc_auc),
    **{name: _calibration(column) for column, name in enumerate(CALIBRATION)},
}
MORE_MEASURES = {
    POINTS_F1: _pooled(lambda one: one.points_soon),
    HIGHEST: lambda judged: float(sum(one.highest_is_labelled for one in judged)),
}
LEGEND = f"""\
event F1   a labelled segment is found if an alerted row lies in it; each run of alerted rows outside is a false alarm
F1 k=7     the same, where only an alert within a segment's first {SOON} points finds it
false/wk   false alarms a stream and week of unlabelled rows
delay      median of the points before the first alert in what was found
rank       mean average precision and ROC area over streams, by what the detector offers for sorting
1e-2 ...   how often the score claims to be that rare on unlabelled rows, over how often it may"""


def heading() -> str:
    """Return the table's first line."""
    return f"{'':<10}  {'':<14}{'streams':>8}" + "".join(f"{name:>10}" for name in MEASURES)


def line(of_set: str, detector: str, judged: Sequence[Judged], *, calibrated: bool) -> str:
    """Return a detector's line for a set; one whose score claims no rarity has no calibration."""
    cells = [
        math.nan if name in CALIBRATION and not calibrated else measure(judged) for name, measure in MEASURES.items()
    ]
    return f"{of_set:<10}  {detector:<14}{len(judged):>8}" + "".join(
        f"{'-' if math.isnan(value) else f'{value:.3g}' if value < 100 else f'{value:,.0f}':>10}" for value in cells
    )

"""Scores and labels in, benchmark figures out.

Four ways to judge a detector, each with the rule that its field publishes:

- `nab_sweep`: the Numenta Anomaly Benchmark's scoring (Lavin and Ahmad 2015, arXiv:1510.03336, and its scorer 1.1).
- `event_counts`: strict events: a labelled segment counts once, every run of alerted rows outside is a false alarm.
- `delayed_point_counts`: the AIOps challenge's point F1, where a segment must be found within its first points.
- `roc_auc`, `average_precision`: how well the scores rank the rows, whatever the threshold.

`incidents` tells the same in an operator's words for one stream.
Times are ns since 1970-01-01 UTC; a window is (start, end), both inclusive.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

Bool = NDArray[np.bool_]
Int64 = NDArray[np.int64]
Float64 = NDArray[np.float64]
Window = tuple[int, int]
_Number = TypeVar("_Number", np.float64, np.int64)

# --- Counting found and missed ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Counts:
    """True and false positives and false negatives; their sum pools the streams of a set."""

    true_positives: int = 0
    false_positives: int = 0
    false_negatives: int = 0

    def __add__(self, other: Counts) -> Counts:
        """Pool two streams."""
        return Counts(
            self.true_positives + other.true_positives,
            self.false_positives + other.false_positives,
            self.false_negatives + other.false_negatives,
        )

    @property
    def precision(self) -> float:
        """Return the share of positives that are true; NaN where there is none."""
        return _ratio(self.true_positives, self.true_positives + self.false_positives)

    @property
    def recall(self) -> float:
        """Return the share of what is labelled that was found; NaN where nothing is labelled."""
        return _ratio(self.true_positives, self.true_positives + self.false_negatives)

    @property
    def f1(self) -> float:
        """Return the harmonic mean of precision and recall; NaN where nothing is labelled and nothing was alerted."""
        return _ratio(2 * self.true_positives, 2 * self.true_positives + self.false_positives + self.false_negatives)


def segments(mask: Bool) -> Int64:
    """Return the maximal runs of true rows of `mask` [rows] as [runs, 2]: first row, and the row after the last."""
    edges = np.flatnonzero(np.diff(mask.astype(np.int8), prepend=0, append=0))
    return edges.reshape(-1, 2).astype(np.int64)


def event_counts(alert: Bool, label: Bool) -> Counts:
    """Count one stream's events strictly; both arrays are [rows].

    A labelled segment is found if an alerted row lies in it. Every maximal run of alerted rows outside the segments is
    one false positive, the tail of an alert that outlasts its segment too: held-on alarms would win otherwise.
    """
    _same_rows(alert, label)
    labelled = segments(label)
    alerted_before = np.concatenate(([0], np.cumsum(alert)))
    found = int((alerted_before[labelled[:, 1]] > alerted_before[labelled[:, 0]]).sum())
    return Counts(found, len(segments(alert & ~label)), len(labelled) - found)


def delayed_point_counts(alert: Bool, label: Bool, delay: int = 7) -> Counts:
    """Count one stream's points by the AIOps challenge's rule; both arrays are [rows].

    A segment with an alert at most `delay` points after its first counts with all its points as found, any other with
    all its points as missed; alerted points outside the segments are false, one by one.
    """
    _same_rows(alert, label)
    labelled = segments(label)
    first, stop = labelled[:, 0], labelled[:, 1]
    alerted_before = np.concatenate(([0], np.cumsum(alert)))
    in_time = alerted_before[np.minimum(first + delay + 1, stop)] > alerted_before[first]
    points = stop - first
    return Counts(int(points[in_time].sum()), int((alert & ~label).sum()), int(points[~in_time].sum()))


# --- Ranking rows -----------------------------------------------------------------------------------------------------


def roc_auc(scores: Float64, label: Bool) -> float:
    """Return the chance that a labelled row scores above an unlabelled one, ties counting half.

    Both arrays are [rows]. NaN where there are no labelled or no unlabelled rows.
    """
    positives, negatives = _by_score(scores, label)
    pairs = float(positives.sum()) * float(negatives.sum())
    if not pairs:
        return math.nan
    negatives_below = negatives.sum() - np.cumsum(negatives)
    return float(positives @ (negatives_below + 0.5 * negatives)) / pairs


def average_precision(scores: Float64, label: Bool) -> float:
    """Return the area under the precision-recall curve: the precision at each score, weighted by the recall it adds.

    Both arrays are [rows]; rows of equal score come in together. NaN where there are no labelled rows.
    """
    positives, negatives = _by_score(scores, label)
    if not positives.sum():
        return math.nan
    found = np.cumsum(positives)
    return float(positives @ (found / (found + np.cumsum(negatives)))) / float(found[-1])


def _by_score(scores: Float64, label: Bool) -> tuple[Float64, Float64]:
    """Return how many labelled and unlabelled rows have each distinct score, the highest first."""
    _same_rows(scores, label)
    _no_nan(scores)
    distinct, which = np.unique(scores, return_inverse=True)
    positives = np.bincount(which[label], minlength=len(distinct))[::-1].astype(np.float64)
    negatives = np.bincount(which[~label], minlength=len(distinct))[::-1].astype(np.float64)
    return positives, negatives


# --- The Numenta Anomaly Benchmark ------------------------------------------------------------------------------------


class Profile(NamedTuple):
    """What an application gains by a found window and pays for a false positive and a missed window."""

    true_positive: float
    false_positive: float
    false_negative: float


NAB_PROFILES = {
    "standard": Profile(1.0, 0.11, 1.0),
    "reward_low_fp": Profile(1.0, 0.22, 1.0),
    "reward_low_fn": Profile(1.0, 0.11, 2.0),
}
_PROBATION_SHARE = 0.15
_PROBATION_MOST_ROWS = 750  # the share of 5,000 rows: longer series have no longer probation


class NabFigure(NamedTuple):
    """A corpus scored by one profile at one threshold."""

    score: float  # 0: never detects, 100: each window at its first row and nothing else; may be negative
    threshold: float  # rows that score at least this are detections; infinity where silence is best
    windows_found: int
    false_positive_rows: int


@dataclass(frozen=True, slots=True)
class NabSweep:
    """A corpus scored at every threshold that tells any two rows apart, in falling order; the first is infinity."""

    threshold: Float64  # [thresholds]
    reward: Float64  # [thresholds] sum over the found windows of how early they were found, each in 0..1
    penalty: Float64  # [thresholds] sum over the false positives of how far they lie behind a window, each in 0..1
    windows_found: Int64  # [thresholds]
    false_positive_rows: Int64  # [thresholds]
    windows: int  # in the corpus, beyond probation

    def scores(self, profile: Profile) -> Float64:
        """Return the normalised score at each threshold: [thresholds]."""
        if not self.windows:
            msg = "NAB's score is relative to the labelled windows, and the corpus has none beyond its probation rows"
            raise ValueError(msg)
        missed = self.windows - self.windows_found
        raw = (
            profile.true_positive * self.reward
            - profile.false_positive * self.penalty
            - profile.false_negative * missed
        )
        silent, perfect = -profile.false_negative * self.windows, profile.true_positive * self.windows
        return 100.0 * (raw - silent) / (perfect - silent)

    def best(self, profile: Profile) -> NabFigure:
        """Return the figure at the profile's best threshold for the whole corpus, as the benchmark reports it."""
        return self._figure(profile, int(np.argmax(self.scores(profile))))

    def at(self, threshold: float, profile: Profile) -> NabFigure:
        """Return the figure where rows that score at least `threshold` are detections."""
        figure = self._figure(profile, int(np.searchsorted(-self.threshold, -threshold, side="right")) - 1)
        return figure._replace(threshold=threshold)

    def _figure(self, profile: Profile, row: int) -> NabFigure:
        return NabFigure(
            float(self.scores(profile)[row]),
            float(self.threshold[row]),
            int(self.windows_found[row]),
            int(self.false_positive_rows[row]),
        )


def nab_probation(rows: int) -> int:
    """Return how many rows at the start of a series of `rows` do not count."""
    return min(math.floor(_PROBATION_SHARE * rows), _PROBATION_MOST_ROWS)


def nab_sweep(streams: Iterable[tuple[Int64, Float64, Sequence[Window]]]) -> NabSweep:
    """Score a corpus by NAB's rules at all thresholds at once.

    Each stream is its rows' times [rows], their scores [rows], -inf to inf, higher being more anomalous, and its
    labelled windows. Raises ValueError where a stream's arrays differ in length or a score is NaN.

    A window is rewarded once, by the earliest row of it that is detected; a row outside costs more, the further it lies
    behind the last window, and all of it before the first or three window widths behind. As the reward within a window
    only falls, lowering the threshold adds to each sum what a row brings beyond those that score higher.
    """
    score: list[Float64] = []  # of each stream [rows], and so the others: what a detection of the row adds to the sums
    reward: list[Float64] = []
    penalty: list[Float64] = []
    found: list[Int64] = []
    false: list[Int64] = []
    windows = 0
    for times, stream_scores, stream_windows in streams:
        _same_rows(times, stream_scores)
        _no_nan(stream_scores)
        row_reward, row_penalty, window = _nab_rows(times, stream_windows)
        first = nab_probation(len(times))
        gain, finds = np.zeros(len(times)), np.zeros(len(times), dtype=np.int64)
        for number in np.unique(window[first:][window[first:] >= 0]):
            rows = first + np.flatnonzero(window[first:] == number)
            rows = rows[np.argsort(-stream_scores[rows], kind="stable")]
            gain[rows] = np.diff(np.maximum.accumulate(row_reward[rows]), prepend=0.0)
            finds[rows[0]] = 1
            windows += 1
        score.append(stream_scores[first:])
        reward.append(gain[first:])
        penalty.append(row_penalty[first:])
        found.append(finds[first:])
        false.append((window[first:] < 0).astype(np.int64))
    if not score:
        raise ValueError("NAB's score needs at least one stream")
    scores = np.concatenate(score)
    order = np.argsort(-scores, kind="stable")
    scores = scores[order]
    last_of_tie = np.flatnonzero(np.append(scores[1:] != scores[:-1], len(scores) > 0))
    return NabSweep(
        threshold=np.concatenate(([np.inf], scores[last_of_tie])),
        reward=_running_sum(np.concatenate(reward)[order], last_of_tie),
        penalty=_running_sum(np.concatenate(penalty)[order], last_of_tie),
        windows_found=_running_sum(np.concatenate(found)[order], last_of_tie),
        false_positive_rows=_running_sum(np.concatenate(false)[order], last_of_tie),
        windows=windows,
    )


def _running_sum(values: NDArray[_Number], at: Int64) -> NDArray[_Number]:
    """Return 0, then the sum of `values` up to and with each row of `at`: [at + 1]."""
    return np.concatenate((np.zeros(1, values.dtype), np.cumsum(values)[at]))


def _nab_rows(times: Int64, windows: Sequence[Window]) -> tuple[Float64, Float64, Int64]:
    """Return each row's reward and penalty as a detection, and the number of its window (-1: outside), each [rows]."""
    rows = np.arange(len(times))
    reward, penalty = np.zeros(len(times)), np.ones(len(times))
    window = np.full(len(times), -1, dtype=np.int64)
    for number, (start, end) in enumerate(sorted(windows)):
        # The first row at each time: clocks that are set back repeat times, and the benchmark takes the first
        inside = (times >= start) & (times <= end)
        if not inside.any():
            continue
        left = int(np.argmax(inside))
        right = int(np.argmax(times == times[inside].max()))
        width = right - left + 1
        within = slice(left, right + 1)
        window[within] = number
        reward[within] = _scaled_sigmoid((rows[within] - right - 1) / width) / _scaled_sigmoid(np.array(-1.0))
        penalty[within] = 0.0
        behind = (rows[right + 1 :] - right) / max(width - 1, 1)
        penalty[right + 1 :] = np.where(behind >= 3.0, 1.0, -_scaled_sigmoid(np.minimum(behind, 3.0)))
    return reward, penalty, window


def _scaled_sigmoid(position: Float64) -> Float64:
    """Return 1 far before position 0, 0 there, -1 far behind it; the benchmark's slope."""
    scaled: Float64 = 2.0 / (1.0 + np.exp(5.0 * position)) - 1.0
    return scaled


# --- Incidents, for a person ------------------------------------------------------------------------------------------


class Incident(NamedTuple):
    """A labelled window, and when it was first alerted."""

    start: int  # ns
    end: int  # ns
    detected: int | None  # ns; None where no row in it was alerted

    @property
    def delay(self) -> int | None:
        """Return the ns from the window's start to its first alerted row."""
        return None if self.detected is None else self.detected - self.start


@dataclass(frozen=True, slots=True)
class StreamIncidents:
    """What became of one stream's labelled incidents, and when it alerted without one."""

    stream: str
    incidents: list[Incident]
    false_alarms: list[int]  # ns: when each began

    @property
    def found(self) -> int:
        """Return how many labelled incidents were alerted."""
        return sum(incident.detected is not None for incident in self.incidents)

    @property
    def missed(self) -> int:
        """Return how many were not."""
        return len(self.incidents) - self.found


def rows_in_windows(times: Int64, windows: Sequence[Window]) -> Bool:
    """Return which rows lie in a window: [rows]; `times` (ns) is [rows]."""
    inside = np.zeros(len(times), dtype=np.bool_)
    for start, end in windows:
        inside |= (times >= start) & (times <= end)
    return inside


def incidents(stream: str, times: Int64, alert: Bool, windows: Sequence[Window]) -> StreamIncidents:
    """Match one stream's alerts with its labelled windows; `times` (ns) and `alert` are [rows].

    A window is found when an alerted row lies in it. An alert (a run of alerted rows) is judged by when it fires, as
    its receiver does: it is false where it begins outside every window. One that outlasts its window is none, which
    tells this table from `event_counts`.
    """
    _same_rows(times, alert)
    judged = []
    for start, end in windows:
        alerted = times[alert & (times >= start) & (times <= end)]
        judged.append(Incident(start, end, int(alerted.min()) if len(alerted) else None))
    first = segments(alert)[:, 0]
    return StreamIncidents(stream, judged, times[first[~rows_in_windows(times, windows)[first]]].tolist())


def incident_table(streams: Sequence[StreamIncidents]) -> str:
    """Return a text table, a line per stream and one for all: labelled, found, missed, false alarms, median delay."""
    total = StreamIncidents(
        "all",
        [incident for stream in streams for incident in stream.incidents],
        [time for stream in streams for time in stream.false_alarms],
    )
    rows: list[tuple[str, ...]] = [("stream", "labelled", "found", "missed", "false alarms", "median delay")]
    for stream in [*streams, total]:
        delays = [incident.delay for incident in stream.incidents if incident.delay is not None]
        numbers = (len(stream.incidents), stream.found, stream.missed, len(stream.false_alarms))
        rows.append((stream.stream, *map(str, numbers), _duration(float(np.median(delays))) if delays else "-"))
    width = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join([row[0].ljust(width[0]), *(cell.rjust(w) for cell, w in zip(row[1:], width[1:], strict=True))])
        for row in rows
    ]
    rule = "-" * len(lines[0])
    return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1]])


def _duration(ns: float) -> str:
    """Return a duration with its two leading units: 1 d 3 h, 5 min 10 s."""
    seconds = round(ns / 1e9)
    for size, unit, smaller_size, smaller in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if seconds >= size:
            rest = seconds % size // smaller_size
            return f"{seconds // size} {unit} {rest} {smaller}" if rest else f"{seconds // size} {unit}"
    return f"{seconds} s"


# --- Checks -----------------------------------------------------------------------------------------------------------


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else math.nan


def _same_rows(one: NDArray[np.generic], other: NDArray[np.generic]) -> None:
    if one.shape != other.shape or one.ndim != 1:
        raise ValueError(f"expected two columns of the same rows, found shapes {one.shape} and {other.shape}")


def _no_nan(scores: Float64) -> None:
    if np.isnan(scores).any():
        row = int(np.flatnonzero(np.isnan(scores))[0])
        raise ValueError(f"row {row} has no score (NaN); a row that cannot be judged scores 0")

"""Events and points, found and missed: alerts and labels in, counts out.

- `event_counts`: strict events: a labelled segment counts once, every run of alerted rows outside is a false alarm.
- `delayed_point_counts`: the AIOps challenge's point F1, where a segment must be found within its first points.
- `delays`: how late the segments that were found were found.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.evaluate import Bool, Float64, Int64, segments


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


def event_counts(alert: Bool, label: Bool, within: int | None = None) -> Counts:
    """Count one stream's events strictly; both arrays are [rows].

    A labelled segment is found if an alerted row lies in it, with `within` only among that many of its first rows.
    Every maximal run of alerted rows outside the segments is one false positive, the tail of an alert that outlasts its
    segment too: held-on alarms would win otherwise.
    """
    late = delays(alert, label)
    found = int((late >= 0).sum() if within is None else ((late >= 0) & (late < within)).sum())
    return Counts(found, len(segments(alert & ~label)), len(late) - found)


def delays(alert: Bool, label: Bool) -> Int64:
    """Return for each labelled segment its rows before the first that is alerted, -1 where none is: [segments]."""
    same_rows(alert, label)
    labelled, alerted = segments(label), np.append(np.flatnonzero(alert), len(alert))
    first = alerted[np.searchsorted(alerted, labelled[:, 0])]
    return np.where(first < labelled[:, 1], first - labelled[:, 0], -1)


def delayed_point_counts(alert: Bool, label: Bool, delay: int = 7) -> Counts:
    """Count one stream's points by the AIOps challenge's rule; both arrays are [rows].

    A segment with an alert at most `delay` points after its first counts with all its points as found, any other with
    all its points as missed; alerted points outside the segments are false, one by one.
    """
    same_rows(alert, label)
    labelled = segments(label)
    first, stop = labelled[:, 0], labelled[:, 1]
    alerted_before = np.concatenate(([0], np.cumsum(alert)))
    in_time = alerted_before[np.minimum(first + delay + 1, stop)] > alerted_before[first]
    points = stop - first
    return Counts(int(points[in_time].sum()), int((alert & ~label).sum()), int(points[~in_time].sum()))


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else math.nan


def same_rows(one: NDArray[np.generic], other: NDArray[np.generic]) -> None:
    """Raise ValueError where two columns are not of the same rows."""
    if one.shape != other.shape or one.ndim != 1:
        raise ValueError(f"expected two columns of the same rows, found shapes {one.shape} and {other.shape}")


def no_nan(scores: Float64) -> None:
    """Raise ValueError where a row has no score."""
    if np.isnan(scores).any():
        row = int(np.flatnonzero(np.isnan(scores))[0])
        raise ValueError(f"row {row} has no score (NaN); a row that cannot be judged scores 0")

"""Scores and labels in, benchmark figures out.

`incidents` says, for an operator, which of one stream's labelled incidents were found; `roc_auc` and
`average_precision` say how well the scores rank the rows, whatever the threshold.
Times are ns since 1970-01-01 UTC; a window is (start, end), both inclusive.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Bool = NDArray[np.bool_]
Int64 = NDArray[np.int64]
Float64 = NDArray[np.float64]
Window = tuple[int, int]
_PROBATION_SHARE = 0.15
_MAX_PROBATION_ROWS = 750  # the share of 5,000 rows: longer series have the same


def segments(mask: Bool) -> Int64:
    """Return the maximal runs of true rows of `mask` [rows] as [runs, 2]: first row, and the row after the last."""
    edges = np.flatnonzero(np.diff(mask.astype(np.int8), prepend=0, append=0))
    return edges.reshape(-1, 2).astype(np.int64)


def nab_probation(rows: int) -> int:
    """Return how many rows at the start of a series of `rows` do not count."""
    return min(math.floor(_PROBATION_SHARE * rows), _MAX_PROBATION_ROWS)


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
    distinct, which = np.unique(scores, return_inverse=True)
    positives = np.bincount(which[label], minlength=len(distinct))[::-1].astype(np.float64)
    negatives = np.bincount(which[~label], minlength=len(distinct))[::-1].astype(np.float64)
    return positives, negatives


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
    """One stream's labelled incidents, found or missed, and its false alarms."""

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
    its receiver does: it is false if it begins outside every window. One that outlasts its window is not a false alarm,
    unlike in strict event metrics.
    """
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

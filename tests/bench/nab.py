"""The Numenta Anomaly Benchmark's scoring at all thresholds (Lavin and Ahmad 2015, arXiv:1510.03336; scorer 1.1).

Times are ns since 1970-01-01 UTC; a window is (start, end), both inclusive.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from tests.bench.counts import no_nan, same_rows
from training.evaluate import Float64, Int64, Window, nab_probation

_Number = TypeVar("_Number", np.float64, np.int64)


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


class NabFigure(NamedTuple):
    """A corpus scored by one profile at one threshold."""

    score: float  # 0: never detects, 100: each window at its first row and nothing else; may be negative
    threshold: float  # rows that score at least this are detections; infinity where silence is best
    windows_found: int
    false_positive_rows: int


@dataclass(frozen=True, slots=True)
class NabSweep:
    """A corpus scored at every threshold that separates two rows, in falling order; the first is infinity."""

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
        same_rows(times, stream_scores)
        no_nan(stream_scores)
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

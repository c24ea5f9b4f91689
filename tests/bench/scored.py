"""What a detector said of streams: columns by stream, and the file in which they are kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tests.bench.data import Series
from training.evaluate import Bool, Float64, Int64


@dataclass(frozen=True, slots=True)
class ScoredRows:
    """What a detector said of one stream: columns of [rows], in its order."""

    times: Int64  # ns
    score: Float64
    threshold: Float64
    alert: Bool
    rank: Float64  # how anomalous, for sorting; the score where the detector has nothing better

    def on(self, times: Int64) -> ScoredRows:
        """Return these columns on the rows that were read, `times` [rows]: what was dropped (late, twice) scores 0.

        Raises ValueError where a scored row is none of those that were read.
        """
        if np.array_equal(times, self.times):
            return self
        rows, next_row = [], 0
        read = times.tolist()
        try:
            for moment in self.times.tolist():
                next_row = read.index(moment, next_row) + 1
                rows.append(next_row - 1)
        except ValueError:
            raise ValueError(f"a row at {moment} ns was scored that was not read, or out of order") from None
        score, rank, threshold = np.zeros(len(times)), np.zeros(len(times)), np.full(len(times), np.inf)
        alert = np.zeros(len(times), dtype=np.bool_)
        score[rows], rank[rows], threshold[rows], alert[rows] = self.score, self.rank, self.threshold, self.alert
        return ScoredRows(times, score, threshold, alert, rank)


class Detector(NamedTuple):
    """The product or a peer."""

    score: Callable[[Sequence[Series]], dict[str, ScoredRows]]  # by stream
    calibrated: bool  # the score is -log10 of how often one as high is to be expected
    lacks: Callable[[Sequence[Series]], str | None]  # why it cannot score these; None: it can


COLUMNS = tuple(ScoredRows.__slots__)


def keep(path: Path, scored: dict[str, ScoredRows]) -> None:
    """Write what was said to `path`, an .npz."""
    columns = {f"{i}.{name}": getattr(rows, name) for i, rows in enumerate(scored.values()) for name in COLUMNS}
    np.savez_compressed(path, streams=np.array(list(scored), dtype=np.str_), **columns)


def kept(path: Path) -> dict[str, ScoredRows]:
    """Read what `keep` wrote."""
    with np.load(path, allow_pickle=False) as stored:
        return {
            name: ScoredRows(*(stored[f"{i}.{column}"] for column in COLUMNS))
            for i, name in enumerate(stored["streams"].tolist())
        }

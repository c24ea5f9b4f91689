"""Scores as a CSV table: a row an event, columns for each feature's expectation and band."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from connectors.batches import Float64, Int64, Scores, numbered
from connectors.encode import CHANNEL_NAMES, rfc3339
from connectors.words import return_periods
from detector.commands.outputs import OutputFile

FIXED = ("timestamp", "stream", "score", "threshold", "alert", "rank", "channel", "return_period")
PER_FEATURE = ("expected", "lower", "upper")


class ScoreTable:
    """Writes the columns FIXED, and `expected,lower,upper` for each feature.

    With one feature they have these names, with several `expected_<feature>` and so on. Of a symbol the likeliest was
    expected, and there is no band. Features that first appear later get columns at the end, and the rows before them
    empty cells. It is written on `close`.
    """

    def __init__(self, output: OutputFile) -> None:
        self._output, self._draft = output, output.draft()
        self._columns: dict[str, int] = {}
        self._widths: list[tuple[int, int]] = []  # rows so far, and features they were written with

    def add(self, scores: Scores) -> None:
        """Append a batch's rows."""
        batch = scores.batch
        feature = numbered(batch.features, self._columns)[batch.feature[scores.observation]]
        self._widths.append((len(scores), len(self._columns)))
        bands = scores.expected, scores.lower, scores.upper
        table = feature_cells(scores.start, feature, bands, len(self._columns))
        lines: list[list[float | str]] = table.tolist()
        for j in np.flatnonzero(scores.expected_symbol >= 0).tolist():
            row = int(np.searchsorted(scores.start, j, side="right")) - 1
            lines[row][3 * feature[j]] = _cell(scores.symbols[scores.expected_symbol[j]])
        names = [_cell(name) for name in batch.streams]
        streams = [names[code] for code in batch.stream[scores.event].tolist()]
        rows = zip(
            rfc3339(batch.time[scores.event]), streams, scores.score.tolist(), scores.threshold.tolist(),
            scores.alert.tolist(), scores.rank.tolist(), scores.channel.tolist(),
            return_periods(scores.score, scores.interval), lines, strict=True,
        )  # fmt: skip
        self._draft.writelines(
            f"{time},{stream},{score:.6g},{threshold:.6g},{alert:d},{rank:.6g},{CHANNEL_NAMES[channel]},{_cell(period)}"
            f"{cells(numbers)}\n"
            for time, stream, score, threshold, alert, rank, channel, period, numbers in rows
        )

    def close(self, extra: Sequence[str] = (), behind: Iterator[str] | None = None) -> None:
        """Write the header and all rows. Raises FileError.

        extra: names of columns that are only known once everything is read; they come last. behind: the cells of each
        row in them, each with its comma before it.
        """
        header = [*FIXED, *feature_columns(PER_FEATURE, self._columns), *extra]
        with self._draft as rows, self._output.atomic_write() as out:
            rows.seek(0)
            out.write(",".join(_cell(name) for name in header) + "\n")
            for count, width in self._widths:
                missing = "," * (3 * (len(self._columns) - width))
                if not behind and self._widths[0][1] == len(self._columns):  # every row has every column already
                    shutil.copyfileobj(rows, out, 1 << 20)
                    break
                for _ in range(count):
                    out.write(rows.readline().rstrip("\n") + missing + (next(behind) if behind else "") + "\n")


def feature_cells(start: Int64, feature: Int64, kinds: Sequence[Float64], features: int) -> Float64:
    """Return a table [rows, features * kinds], NaN where a row has no such feature.

    start: [rows + 1] first observation of each row; feature, and each of `kinds`: [observations].
    """
    row = np.repeat(np.arange(len(start) - 1), np.diff(start))
    table = np.full((len(start) - 1, features, len(kinds)), np.nan)
    table[row, feature] = np.column_stack(kinds)
    return table.reshape(len(table), features * len(kinds))


def feature_columns(kinds: Sequence[str], features: Iterable[str]) -> list[str]:
    """Return the columns' names for each feature: the kinds themselves where there is but one."""
    names = list(features)
    return [kind if len(names) == 1 else f"{kind}_{name}" for name in names for kind in kinds]


def cells(values: Sequence[float | str]) -> str:
    """Return numbers, or texts that are cells already, each with a comma before it; empty for NaN."""
    return "".join(
        f",{value}" if isinstance(value, str) else "," if math.isnan(value) else f",{value:.6g}" for value in values
    )


def _cell(text: str) -> str:
    return '"' + text.replace('"', '""') + '"' if any(c in text for c in ',"\n\r') else text

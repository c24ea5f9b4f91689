"""Scores as a CSV table: a row an event, columns for each feature's expectation and band."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import TextIO

import numpy as np

from connectors.encode import rfc3339
from connectors.records import Scores

FIXED = ("timestamp", "stream", "score", "threshold", "alert")
PER_FEATURE = ("expected", "lower", "upper")


class ScoreTable:
    """Writes `timestamp,stream,score,threshold,alert,expected,lower,upper`, the last three for each feature.

    With one feature they have these names, with several `expected_<feature>` and so on. Features that first appear
    later get columns at the end, and rows before then empty cells. The file appears, whole, on `close`.
    """

    def __init__(self, path: Path) -> None:
        """Write beside `path` until it is whole. Raises OSError where that cannot be."""
        self._path = path
        self._draft = path.with_name(path.name + ".part")
        self._file: TextIO = self._draft.open("w", encoding="utf-8", newline="")
        self._columns: dict[str, int] = {}
        self._widths: list[tuple[int, int]] = []  # rows so far, and features they were written with

    def write(self, scores: Scores) -> None:
        """Append a batch's rows."""
        batch = scores.batch
        for name in batch.features:
            self._columns.setdefault(name, len(self._columns))
        width = len(self._columns)
        count = len(scores)
        self._widths.append((count, width))
        table = np.full((count, 3 * width), np.nan)
        if width:
            places = np.array([self._columns[name] for name in batch.features], np.int64)
            row = np.repeat(np.arange(count), np.diff(scores.start))
            column = 3 * places[batch.feature[scores.observation]]
            for k, values in enumerate((scores.expected, scores.lower, scores.upper)):
                table[row, column + k] = values
        names = [_cell(name) for name in batch.streams]
        streams = [names[code] for code in batch.stream[scores.event].tolist()]
        rows = zip(
            rfc3339(batch.time[scores.event]), streams, scores.score.tolist(), scores.threshold.tolist(),
            scores.alert.tolist(), table.tolist(), strict=True,
        )  # fmt: skip
        self._file.writelines(
            f"{time},{stream},{score:.6g},{threshold:.6g},{alert:d}{_cells(cells)}\n"
            for time, stream, score, threshold, alert, cells in rows
        )

    def close(self) -> None:
        """Put the header in front and the file in its place."""
        self._file.close()
        one = len(self._columns) == 1
        header = [*FIXED, *(c if one else f"{c}_{name}" for name in self._columns for c in PER_FEATURE)]
        whole = self._path.with_name(self._path.name + ".new")
        with (
            self._draft.open(encoding="utf-8", newline="") as rows,
            whole.open("w", encoding="utf-8", newline="") as out,
        ):
            out.write(",".join(_cell(name) for name in header) + "\n")
            for count, width in self._widths:
                missing = "," * (3 * (len(self._columns) - width))
                if self._widths[0][1] == len(self._columns):  # every row has every column: nothing to pad
                    shutil.copyfileobj(rows, out, 1 << 20)
                    break
                for _ in range(count):
                    out.write(rows.readline().rstrip("\n") + missing + "\n")
        whole.replace(self._path)
        self._draft.unlink()


def _cells(values: list[float]) -> str:
    return "".join("," if math.isnan(value) else f",{value:.6g}" for value in values)


def _cell(text: str) -> str:
    return '"' + text.replace('"', '""') + '"' if any(c in text for c in ',"\n\r') else text

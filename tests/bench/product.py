"""The product as anybody would use it: CSV files in, `longwatch backtest` with its defaults, a CSV of scores out."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np

from tests.bench.data import Series, SymbolSeries
from tests.bench.scored import ScoredRows

# NAB's 365,558 rows may take 20 minutes on two cores, and no call has ten times as many
DEADLINE_SECONDS = 3 * 3600
ROWS_A_CALL = 1_000_000  # and so a bound on memory; one stream may have more
_ROWS_AT_ONCE = 100_000  # while reading
_MORE_COLUMNS = ("timestamp", "score", "threshold", "alert")
_ALERT = {"0": False, "1": True, "false": False, "true": True, "False": False, "True": True}


def write_events(path: Path, one: Series) -> None:
    """Write a stream as CSV: timestamp (Unix s), stream, and f0 .. fN, or `code` where it is of symbols.

    Nine digits hold any float32, 17 any float64; a missing value is an empty cell.
    """
    seconds = (one.times // 1_000_000_000).tolist()
    with path.open("w", encoding="utf-8") as file:
        if isinstance(one, SymbolSeries):
            file.write("timestamp,stream,code\n")
            file.writelines(
                f"{at},{one.stream},E{code}\n" for at, code in zip(seconds, one.codes.tolist(), strict=True)
            )
            return
        digits = 9 if one.values.dtype == np.float32 else 17
        file.write("timestamp,stream," + ",".join(f"f{feature}" for feature in range(one.values.shape[1])) + "\n")
        cells = f",%.{digits}g" * one.values.shape[1]
        missing = bool(np.isnan(one.values).any())
        for at, observed in zip(seconds, one.values.tolist(), strict=True):
            row = cells % tuple(observed)
            file.write(f"{at},{one.stream}{row.replace('nan', '') if missing else row}\n")


def read_scores(path: Path) -> dict[str, ScoredRows]:
    """Read the CSV that `longwatch backtest` writes, by stream; without a column `rank`, the score ranks."""
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.reader(file)
        header = next(reader, [])
        wanted = ("stream", *_MORE_COLUMNS)
        if missing := [name for name in wanted if name not in header]:
            raise ValueError(f"{path}: no column {', '.join(missing)}; found {', '.join(header)[:200]}")
        at = [header.index(name) for name in (*wanted, "rank" if "rank" in header else "score")]
        numbers: dict[str, int] = {}  # of the streams
        parts: list[tuple[np.ndarray, ...]] = []  # stream, time, score, threshold, alert, rank: each [rows]
        while rows := list(islice(reader, _ROWS_AT_ONCE)):
            name, time, score, threshold, alert, rank = ([row[column] for row in rows] for column in at)
            stream = np.array([numbers.setdefault(one, len(numbers)) for one in name])
            numeric = (np.array(column, dtype=np.float64) for column in (score, threshold, rank))
            alerted = np.array([_ALERT[text] for text in alert], dtype=np.bool_)
            parts.append((stream, _nanoseconds(path, time), *numeric, alerted))
    if not parts:
        return {}
    stream, time, score, threshold, rank, alert = map(np.concatenate, zip(*parts, strict=True))
    order = np.argsort(stream, kind="stable")
    each = np.split(order, np.flatnonzero(np.diff(stream[order])) + 1)
    return {
        name: ScoredRows(time[rows], score[rows], threshold[rows], alert[rows], rank[rows])
        for name, rows in zip(numbers, each, strict=True)
    }


def _nanoseconds(path: Path, times: Sequence[str]) -> np.ndarray:
    # numpy's parser knows no zones
    if strange := next((text for text in times if not text.endswith(("Z", "+00:00"))), None):
        raise ValueError(f"{path}: expected times such as 2014-04-10T07:15:00Z, found {strange!r}")
    bare = [text[:-1] if text[-1] == "Z" else text[:-6] for text in times]
    return np.array(bare, dtype="datetime64[ns]").astype(np.int64)


def backtest(files: Sequence[Path], output: Path, *, cell: str, threads: int) -> None:
    """Run the product over `files`, all else by default. `threads` 0: its own choice."""
    program = Path(sys.executable).with_name("longwatch")
    if not program.exists():
        raise SystemExit(f"{program} is not there: install the project first (make install)")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LONGWATCH_")}
    environment["LONGWATCH_MODEL__CELL"] = cell
    if threads:
        environment["LONGWATCH_COMPUTE__THREADS"] = str(threads)
    done = subprocess.run(  # in the files' folder, so that nobody's longwatch.toml is found
        [program, "backtest", *files, "--output", output],
        cwd=output.parent,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=DEADLINE_SECONDS,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"longwatch backtest exited {done.returncode} on {files[0]} ...:\n{done.stderr[-4000:]}")


def score(series: Sequence[Series], *, cell: str = "lstm", jobs: int = 1) -> dict[str, ScoredRows]:
    """Return what the product says of the streams: `jobs` of its processes at a time, each with some of them."""

    def part(members: Sequence[Series]) -> dict[str, ScoredRows]:
        with tempfile.TemporaryDirectory(prefix="longwatch-quality-") as temporary:
            folder = Path(temporary)
            files = [folder / f"{number}.csv" for number in range(len(members))]
            for path, one in zip(files, members, strict=True):
                write_events(path, one)
            backtest(files, folder / "scores.csv", cell=cell, threads=1 if jobs > 1 else 0)
            return read_scores(folder / "scores.csv")

    with ThreadPoolExecutor(jobs) as pool:
        found = list(pool.map(part, _parts(series, jobs)))
    return {stream: rows for scored in found for stream, rows in scored.items()}


def _parts(series: Sequence[Series], jobs: int) -> list[list[Series]]:
    """Divide streams into at least `jobs` parts of similar size, none much above ROWS_A_CALL."""
    rows = sum(len(one.times) for one in series)
    parts: list[list[Series]] = [[] for _ in range(max(jobs, -(-rows // ROWS_A_CALL)))]
    filled = [0] * len(parts)
    for one in sorted(series, key=lambda one: -len(one.times)):
        least = int(np.argmin(filled))
        parts[least].append(one)
        filled[least] += len(one.times)
    return [part for part in parts if part]

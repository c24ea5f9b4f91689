"""Benchmark of detection quality: `longwatch backtest` with its defaults over open, labelled sets and their goals.

    python -m tests.bench.quality [nab|smd|asd|aiops|all ...] [--cell CELL] [--limit N] [--keep DIR] [--judge DIR]

The product reads CSV files and writes its scores, as anybody would have it do; only then are the labels looked at. Of
SMD, ASD and AIOPS it sees the train part, then the test part, which alone is judged. A set that is not on this machine
is named and left out.
"""

from __future__ import annotations

import argparse
import csv
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tests.bench.data import DataMissing, NabSeries, data_folder, labelled_files, labelled_series, nab_series
from tests.bench.nab import NAB_PROFILES, Counts, NabFigure, delayed_point_counts, event_counts, nab_sweep
from training.evaluate import average_precision, roc_auc
from training.network.cells import CELLS

NAB_GOAL = (70.0, 60.0, 75.0)
NAB_PUBLISHED = {
    "ARTime (looks ahead)": (74.85, 65.15, 80.36),
    "Numenta HTM (looks ahead)": (70.10, 63.12, 74.32),
    "best causal known (CAD OSE)": (65.6, 59.7, 69.6),
    "Random Cut Forest": (51.72, 38.36, 59.75),
    "Windowed Gaussian": (39.65, 20.87, 47.41),
}


class Goal(NamedTuple):
    """What a set of labelled series is judged by."""

    measure: str
    f1: float
    published: str
    counts: Callable[[NDArray[np.bool_], NDArray[np.bool_]], Counts]  # of alert and label, each [rows]


GOALS = {
    "smd": Goal("strict event F1", 0.55, "others use other formulas (one-step difference 0.641, oracle)", event_counts),
    "asd": Goal("strict event F1", 0.65, "others use other formulas (one-step difference 0.671, oracle)", event_counts),
    "aiops": Goal("point F1, k = 7", 0.78, "FluxEV 0.790 unsupervised, 0.811 supervised", delayed_point_counts),
}
BEST = "longwatch, best threshold"
SETS = ("nab", *GOALS)
# NAB's 365,558 rows may take 20 minutes on two cores, and no set is ten times as large
DEADLINE_SECONDS = 3 * 3600


# --- Files in and out of the product ----------------------------------------------------------------------------------


def write_events(path: Path, stream: str, times: NDArray[np.int64], values: NDArray[np.floating]) -> None:
    """Write a stream as CSV: timestamp (Unix s), stream, f0 .. fN; `times` (ns) is [rows], `values` [rows, features].

    Nine digits hold any float32, 17 any float64.
    """
    digits = 9 if values.dtype == np.float32 else 17
    row = f"%d,{stream}" + f",%.{digits}g" * values.shape[1] + "\n"
    with path.open("w", encoding="utf-8") as file:
        file.write("timestamp,stream," + ",".join(f"f{feature}" for feature in range(values.shape[1])) + "\n")
        seconds = (times // 1_000_000_000).tolist()
        file.writelines(row % (second, *observed) for second, observed in zip(seconds, values.tolist(), strict=True))


@dataclass(frozen=True, slots=True)
class ScoredRows:
    """What the product said of one stream: columns of [rows], in its order."""

    times: NDArray[np.int64]  # ns
    score: NDArray[np.float64]
    threshold: NDArray[np.float64]
    alert: NDArray[np.bool_]

    def on(self, times: NDArray[np.int64]) -> ScoredRows:
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
        score, threshold = np.zeros(len(times)), np.full(len(times), np.inf)
        alert = np.zeros(len(times), dtype=np.bool_)
        score[rows], threshold[rows], alert[rows] = self.score, self.threshold, self.alert
        return ScoredRows(times, score, threshold, alert)


def read_scores(path: Path) -> dict[str, ScoredRows]:
    """Read the CSV that `longwatch backtest` writes, by stream."""
    rows: dict[str, list[tuple[str, str, str, str]]] = {}
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.reader(file)
        header = next(reader, [])
        wanted = ("stream", "timestamp", "score", "threshold", "alert")
        if missing := [name for name in wanted if name not in header]:
            raise ValueError(f"{path}: no column {', '.join(missing)}; found {', '.join(header)[:200]}")
        stream, *columns = (header.index(name) for name in wanted)
        moment, score, threshold, alert = columns
        for row in reader:
            rows.setdefault(row[stream], []).append((row[moment], row[score], row[threshold], row[alert]))
    return {name: _scored_rows(path, of_stream) for name, of_stream in rows.items()}


def _scored_rows(path: Path, rows: Sequence[tuple[str, str, str, str]]) -> ScoredRows:
    times, scores, thresholds, alerts = zip(*rows, strict=True)
    if times[0].endswith(("Z", "+00:00")):
        # numpy's parser knows no zones
        ns = np.array([text[:-1] if text[-1] == "Z" else text[:-6] for text in times], dtype="datetime64[ns]")
    else:
        raise ValueError(f"{path}: expected times such as 2014-04-10T07:15:00Z, found {times[0]!r}")
    known = {"0": False, "1": True, "false": False, "true": True, "False": False, "True": True}
    return ScoredRows(
        ns.astype(np.int64),
        np.array(scores, dtype=np.float64),
        np.array(thresholds, dtype=np.float64),
        np.array([known[text] for text in alerts], dtype=np.bool_),
    )


def backtest(files: Sequence[Path], output: Path, *, cell: str, threads: int) -> float:
    """Run the product over `files`, all else by default; returns the wall time in s. `threads` 0: its own choice."""
    program = Path(sys.executable).with_name("longwatch")
    if not program.exists():
        raise SystemExit(f"{program} is not there: install the project first (make install)")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LONGWATCH_")}
    environment["LONGWATCH_MODEL__CELL"] = cell
    if threads:
        environment["LONGWATCH_COMPUTE__THREADS"] = str(threads)
    started = time.monotonic()
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
    return time.monotonic() - started


# --- Judging ----------------------------------------------------------------------------------------------------------


def judge_nab(series: Sequence[NabSeries], scored: dict[str, ScoredRows]) -> list[tuple[str, list[NabFigure]]]:
    """Return NAB's figures by profile, for the scorer's best thresholds and for two that the product sets itself."""
    missing = [one.stream for one in series if one.stream not in scored]
    if missing:
        raise ValueError(f"{len(missing)} of {len(series)} streams were not scored: {', '.join(missing[:3])} ...")
    rows = [scored[one.stream].on(one.times) for one in series]

    def sweep(column: Callable[[ScoredRows], NDArray[np.float64]]) -> list[NabFigure]:
        swept = nab_sweep((one.times, column(row), one.windows) for one, row in zip(series, rows, strict=True))
        best = column is _score
        return [swept.best(weights) if best else swept.at(1.0, weights) for weights in NAB_PROFILES.values()]

    return [
        (BEST, sweep(_score)),
        ("longwatch, score >= threshold", sweep(lambda row: (row.score >= row.threshold).astype(np.float64))),
        ("longwatch, alert rows", sweep(lambda row: row.alert.astype(np.float64))),
    ]


def _score(row: ScoredRows) -> NDArray[np.float64]:
    return row.score


class Judged(NamedTuple):
    """One stream's figures on its test part."""

    stream: str
    rows: int
    counts: Counts
    average_precision: float
    roc_auc: float


def judge_labelled(
    stream: str,
    scored: ScoredRows,
    judged_from: int,
    label: NDArray[np.bool_],
    count: Callable[[NDArray[np.bool_], NDArray[np.bool_]], Counts],
) -> Judged:
    """Judge a stream's rows from `judged_from` on; `scored` is on all its rows."""
    score, alert = scored.score[judged_from:], scored.alert[judged_from:]
    ranking = average_precision(score, label), roc_auc(score, label)
    return Judged(stream, len(label), count(alert, label), *ranking)


# --- The sets ---------------------------------------------------------------------------------------------------------


def run_nab(folder: Path, limit: int | None, cell: str, *, judge_only: bool) -> None:
    """Score the corpus in one call of the product and print its table."""
    series = nab_series(data_folder("nab"))[:limit]
    output = folder / "nab.scores.csv"
    rows, windows = sum(len(one.times) for one in series), sum(len(one.windows) for one in series)
    title = f"NAB: {len(series)} files, {rows:,} rows, {windows} windows"
    if not judge_only:
        with tempfile.TemporaryDirectory(dir=folder) as events:
            files = [Path(events) / f"{one.stream.replace('/', '-')}.csv" for one in series]
            for path, one in zip(files, series, strict=True):
                write_events(path, one.stream, one.times, one.values)
            title += _wall(backtest(files, output, cell=cell, threads=0), rows)
    judged = judge_nab(series, read_scores(output))
    print(f"\n{title}")
    print(f"{'':<34}{'standard':>10}{'low FP':>10}{'low FN':>10}{'found':>9}{'FP rows':>9}{'threshold':>11}")
    for name, figures in judged:
        standard = figures[0]
        threshold = f"{standard.threshold:11.4g}" if name == BEST else ""
        print(f"{name:<34}{_figures(figure.score for figure in figures)}", end="")
        print(f"{standard.windows_found:9}{standard.false_positive_rows:9}{threshold}")
    if limit is None:
        met = all(figure.score >= goal for figure, goal in zip(judged[0][1], NAB_GOAL, strict=True))
        print(f"{'goal, best threshold':<34}{_figures(NAB_GOAL)}  {_verdict(met)}")
        for name, published in NAB_PUBLISHED.items():
            print(f"{name:<34}{_figures(published)}")


def run_labelled(name: str, folder: Path, limit: int | None, cell: str, jobs: int, *, judge_only: bool) -> None:
    """Score smd, asd or aiops, one call of the product a stream and `jobs` at a time, and print the table."""
    goal = GOALS[name]
    files = labelled_files(name)[:limit]

    def score_and_judge(path: Path) -> tuple[Judged, float, int]:
        one = labelled_series(path)
        output = folder / f"{name}-{one.stream}.scores.csv"
        seconds = 0.0
        if not judge_only:
            events = folder / f"{name}-{one.stream}.csv"
            write_events(events, one.stream, one.times, one.values)
            seconds = backtest([events], output, cell=cell, threads=1 if jobs > 1 else 0)
            events.unlink()
        scored = read_scores(output)
        if one.stream not in scored:
            raise ValueError(f"{output}: stream {one.stream} was not scored; found {', '.join(scored)[:200]}")
        row = scored[one.stream].on(one.times)
        return judge_labelled(one.stream, row, one.judged_from, one.label, goal.counts), seconds, len(one.times)

    print(f"\n{name.upper()}: {goal.measure}")
    print(f"{'':<38}{'F1':>7}{'precision':>11}{'recall':>8}{'FP':>7}{'AP':>7}{'AUC':>7}")
    judged: list[Judged] = []
    seconds, rows = 0.0, 0
    with ThreadPoolExecutor(jobs) as pool:
        for figures, took, read in pool.map(score_and_judge, files):
            judged.append(figures)
            seconds, rows = seconds + took, rows + read
            print(_line(figures.stream, figures.counts, figures.average_precision, figures.roc_auc), flush=True)
    pooled = sum((figures.counts for figures in judged), Counts())
    mean = [
        float(np.mean([each.average_precision for each in judged])),
        float(np.mean([each.roc_auc for each in judged])),
    ]
    print(_line("pooled; AP, AUC: mean", pooled, *mean))
    if limit is None:
        print(f"{'goal, at its own threshold':<38}{goal.f1:7.3f}  {_verdict(pooled.f1 >= goal.f1)}")
    print(f"published: {goal.published}")
    if seconds:
        print(f"{len(judged)} streams{_wall(seconds, rows)}, {jobs} at a time")


def _figures(figures: Iterable[float]) -> str:
    return "".join(f"{figure:10.2f}" for figure in figures)


def _line(name: str, counts: Counts, precision: float, area: float) -> str:
    return (
        f"{name:<38}{counts.f1:7.3f}{counts.precision:11.3f}{counts.recall:8.3f}{counts.false_positives:7}"
        f"{precision:7.3f}{area:7.3f}"
    )


def _wall(seconds: float, rows: int) -> str:
    return f"; backtest took {seconds:,.1f} s ({rows / seconds:,.0f} rows/s)"


def _verdict(met: bool) -> str:
    return "met" if met else "NOT MET"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the sets that are asked for; returns 0 when each that is here was judged, whatever the figures say."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.quality", description=__doc__.splitlines()[0])
    parser.add_argument("sets", nargs="*", choices=[*SETS, "all"], default="all", help="one or more; default: all")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N streams of each set")
    parser.add_argument(
        "--jobs",
        type=int,
        default=min(2, os.cpu_count() or 1),
        help="streams of SMD, ASD and AIOPS at once (%(default)s)",
    )
    parser.add_argument("--cell", choices=CELLS, default="lstm", help="model.cell (%(default)s, the default)")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--keep", type=Path, metavar="DIR", help="keep the product's scores there")
    where.add_argument("--judge", type=Path, metavar="DIR", help="judge the scores kept there, run nothing")
    asked = parser.parse_args(arguments)
    names = SETS if "all" in asked.sets else [name for name in SETS if name in asked.sets]
    for name in names:
        with tempfile.TemporaryDirectory(prefix="longwatch-quality-") as temporary:
            folder = (asked.keep or asked.judge or Path(temporary)).resolve()
            folder.mkdir(parents=True, exist_ok=True)
            try:
                if name == "nab":
                    run_nab(folder, asked.limit, asked.cell, judge_only=bool(asked.judge))
                else:
                    run_labelled(name, folder, asked.limit, asked.cell, asked.jobs, judge_only=bool(asked.judge))
            except DataMissing as missing:
                print(f"\n{name.upper()}: left out: {missing}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Benchmark of detection quality: one table by set, for `longwatch backtest` with its defaults and for other detectors.

    python -m tests.bench.quality [SET ...] [--limit N] [--peers NAME ...] [--jobs N] [--keep DIR | --judge DIR]
    python -m tests.bench.quality panel [--seeds N ...] [--steps S ...] [--features N ...] [--kinds NAME ...]

The product reads CSV files and writes its scores, as anybody would have it do; only then are the labels looked at.
Where a set has a train part, detectors see it first, and the test part alone is judged. A set that is not on this
machine is named and left out, and so is a detector that is not installed. All of it takes hours, the product alone
(--peers, with no name behind it) some minutes.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tests.bench import bench_symbols, panel, product
from tests.bench.data import (
    DataMissing,
    LabelledSeries,
    NabSeries,
    data_folder,
    labelled_series,
    msl_series,
    nab_series,
    touchstone_series,
)
from tests.bench.hdfs import hdfs_series
from tests.bench.measures import (
    EVENT_F1,
    HIGHEST,
    LEGEND,
    MEASURES,
    MORE_MEASURES,
    POINTS_F1,
    RANK_AP,
    RANK_ROC,
    Judged,
    heading,
    judge_all,
    line,
)
from tests.bench.nab import NAB_PROFILES, NabFigure, nab_sweep
from tests.bench.panel_kinds import KINDS
from tests.bench.peers import AT_ONCE, BUDGET, PEERS, SLOW
from tests.bench.scored import Detector, ScoredRows, keep, kept
from training.evaluate import Float64
from training.network.cells import CELLS

PRODUCT = "longwatch"
SETS: dict[str, Callable[[Path], Iterator[LabelledSeries]]] = {
    "nab": nab_series,
    "aiops": labelled_series,
    "wsd": labelled_series,
    "ucr": labelled_series,
    "touchstone": touchstone_series,
    "smd": labelled_series,
    "asd": labelled_series,
    "msl": msl_series,
    "hdfs": hdfs_series,
}
BARS = {  # what the product has to reach
    "aiops": {EVENT_F1: 0.75, POINTS_F1: 0.78},
    "ucr": {HIGHEST: 28.0},
    "touchstone": {RANK_ROC: 0.80, RANK_AP: 0.37},
    "smd": {EVENT_F1: 0.66},
    "asd": {EVENT_F1: 0.70},
    "msl": {EVENT_F1: 0.45},
}
SHOWN_BESIDE = {"aiops": (POINTS_F1,), "ucr": (HIGHEST,)}
NAB_BAR = (73.0, 63.0)  # standard and low FP, at the scorer's best threshold
NAB_OWN_WITHIN = 1.0  # points of it, at the product's own alerts
PANEL_BAR = (0.94, 0.22)  # found, false alarms a stream and week
PUBLISHED = {
    "nab": {
        "ARTime (looks ahead)": (74.85, 65.15, 80.36),
        "Numenta HTM (looks ahead)": (70.10, 63.12, 74.32),
        "best causal known (CAD OSE)": (65.6, 59.7, 69.6),
        "Random Cut Forest": (51.72, 38.36, 59.75),
        "Windowed Gaussian": (39.65, 20.87, 47.41),
    },
}


def detectors(peers: Sequence[str], cell: str, jobs: int) -> dict[str, Detector]:
    """Return the product and those peers that are asked for, by name."""
    found = {PRODUCT: Detector(partial(product.score, cell=cell, jobs=jobs), True, lambda _: None)}
    for name in peers:
        peer = PEERS[name]
        found[name] = Detector(partial(peer, jobs=jobs), peer.calibrated, peer.lacks)
    return found


# --- NAB's own score --------------------------------------------------------------------------------------------------


def judge_nab(series: Sequence[NabSeries], scored: dict[str, ScoredRows]) -> list[tuple[str, list[NabFigure]]]:
    """Return NAB's figures by profile, for the scorer's best thresholds and for two that the detector sets itself."""
    rows = [scored[one.stream].on(one.times) for one in series]

    def sweep(column: Callable[[ScoredRows], Float64], *, best: bool = False) -> list[NabFigure]:
        swept = nab_sweep((one.times, column(row), one.windows) for one, row in zip(series, rows, strict=True))
        return [swept.best(weights) if best else swept.at(1.0, weights) for weights in NAB_PROFILES.values()]

    return [
        ("best threshold", sweep(lambda row: row.score, best=True)),
        ("score >= threshold", sweep(lambda row: (row.score >= row.threshold).astype(np.float64))),
        ("alert rows", sweep(lambda row: row.alert.astype(np.float64))),
    ]


def nab_table(judged: dict[str, list[tuple[str, list[NabFigure]]]], *, whole: bool) -> str:
    """Return NAB's scores as text; `whole`: bar and published figures, too, which are of the whole corpus."""
    lines = [f"{'NAB':<34}{'standard':>10}{'low FP':>10}{'low FN':>10}{'found':>9}{'FP rows':>9}"]
    for detector, of_detector in judged.items():
        for name, figures in of_detector:
            scores = "".join(f"{figure.score:10.2f}" for figure in figures)
            found = f"{figures[0].windows_found:9}{figures[0].false_positive_rows:9}"
            lines.append(f"{f'{detector}, {name}':<34}{scores}{found}")
    if whole:
        (_, best), _, (_, own) = judged[PRODUCT]
        bars_ = NAB_BAR, [figure.score - NAB_OWN_WITHIN for figure in best[:2]]
        for name, figures, wanted in zip(("best threshold", "alert rows"), (best, own), bars_, strict=True):
            met = all(figure.score >= bar for figure, bar in zip(figures, wanted, strict=False))
            lines.append(f"{f'bar, {name}':<34}{wanted[0]:10.2f}{wanted[1]:10.2f}  {_verdict(met)}")
        for name, published in PUBLISHED["nab"].items():
            lines.append(f"{name:<34}" + "".join(f"{figure:10.2f}" for figure in published))
    return "\n".join(lines)


# --- The sets ---------------------------------------------------------------------------------------------------------


class Kept(NamedTuple):
    """Where scores are kept, and whether they are taken from there."""

    folder: Path | None
    read: bool

    def scores(self, name: str, detector: str, make: Callable[[], dict[str, ScoredRows]]) -> dict[str, ScoredRows]:
        """Return what a detector said of a set; raises FileNotFoundError where it was to be read and is not there."""
        if self.folder is None:
            return make()
        path = self.folder / f"{name}.{detector}.npz"
        if self.read:
            return kept(path)
        scored = make()
        keep(path, scored)
        return scored


def run_set(name: str, shown: dict[str, Detector], limit: int | None, at: Kept) -> str:
    """Print a set's lines of the table; returns what has no column there. Raises DataMissing."""
    series = list(islice(SETS[name](data_folder(name)), limit))
    notes = [f"{name}: {len(series)} streams, {sum(len(one.times) for one in series):,} rows"]
    of_nab = {}
    for detector, how in shown.items():
        if why := how.lacks(series):
            notes.append(f"{detector} is left out of {name}: {why}")
            continue
        scored = at.scores(name, detector, partial(how.score, series))
        judged = judge_all(series, scored)
        print(line(name, detector, judged, calibrated=how.calibrated), flush=True)
        beside = {measure: MORE_MEASURES[measure](judged) for measure in SHOWN_BESIDE.get(name, ())}
        notes += [f"{detector}: {measure} {value:.3g}" for measure, value in beside.items()]
        if name == "nab" and any(one.label.any() for one in series):  # else its score has no meaning
            of_nab[detector] = judge_nab(series, scored)
        if detector == PRODUCT and limit is None:
            notes += bars(name, judged)
    if of_nab:
        notes.append(nab_table(of_nab, whole=limit is None))
    if name == "hdfs":
        notes.append(bench_symbols.session_table(bench_symbols.sessions_by_surprise()))
    return "\n".join(notes)


def bars(name: str, judged: Sequence[Judged]) -> list[str]:
    """Say which of a set's bars are met."""
    lines = []
    for measure, bar in BARS.get(name, {}).items():
        value = (MEASURES | MORE_MEASURES)[measure](judged)
        lines.append(f"bar, {measure} {bar:g}: {value:.3g}, {_verdict(value >= bar)}")
    return lines


def run_panel(shown: dict[str, Detector], asked: argparse.Namespace) -> str:
    """Return the panel's tables."""
    kinds = (asked.kinds or list(KINDS))[: asked.limit]
    lines = [f"{name} is left out of the panel: {why}" for name, how in shown.items() if (why := how.lacks([]))]
    parts = panel.groups(asked.seeds, asked.steps, asked.features, kinds)
    for name, told in panel.run(parts, shown).items():
        lines += [f"panel, {name}, seeds {asked.seeds}", panel.found_table(told), panel.false_table(told)]
        lines.append(panel.summary(told, BUDGET) + "\n")
    lines.append(f"bar: {PANEL_BAR[0]:.3f} found, {PANEL_BAR[1]:.2f} false alarms a week")
    return "\n".join(lines)


def _verdict(met: bool) -> str:
    return "met" if met else "NOT MET"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the sets that are asked for; returns 0 when each that is here was judged, whatever the figures say."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.quality", description=__doc__.splitlines()[0])
    names = [*SETS, "panel"]
    parser.add_argument("sets", nargs="*", choices=[*names, "all"], default="all", help="one or more; default: all")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N streams of each set")
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1), help="processes (%(default)s)")
    parser.add_argument("--cell", choices=CELLS, default="lstm", help="model.cell (%(default)s, the default)")
    usual = [name for name in PEERS if name not in SLOW]
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=usual, help=f"default: {' '.join(usual)}")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1], help="of the panel (1)")
    parser.add_argument(
        "--steps", nargs="+", type=int, choices=panel.STEPS, default=panel.STEPS, help="of the panel, s"
    )
    parser.add_argument("--features", nargs="+", type=int, default=panel.FEATURES, help="of the panel's streams")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, metavar="KIND", help="of the panel: panel_kinds.py")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--keep", type=Path, metavar="DIR", help="keep what was said of the sets there")
    where.add_argument("--judge", type=Path, metavar="DIR", help="judge what is kept there, run nothing but the panel")
    asked = parser.parse_args(arguments)
    at = Kept(asked.keep or asked.judge, bool(asked.judge))
    if asked.keep:
        asked.keep.mkdir(parents=True, exist_ok=True)
    shown = detectors(asked.peers, asked.cell, min(asked.jobs, AT_ONCE))
    alerts = {PRODUCT: f"its defaults ({BUDGET:g} a stream and week)"}
    alerts |= {name: PEERS[name].alerts for name in asked.peers}
    alerts |= {name: f"not shown, it is slow; --peers {name}" for name in SLOW if name not in asked.peers}
    print("alerts by\n" + "\n".join(f"  {name:<11}{how}" for name, how in alerts.items()))
    wanted = names if "all" in asked.sets else [name for name in names if name in asked.sets]
    if wanted != ["panel"]:
        print(f"\n{LEGEND}\n\n{heading()}", flush=True)
    notes = []
    for name in wanted:
        try:
            notes.append(run_panel(shown, asked) if name == "panel" else run_set(name, shown, asked.limit, at))
        except DataMissing as missing:
            notes.append(f"{name}: left out: {missing}")
    print("\n" + "\n\n".join(notes))
    return 0


if __name__ == "__main__":
    sys.exit(main())

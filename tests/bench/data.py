"""The open benchmark sets, where they are to be had: `../shared/data`, or the folder LONGWATCH_BENCH_DATA.

A set is a folder: `nab` as the Numenta Anomaly Benchmark's `data` folder with its `combined_windows.json`; `smd`,
`asd`, `aiops`, `wsd` and `ucr` as one .npz a stream, with the keys train, test, test_label and, where times are known,
t0_step; `touchstone` likewise with x and y; `msl` as one .npz of all channels, with labels.json; `hdfs`: see hdfs.py.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from connectors.files.labels import load_labels, windows_of
from training.evaluate import Bool, Int64, Window, nab_probation, rows_in_windows

SECOND = 1_000_000_000  # ns
MEASURING_ONLY = "for measuring only: nothing of it may enter the project"
ORIGIN = {
    "nab": "https://github.com/numenta/NAB (MIT)",
    "nab_results": "https://github.com/numenta/NAB (MIT), folder results",
    "smd": "https://github.com/NetManAIOps/OmniAnomaly (MIT)",
    "asd": "https://github.com/zhhlee/InterFusion (MIT)",
    "aiops": "https://github.com/NetManAIOps/KPI-Anomaly-Detection (MIT)",
    "wsd": f"https://github.com/alumik/AnoTransfer-data, repacked by CSTCloudOps/datasets ({MEASURING_ONLY})",
    "ucr": f"the UCR anomaly archive, repacked by CSTCloudOps/datasets ({MEASURING_ONLY})",
    "touchstone": f"https://github.com/wenig/touchstone-rs ({MEASURING_ONLY})",
    "msl": "https://github.com/khundman/telemanom, Hundman et al., KDD 2018",
    "hdfs": "https://github.com/donglee-afar/logdeep (MIT), folder data/hdfs",
}
# Sets without times: a minute is taken where no step is known, and a Monday at midnight is as good a start as any
_STEP_SECONDS = {"asd": 300}
_START_SECONDS = 1_578_268_800  # 2020-01-06T00:00:00Z


class DataMissing(Exception):  # noqa: N818 -- it is no error to lack the data
    """A benchmark set is not on this machine; the text says which, where it was looked for and where it comes from."""


@dataclass(frozen=True, slots=True)
class Series:
    """One stream."""

    stream: str
    times: Int64  # [rows] ns; clocks that are set back repeat times
    values: NDArray[np.floating]  # [rows, features], in the precision in which they are stored; NaN: missing


@dataclass(frozen=True, slots=True)
class LabelledSeries(Series):
    """One stream of which the rows from `judged_from` on are judged."""

    judged_from: int
    label: Bool  # [rows - judged_from]


@dataclass(frozen=True, slots=True)
class SymbolSeries(LabelledSeries):
    """One stream of symbols, which has no values: [rows, 0]."""

    codes: Int64  # [rows]


@dataclass(frozen=True, slots=True)
class NabSeries(LabelledSeries):
    """One file of NAB, its path in the corpus without suffix its stream: realKnownCause/nyc_taxi."""

    windows: list[Window]

    @classmethod
    def of(cls, stream: str, times: Int64, values: NDArray[np.floating], windows: list[Window]) -> NabSeries:
        """Judge what lies beyond probation; a row in a window is labelled."""
        first = nab_probation(len(times))
        return cls(stream, times, values, first, rows_in_windows(times, windows)[first:], windows)


def data_folder(name: str) -> Path:
    """Return the folder of a set; raises DataMissing."""
    configured = os.environ.get("LONGWATCH_BENCH_DATA")
    root = Path(configured) if configured else Path(__file__).resolve().parents[2].parent / "shared" / "data"
    if not (root / name).is_dir():
        raise DataMissing(
            f"the benchmark set {name} is not here: no folder {root / name} (set LONGWATCH_BENCH_DATA to the folder"
            f" that holds it); it comes from {ORIGIN[name]}"
        )
    return root / name


def nab_series(folder: Path) -> Iterator[NabSeries]:
    """Read the corpus of a `nab` folder, in the order of its paths."""
    labels = load_labels(folder / "combined_windows.json")
    for path in sorted(folder.glob("*/*.csv")):
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.reader(file))[1:]
        stream = path.relative_to(folder).with_suffix("").as_posix()
        windows = windows_of(labels, stream)
        if windows is None:
            raise ValueError(f"{path} has no labels in {folder / 'combined_windows.json'}")
        times = np.array([row[0] for row in rows], dtype="datetime64[ns]").astype(np.int64)
        yield NabSeries.of(stream, times, np.array([[float(row[1])] for row in rows]), windows)


def labelled_series(folder: Path) -> Iterator[LabelledSeries]:
    """Read a folder of one .npz a stream: its train part, then its test part, which alone is judged."""
    for path in sorted(folder.glob("*.npz")):
        with np.load(path, allow_pickle=False) as stored:
            train, test, label = stored["train"], stored["test"], stored["test_label"]
            start, step = stored["t0_step"].tolist() if "t0_step" in stored else (_START_SECONDS, _step(folder.name))
        yield _joined(path.stem, train, test, label.astype(np.bool_), start, step)


def touchstone_series(folder: Path) -> Iterator[LabelledSeries]:
    """Read a folder of one .npz a stream without a train part: all is judged."""
    for path in sorted(folder.glob("*.npz")):
        with np.load(path, allow_pickle=False) as stored:
            values, label = stored["x"], stored["y"].astype(np.bool_)
        yield _joined(path.stem, values[:0], values, label, _START_SECONDS, _step(folder.name))


def msl_series(folder: Path) -> Iterator[LabelledSeries]:
    """Read the rover's channels: of each the telemetry value (column 0), train part first; the test part is judged."""
    labels = json.loads((folder / "labels.json").read_text(encoding="utf-8"))
    with np.load(folder / "msl.npz", allow_pickle=False) as stored:
        for channel, described in sorted(labels.items()):
            train, test = stored[f"{channel}_train"][:, 0], stored[f"{channel}_test"][:, 0]
            label = np.zeros(len(test), dtype=np.bool_)
            for first, last in described["anomalies"]:  # both inclusive
                label[first : last + 1] = True
            yield _joined(channel, train, test, label, _START_SECONDS, _step(folder.name))


def _step(name: str) -> int:
    return _STEP_SECONDS.get(name, 60)


def _joined(
    stream: str, train: NDArray[np.floating], test: NDArray[np.floating], label: Bool, start: int, step: int
) -> LabelledSeries:
    values = np.concatenate((train, test)).reshape(len(train) + len(test), -1)
    times = (start + step * np.arange(len(values), dtype=np.int64)) * SECOND
    return LabelledSeries(stream, times, values, len(train), label)

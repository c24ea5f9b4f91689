"""The open benchmark sets, where they are to be had: `../shared/data`, or the folder LONGWATCH_BENCH_DATA.

A set is a folder: `nab` as the Numenta Anomaly Benchmark's `data` folder with its `combined_windows.json`; `smd`, `asd`
and `aiops` as one .npz a stream, with the keys train, test, test_label and, for AIOPS, t0_step.
"""

from __future__ import annotations

import csv
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from connectors.files.labels import Window, load_labels, windows_of

SECOND = 1_000_000_000  # ns
ORIGIN = {
    "nab": "https://github.com/numenta/NAB (MIT)",
    "nab_results": "https://github.com/numenta/NAB (MIT), folder results",
    "smd": "https://github.com/NetManAIOps/OmniAnomaly (MIT)",
    "asd": "https://github.com/zhhlee/InterFusion (MIT)",
    "aiops": "https://github.com/NetManAIOps/KPI-Anomaly-Detection (MIT)",
    "hdfs": "https://github.com/donglee-afar/logdeep (MIT), folder data/hdfs",
}
# SMD and ASD come without times: their steps are known, and a Monday at midnight is as good a start as any
_STEP_SECONDS = {"smd": 60, "asd": 300}
_START_SECONDS = 1_578_268_800  # 2020-01-06T00:00:00Z


class DataMissing(Exception):  # noqa: N818 -- it is no error to lack the data
    """A benchmark set is not on this machine; the text says which, where it was looked for and where it comes from."""


@dataclass(frozen=True, slots=True)
class NabSeries:
    """One file of NAB."""

    stream: str  # its path in the corpus without suffix: realKnownCause/nyc_taxi
    times: NDArray[np.int64]  # [rows] ns; clocks that are set back repeat times
    values: NDArray[np.float64]  # [rows, 1]
    windows: list[Window]


@dataclass(frozen=True, slots=True)
class LabelledSeries:
    """One machine or KPI: the rows of its train part, then those of its test part, which alone is judged."""

    stream: str
    times: NDArray[np.int64]  # [rows] ns
    values: NDArray[np.floating]  # [rows, features], in the precision in which they are stored
    judged_from: int  # first row of the test part
    label: NDArray[np.bool_]  # [rows - judged_from]


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


def nab_series(folder: Path) -> list[NabSeries]:
    """Read the corpus of a `nab` folder, in the order of its paths."""
    labels = load_labels(folder / "combined_windows.json")
    series = []
    for path in sorted(folder.glob("*/*.csv")):
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.reader(file))[1:]
        stream = path.relative_to(folder).with_suffix("").as_posix()
        windows = windows_of(labels, stream)
        if windows is None:
            raise ValueError(f"{path} has no labels in {folder / 'combined_windows.json'}")
        times = np.array([row[0] for row in rows], dtype="datetime64[ns]").astype(np.int64)
        series.append(NabSeries(stream, times, np.array([[float(row[1])] for row in rows]), windows))
    return series


def labelled_files(name: str) -> list[Path]:
    """Return the files of smd, asd or aiops, one a stream, in the order of their names; raises DataMissing."""
    return sorted(data_folder(name).glob("*.npz"))


def labelled_series(path: Path) -> LabelledSeries:
    """Read one of `labelled_files`; its folder's name is the set's."""
    with np.load(path, allow_pickle=False) as stored:
        train, test, label = stored["train"], stored["test"], stored["test_label"]
        start, step = (
            stored["t0_step"].tolist() if "t0_step" in stored else (_START_SECONDS, _STEP_SECONDS[path.parent.name])
        )
    values = np.concatenate((train, test)).reshape(len(train) + len(test), -1)
    times = (start + step * np.arange(len(values), dtype=np.int64)) * SECOND
    return LabelledSeries(path.stem, times, values, len(train), label.astype(np.bool_))

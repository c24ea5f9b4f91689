"""HDFS logs: sessions of log templates, normal and anomalous ones, and one stream that mixes them at their true shares.

The files are those of the DeepLog split: 4,855 normal sessions and 16,838 anomalous ones, each a row of log templates;
the 553,366 normal sessions of its test part are not among them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tests.bench.data import SECOND, SymbolSeries, data_folder

NORMAL, ANOMALOUS = 553_366, 16_838  # sessions of the whole test part
BOUNDARY = 1_000  # the symbol after each session
_STEP_SECONDS = 10
_START_SECONDS = 1_600_000_000

Sessions = list[NDArray[np.int64]]


def read_sessions(name: str) -> Sessions:
    """Return sessions of template numbers."""
    text = (data_folder("hdfs") / name).read_text()
    return [np.array(line.split(), np.int64) for line in text.splitlines() if line.strip()]


def with_boundaries(sessions: Sessions) -> NDArray[np.int64]:
    """Return sessions as one sequence, a boundary after each."""
    return np.concatenate([np.append(session, BOUNDARY) for session in sessions])


def mixed_sessions() -> tuple[Sessions, NDArray[np.bool_], int]:
    """Return sessions of which 2.9 % are anomalous, which ones are, and the first judged: none before it is."""
    anomalous_share = ANOMALOUS / (ANOMALOUS + NORMAL)
    rng = np.random.default_rng(1)
    normal, anomalous = read_sessions("hdfs_train"), read_sessions("hdfs_test_abnormal")
    count = round(len(normal) * anomalous_share / (1 - anomalous_share))
    picked = [anomalous[i] for i in rng.choice(len(anomalous), count, replace=False)]
    first = len(normal) // 4  # normal alone until then
    places = np.sort(rng.integers(first, len(normal), count))
    sessions, wrong = [], []
    for i, session in enumerate(normal):
        for k in np.flatnonzero(places == i):
            sessions.append(picked[k])
            wrong.append(True)
        sessions.append(session)
        wrong.append(False)
    return sessions, np.array(wrong), first


def symbol_times(rows: int) -> NDArray[np.int64]:
    """Return the ns of the stream's events, one each 10 s: [rows]."""
    return (_START_SECONDS + _STEP_SECONDS * np.arange(rows)) * SECOND


def hdfs_series(_folder: Path) -> Iterator[SymbolSeries]:
    """Return the mixed sessions as one stream; an anomalous session is a labelled segment, without its boundary."""
    sessions, wrong, first = mixed_sessions()
    codes = with_boundaries(sessions)
    length = np.array([len(session) + 1 for session in sessions])
    label = np.repeat(wrong, length) & (codes != BOUNDARY)
    judged_from = int(length[:first].sum())
    rows = len(codes)
    yield SymbolSeries("hdfs", symbol_times(rows), np.zeros((rows, 0)), judged_from, label[judged_from:], codes)

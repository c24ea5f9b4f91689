"""Categorical lanes on HDFS logs: sessions classified by their surprise; and what a symbol costs.

Run as: python -m tests.bench.bench_symbols            (the sets: see data.py; folder `hdfs`)

The files are those of the DeepLog split: 4,855 normal sessions and 16,838 anomalous ones, each a row of log templates;
the 553,366 normal sessions of its test part are not among them. So the false-positive rate is taken on held-back
normal sessions, in five folds, and precision is worked out for the true shares:

    P = 16838 R / (16838 R + 553366 FPR),  F1 = 2 P R / (P + R)

1. One lane is shown the normal sessions of three folds as one stream, a boundary symbol between them; then every
   session is scored from that state. A session's score is its largest surprise, its mean, or a sum; the threshold is
   the 99.8 % quantile of the fourth fold's sessions; the fifth's are judged, and all anomalous ones.
2. The product as it stands: one stream, an event each 10 s, in which 2.9 % of sessions are anomalous; the engine's
   alerts at several budgets. An alert counts for the session in which it fires; an incident's later sessions have no
   alert of their own. Boundaries are known by the symbol only.
"""

from __future__ import annotations

import time

import numpy as np
from numpy.typing import NDArray

from connectors.batches import EventBatch, Partition
from detector.engine.engine import Engine, EngineSettings
from detector.scoring.incidents import AlertRules
from detector.scoring.symbols import network
from tests.bench.data import data_folder
from tests.streams import auc
from training.network.weights import load_prior
from training.symbols.counts import LANE_SYMBOLS
from training.symbols.kernels import PREDICTION, predict

FOLDS, QUANTILE = 5, 0.998
NORMAL, ANOMALOUS = 553_366, 16_838  # sessions of the test part, for the correction
BOUNDARY = 1_000
SECOND = 1_000_000_000

Sessions = list[NDArray[np.int64]]


def read_sessions(name: str) -> Sessions:
    """Return sessions of template numbers."""
    text = (data_folder("hdfs") / name).read_text()
    return [np.array(line.split(), np.int64) for line in text.splitlines() if line.strip()]


def with_boundaries(sessions: Sessions) -> NDArray[np.int64]:
    """Return sessions as one sequence, a boundary after each."""
    return np.concatenate([np.append(session, BOUNDARY) for session in sessions])


def seen(lanes: NDArray[np.void], symbols: NDArray[np.int64]) -> NDArray[np.void]:
    """Return PREDICTION of a lane's next symbols."""
    out = np.zeros(len(symbols), PREDICTION)
    predict(lanes, network(), np.zeros(len(symbols), np.int64), symbols, 0, len(symbols), out)
    return out


def scored(settled: NDArray[np.void], sessions: Sessions) -> dict[str, NDArray[np.float64]]:
    """Score sessions, each from the settled lane's state, with its end marked: by name of score, [sessions]."""
    found: dict[str, list[float]] = {}
    lanes = settled.copy()
    for session in sessions:
        lanes[:] = settled
        out = seen(lanes, np.append(session, BOUNDARY))
        s, tail = out["surprise"], out["tail"]
        for name, value in (
            ("largest surprise", s.max()),
            ("largest tail", tail.max()),
            ("mean surprise", s.mean()),
            ("sum of surprise above 4 nats", np.maximum(s - 4.0, 0.0).sum()),
            ("sum of tail above 3 nats", np.maximum(tail - 3.0, 0.0).sum()),
        ):
            found.setdefault(name, []).append(float(value))
    return {name: np.array(values) for name, values in found.items()}


def corrected_f1(recall: float, false_positives: float) -> float:
    """Return F1 at the true shares of normal and anomalous sessions."""
    hits = ANOMALOUS * recall
    return 2 * hits / (hits + NORMAL * false_positives + ANOMALOUS) if hits else 0.0


def sessions_by_surprise() -> None:
    """Protocol 1."""
    normal, anomalous = read_sessions("hdfs_train"), read_sessions("hdfs_test_abnormal")
    order = np.random.default_rng(0).permutation(len(normal))
    recalls: dict[str, list[float]] = {}
    false_positives: dict[str, list[float]] = {}
    for fold in range(FOLDS):
        lanes = np.zeros(1, LANE_SYMBOLS)
        folds = [(k - fold) % FOLDS for k in range(len(order))]
        seen(lanes, with_boundaries([normal[i] for i, part in zip(order, folds, strict=True) if part > 1]))
        kept, judged = (
            scored(lanes, [normal[i] for i, part in zip(order, folds, strict=True) if part == wanted])
            for wanted in (0, 1)
        )
        wrong = scored(lanes, anomalous)
        for name, values in kept.items():
            threshold = np.quantile(values, QUANTILE)
            false_positives.setdefault(name, []).append(float((judged[name] > threshold).mean()))
            recalls.setdefault(name, []).append(float((wrong[name] > threshold).mean()))
    print(f"{'score of a session':32} {'recall':>7} {'FPR':>8} {'corrected F1':>13}")
    for name, found in recalls.items():
        recall, fpr = float(np.mean(found)), float(np.mean(false_positives[name]))
        print(f"{name:32} {recall:7.3f} {fpr:8.5f} {corrected_f1(recall, fpr):13.3f}")


def one_stream(per_week: float) -> None:
    """Protocol 2, at a budget of alerts."""
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
    number = np.repeat(np.arange(len(sessions)), [len(s) + 1 for s in sessions])
    symbols = with_boundaries(sessions)
    names, symbol = np.unique(symbols, return_inverse=True)
    settings = EngineSettings(rules=AlertRules(alerts_per_stream_per_week=per_week))
    engine, fired, strongest = Engine(load_prior(), settings), np.zeros(len(sessions), bool), np.zeros(len(sessions))
    rows = len(symbols)
    stamps = 1_600_000_000 * SECOND + 10 * SECOND * np.arange(rows)
    began = time.perf_counter()
    for a in range(0, rows, 5000):
        b = min(a + 5000, rows)
        batch = EventBatch(
            streams=["hdfs"], features=["code"], partitions=[Partition("log", 0)], stream=np.zeros(b - a, np.int32),
            time=stamps[a:b], received=stamps[a:b], partition=np.zeros(b - a, np.int32), offset=np.arange(a, b),
            start=np.arange(b - a + 1), feature=np.zeros(b - a, np.int32), value=np.full(b - a, np.nan),
            symbols=[f"E{name}" for name in names], symbol=symbol[a:b].astype(np.int32),
        )  # fmt: skip
        step = engine.step(batch)
        np.maximum.at(strongest, number[a:b], step.scores.score)
        for alert in step.alerts:
            if alert.status == "firing":
                fired[number[alert.offset]] = True
    seconds = time.perf_counter() - began
    truth = np.array(wrong)
    hits = int((fired & truth).sum())
    print(f"{per_week:>14.0f} {int(fired[first:].sum()):>8} {hits:>10} of {int(truth.sum())}", end="")
    print(f" {auc(strongest[first:], truth[first:]):>9.3f} {rows / seconds:>13,.0f}")


if __name__ == "__main__":
    sessions_by_surprise()
    print(f"\n{'alerts a week':>14} {'fired':>8} {'anomalous':>17} {'AUC':>9} {'symbols/s':>13}")
    for budget in (7.0, 100.0, 1000.0):
        one_stream(budget)

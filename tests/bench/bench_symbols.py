"""Categorical lanes on HDFS logs: sessions classified by their surprise; and what a symbol costs.

Run as: python -m tests.bench.bench_symbols            (the set: see hdfs.py)

The sessions are those of hdfs.py. Most normal ones are not among them, so the false-positive rate is taken on held-back
ones, in five folds, and precision is worked out for the true shares:

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
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from connectors.batches import EventBatch, Partition
from detector.engine.engine import Engine, EngineSettings
from detector.scoring.incidents import AlertRules
from detector.scoring.symbols import network
from tests.bench.hdfs import (
    ANOMALOUS,
    BOUNDARY,
    NORMAL,
    Sessions,
    mixed_sessions,
    read_sessions,
    symbol_times,
    with_boundaries,
)
from tests.streams import auc
from training.network.weights import load_prior
from training.symbols.counts import LANE_SYMBOLS
from training.symbols.kernels import PREDICTION, predict

FOLDS, QUANTILE = 5, 0.998


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


class Separated(NamedTuple):
    """How well a score of sessions tells anomalous ones, mean over the folds."""

    recall: float
    false_positives: float  # share of normal sessions

    @property
    def corrected_f1(self) -> float:
        """Return F1 at the true shares of normal and anomalous sessions."""
        hits = ANOMALOUS * self.recall
        return 2 * hits / (hits + NORMAL * self.false_positives + ANOMALOUS) if hits else 0.0


def sessions_by_surprise() -> dict[str, Separated]:
    """Protocol 1, by score."""
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
    return {
        name: Separated(float(np.mean(found)), float(np.mean(false_positives[name]))) for name, found in recalls.items()
    }


def session_table(separated: dict[str, Separated]) -> str:
    """Return protocol 1's figures as text."""
    lines = [f"{'score of a session':32} {'recall':>7} {'FPR':>8} {'corrected F1':>13}"]
    for name, one in separated.items():
        lines.append(f"{name:32} {one.recall:7.3f} {one.false_positives:8.5f} {one.corrected_f1:13.3f}")
    return "\n".join(lines)


def one_stream(per_week: float) -> None:
    """Protocol 2, at a budget of alerts."""
    sessions, truth, first = mixed_sessions()
    number = np.repeat(np.arange(len(sessions)), [len(s) + 1 for s in sessions])
    symbols = with_boundaries(sessions)
    names, symbol = np.unique(symbols, return_inverse=True)
    settings = EngineSettings(rules=AlertRules(alerts_per_stream_per_week=per_week))
    engine, fired, strongest = Engine(load_prior(), settings), np.zeros(len(sessions), bool), np.zeros(len(sessions))
    rows = len(symbols)
    stamps = symbol_times(rows)
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
    hits = int((fired & truth).sum())
    print(f"{per_week:>14.0f} {int(fired[first:].sum()):>8} {hits:>10} of {int(truth.sum())}", end="")
    print(f" {auc(strongest[first:], truth[first:]):>9.3f} {rows / seconds:>13,.0f}")


if __name__ == "__main__":
    print(session_table(sessions_by_surprise()))
    print(f"\n{'alerts a week':>14} {'fired':>8} {'anomalous':>17} {'AUC':>9} {'symbols/s':>13}")
    for budget in (7.0, 100.0, 1000.0):
        one_stream(budget)

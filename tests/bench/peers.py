"""Other streaming detectors, each with its own defaults and its usual way to an alert, by the protocol of the product.

They see a stream's rows in order, one at a time. None of them takes a missing value: the last one is seen again. They
are dependencies of nothing: `pip install -r tests/bench/requirements.txt`; what is not installed is named and left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from importlib.util import find_spec
from multiprocessing import get_context
from typing import NamedTuple

import numpy as np
from scipy.special import log_ndtr

from detector.config.settings import Settings
from tests.bench.data import Series, SymbolSeries
from tests.bench.measures import WEEK, step_seconds
from tests.bench.scored import ScoredRows
from training.evaluate import Bool, Float64

BUDGET = Settings().alerting.alerts_per_stream_per_week  # the product's, for the peers that take a budget
AT_ONCE = 2  # processes


def _share(one: Series) -> float:
    """Return the share of a stream's events that the budget lets alert."""
    return min(0.5, BUDGET * step_seconds(one.times) / WEEK)


def _filled(values: np.ndarray) -> Float64:
    """Return `values` [rows, features] with the last known one, or 0, in place of what is missing."""
    known = np.isfinite(values)
    last = np.maximum.accumulate(np.where(known, np.arange(len(values))[:, None], -1), axis=0)
    filled = np.take_along_axis(values, np.maximum(last, 0), axis=0)
    return np.where(last >= 0, filled, 0.0).astype(np.float64)


def _said(one: Series, score: Float64, threshold: float | Float64, alert: Bool) -> ScoredRows:
    return ScoredRows(one.times, score, np.broadcast_to(threshold, score.shape), alert, score)


# --- The peers --------------------------------------------------------------------------------------------------------

EWMA_WEIGHT, EWMA_WARM_UP = 0.05, 100  # of the newest value; rows


def ewma_z(one: Series) -> ScoredRows:
    """Score by the normal's tail beyond the worst feature's |x - EWMA| over the EWMA of its deviation."""
    values = _filled(one.values)
    z, mean, variance = np.zeros(len(values)), values[0].copy(), np.zeros(values.shape[1])
    for row, observed in enumerate(values):
        error = observed - mean
        deviation = np.sqrt(variance) + 1e-9 * np.abs(mean) + 1e-300
        z[row] = (np.abs(error) / deviation).max() if row >= EWMA_WARM_UP else 0.0
        mean += EWMA_WEIGHT * error
        variance = (1.0 - EWMA_WEIGHT) * (variance + EWMA_WEIGHT * error**2)
    tail = (log_ndtr(-np.minimum(z, 1e6)) + math.log(2.0 * values.shape[1])) / math.log(10.0)
    score, threshold = np.maximum(0.0, -tail), -math.log10(_share(one))
    return _said(one, score, threshold, score >= threshold)


def half_space_trees(one: Series) -> ScoredRows:
    """Score by river's half-space trees on values scaled to the range so far, behind its filter by a quantile."""
    from river import anomaly, preprocessing

    scaler = preprocessing.MinMaxScaler()
    detector = anomaly.QuantileFilter(anomaly.HalfSpaceTrees(seed=42), q=1.0 - _share(one))
    score, threshold = np.zeros(len(one.times)), np.full(len(one.times), np.inf)
    for row, observed in enumerate(_filled(one.values).tolist()):
        known = dict(enumerate(observed))
        scaler.learn_one(known)
        scaled = scaler.transform_one(known)
        score[row] = detector.score_one(scaled)
        threshold[row] = detector.quantile.get() or np.inf  # as its classify() takes it
        detector.learn_one(scaled)
    return _said(one, score, threshold, score >= threshold)


def random_cut_forest(one: Series) -> ScoredRows:
    """Score by rcf3's forest; an alert stands three standard deviations above the mean of the scores before it."""
    import rcf3

    values = _filled(one.values)
    forest, score, ready = rcf3.Forest(values.shape[1], seed=1), np.zeros(len(values)), len(values)
    for row, observed in enumerate(values.tolist()):
        if forest.is_ready():
            ready = min(ready, row)
        score[row] = forest.update_and_score(observed)
    threshold = np.full(len(values), np.inf)
    since = score[ready:]
    before = np.arange(len(since), dtype=np.float64)
    counted = np.maximum(before, 1.0)
    mean = (np.cumsum(since) - since) / counted
    square = (np.cumsum(since**2) - since**2) / counted
    threshold[ready:] = np.where(before >= RCF_SCORES, mean + 3.0 * np.sqrt(np.maximum(square - mean**2, 0.0)), np.inf)
    return _said(one, score, threshold, score > threshold)


RCF_SCORES = 30  # before their mean and deviation say anything


def wald(one: Series) -> ScoredRows:
    """Score by the p-value of timemachines' wald (on a skaters forecaster), which alarms below a rate."""
    from timemachines import wald as machine

    step, state = machine(), None
    score = np.zeros(len(one.times))
    for row, observed in enumerate(_filled(one.values)[:, 0].tolist()):
        _, state = step(observed, state)
        p = state["pvalue"]
        score[row] = -math.log10(max(p, 1e-300)) if p is not None else 0.0
    threshold = -math.log10(_share(one))
    return _said(one, score, threshold, score > threshold)


class Peer(NamedTuple):
    """A detector beside the product."""

    package: str | None  # None: no more than numpy
    alerts: str  # its usual way to one
    score: Callable[[Series], ScoredRows]
    calibrated: bool = False  # the score is -log10 of a probability
    several_features: bool = True

    def lacks(self, series: Sequence[Series]) -> str | None:
        """Say why it cannot score these streams; None where it can."""
        if self.package and find_spec(self.package) is None:
            return f"{self.package} is not installed: pip install -r tests/bench/requirements.txt"
        if any(isinstance(one, SymbolSeries) for one in series):
            return "takes no symbols"
        if not self.several_features and any(one.values.shape[1] > 1 for one in series):
            return "takes one feature"
        return None

    def __call__(self, series: Sequence[Series], jobs: int = AT_ONCE) -> dict[str, ScoredRows]:
        """Score streams, each on its own, AT_ONCE at a time at most."""
        with ProcessPoolExecutor(min(jobs, AT_ONCE), mp_context=get_context("spawn")) as pool:
            return {rows[0]: rows[1] for rows in pool.map(partial(_named, self.score), series)}


def _named(score: Callable[[Series], ScoredRows], one: Series) -> tuple[str, ScoredRows]:
    return one.stream, score(one)


PEERS = {
    "ewma-z": Peer(
        None,
        f"EWMA of {EWMA_WEIGHT}; a normal two-sided p, times the features, below the budget's share",
        ewma_z,
        calibrated=True,
    ),
    "river-hst": Peer(
        "river", "QuantileFilter at 1 - the budget's share (its documents' 0.95: 500 a week)", half_space_trees
    ),
    "rcf3": Peer(
        "rcf3", "score above mean + 3 sd of those before, as SageMaker's documents have it", random_cut_forest
    ),
    "wald": Peer("timemachines", "p below the budget's share", wald, calibrated=True, several_features=False),
}
SLOW = ("wald",)  # about 80 rows a second: left out unless asked for

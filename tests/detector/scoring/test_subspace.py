"""What lies outside a stream's principal subspace, against a plain numpy re-implementation."""

import numpy as np
import pytest
from detector.scoring.subspace import (
    FAR,
    FAR_LEARNT,
    FIRST_FIT,
    FIT_EVERY,
    MEMORY,
    MIN_UNIT,
    SETTLED,
    SOFTENING,
    VARIANCE_KEPT,
    outside,
)

from detector.scoring.calibration import (
    HISTOGRAM,
    REFRESH,
    SLOW_GROWTH,
    UNIT_LIMIT,
    UNIT_QUANTILE,
    UNIT_WARMUP,
    grow,
    learn,
    quantile,
)
from detector.scoring.judge import MANY_SCORE
from detector.state.records import STREAM


def residuals(values: np.ndarray, capacity: int) -> np.ndarray:
    """Run the kernel over values [events, features]; NaN is missing. Returns residuals [events, features]."""
    events, features = values.shape
    s, many = np.zeros(1, STREAM), np.zeros(features + 2, MANY_SCORE)
    s["lanes"], s["capacity"] = features, capacity
    matrices = np.zeros(2 * capacity * capacity, np.float32)
    found = np.zeros((events, features))
    for k, row in enumerate(values):
        place = np.flatnonzero(~np.isnan(row))
        found[k, place] = outside(s[0], many, matrices, place, place + 2, row[place])
        s["events"] += 1
    return found


class Plain:
    """The same with whole matrices in float64."""

    def __init__(self, features: int) -> None:
        self.events, self.fit_at = 0, 0
        self.mean, self.variance, self.seen = np.zeros(features), np.zeros(features), np.zeros(features)
        self.z_mean, self.covariance = np.zeros(features), np.zeros((features, features))
        self.components = np.zeros((0, features))
        self.fit_mean = self.fit_deviation = np.zeros(features)
        self.histograms, self.units, self.counts = np.zeros(features, HISTOGRAM), np.zeros(features), np.zeros(features)

    def judge(self, x: np.ndarray) -> np.ndarray:
        if self.events >= max(self.fit_at, FIRST_FIT):
            self.fit_mean = self.z_mean.copy()
            self.fit_deviation = np.sqrt(self.covariance.diagonal()) + SOFTENING
            values, vectors = np.linalg.eigh(self.covariance / np.outer(self.fit_deviation, self.fit_deviation))
            largest = np.argsort(values)[::-1]
            held = np.cumsum(values[largest]) / values.sum()
            self.components = vectors[:, largest[: np.searchsorted(held, VARIANCE_KEPT) + 1]].T
            self.fit_at = self.events + min(self.events, FIT_EVERY)
        deviation = np.maximum.reduce([np.sqrt(self.variance), 0.01 * np.abs(self.mean), np.full(len(x), 1e-12)])
        z = np.where(self.seen > 1, np.clip((x - self.mean) / deviation, -FAR, FAR), 0.0)
        result = np.zeros(len(x))
        if len(self.components):
            w = (z - self.fit_mean) / self.fit_deviation
            sizes = np.abs(w - self.components.T @ (self.components @ w))
            for k, size in enumerate(sizes.tolist()):
                if self.counts[k] >= UNIT_WARMUP:
                    result[k] = min(size / max(self.units[k], MIN_UNIT), UNIT_LIMIT)
                grow(self.histograms[k], SLOW_GROWTH)
                learn(self.histograms[k], size)
                if self.counts[k] % REFRESH == 0:
                    self.units[k] = quantile(self.histograms[k], UNIT_QUANTILE)
                self.counts[k] += 1
        share = max(1 / (self.events + 1), 1 / MEMORY)
        z = np.clip(z, -FAR_LEARNT, FAR_LEARNT) - self.z_mean
        self.covariance += share * (np.outer(z, z) - self.covariance)
        self.z_mean += share * z
        self.seen += 1
        difference = x - self.mean
        bound = np.where(self.seen > SETTLED, np.maximum(5 * deviation, 0.1 * np.abs(difference)), np.inf)
        difference = np.where(self.seen == 1, 0.0, np.clip(difference, -bound, bound))
        weight = np.maximum(1 / self.seen, 1 / MEMORY)
        self.mean = np.where(self.seen == 1, x, self.mean + weight * difference)
        self.variance = np.where(self.seen == 1, 0.0, (1 - weight) * (self.variance + weight * difference**2))
        self.events += 1
        return result


def coupled(rng: np.random.Generator, events: int, features: int, hidden: int = 3) -> np.ndarray:
    """A few hidden causes, in units from thousandths to millions, with noise and a feature that never moves.

    Fewer causes than features that move, or the principal components leave nothing but rounding.
    """
    causes = np.cumsum(rng.standard_normal((events, hidden)), axis=0)
    causes -= np.linspace(0, 1, events)[:, None] * causes[-1]
    values = causes @ rng.standard_normal((hidden, features)) + rng.standard_normal((events, features))
    values = values * 10.0 ** rng.uniform(-3, 6, features) + 10.0 ** rng.uniform(-3, 6, features)
    values[:, -1] = 7.0
    return values


@pytest.mark.parametrize(("features", "capacity", "hidden"), [(4, 4, 1), (9, 12, 3), (30, 48, 3)])
def test_residuals_equal_a_numpy_reimplementation(features: int, capacity: int, hidden: int) -> None:
    values = coupled(np.random.default_rng(features), 1700, features, hidden)
    values[900:905, 1] += 20 * values[:, 1].std()
    plain = Plain(features)

    found = residuals(values, capacity)
    wanted = np.array([plain.judge(x) for x in values])

    assert len(plain.components) == hidden
    assert (wanted[1000:, :-1] > 1e-6).mean() > 0.99
    np.testing.assert_allclose(found, wanted, rtol=5e-3, atol=5e-3)  # covariances are float32
    assert (np.abs(found - wanted) < 1e-3).mean() > 0.999  # beyond: a residual next to the edge of a histogram's bin


def test_a_decorrelated_feature_has_the_largest_residual() -> None:
    rng = np.random.default_rng(1)
    common = np.sin(np.arange(3000) / 40)
    values = common[:, None] * np.arange(1, 9) + 0.05 * rng.standard_normal((3000, 8))
    values[2900:2910, 3] *= -1.0  # within its range at every moment

    found = residuals(values, 8)

    assert (found[2900:2910].argmax(axis=1) == 3).all()
    assert found[2900:2910, 3].min() > 3.0
    assert np.quantile(found[1000:2900], 0.99) < 1.5


def test_a_missing_feature_has_no_residual_and_is_not_updated() -> None:
    values = coupled(np.random.default_rng(2), 1200, 6)
    holes = values.copy()
    holes[np.random.default_rng(3).random(values.shape) < 0.1] = np.nan
    holes[:, -1] = values[:, -1]

    found = residuals(holes, 6)

    assert np.isfinite(found).all()
    assert not found[np.isnan(holes)].any()
    assert (found[600:][~np.isnan(holes[600:])] > 1e-6).mean() > 0.7


def test_residuals_are_zero_before_the_first_fit_and_warm_up() -> None:
    found = residuals(coupled(np.random.default_rng(4), 400, 5), 6)

    assert not found[: FIRST_FIT + UNIT_WARMUP].any()
    assert found[FIRST_FIT + UNIT_WARMUP :].any()


@pytest.mark.parametrize("wild", [1e30, -1e30, 1e-300])
def test_residuals_stay_finite_for_any_values(wild: float) -> None:
    values = coupled(np.random.default_rng(5), 900, 5)
    values[[0, 300, 301, 302, 600], 2] = wild

    found = residuals(values, 6)

    assert np.isfinite(found).all()
    assert (found <= UNIT_LIMIT).all()

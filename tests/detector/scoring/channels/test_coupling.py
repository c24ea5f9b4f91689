"""What other features do not explain, against a plain numpy form in float64."""

import math

import numpy as np
import pytest

from detector.scoring.batch import MEASURED
from detector.scoring.channels.coupling import (
    AMNESIA,
    DIRECTIONS,
    LIMIT,
    MAX_DEVIATIONS,
    MEMORY,
    MIN_EVENTS,
    MIN_SHARE,
    learn_moments,
    measure_coupling,
)
from detector.scoring.lane import lane_score
from detector.scoring.units import COUPLING, WARM_UP_EVENTS

LEAST = 1e-6
LANE = np.dtype([("score", lane_score())], align=True)


def residuals(values: np.ndarray, *, first_lane: int = 0) -> np.ndarray:
    """Return the sizes of what is not explained [events, features]; NaN in the values is missing."""
    return _measured(values, first_lane)[0]


def expectations(values: np.ndarray) -> np.ndarray:
    """Return what the others let expect [events, features]."""
    return _measured(values, 0)[1]


def _measured(values: np.ndarray, first_lane: int) -> tuple[np.ndarray, np.ndarray]:
    rows, features = values.shape
    lanes = np.zeros(first_lane + features, LANE)
    found, expected = np.full((2, rows, features), math.nan)
    for k, row in enumerate(values):
        place = np.flatnonzero(~np.isnan(row))
        lane, measured = first_lane + place, np.zeros(len(place), MEASURED)
        measured["known"] = lanes["score"]["events"][lane] > 0
        measured["sizes"] = math.nan
        measure_coupling(lanes, lane, first_lane, row[place], k, measured, np.arange(len(place)))
        found[k, place], expected[k, place] = measured["sizes"][:, COUPLING], measured["coupled"]
        for j, x in zip(lane.tolist(), row[place].tolist(), strict=True):
            score = lanes[j]["score"]
            learn_moments(score["coupling"], score["events"], x, LEAST)
            score["events"] += 1
    return found, expected


class Plain:
    """The same with vectors: deflation by the directions, each feature explained by the others alone."""

    def __init__(self, features: int) -> None:
        self.events = 0
        self.mean, self.variance = np.zeros(features), np.zeros(features)
        self.v = np.array([np.ones(features), np.cos(2.0 * np.arange(1, features + 1))])

    def judge(self, x: np.ndarray) -> np.ndarray:
        deviation = np.sqrt(self.variance) + 1e-12
        z = np.clip((x - self.mean) / deviation, -LIMIT, LIMIT) if self.events > MIN_EVENTS else 0.0 * x
        residual, rest = np.array([self._residual(z, k) for k in range(len(z))]), z.copy()
        for d in range(DIRECTIONS):
            w = self.v[d] / np.linalg.norm(self.v[d])
            projection = w @ rest
            # CCIPCA, Weng, Zhang and Hwang 2003, eq. 10: v += weight (x x'w - v)
            self.v[d] += max(1.0 / MEMORY, AMNESIA / (self.events + 20.0)) * (rest * projection - self.v[d])
            rest -= projection * w
        self._learn(x)
        return np.abs(residual)

    def _residual(self, z: np.ndarray, k: int) -> float:
        """Take the others' share of one direction after the other."""
        others, explained = np.arange(len(z)) != k, np.zeros(len(z))
        for v in self.v:
            w = v / np.linalg.norm(v)
            along = w[others] @ (z - explained)[others] / max(1.0 - w[k] ** 2, MIN_SHARE)
            explained = explained + w * along
        return float(z[k] - explained[k])

    def _learn(self, x: np.ndarray) -> None:
        n = self.events
        self.events += 1
        if n == 0:
            self.mean, self.variance = x.copy(), np.full(len(x), 1e-12)
            return
        weight, difference = max(1.0 / MEMORY, 1.0 / (n + 1.0)), x - self.mean
        furthest = MAX_DEVIATIONS * np.sqrt(self.variance) + LEAST if n > MIN_EVENTS else np.inf
        most = MAX_DEVIATIONS**2 * self.variance + LEAST**2 if n > WARM_UP_EVENTS else np.inf
        self.variance = self.variance + weight * (np.minimum(difference**2, most) - self.variance)
        self.mean = self.mean + weight * np.clip(difference, -furthest, furthest)


def coupled(rng: np.random.Generator, rows: int, features: int, noise: float = 0.3) -> np.ndarray:
    """Two hidden causes, in units from thousandths to millions, with noise."""
    causes = rng.standard_normal((rows, 2)) + np.sin(np.arange(rows) / 30)[:, None] * [2.0, -1.0]
    values = causes @ rng.uniform(0.5, 2.0, (2, features)) * [[1.0]] + noise * rng.standard_normal((rows, features))
    return values * 10.0 ** rng.uniform(-3, 6, features) + 10.0 ** rng.uniform(-3, 6, features)


@pytest.mark.parametrize("features", [2, 3, 7, 30])
def test_residuals_equal_a_numpy_reimplementation(features: int) -> None:
    values = coupled(np.random.default_rng(features), 1_500, features)
    values[900:905, 1] += 20 * values[:, 1].std()
    plain = Plain(features)

    found = residuals(values)
    wanted = np.array([plain.judge(x) for x in values])

    assert np.isnan(found[0]).all()  # nothing can be known of the first event
    np.testing.assert_allclose(found[1:], wanted[1:], rtol=1e-2, atol=1e-3)  # directions are float32
    assert (wanted[100:] > 1e-2).mean() > 0.9


@pytest.mark.parametrize("features", [2, 3, 8])
def test_what_the_others_let_expect_does_not_depend_on_the_feature_itself(features: int) -> None:
    values = coupled(np.random.default_rng(features), 400, features)
    expected = []
    for own in (0.0, 1.0, -30.0, 1e6):
        changed = values.copy()
        changed[-1, 1] += own * values[:, 1].std()
        expected.append(expectations(changed)[-1])

    for other in expected[1:]:
        np.testing.assert_allclose(other[1], expected[0][1], rtol=1e-5)
        assert not np.isclose(other[0], expected[0][0], rtol=1e-5)


def test_a_feature_does_not_explain_itself() -> None:
    """One that shares nothing with the others keeps all of its own deviation, however large a direction it is."""
    rng = np.random.default_rng(1)
    common = rng.standard_normal(4_000)
    values = np.stack([common, common, common, 3.0 * rng.standard_normal(4_000)], axis=1)
    values[:, :3] += 0.1 * rng.standard_normal((4_000, 3))

    found = residuals(values)[1_000:]

    assert np.median(found[:, 3]) > 0.5
    assert np.median(found[:, :3]) < 0.35


def test_a_feature_that_parts_from_the_others_has_the_largest_residual() -> None:
    rng = np.random.default_rng(2)
    values = coupled(rng, 3_000, 8, noise=0.1)
    values[2_900:2_910, 3] = values[100:110, 3]  # as usual as ever, but not now

    found = residuals(values)

    parted = found[2_900:2_910]
    assert (parted.argmax(axis=1) == 3).mean() >= 0.7
    assert np.median(parted[:, 3]) > 3 * np.quantile(found[1_000:2_900, 3], 0.99)


def test_a_missing_feature_has_no_residual_and_teaches_nothing() -> None:
    values = coupled(np.random.default_rng(3), 1_500, 6)
    holes = values.copy()
    holes[np.random.default_rng(4).random(values.shape) < 0.1] = np.nan

    found, full = residuals(holes), residuals(values)

    assert np.isnan(found[np.isnan(holes)]).all()
    assert np.nanmedian(found[600:]) < 2 * np.median(full[600:])


def test_residuals_are_nothing_before_mean_and_deviation_are_known() -> None:
    found = residuals(coupled(np.random.default_rng(5), 200, 5))

    assert not found[1 : MIN_EVENTS + 1].any()
    assert found[MIN_EVENTS + 1 :].any()


def test_they_do_not_depend_on_where_the_streams_lanes_lie() -> None:
    values = coupled(np.random.default_rng(6), 300, 4)

    np.testing.assert_array_equal(residuals(values), residuals(values, first_lane=11))


@pytest.mark.parametrize("wild", [1e30, -1e30, 65_535.0, 1e-300])
def test_a_wild_value_blinds_nothing(wild: float) -> None:
    rng = np.random.default_rng(7)
    values = np.sin(np.arange(2_000) / 40)[:, None] * np.arange(1, 6) + 0.05 * rng.standard_normal((2_000, 5))
    values[[700, 900, 901], 2] = wild
    values[1_900:1_905, 2] *= -1.0

    found = residuals(values)

    assert np.isfinite(found[1:]).all()
    assert (found[1_900:1_905].argmax(axis=1) == 2).all()


def test_moments_are_the_plain_mean_and_variance_at_first() -> None:
    values = np.random.default_rng(8).normal(5.0, 2.0, WARM_UP_EVENTS)
    record = np.zeros(1, LANE)["score"]["coupling"]
    for k, x in enumerate(values.tolist()):
        learn_moments(record[0], k, x, LEAST)

    assert record["mean"][0] == pytest.approx(values.mean(), rel=0.02)
    assert record["variance"][0] == pytest.approx(values.var(), rel=0.3)

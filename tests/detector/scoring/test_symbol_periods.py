"""Histograms and return periods of symbols against plain re-implementations that keep every value."""

import math
from collections.abc import Callable

import numpy as np
import pytest

from detector.scoring.symbol_periods import (
    BEYOND,
    GROWTH,
    HISTOGRAM,
    PEAK_GAP,
    PEAK_QUANTILE,
    REFRESH,
    RETURN,
    WIDTH,
    grow,
    learn,
    mass_above,
    quantile,
    return_period,
)

SAMPLES: dict[str, Callable[[np.random.Generator], np.ndarray]] = {
    "lognormal": lambda rng: rng.lognormal(3.0, 2.0, 6000),
    "normal": lambda rng: np.abs(rng.standard_normal(6000)),
    "half zeros": lambda rng: np.abs(rng.standard_normal(6000)) * (rng.random(6000) < 0.5),
    "tiny": lambda rng: rng.lognormal(-600.0, 1.0, 6000),
    "drifting": lambda rng: rng.lognormal(0.0, 1.0, 6000) * np.linspace(1, 1e4, 6000),
    "a huge value midway": lambda rng: np.insert(rng.lognormal(0.0, 1.0, 6000), 3000, 1e30),
}


def learnt(values: np.ndarray, growth: float) -> np.ndarray:
    histogram = np.zeros(1, HISTOGRAM)
    for x in values.tolist():
        grow(histogram[0], growth)
        learn(histogram[0], x)
    return histogram


def weights(count: int, growth: float) -> np.ndarray:
    """Weights of values in units of the last one's."""
    return growth ** np.arange(1 - count, 1, dtype=np.float64)


@pytest.mark.parametrize("growth", [1.0, GROWTH, 2 ** (1 / 500)], ids=["none", "slow", "fast"])
@pytest.mark.parametrize("kind", SAMPLES)
def test_a_quantile_equals_the_weighted_samples_to_half_a_bin(kind: str, growth: float) -> None:
    values = SAMPLES[kind](np.random.default_rng(1))
    histogram, weight = learnt(values, growth), weights(len(values), growth)
    order = np.argsort(values)
    share = np.cumsum(weight[order]) / weight.sum()

    for q in (0.9, 0.97, 0.99):
        wanted = values[order][np.searchsorted(share, q)]
        # the sample's own quantile is uncertain by some ranks on either side
        low, high = values[order][np.searchsorted(share, [q - 0.004, q + 0.004])]
        found = quantile(histogram[0], q)
        assert low * math.exp(-0.5 * WIDTH) <= found <= high * math.exp(0.5 * WIDTH), f"{q}: {found}, wanted {wanted}"


@pytest.mark.parametrize("growth", [1.0, GROWTH, 2 ** (1 / 500)], ids=["none", "slow", "fast"])
@pytest.mark.parametrize("kind", SAMPLES)
def test_mass_above_equals_the_weight_above_to_one_bin(kind: str, growth: float) -> None:
    values = SAMPLES[kind](np.random.default_rng(2))
    histogram, weight = learnt(values, growth), weights(len(values), growth)

    for q in (0.5, 0.9, 0.99, 0.999):
        x = np.quantile(values, q)
        if x == 0.0:
            continue
        found = mass_above(histogram[0], x)
        fewest = weight[values >= x * math.exp(1.1 * WIDTH)].sum()
        most = weight[values >= x * math.exp(-1.1 * WIDTH)].sum()
        assert fewest * 0.999 - 1e-6 <= found <= most * 1.001 + 1e-6


def test_mass_above_zero_is_everything_and_above_the_maximum_nothing() -> None:
    histogram = learnt(np.array([0.0, 1.0, 2.0, 4.0]), 1.0)

    assert mass_above(histogram[0], 0.0) == pytest.approx(4.0)
    assert mass_above(histogram[0], 0.5) == pytest.approx(3.0)
    assert mass_above(histogram[0], 8.0) == 0.0
    assert mass_above(np.zeros(1, HISTOGRAM)[0], 1.0) == 0.0


def test_a_histogram_of_zeros_has_quantile_zero_and_no_mass_above() -> None:
    histogram = learnt(np.zeros(100), GROWTH)

    assert quantile(histogram[0], 0.99) == 0.0
    assert mass_above(histogram[0], 1e-300) == 0.0


def test_a_values_last_bit_changes_the_quantile_little() -> None:
    """CPU and GPU differ in it."""
    values = np.random.default_rng(3).lognormal(0.0, 1.0, 3000)
    edges = values[0] * np.exp(WIDTH * np.arange(-8, 8))  # values on bins' own places and edges are the worst
    values = np.concatenate([values, np.repeat(edges, 40), np.repeat(edges * math.exp(0.5 * WIDTH), 40)])
    one, two = learnt(values, GROWTH), learnt(values * (1 + 1e-9), GROWTH)

    for q in np.linspace(0.5, 0.999, 200):
        assert quantile(two[0], q) == pytest.approx(quantile(one[0], q), rel=1e-5)
    for x in np.concatenate([edges, values[:200]]):
        assert mass_above(two[0], x * (1 + 1e-9)) == pytest.approx(mass_above(one[0], x), rel=1e-4, abs=1e-4)


def test_decay_never_overflows() -> None:
    """After 200 half-lives weights would be 1e60; only the last few hundred values may count."""
    rng = np.random.default_rng(4)
    growth = 2.0 ** (1 / 50)
    histogram = learnt(np.concatenate([rng.lognormal(5, 1, 5000), rng.lognormal(0, 1, 5000)]), growth)

    assert 1.0 <= histogram["weight"][0] <= 1e6
    assert quantile(histogram[0], 0.5) == pytest.approx(1.0, rel=0.5)
    assert mass_above(histogram[0], 1e-9) == pytest.approx(1 / (1 - 1 / growth), rel=1e-3)


# --- Return periods ---------------------------------------------------------------------------------------------------


class PlainReturnPeriod:
    """The same in few words: every severity and every peak is kept with its age."""

    def __init__(self) -> None:
        self.rows: list[float] = []
        self.peaks: list[tuple[int, float]] = []
        self.bound, self.peak, self.calm = 0.0, 0.0, 0

    def judge(self, severity: float) -> float:
        now = len(self.rows)
        common = -math.log10(1 - PEAK_QUANTILE)
        # both histograms weigh a value by its age in events at the time of asking
        rows = np.array(self.rows)
        weight = GROWTH ** (np.arange(now) - now + 1.0)
        result, mass = 0.0, weight.sum()
        if now and severity > self.bound > 0.0:
            sizes = np.array([size for _, size in self.peaks])
            ages = GROWTH ** (np.array([at for at, _ in self.peaks]) - now + 1.0)
            higher = float(ages[sizes >= severity].sum()) if len(sizes) else 0.0
            result = max(-math.log10(min((higher + 0.5) / mass, 1.0)), common)
            if higher == 0.0:
                result += BEYOND * math.log10(severity / self.bound)
        elif now:
            result = min(-math.log10(min((weight[rows >= severity].sum() + 0.5) / (mass + 0.5), 1.0)), common)
        if severity > self.bound > 0.0:
            self.peak, self.calm = max(self.peak, severity), 0
        elif self.peak > 0.0:
            self.calm += 1
            if self.calm > PEAK_GAP:
                self.peaks.append((now, self.peak))
                self.peak = 0.0
        self.rows.append(severity)
        if now % REFRESH == 0:
            order = np.argsort(self.rows)
            share = np.cumsum((GROWTH ** np.arange(now + 1.0))[order])
            self.bound = float(np.array(self.rows)[order][np.searchsorted(share, PEAK_QUANTILE * share[-1])])
        return result


def test_return_periods_equal_a_numpy_reimplementation() -> None:
    rng = np.random.default_rng(8)
    severity = rng.lognormal(0.0, 0.7, 4000)
    for first in (900, 1500, 1510, 2600, 3300):
        severity[first : first + rng.integers(1, 40)] *= 8.0
    severity[3700] = 500.0
    record, plain = np.zeros(1, RETURN), PlainReturnPeriod()

    found = np.array([return_period(record[0], x) for x in severity.tolist()])
    wanted = np.array([plain.judge(x) for x in severity.tolist()])

    difference = np.abs(found - wanted)[300:]  # a bin is 18 % wide: with few peaks known a rank more or less shows
    assert np.quantile(difference, 0.95) < 0.1
    assert np.quantile(difference, 0.999) < 0.6
    assert found[3700] == pytest.approx(wanted[3700], abs=0.1)


def test_return_periods_of_common_severities_follow_their_rank() -> None:
    severity = np.random.default_rng(9).random(4000)
    record = np.zeros(1, RETURN)

    found = np.array([return_period(record[0], x) for x in severity.tolist()])

    middle = (severity > 0.1) & (severity < 0.9) & (np.arange(4000) > 2000)
    np.testing.assert_allclose(found[middle], -np.log10(1 - severity[middle]), atol=0.1)
    assert found[middle].max() < -math.log10(1 - PEAK_QUANTILE)


def test_a_long_incident_counts_as_one_peak() -> None:
    """Or else two hundred events of an incident would make the next such incident look like an everyday thing."""

    def second(length: int) -> float:
        rng = np.random.default_rng(10)
        severity = rng.random(6000)
        severity[2000 : 2000 + length] = 10.0
        severity[5000] = 10.0
        record = np.zeros(1, RETURN)
        return [return_period(record[0], x) for x in severity.tolist()][5000]

    assert second(60) == pytest.approx(second(1), abs=0.1)
    assert second(1) > 3.0  # one such in 5,000 events


def test_unseen_severities_score_higher_the_further_out_they_are() -> None:
    base = np.random.default_rng(11).random(3000).tolist()

    def last(severity: float) -> float:
        record = np.zeros(1, RETURN)
        return [return_period(record[0], x) for x in [*base, severity]][-1]

    scores = [last(x) for x in (1.5, 3.0, 30.0, 1e6)]
    assert scores == sorted(set(scores))
    assert scores[2] - scores[1] == pytest.approx(BEYOND, abs=0.01)  # a decade farther


def test_a_stream_without_severities_has_no_return_period() -> None:
    record = np.zeros(1, RETURN)

    assert {return_period(record[0], 0.0) for _ in range(500)} == {0.0}

"""The synthetic series: finite, seeded, of the kinds and clocks that they claim."""

import numpy as np
import pytest

from training.prior.synthetic import EXTRA, IRREGULAR, ORDINARY, STEPS, WEEK, Series, make_series

SECOND = 1_000_000_000


@pytest.fixture(scope="module")
def series() -> Series:
    return make_series(np.random.default_rng(7), 600, 600, extra=EXTRA)


def only(name: str, count: int = 60, rows: int = 600, seed: int = 3) -> np.ndarray:
    return make_series(np.random.default_rng(seed), count, rows, irregular=0.0, extra={name: 1.0}).value


def test_the_same_seed_gives_the_same_series() -> None:
    first, again = (make_series(np.random.default_rng(11), 40, 200, extra=EXTRA) for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    other = make_series(np.random.default_rng(12), 40, 200, extra=EXTRA)
    assert not np.array_equal(first.value, other.value)


def test_synthetic_values_are_finite_and_times_increase(series: Series) -> None:
    assert np.isfinite(series.value).all()
    assert (np.diff(series.time, axis=1) >= 0).all()


def test_kinds_of_series_have_their_stated_shares() -> None:
    kind = make_series(np.random.default_rng(1), 4000, 2, extra=EXTRA).kind
    for name, share in {**EXTRA, ORDINARY: 1 - sum(EXTRA.values())}.items():
        assert (kind == name).mean() == pytest.approx(share, abs=0.02), name


def test_regular_series_keep_one_step_exactly_and_irregular_ones_do_not(series: Series) -> None:
    steps = np.diff(series.time, axis=1)
    even = (steps == steps[:, :1]).all(axis=1)
    assert even[~series.irregular].all()
    assert even[series.irregular].mean() < 0.1  # few missing rows may be none at all
    assert set(np.unique(steps[even][:, 0])) <= {int(step) * SECOND for step in STEPS}
    assert series.irregular.mean() == pytest.approx(IRREGULAR, abs=0.06)


def test_gaps_last_from_hours_to_a_week(series: Series) -> None:
    longest = np.diff(series.time, axis=1).max(axis=1)
    assert (longest > 6 * 3600 * SECOND).any()
    assert longest.max() < 4 * WEEK * SECOND


def test_series_start_between_2015_and_2025(series: Series) -> None:
    start = series.time[:, 0].astype("datetime64[ns]")
    assert start.min() >= np.datetime64("2015-01-01")
    assert start.max() < np.datetime64("2025-01-02")


def test_constants_take_at_most_two_values() -> None:
    assert max(len(np.unique(row)) for row in only("constant")) <= 2


def test_nearly_constant_series_mostly_repeat_their_last_value() -> None:
    assert (np.diff(only("nearly_constant"), axis=1) == 0).mean() > 0.9


def test_sparse_series_are_mostly_but_not_only_zero() -> None:
    value = only("sparse")
    assert (value == 0).mean() > 0.8
    assert (value != 0).any(axis=1).mean() > 0.8
    assert (value >= 0).all()


def test_counters_fall_only_at_a_reset_to_near_zero() -> None:
    value = only("counter")
    falls = np.diff(value, axis=1) < 0
    assert 0 < falls.mean() < 0.02
    after = value[:, 1:][falls]
    assert (after <= np.diff(value, axis=1).max()).all()


def test_only_the_default_kinds_are_generated_unless_asked() -> None:
    series = make_series(np.random.default_rng(2), 200, 50, irregular=0.0)
    assert set(series.kind) == {ORDINARY}
    assert not series.irregular.any()


def test_a_day_pattern_repeats_after_a_day() -> None:
    """Over many series, values a day apart agree more than values half a day apart."""
    series = make_series(np.random.default_rng(5), 2000, 300, irregular=0.0)
    hourly = np.diff(series.time[:, :2], axis=1)[:, 0] == 3600 * SECOND
    value = series.value[hourly]
    value = value - value.mean(axis=1, keepdims=True)
    a_day = (value[:, 24:] * value[:, :-24]).mean(axis=1) / value.var(axis=1)
    half_a_day = (value[:, 12:] * value[:, :-12]).mean(axis=1) / value.var(axis=1)
    assert a_day.mean() > half_a_day.mean() + 0.05


@pytest.mark.parametrize("rows", [1, 2, 50])
def test_short_series_can_be_generated(rows: int) -> None:
    assert np.isfinite(make_series(np.random.default_rng(0), 100, rows, extra=EXTRA).value).all()

"""A lane's errors against textbook forms: scipy's Student-t, running means written out, plain ranges."""

import math

import numpy as np
import pytest
from scipy import stats

from detector.scoring.batch import MEASURED
from detector.scoring.channels.forecast import (
    MIN_UNIT,
    RANGE_EVENTS,
    REACH,
    SLOW_SMOOTHING,
    SMOOTHING,
    Forecast,
    measure_errors,
    network_band,
)
from detector.scoring.lane import lane_score
from detector.scoring.student import BAND_DEVIATE
from detector.scoring.units import ERROR, FAR, HAIR, SLOW, SMOOTHED
from training.network.inputs import FRAME

MEAN, DEVIATION = 100.0, 10.0


def measured(
    values: np.ndarray,
    *,
    location: float | np.ndarray = 0.0,
    far: float | np.ndarray = 0.0,
    log_scale: float = 0.0,
    freedom: float = 4.0,
    horizon: int = 10,
    gaps: tuple[int, ...] = (),
) -> np.ndarray:
    """Measure a lane in a frame of mean 100 and deviation 10; forecasts are in its units."""
    count = len(values)
    out, record = np.zeros(count, MEASURED), np.zeros(1, lane_score([1, horizon]))
    out["sizes"] = math.nan
    frame = np.zeros(1, FRAME)
    frame["mean"], frame["deviation"] = MEAN, DEVIATION
    location, far = np.broadcast_to(location, count), np.broadcast_to(far, count)
    for k, x in enumerate(values.tolist()):
        record["events"], record["last"] = k, values[k - 1] if k else 0.0
        said = Forecast(float(location[k]), log_scale, freedom, float(far[k]))
        measure_errors(record[0], x, frame[0], said, horizon - 1, k in gaps, out[k])
    return out


def test_expected_value_error_and_surprise_follow_from_the_forecast() -> None:
    values = np.array([0.0, 1e6, 100.0, 112.0, 60.0])

    found = measured(values, location=0.5, log_scale=-0.7)[2:]

    np.testing.assert_allclose(found["expected"], MEAN + DEVIATION * math.sinh(0.5), rtol=1e-6)
    np.testing.assert_allclose(found["error"], values[2:] - found["expected"], rtol=1e-6)
    unit = np.arcsinh((values[2:] - MEAN) / DEVIATION)
    scale = math.exp(-0.7)
    np.testing.assert_allclose(found["surprise"], -stats.t.logpdf(unit, 4.0, loc=0.5, scale=scale), rtol=1e-9)
    np.testing.assert_allclose(found["tail"], -np.log10(2 * stats.t.sf(np.abs(unit - 0.5) / scale, 4.0)), rtol=0.02)


def test_the_networks_band_holds_99_percent_of_its_distribution() -> None:
    frame = np.zeros(1, FRAME)
    frame["mean"], frame["deviation"] = MEAN, DEVIATION
    output = np.array([0.3, 9.0, -1.0, 9.0, 8.0, 9.0], np.float32)  # of two horizons

    edges = np.arcsinh((np.array(network_band(frame[0], output, MEAN)) - MEAN) / DEVIATION)
    low, high = stats.t.cdf(edges, 8.0, loc=0.3, scale=math.exp(-1.0))
    assert high - low == pytest.approx(2 * stats.norm.cdf(BAND_DEVIATE) - 1, abs=1e-3)
    assert low == pytest.approx(1 - high)


def test_an_expected_value_stays_within_the_range_seen() -> None:
    values = np.array([95.0, 107.0, 100.0, 100.0])

    assert measured(values, location=6.0)["expected"][2:].tolist() == [107.0, 107.0]
    assert measured(values, location=-6.0)["expected"][2:].tolist() == [95.0, 95.0]


def test_three_errors_and_a_slow_one_are_measured() -> None:
    rng = np.random.default_rng(1)
    values = MEAN + rng.standard_normal(500)
    values[:2] = MEAN - 5.0, MEAN + 5.0  # so that the range is known at once
    far = 0.1 * rng.standard_normal(500)

    found = measured(values, far=far)

    error = found["error"]
    smoothed = np.zeros(500)
    slow, slow_errors = 0.0, np.full(500, math.nan)
    far_error = np.full(500, math.nan)
    for k in range(500):
        smoothed[k] = (smoothed[k - 1] if k else 0.0) * (1 - SMOOTHING) + SMOOTHING * error[k]
        if k >= 9:
            past = values[: k - 8]  # what was known as the forecast was made
            said = MEAN + DEVIATION * math.sinh(far[k - 9])
            low, high = (past[:-1].min(), past[:-1].max()) if k > 9 else (-math.inf, math.inf)
            far_error[k] = values[k] - min(max(said, low), high)
            slow = slow_errors[k] = slow + SLOW_SMOOTHING * (abs(far_error[k]) - slow)
    np.testing.assert_allclose(found["sizes"][:, ERROR], np.abs(error))
    np.testing.assert_allclose(found["sizes"][:, SMOOTHED], np.abs(smoothed), atol=1e-12)
    np.testing.assert_allclose(found["sizes"][:, FAR], np.abs(far_error), atol=1e-5)  # they wait as float32
    np.testing.assert_allclose(found["sizes"][:, SLOW], slow_errors, atol=1e-5)


@pytest.mark.parametrize("horizon", [2, 3, 20])
def test_a_far_forecast_is_scored_at_its_event(horizon: int) -> None:
    far = np.zeros(200)
    far[100] = 1.0
    values = MEAN + np.random.default_rng(2).uniform(-15, 15, 200)
    quiet = measured(values, horizon=horizon)["sizes"][:, FAR]

    loud = measured(values, far=far, horizon=horizon)["sizes"][:, FAR]

    assert np.flatnonzero(loud[horizon:] != quiet[horizon:]).tolist() == [100 + horizon - 1 - horizon]


def test_without_a_far_forecast_its_errors_are_not_known() -> None:
    found = measured(np.full(50, 101.0), horizon=1)["sizes"]

    assert np.isnan(found[:, [FAR, SLOW]]).all()
    assert not np.isnan(found[:, [ERROR, SMOOTHED]]).any()


def test_a_gap_makes_running_mean_and_waiting_forecasts_forgotten() -> None:
    """Until they have passed nothing is known of the far error: neither that it is large nor that there is none."""
    values = MEAN + np.random.default_rng(3).standard_normal(200)
    values[90:100] += 50.0

    found = measured(values, gaps=(100,))["sizes"]

    assert found[99, SMOOTHED] > 10.0
    assert found[100, SMOOTHED] == 0.0
    assert found[101, SMOOTHED] == pytest.approx(SMOOTHING * found[101, ERROR])
    assert np.isnan(found[100:110, FAR]).all()  # what was forecast at the gap's end was forecast before it
    assert np.isnan(found[100:110, SLOW]).all()
    assert not np.isnan(found[110:]).any(axis=0)[[ERROR, FAR, SLOW]].any()


def test_a_slow_rise_shows_in_the_far_error_first() -> None:
    """One step ahead the network follows it; nine steps ahead it does not know of it."""
    rng = np.random.default_rng(4)
    level = np.concatenate([np.zeros(400), np.linspace(0, 30, 60)])
    location = np.arcsinh(level / DEVIATION)

    sizes = measured(MEAN + level + rng.standard_normal(460), location=location, far=location)["sizes"]

    assert np.median(sizes[420:, FAR]) > 3 * np.median(sizes[420:, ERROR])


def test_what_waits_rounded_is_no_error_of_a_value_it_was_clipped_to() -> None:
    """No float32 is such a value: its rounding would be what the lane takes for a usual error."""
    values = np.full(300, MEAN + 0.1)
    values[::50] += 1.0
    sizes = measured(values, far=9.0)["sizes"][:, FAR]  # clipped to the highest value seen
    assert (sizes[150::50] == 0.0).all()


@pytest.mark.parametrize("wild", [65_535.0, -65_535.0, 1e30])
def test_a_wild_value_widens_the_range_by_three_of_it(wild: float) -> None:
    values = MEAN + np.random.default_rng(5).uniform(-1, 1, 1_000)
    values[500] = wild

    least = measured(values)["least"]

    assert least[500] == pytest.approx(0.02, rel=0.02)
    assert least[501:] == pytest.approx(MIN_UNIT * 2 * (1 + REACH), rel=0.02)


def test_a_range_is_that_of_the_last_one_to_two_times_4000_events() -> None:
    values = MEAN + np.random.default_rng(6).uniform(-1, 1, 3 * RANGE_EVENTS)
    values[100] = MEAN + 5.0

    least = measured(values)["least"]

    assert least[200] == pytest.approx(0.06, rel=0.05)
    assert least[2 * RANGE_EVENTS - 1] == pytest.approx(0.06, rel=0.05)
    assert least[2 * RANGE_EVENTS + 1] == pytest.approx(0.02, rel=0.05)


def test_the_last_bit_of_a_constant_is_nothing() -> None:
    values = np.full(100, MEAN)
    values[60] = np.nextafter(MEAN, 200.0)

    found = measured(values, log_scale=-12.0)

    assert not found["tail"][1:].any()
    assert (found["least"] >= HAIR * MEAN).all()
    assert (found["sizes"][:, ERROR] <= found["least"]).all()


def test_a_jump_back_to_the_mean_is_as_odd_as_the_network_says() -> None:
    """The hair is for what did not change; a value at the mean may yet be a surprise."""
    values = np.array([80.0, 120.0, 120.0, 100.0])

    assert measured(values, location=1.0, log_scale=-3.0)["tail"][3] > 3.0

"""From forecasts and values to scores: each piece by itself, and whole families on streams with known anomalies."""

import math

import numpy as np
import pytest
from scipy import stats

from detector.engine.engine import Engine, EngineSettings
from detector.scoring.batch import MEASURED, Forecasts, Numbers
from detector.scoring.calibration import UNIT_LIMIT, UNIT_WARMUP
from detector.scoring.judge import (
    BAND_WARMUP_DEVIATIONS,
    LANE_SCORE,
    MANY_SCORE,
    RANGE_EVENTS,
    SINGLE_LIMIT,
    _tail_probability,
    judge_many,
    lane_score,
    many_score,
    measure,
)
from detector.state.records import STREAM
from tests.streams import (
    Outcome,
    auc,
    clock,
    in_batches,
    numbered,
    run,
    seasonal,
    wide,
)
from training.network.horizons import HORIZONS
from training.network.inputs import FRAME
from training.network.shape import PARAMETERS_OF_T
from training.network.weights import Weights

WAIT = HORIZONS[1] - 1  # arrivals between the ten-step forecast and its event


def outcome_of(model: Weights, value: np.ndarray, **settings: object) -> Outcome:
    """Score one stream, value [rows, features], a row every five minutes."""
    events = numbered(wide("s", clock(len(value)), value))
    return run(Engine(model, EngineSettings(**settings)), in_batches(events, 2000))


# --- The pieces -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("nu", [1.5, 2.0, 3.7, 10.0, 60.0])
def test_the_tail_probability_equals_scipys_student_t(nu: float) -> None:
    log_beta = math.lgamma(0.5 * nu) + 0.5 * math.log(math.pi) - math.lgamma(0.5 * (nu + 1))

    for t in [0.0, 1e-9, 1e-3, 0.5, 1.0, 2.0, 10.0, 1e3, 1e6]:
        assert _tail_probability(t, nu, log_beta) == pytest.approx(2 * stats.t.sf(t, nu), rel=1e-4, abs=1e-12)


def one_lane(values: np.ndarray, many_row: int) -> Numbers:
    """Return events of one number each, all of the first lane."""
    rows, lane = np.arange(len(values) + 1), np.zeros(len(values), np.int64)
    return Numbers(rows, rows[:-1], lane, lane + many_row, lane, values)


def measured(values: np.ndarray, location: float, log_scale: float, nu: float, *, many: bool) -> np.ndarray:
    """Measure a lane whose forecasts all say the same, in a frame of mean 100, deviation 10, range 0..200."""
    count = len(values)
    outputs = np.zeros((count, PARAMETERS_OF_T * 2), np.float32)
    outputs[:, :2], outputs[:, 2], outputs[:, 4] = location, log_scale, nu
    frames = np.zeros(count, FRAME)
    frames["mean"], frames["deviation"], frames["low"], frames["high"] = 100.0, 10.0, 0.0, 200.0
    lanes, rows, out = np.zeros(1, LANE_SCORE), np.zeros(1, MANY_SCORE), np.zeros(count, MEASURED)
    forecasts = Forecasts(np.array(HORIZONS), frames, outputs)
    measure(lanes, rows, one_lane(values, 0 if many else -1), forecasts, 0, count, out)
    return out


@pytest.mark.parametrize("many", [False, True])
def test_expected_value_error_and_surprise_follow_from_the_forecast(many: bool) -> None:
    values = np.array([100.0, 112.0, 60.0, 1e6])

    found = measured(values, 0.5, -0.7, 4.0, many=many)

    np.testing.assert_allclose(found["expected"], 100 + 10 * math.sinh(0.5), rtol=1e-6)
    np.testing.assert_allclose(found["error"], values - found["expected"], rtol=1e-6)
    unit = np.minimum(np.arcsinh((values - 100) / 10), 6.0)
    wanted = -stats.t.logpdf(unit, 4.0, loc=0.5, scale=math.exp(-0.7))
    np.testing.assert_allclose(found["surprise"], wanted, rtol=1e-4)
    if not many:
        tail = -np.log10(2 * stats.t.sf(np.abs(unit - 0.5) / math.exp(-0.7), 4.0))
        np.testing.assert_allclose(found["tail"], tail, rtol=1e-3)


def test_an_expected_value_stays_within_the_lanes_range() -> None:
    assert measured(np.array([100.0]), 6.0, 0.0, 3.0, many=True)["expected"][0] == 200.0
    assert measured(np.array([100.0]), -6.0, 0.0, 3.0, many=True)["expected"][0] == 0.0


def test_the_band_is_the_forecasts_at_first_and_the_lanes_own_quantile_later() -> None:
    rng = np.random.default_rng(1)
    values = 100 + 2.0 * rng.standard_normal(3000)

    found = measured(values, 0.0, 0.0, 3.0, many=True)

    half = (found["upper"] - found["lower"]) / 2
    np.testing.assert_allclose(half[:UNIT_WARMUP], BAND_WARMUP_DEVIATIONS * 10)
    assert 2 * 2.2 < half[-1] < 2 * 3.2
    inside = (values >= found["lower"]) & (values <= found["upper"])
    assert 0.98 < inside[1000:].mean() < 0.998


def test_error_units_begin_after_a_warm_up_and_are_limited() -> None:
    values = 100 + np.random.default_rng(2).standard_normal(1000)
    values[[30, 900]] = 1e9

    for many in (False, True):
        units = measured(values, 0.0, 0.0, 3.0, many=many)["units"]
        assert not units[:UNIT_WARMUP].any()
        assert units[900] == UNIT_LIMIT


def test_a_slow_drift_shows_in_the_ten_step_forecast_only() -> None:
    """The third channel: errors of the forecast made nine arrivals before."""
    rng = np.random.default_rng(3)
    values = 100 + rng.standard_normal(1500)
    values[1400 : 1400 + WAIT] += 8.0

    units = measured(values, 0.0, 0.0, 3.0, many=True)["units"]

    assert units[1400 : 1400 + WAIT].min() > 2.0
    assert np.quantile(units[500:1400], 0.95) < 1.1


def test_each_long_horizon_forecast_is_scored_at_its_target_event() -> None:
    """Of horizons 3 and 20 each one's wild forecast, made at event 1000, shows 2 and 19 arrivals later, no sooner."""
    horizons, count = (1, 3, 20), 1100
    values = 100 + np.random.default_rng(5).standard_normal(count)
    outputs = np.zeros((count, PARAMETERS_OF_T * 3), np.float32)
    outputs[:, 6:] = 3.0
    outputs[1000, 1:3] = 1.5, -1.5
    frames = np.zeros(count, FRAME)
    frames["mean"], frames["deviation"], frames["low"], frames["high"] = 100.0, 10.0, 0.0, 200.0
    lanes, rows = np.zeros(1, lane_score(horizons)), np.zeros(1, many_score(horizons))
    out = np.zeros(count, MEASURED)

    measure(lanes, rows, one_lane(values, 0), Forecasts(np.array(horizons), frames, outputs), 0, count, out)

    loud = 500 + np.flatnonzero(out["units"][500:] > 4.0)
    assert loud.tolist() == [1002, 1019]
    assert out["slow_units"][1002] > 1.5 * out["slow_units"][1001]


@pytest.mark.parametrize("wild", [1e3, 1e12, 1e30])
def test_one_outlier_does_not_desensitise_a_lane(wild: float) -> None:
    """The least unit is a share of the lane's range, which no single value may own."""
    values = 100 + np.random.default_rng(4).standard_normal(4000)
    values[3900] = 120.0
    disturbed = values.copy()
    disturbed[2000] = wild

    for many in (False, True):
        units = run_lane(disturbed, many=many)["units"]
        assert units[2000] == UNIT_LIMIT
        assert units[3900] == pytest.approx(run_lane(values, many=many)["units"][3900], rel=0.2)


def test_a_range_stretched_by_outliers_recovers() -> None:
    values = 100 + np.random.default_rng(4).standard_normal(2 * RANGE_EVENTS + 5000)
    values[1000:1100:10] = 1e9
    values[[30_000, -100]] = 150.0

    units = run_lane(values, many=True)["units"]

    assert units[30_000] < 1.0
    assert units[-100] > 3.0


def run_lane(values: np.ndarray, *, many: bool) -> np.ndarray:
    """As `measured`, in the lane's real running range."""
    count = len(values)
    outputs = np.zeros((count, PARAMETERS_OF_T * 2), np.float32)
    outputs[:, 4] = 3.0
    frames = np.zeros(count, FRAME)
    frames["mean"], frames["deviation"] = 100.0, 10.0
    frames["low"] = np.minimum.accumulate(np.append(values[0], values[:-1]))
    frames["high"] = np.maximum.accumulate(np.append(values[0], values[:-1]))
    lanes, rows, out = np.zeros(1, LANE_SCORE), np.zeros(1, MANY_SCORE), np.zeros(count, MEASURED)
    forecasts = Forecasts(np.array(HORIZONS), frames, outputs)
    measure(lanes, rows, one_lane(values, 0 if many else -1), forecasts, 0, count, out)
    return out


# --- Contributions ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("features", [2, 3, 6, 25])
def test_contributions_identify_the_anomalous_feature_and_sum_to_one(model: Weights, features: int) -> None:
    rng = np.random.default_rng(features)
    value = seasonal(rng, clock(1000))[:, None] * rng.uniform(1, 100, features) + rng.standard_normal((1000, features))
    guilty = {700: 0, 800: features - 1, 900: features // 2}
    for row, feature in guilty.items():
        value[row, feature] += 400.0

    outcome = outcome_of(model, value)

    share = outcome.contribution.reshape(1000, features)
    total = share.sum(axis=1)
    assert np.all((np.abs(total - 1) < 1e-9) | (total == 0))
    assert (total[UNIT_WARMUP + 5 :] > 0).mean() > 0.99
    for row, feature in guilty.items():
        assert share[row].argmax() == feature
        assert share[row, feature] > 0.25  # a feature alone may say only so much: scoring.SINGLE_LIMIT
        assert outcome.score[row] > 2.0


def test_a_single_wild_features_weight_is_capped(model: Weights) -> None:
    rng = np.random.default_rng(6)
    value = rng.standard_normal((1500, 6))
    value[1200, 0] = 1e5
    value[1400, :4] = 1e5

    outcome = outcome_of(model, value)

    share = outcome.contribution.reshape(1500, 6)
    assert share[1200, 0] > 0.5
    assert outcome.score[1400] >= outcome.score[1200] > 2.0
    assert SINGLE_LIMIT < UNIT_LIMIT


# --- Whole families ---------------------------------------------------------------------------------------------------


def dead(value: np.ndarray, row: int, length: int) -> None:
    """A flat line at 0, as of a source that died. (One at a usual level is not seen: it is well predicted.)"""
    value[row : row + length] = 0.0


def level_shift(value: np.ndarray, row: int, length: int) -> None:
    value[row : row + length] += 2.5


def spike(value: np.ndarray, row: int, length: int) -> None:
    value[row] += 2.5


def dip(value: np.ndarray, row: int, length: int) -> None:
    value[row] -= 2.5


def wrong_phase(value: np.ndarray, row: int, length: int) -> None:
    """What is usual twelve hours later: every value is familiar, its time is not."""
    value[row : row + length] = value[row - 144 : row - 144 + length]


# kind, events it lasts, ranking that is asked of streams of one feature and of eight
KINDS = [
    (spike, 1, 0.97, 0.95),
    (dip, 1, 0.97, 0.95),
    (level_shift, 24, 0.9, 0.9),
    (wrong_phase, 24, 0.75, 0.8),
    (dead, 24, 0.85, 0.98),
]


@pytest.mark.parametrize("features", [1, 8])
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind[0].__name__)
def test_injected_anomalies_score_higher_than_normal_events(model: Weights, kind: tuple, features: int) -> None:
    """Noise 0.1 on a daily wave of amplitude 1. Each anomaly is judged by its highest score in its first events."""
    inject, length, *floors = kind
    rows, streams, engine = 12 * 288, 12, Engine(model)
    hit, normal = [], []
    for number in range(streams):
        rng = np.random.default_rng(number)
        value = np.stack([seasonal(rng, clock(rows)) for _ in range(features)], axis=1)
        at = [6 * 288 + int(rng.integers(288)) + 430 * k for k in range(4)]
        for row in at:
            for feature in range(0, features, 2):  # every other one takes part
                inject(value[:, feature], row, length)
        outcome = run(engine, in_batches(numbered(wide(f"s{number}", clock(rows), value)), 4000))
        near = np.zeros(rows, np.bool_)
        for row in at:
            near[row - 2 : row + length + 60] = True
            hit.append(outcome.score[row : row + length].max())
        calm = outcome.score[2 * 288 :][~near[2 * 288 :]]
        # as long a stretch of normal events is judged in the same way: by its highest
        calm = calm[: len(calm) // length * length].reshape(-1, length).max(axis=1)
        normal.append(calm)
    score = np.concatenate([hit, *normal])
    area = auc(score, np.arange(len(score)) < len(hit))

    floor = floors[features > 1]
    assert area > floor, f"{inject.__name__}, {features} features: AUC {area:.3f}, expected above {floor}"


@pytest.mark.parametrize(("features", "counts"), [(3, False), (4, True)])
def test_subspace_residuals_count_from_four_features_on(features: int, counts: bool) -> None:
    rng = np.random.default_rng(7)
    values = np.sin(np.arange(900) / 20)[:, None] * np.arange(1, features + 1) + 0.01 * rng.standard_normal(
        (900, features)
    )
    values[800, 0] *= -1.0
    s, many = np.zeros(1, STREAM), np.zeros(features, MANY_SCORE)
    s["lanes"] = s["capacity"] = features
    matrices, place = np.zeros(2 * features * features, np.float32), np.arange(features)
    contributions = np.zeros(900)
    for row, value in enumerate(values):
        parts = np.zeros(features, MEASURED)  # as if no forecast had erred
        judge_many(s[0], many, matrices, place, place, value, parts)
        s["events"] += 1
        contributions[row] = parts["contribution"].sum()

    assert (contributions[800] > 0) == counts
    assert counts or not contributions.any()

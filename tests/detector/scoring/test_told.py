"""Streams with known anomalies through `judge`: what is told, when and by which channel, and what is not."""

import numpy as np
import pytest

from detector.scoring.incidents import FIRES, PEAKS, REFRACTORY, RENEWS, RESOLVES, YOUNG, AlertRules
from tests.detector.scoring.support import (
    AT,
    DAY,
    HOUR,
    MINUTE,
    ROWS,
    SECOND,
    Judged,
    Streams,
    assert_same,
    calm,
    clocked,
    daily,
    judged,
    several,
)


def told(found: Judged, first: int = AT, length: int = 40) -> list[str]:
    """Return the channels of the alerts in a stretch."""
    return [channel for k, channel in found.channels() if first <= k < first + length]


# --- What is found ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [12.0, -12.0, 300.0])
def test_a_spike_is_told_at_once_by_the_forecast(size: float) -> None:
    value = calm()
    value[AT] += size

    found = judged(value)

    assert told(found, length=1) == ["forecast"]
    v = found.verdict[AT]
    assert v["observed"] == value[AT]
    assert (v["observed"] > v["upper"]) == (size > 0)
    assert v["expected"] == pytest.approx(value[AT] - size, abs=6.0)


def test_a_shift_that_lasts_is_one_incident_and_taken_as_normal() -> None:
    value = calm()
    value[AT:] += 15.0

    found = judged(value)

    change = found.verdict["change"]
    fires, ends = np.flatnonzero(change[AT:] == FIRES), AT + np.flatnonzero(np.isin(change[AT:], (RENEWS, RESOLVES)))
    assert fires[0] == 0
    assert found.verdict["accepted"][ends[0]]


def test_a_spike_resolves_as_the_old_level_is_back() -> None:
    value = calm()
    value[AT] += 30.0

    found = judged(value)

    resolves = AT + np.flatnonzero(found.verdict["change"][AT:] == RESOLVES)[0]
    assert resolves >= AT + REFRACTORY
    assert not found.verdict["accepted"][resolves]


def test_an_outage_that_begins_at_night_is_told() -> None:
    """A standstill at a value that is usual at its hour: the day that does not come is what is odd."""
    value = np.abs(calm() - 90.0)
    night = int(8.75 * 288)
    value[night : night + 250] = value[night - 1] + 0.01 * np.random.default_rng(2).standard_normal(250)

    assert set(told(judged(value), night, 250)) & {"level", "still", "forecast"}


def test_a_stuck_sensor_is_told_as_still_with_its_time() -> None:
    value = np.round(np.random.default_rng(2).normal(100.0, 1.0, ROWS), 3)
    value[AT : AT + 150] = value[AT]

    found = judged(value)

    still = [k for k, channel in found.channels() if channel == "still" and AT <= k < AT + 150]
    assert still
    v = found.verdict[still[0]]
    assert v["seconds"] == pytest.approx((still[0] - AT) * 300.0)
    assert v["usual_seconds"] < v["seconds"]


def test_a_burst_at_night_moves_the_level() -> None:
    """Within the day's range, and forecast by nobody at its hour."""
    value = calm(noise=0.5)
    night = int(8.6 * 288)  # the wave's lowest
    value[night : night + 60] += 8.0

    assert told(judged(value), night, 60)


def test_a_feature_that_parts_from_the_others_is_told_by_the_coupling() -> None:
    rng = np.random.default_rng(9)
    common = rng.standard_normal(ROWS)
    value = (common[:, None] + 0.2 * rng.standard_normal((ROWS, 5))) * [1.0, 20.0, 3.0, 0.5, 7.0]
    value[AT : AT + 20, 2] = value[100:120, 2]  # as usual as ever, and none of the others' doing

    found = judged(value)

    assert "coupling" in told(found)
    k = next(k for k, channel in found.channels() if channel == "coupling" and k >= AT)
    assert found.feature[found.verdict["lead"][k]] == 2
    v = found.verdict[k]
    assert v["observed"] == value[k, 2]
    assert abs(v["expected"] - 3.0 * common[k]) < 0.6 * abs(v["observed"] - 3.0 * common[k])  # nearer to the others'


def test_several_features_at_once_are_one_alert() -> None:
    value = several()
    value[AT : AT + 5] += 6 * value.std(axis=0)

    assert len(told(judged(value))) in (1, 2)  # and its peak
    assert np.sum(judged(value).verdict["change"][AT : AT + 40] == FIRES) == 1


@pytest.mark.parametrize("step", [SECOND, 10 * SECOND, MINUTE])
def test_a_fast_stream_can_be_told_of(step: int) -> None:
    """No ceiling: the threshold rises with the rate, and so does what a large surprise scores."""
    rng = np.random.default_rng(3)
    value = 50.0 + rng.standard_normal(6_000)
    value[5_000:5_003] += 40.0

    assert 5_000 in judged(value, step=step).alerts


# --- What is not told -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("features", [1, 4])
@pytest.mark.parametrize("step", [10 * SECOND, 5 * MINUTE])
def test_clean_streams_keep_to_their_budget(features: int, step: int) -> None:
    """Twice over all streams, wide: three a week each."""
    rows, alerts = 4_000, 0
    for seed in range(8):
        value = several(seed, features, rows)
        found = judged(value, step=step)
        alerts += sum(k > DAY // step for k in found.alerts) if step > MINUTE else len(found.alerts)

    weeks = 8 * rows * step / (7 * DAY)
    assert alerts <= 2 * max(3.0 * weeks, 3.0)


def test_a_rounding_difference_of_one_ulp_is_nothing() -> None:
    for constant in (7.25, 0.1, 1e9):
        value = np.full(1_500, constant)
        value[700::91] = np.nextafter(constant, np.inf)

        assert judged(value).alerts == []


@pytest.mark.parametrize("wild", [65_535.0, -65_535.0, 1e30, -1e308, np.inf])
def test_a_wild_value_blinds_nothing_that_comes_after(wild: float) -> None:
    value = calm()
    value[1_500] = wild
    value[AT] += 30.0

    found = judged(value)

    assert 1_500 in found.alerts
    assert told(found, length=1) == ["forecast"]
    for name in ("score", "threshold", "rank", "surprise"):
        assert np.isfinite(found.verdict[name]).all()


@pytest.mark.parametrize("pause", [6 * HOUR, 2 * DAY, 30 * DAY + 5 * HOUR])
def test_a_gaps_end_is_no_alert(pause: int) -> None:
    """Whatever the hour at which the stream is back."""
    for seed in range(4):
        time = clocked(ROWS)
        time[AT:] += pause
        value = daily(np.random.default_rng(seed), time)
        found = judged(value, time=time)

        assert AT not in found.alerts
        assert found.verdict["score"][AT] < found.verdict["threshold"][AT]


def test_but_a_value_out_of_the_range_at_a_gaps_end_is() -> None:
    time = clocked(ROWS)
    time[AT:] += 2 * DAY
    value = daily(np.random.default_rng(1), time)
    value[AT] = 160.0

    assert told(judged(value, time=time), length=1) == ["novel"]


def test_a_gaps_end_teaches_no_unit_and_no_return_period() -> None:
    time = clocked(2_001)
    time[2_000:] += 3 * DAY
    value = daily(np.random.default_rng(1), time)
    streams = Streams(1)
    streams.step((time[:2_000], value[:2_000, None]))
    periods, units = streams.streams["score"]["periods"].copy(), streams.lanes["score"]["units"].copy()

    streams.step((time[2_000:], value[2_000:, None]))

    assert_same(streams.streams["score"]["periods"], periods)
    assert_same(streams.lanes["score"]["units"], units)


def test_a_peak_is_told_once_while_it_lasts() -> None:
    value = calm(noise=0.3)
    value[AT : AT + 12] += np.where(np.arange(12) % 2, 20.0, -20.0)

    changes = judged(value).verdict["change"][AT : AT + 12]

    assert (changes == FIRES).sum() == 1
    assert (changes == PEAKS).sum() <= 2


def test_a_stray_feature_does_not_restart_the_others() -> None:
    """One that comes once a day: the stream remains one of one feature, with its units and its past."""
    value = np.column_stack([calm(), np.full(ROWS, np.nan)])
    alone = judged(value[:, :1])
    stray = value.copy()
    stray[288::288, 1] = 3.0
    stray[AT, 0] += 30.0

    found = judged(stray)

    before = np.arange(ROWS) < AT
    difference = np.abs(found.verdict["score"] - alone.verdict["score"])[before]
    assert (difference > 0.05).mean() < 0.01
    assert not found.verdict["warming"][300:].any()
    np.testing.assert_array_equal(found.verdict["threshold"], alone.verdict["threshold"])
    assert AT in found.alerts


def test_a_feature_that_ends_does_not_restart_the_others() -> None:
    value = several(features=3)
    value[1_200:, 2] = np.nan
    value[AT : AT + 3, 0] += 30 * value[:, 0].std()

    found = judged(value)

    assert AT in found.alerts
    assert not [k for k in found.alerts if 1_200 <= k < 1_260]


# --- Youth ------------------------------------------------------------------------------------------------------------


def test_a_young_stream_tells_what_is_large_and_holds_back_what_is_slight() -> None:
    value = 50.0 + np.random.default_rng(6).standard_normal(400)
    value[120] += 30.0

    found = judged(value)

    assert 120 in found.alerts
    threshold = found.verdict["threshold"]
    assert threshold[120] > threshold[399] > 0.0
    slight = found.verdict["held_back"] == YOUNG
    assert (found.verdict["score"][slight] <= threshold[slight]).all()


def test_features_that_rise_together_as_the_warm_up_ends_are_no_alert() -> None:
    """Counts before their first morning: each feature alone is usual, and nothing is known of their sum."""
    time = clocked(130)
    rate = 50.0 * np.clip(0.5 - 0.5 * np.cos(2 * np.pi * (time % DAY) / DAY), 0.01, 1.0)

    for seed in range(3):
        value = np.random.default_rng(seed).poisson(np.repeat(rate[:, None], 12, axis=1)).astype(float)
        assert judged(value).alerts == []


def test_the_first_day_stays_within_three_budgets() -> None:
    for step, rows in ((MINUTE, 1_440), (5 * MINUTE, 288)):
        alerts = sum(len(judged(several(seed, 1, rows), step=step).alerts) for seed in range(12))
        assert alerts <= 3 * 12 * 3 / 7 + 3


def test_scores_of_the_warm_up_are_marked() -> None:
    warming = judged(calm(rows=200)).verdict["warming"]

    assert warming[:59].all()
    assert not warming[62:].any()


def test_a_fixed_threshold_is_the_operators_own() -> None:
    found = judged(calm(rows=300), rules=AlertRules(fixed_threshold=2.0))

    assert set(found.verdict["threshold"].tolist()) == {2.0}
    assert not found.verdict["held_back"].any()

"""The usual level of each hour against a plain one that keeps every day."""

import math

import numpy as np
import pytest

from detector.scoring.batch import MEASURED
from detector.scoring.channels.level import (
    BETTER,
    HOURS,
    LEVEL_STATE,
    SMOOTHING,
    excuse_changed_clock,
    measure_level,
)
from detector.scoring.units import LEVEL
from tests.detector.scoring.support import DAY, HOUR, MIDNIGHT, MINUTE, clocked, judged
from training.network.profile import LEAST_WEIGHT

STORED = 1.0 / 2048.0  # of the range of usual levels: two of their steps


def measured(time: np.ndarray, value: np.ndarray) -> np.ndarray:
    """Return differences and usuals [events, 2]."""
    record, clocks = np.zeros(1, LEVEL_STATE), np.zeros(3)
    pairs = zip(time.tolist(), value.tolist(), strict=True)
    return np.array([measure_level(record[0], t, x, clocks) for t, x in pairs])


def excused(time: np.ndarray, value: np.ndarray) -> np.ndarray:
    """Return whether a change of the clock explains each event's difference [events]."""
    record, row = np.zeros(1, LEVEL_STATE), np.zeros(1, MEASURED)
    found = []
    for t, x in zip(time.tolist(), value.tolist(), strict=True):
        row["levelled"] = True
        measure_level(record[0], t, x, row["clocks"][0])
        excuse_changed_clock(row, np.zeros(1, np.int64))
        found.append(not row["levelled"][0])
    return np.array(found)


def plain(time: np.ndarray, value: np.ndarray) -> np.ndarray:
    hour_of = time // HOUR
    usual, days, difference = np.full(HOURS, math.nan), np.zeros(HOURS), 0.0
    found = np.full((len(time), 2), math.nan)
    for k, (t, hour) in enumerate(zip(time.tolist(), hour_of.tolist(), strict=True)):
        if k and hour_of[k - 1] != hour:
            over = hour_of[k - 1]
            mean, slot = value[:k][hour_of[:k] == over].mean(), over % HOURS
            days[slot] += 1
            weight = max(LEAST_WEIGHT, 1 / days[slot])
            usual[slot] = mean if days[slot] == 1 else (1 - weight) * usual[slot] + weight * mean
        middles = [(hour + d + 0.5) * HOUR for d in (-1, 0, 1)]
        now = float(np.interp(t, middles, [usual[(hour + d) % HOURS] for d in (-1, 0, 1)]))
        if not math.isnan(now):
            difference += SMOOTHING * (value[k] - now - difference)
            found[k] = difference, now
    return found


@pytest.mark.parametrize("step", [MINUTE * 7, HOUR, 3 * HOUR])
def test_the_usual_is_each_hours_own_mean_interpolated(step: int) -> None:
    """But at the very change of an hour, where the hour that is just over is not in yet."""
    rng = np.random.default_rng(1)
    time = clocked(6 * DAY // step, step) + 13
    value = 50.0 + 20.0 * np.sin(2 * np.pi * time / DAY) + rng.standard_normal(len(time))

    found, wanted = measured(time, value), plain(time, value)

    same_hour = np.append(False, np.diff(time // HOUR) == 0)
    if same_hour.any():
        np.testing.assert_allclose(found[same_hour, 1], wanted[same_hour, 1], atol=45.0 * STORED)
    assert np.isnan(found[time < MIDNIGHT + DAY - HOUR]).all()
    known = ~np.isnan(found[:, 0])
    assert known.any() == (step <= HOUR)  # of every third hour the neighbours are never known
    assert (np.abs(found[known, 0]) < 25.0).all()


def test_an_hour_joins_the_usual_when_it_is_over() -> None:
    time = clocked(48 * 12)
    value = np.where(time // HOUR % HOURS < 12, 10.0, 30.0)
    disturbed = value.copy()
    disturbed[24 * 12 + 12 : 24 * 12 + 24] = 500.0  # the second day's hour 1

    found = measured(time, disturbed)[:, 1]

    hour = time // HOUR
    assert found[hour == MIDNIGHT // HOUR + 25] == pytest.approx(10.0)
    half = slice(24 * 12 + 24 + 1, 24 * 12 + 24 + 6)  # the first half of hour 2 leans on hour 1
    assert (found[half] > 15.0).all()


def test_the_level_of_late_is_a_running_mean_of_the_differences() -> None:
    time = clocked(3 * 288)
    value = np.full(len(time), 20.0)
    value[700:] += 8.0

    difference = measured(time, value)[:, 0]

    assert difference[699] == pytest.approx(0.0, abs=1e-9)
    np.testing.assert_allclose(difference[700:708], 8.0 * (1 - (1 - SMOOTHING) ** np.arange(1, 9)), rtol=1e-6)


def test_what_is_usual_now_follows_a_lasting_change_in_days() -> None:
    time = clocked(8 * 288)
    value = np.where(time < MIDNIGHT + 3 * DAY, 10.0, 20.0)

    usual = measured(time, value)[:, 1].reshape(8, 288)[:, 102]  # half past eight: no other hour joins in

    np.testing.assert_allclose(usual[3:], 20.0 - 10.0 * (1 - LEAST_WEIGHT) ** np.arange(5), atol=10.0 * STORED)


def test_hours_without_events_stay_as_they_were() -> None:
    """A night without data teaches nothing of the night."""
    time = clocked(4 * 288)
    time = time[(time // HOUR % HOURS >= 6) | (time < MIDNIGHT + DAY)]
    value = np.where(time // HOUR % HOURS >= 6, 40.0, 5.0)
    night = MIDNIGHT + 4 * DAY + 3 * HOUR + HOUR // 2

    found = measured(np.append(time, night), np.append(value, 5.0))

    assert found[-1, 1] == pytest.approx(5.0)


def test_times_before_1970_have_hours_too() -> None:
    time = clocked(3 * 288) - 40_000 * DAY
    value = 50.0 + 20.0 * np.sin(2 * np.pi * time / DAY)

    found = measured(time, value)[600:]

    assert np.abs(found).max() < 75.0
    assert np.abs(found[:, 0]).max() < 2.0


WEEK = np.array([50.0, 50.0, 50.0, 50.0, 50.0, 20.0, 20.0])  # by day, Monday first


def test_weekends_have_a_usual_of_their_own_from_the_second_one_on() -> None:
    """And working days one that no weekend is in."""
    time = clocked(21 * 24, HOUR)
    value = WEEK[(time - MIDNIGHT) // DAY % 7] + np.random.default_rng(1).standard_normal(len(time))

    missed = np.abs(value - measured(time, value)[:, 1]).reshape(21, 24)[:, 3:21].max(axis=1)

    assert missed[5] > 25.0  # the first Saturday: no past tells it from any day
    assert missed[[12, 13, 19, 20]].max() < 8.0
    assert missed[[14, 15]].max() < 8.0  # a Monday after two weekends


def test_days_that_are_all_alike_keep_the_mean_of_all() -> None:
    time = clocked(28 * 24, HOUR)
    value = 50.0 + 20.0 * np.sin(2 * np.pi * time / DAY) + np.random.default_rng(1).standard_normal(len(time))

    record = np.zeros(1, LEVEL_STATE)
    for t, x in zip(time.tolist(), value.tolist(), strict=True):
        measure_level(record[0], t, x, np.zeros(3))

    assert record["missed"][0, 1] > BETTER * record["missed"][0, 0]


@pytest.mark.parametrize("hours", [-1, 1])
def test_a_rhythm_that_is_an_hour_off_is_a_changed_clock(hours: int) -> None:
    time, change = clocked(8 * 288), MIDNIGHT + 6 * DAY
    rng = np.random.default_rng(1)
    hour = (time + np.where(time >= change, hours * HOUR, 0)) % DAY / HOUR
    value = np.where((hour >= 8) & (hour < 18), 100.0, 20.0) + rng.standard_normal(len(time))

    first_day = (time >= change) & (time < change + DAY)
    difference, explained = measured(time, value)[:, 0], excused(time, value)

    assert np.abs(difference[first_day]).max() > 30.0
    assert explained[first_day & (np.abs(difference) > 30.0)].all()


@pytest.mark.parametrize("features", [1, 3])
def test_a_changed_clock_is_no_news_to_streams_whose_features_all_follow_it(features: int) -> None:
    time, change = clocked(12 * 288), MIDNIGHT + 9 * DAY
    rng = np.random.default_rng(1)
    hour = (time + np.where(time >= change, HOUR, 0)) % DAY / HOUR
    open_ = (np.clip((hour - 8.0) / 0.5, 0.0, 1.0) - np.clip((hour - 18.0) / 0.5, 0.0, 1.0))[:, None]
    value = 20.0 + 80.0 * open_ + 3.0 * rng.standard_normal((len(time), features))

    assert not [k for k, channel in judged(value).channels() if time[k] >= change and channel == "level"]


@pytest.mark.parametrize(
    ("before", "after", "changed"),
    [
        ([0.2, 0.3, 0.5], [6.0, 8.0, 0.5], True),
        ([6.0, 8.0, 0.5], [0.2, 0.3, 0.5], True),
        ([0.2, 0.3, 0.5], [math.nan] * 3, True),
        ([0.2, 3.0, 0.5], [6.0, 8.0, 0.5], False),  # the second is elsewhere
        ([0.2, 6.0, 0.5], [6.0, 0.3, 0.5], False),  # each by another clock
        ([0.2, 0.3, 2.0], [6.0, 8.0, 2.0], False),  # the third kept this hour
        ([math.nan] * 3, [math.nan] * 3, False),
    ],
)
def test_a_changed_clock_is_that_of_all_features(before: list[float], after: list[float], changed: bool) -> None:
    measured = np.zeros(3, MEASURED)
    measured["levelled"] = True
    measured["units"][:, LEVEL] = 3.0, 4.0, 0.5
    measured["clocks"] = np.transpose([[3.0, 4.0, 0.5], before, after])

    excuse_changed_clock(measured, np.arange(3))

    assert measured["units"][:, LEVEL].tolist() == ([0.0] * 3 if changed else [3.0, 4.0, 0.5])
    assert measured["levelled"].tolist() == [not changed] * 3


def test_what_no_hour_nearby_explains_is_no_changed_clock() -> None:
    time = clocked(8 * 288)
    value = np.where((time % DAY >= 8 * HOUR) & (time % DAY < 18 * HOUR), 100.0, 20.0)
    stuck = (time >= MIDNIGHT + 6 * DAY + 6 * HOUR) & (time < MIDNIGHT + 6 * DAY + 16 * HOUR)
    plain_days, value = value, np.where(stuck, 20.0, value)  # the day does not begin

    later = stuck & (time % DAY >= 10 * HOUR)  # for an hour it may have begun an hour late
    assert not excused(time, value)[later].any()
    shifted = (time >= MIDNIGHT + 6 * DAY + 10 * HOUR) & (time < MIDNIGHT + 6 * DAY + 15 * HOUR)
    assert excused(time, plain_days + 40.0 * shifted)[shifted].mean() < 0.1  # by chance, while the means cross

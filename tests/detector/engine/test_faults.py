"""Faults that a former score missed or told wrongly, each a small made stream with the one right answer.

Each is made with several seeds: a stream may by chance hold a value so rare that its budget allows an alert, so what is
told besides is counted over all of them.
"""

from collections.abc import Callable

import numpy as np
import pytest

from connectors.batches import Alert
from detector.scoring.incidents import AlertRules
from tests.detector.engine.support import fired, scored
from tests.streams import DAY, HOUR, MINUTE, START, WEEK, Float64, Int64, Outcome, clock, wide
from training.network.weights import Weights

SECOND = MINUTE // 60
MIDNIGHT = START // DAY * DAY
SEEDS = range(4)
BUDGET = AlertRules().alerts_per_stream_per_week


def at(rows: int, step: int) -> Int64:
    return clock(rows, step, MIDNIGHT)


def rate_by_day(time: Int64, noon: float) -> Float64:
    return noon * np.clip(0.5 - 0.5 * np.cos(2 * np.pi * (time % DAY) / DAY), 0.01, 1.0)


def judged(model: Weights, time: Int64, value: Float64) -> Outcome:
    return scored(model, wide("s", time, value.reshape(len(value), -1)))


def told(outcome: Outcome, since: int, until: int) -> list[Alert]:
    """Return the alerts that began in [since, until), in ns."""
    return [alert for alert in fired(outcome) if since <= alert.started_at < until]


def chance(budget_weeks: float) -> float:
    """Return how many alerts a clean stretch of streams may have: twice the budget, and one more."""
    return 2 * BUDGET * budget_weeks + 1


def test_an_outage_that_begins_at_night_is_told_once_before_noon(model: Weights) -> None:
    """Counts fall to nothing at 01:00, where there are hardly any, and stay there for two days."""
    time = at(18 * 288, 5 * MINUTE)
    begin, end = MIDNIGHT + 15 * DAY + HOUR, MIDNIGHT + 17 * DAY + HOUR
    for seed in SEEDS:
        value = np.random.default_rng(seed).poisson(rate_by_day(time, 200.0)).astype(float)
        value[(time >= begin) & (time < end)] = 0.0

        alerts = told(judged(model, time, value), begin, end)

        assert len(alerts) == 1, [alert.summary for alert in alerts]
        assert alerts[0].started_at < begin + 11 * HOUR
        assert alerts[0].channel in {"still", "level"}


def test_a_counter_that_stands_still_for_hours_is_told_once(model: Weights) -> None:
    time = at(10 * 288, 5 * MINUTE)
    stuck = slice(8 * 288 + 120, 8 * 288 + 120 + 48)
    for seed in SEEDS:
        growth = np.random.default_rng(seed).poisson(40.0, len(time))
        growth[stuck] = 0

        alerts = told(judged(model, time, np.cumsum(growth).astype(float)), int(time[stuck][0]), int(time[stuck][-1]))

        assert len(alerts) == 1
        assert alerts[0].started_at < time[stuck][0] + 2 * HOUR
        assert alerts[0].channel in {"still", "novel"}  # the latter: forecasts had always been off by some growth


def test_a_low_rate_that_stops_is_told_once_within_three_hours(model: Weights) -> None:
    time = at(6 * 1440, MINUTE)
    begin = MIDNIGHT + 5 * DAY
    for seed in SEEDS:
        value = np.random.default_rng(seed).poisson(5.0, len(time)).astype(float)
        value[time >= begin] = 0.0

        alerts = told(judged(model, time, value), begin, begin + DAY)

        assert len(alerts) == 1, [alert.summary for alert in alerts]
        assert alerts[0].started_at < begin + 3 * HOUR


@pytest.mark.parametrize("wild", [65_535.0, -1.0])
def test_a_code_for_no_value_is_told_and_blinds_nothing(model: Weights, wild: float) -> None:
    """A percentage of about 50, and thousands of rows later half an hour at 100."""
    time = at(6_000, MINUTE)
    for seed in SEEDS:
        value = np.clip(np.random.default_rng(seed).normal(50.0, 5.0, len(time)), 0.0, 100.0)
        value[3_000] = wild
        value[5_000:5_030] = 100.0

        outcome = judged(model, time, value)

        assert outcome.alert[3_000]
        assert outcome.alert[5_000]
        assert len(told(outcome, int(time[5_000]), int(time[5_100]))) == 1


@pytest.mark.parametrize("features", [1, 2])
def test_at_an_event_a_second_what_is_large_is_told_at_once(model: Weights, features: int) -> None:
    time = at(20_200, SECOND)
    for seed in SEEDS:
        value = np.random.default_rng(seed).normal(10.0, 1.0, (len(time), features))
        value[20_000:20_020] += 1_000.0

        outcome = judged(model, time, value)

        assert outcome.alert[20_000]
        assert [alert.severity for alert in fired(outcome) if alert.started_at >= time[20_000]] == ["critical"]


def test_the_same_number_by_another_sum_is_nothing(model: Weights) -> None:
    value = np.full(3_000, 0.3)
    value[2_000] = 0.1 + 0.2

    outcome = judged(model, at(3_000, MINUTE), value)

    assert fired(outcome) == []
    assert outcome.score[2_000] < 1.0


def test_a_return_after_a_gap_of_six_hours_is_no_alert(model: Weights) -> None:
    time = at(9_000, MINUTE)
    time[7_300:] += 6 * HOUR
    others = 0
    for seed in SEEDS:
        noise = np.random.default_rng(seed).normal(0.0, 3.0, len(time))
        outcome = judged(model, time, 100.0 + 30.0 * np.sin(2 * np.pi * time / DAY) + noise)

        back = int(time[7_300])
        assert told(outcome, back, back + 3 * HOUR) == []
        others += len(fired(outcome))
    assert others <= chance(len(SEEDS) * 9_000 * MINUTE / WEEK)


def test_of_two_features_the_stuck_one_is_told_within_a_hundred_rows_by_name(model: Weights) -> None:
    time = at(5_500, MINUTE)
    for seed in SEEDS:
        value = np.random.default_rng(seed).normal(50.0, 1.0, (len(time), 2))
        value[4_500:, 0] = value[4_500, 0]

        alerts = told(judged(model, time, value), int(time[4_500]), int(time[-1]))

        assert alerts[0].started_at <= time[4_600]
        assert (alerts[0].channel, alerts[0].feature) == ("still", "f0")
        assert alerts[0].contributions["f0"] == pytest.approx(1.0)


def test_of_several_features_one_that_drifts_is_told_by_name(model: Weights) -> None:
    """So slowly that no forecast is far off: the level of its hour is another."""
    time = at(12 * 288, 5 * MINUTE)
    wave = 10.0 * np.sin(2 * np.pi * time / DAY)
    begin = 9 * 288
    for seed in SEEDS:
        value = 100.0 + wave[:, None] + np.random.default_rng(seed).standard_normal((len(time), 3))
        value[begin:, 1] += 20.0 * np.clip(np.arange(len(time) - begin) / 500.0, 0.0, 1.0)

        alerts = told(judged(model, time, value), int(time[begin]), int(time[begin + 800]))

        assert "f1" in {alert.feature for alert in alerts if alert.channel in {"level", "coupling"}}, seed


def test_a_field_that_came_once_leaves_the_other_alone(model: Weights) -> None:
    time = at(2_200, MINUTE)
    for seed in SEEDS:
        value = np.column_stack([np.random.default_rng(seed).normal(10.0, 1.0, len(time)), np.full(len(time), np.nan)])
        value[2_000, 1] = 7.0
        value[2_050:2_055, 0] += 30.0

        outcome = judged(model, time, value)

        assert not outcome.warming[100:].any()
        assert len(told(outcome, int(time[2_050]), int(time[2_055]))) == 1


@pytest.mark.parametrize(("step", "rows"), [(MINUTE, 2_880), (5 * MINUTE, 576)])
def test_a_new_stream_speaks_after_an_hour_and_does_not_flood_its_first_day(
    model: Weights, step: int, rows: int
) -> None:
    """What is large is told from event 61 on; of clean streams the first day holds three budgets at most."""
    first_day, early, streams = 0, 0, range(12)
    time = at(rows, step)
    kinds: list[Callable[[np.random.Generator], Float64]] = [
        lambda rng: rng.normal(50.0, 1.0, rows),
        lambda rng: 100.0 + 5.0 * np.sin(2 * np.pi * time / DAY) + rng.standard_normal(rows),
        lambda rng: rng.poisson(5.0, rows).astype(float),
    ]
    for seed in streams:
        value = kinds[seed % len(kinds)](np.random.default_rng(seed))
        first_day += len(told(judged(model, time, value), MIDNIGHT, MIDNIGHT + DAY))
        if seed % len(kinds) == 0:
            value[61] += 12.0
            early += judged(model, time, value).alert[61]
    assert early >= len(streams) // len(kinds) - 1
    assert first_day <= 3 * BUDGET * len(streams) * DAY / WEEK

"""What comes again: how often, whether by habit, and what is not the same."""

import math

import numpy as np
import pytest

from detector.scoring.recurrence import ALIKE, DOUBT, KINDS, MOST, RECURRENCE, WAYS, recurring
from tests.detector.scoring.support import DAY, HOUR, MIDNIGHT, MINUTE, SECOND, clocked, judged

STEP = 5 * MINUTE
LOW, HIGH, LEVEL = range(WAYS)
A_DAY = DAY // STEP


class Memory:
    """A stream's memory, with an event every five minutes."""

    def __init__(self) -> None:
        self.record = np.zeros(1, RECURRENCE)

    def met(self, time: int, size: float = 50.0, key: int = HIGH) -> tuple[float, bool]:
        return recurring(self.record[0], key, size, time, STEP * 1e-9)


def test_the_first_of_its_kind_may_claim_anything() -> None:
    memory = Memory()
    assert memory.met(MIDNIGHT) == (math.inf, False)
    assert memory.met(MIDNIGHT + STEP)[0] == math.inf  # it lasts
    assert memory.met(MIDNIGHT + DAY, key=LOW)[0] == math.inf  # the other way
    assert memory.met(MIDNIGHT + DAY, key=HIGH + WAYS)[0] == math.inf  # another feature
    assert memory.met(MIDNIGHT + DAY, size=50.0 * ALIKE * 1.1)[0] == math.inf  # far larger


def test_what_comes_at_the_same_time_each_day_comes_once_a_day_by_habit() -> None:
    memory, rng = Memory(), np.random.default_rng(1)
    found = [memory.met(MIDNIGHT + day * DAY + 2 * HOUR, 50.0 + rng.normal()) for day in range(30)]

    assert [habit for _, habit in found] == [False] + [True] * 29
    assert found[1][0] == pytest.approx(math.log10(A_DAY * DOUBT))  # one might be chance
    for period, _ in found[int(DOUBT) :]:
        assert period == pytest.approx(math.log10(A_DAY))


def test_what_comes_at_any_time_is_no_habit_but_as_rare_as_it_was() -> None:
    memory, hours = Memory(), (0, 100, 103, 197, 226, 270)
    found = [memory.met(MIDNIGHT + hour * HOUR) for hour in hours]

    assert not any(habit for _, habit in found)
    assert found[-1][0] == pytest.approx(math.log10(270 * 12 / 5))
    assert found[2][0] == pytest.approx(math.log10(103 * 12 / (2 * 2 / DOUBT)))


def test_a_clock_that_changes_is_a_habit_again_from_the_next_day_on() -> None:
    memory = Memory()
    hours = [24 * day for day in range(6)] + [24 * day - 1 for day in range(6, 9)]
    habits = [memory.met(MIDNIGHT + hour * HOUR)[1] for hour in hours]

    assert habits == [False] + [True] * 5 + [False, True, True]


def test_what_comes_on_mondays_is_no_habit_on_a_sunday() -> None:
    memory = Memory()
    days = [0, 7, 14, 21, 27, 35, 42]
    habits = [memory.met(MIDNIGHT + day * DAY + 8 * HOUR)[1] for day in days]

    assert habits[:5] == [False, True, True, True, False]
    assert habits[-1]


def test_a_larger_one_before_counts_and_a_smaller_one_does_not() -> None:
    memory = Memory()
    memory.met(MIDNIGHT, 200.0)
    assert memory.met(MIDNIGHT + 3 * DAY, 50.0)[0] == pytest.approx(math.log10(3 * A_DAY * DOUBT))
    assert memory.met(MIDNIGHT + 5 * DAY, 400.0)[0] == math.inf


def test_a_wild_value_excuses_nothing() -> None:
    memory = Memory()
    memory.met(MIDNIGHT, 65_535.0)
    assert memory.met(MIDNIGHT + DAY, 50.0) == (math.inf, False)


def test_a_long_one_is_one() -> None:
    memory = Memory()
    for k in range(100):
        memory.met(MIDNIGHT + k * STEP)
    assert memory.record["count"][0].tolist() == [1] + [0] * (KINDS - 1)
    assert memory.met(MIDNIGHT + 2 * DAY)[0] == pytest.approx(math.log10(2 * A_DAY * DOUBT))


def test_what_a_known_error_leaves_behind_is_known_with_it_and_takes_no_place() -> None:
    """A job of ten minutes and its end, errors of the forecast as it finds back, a level that is only now counted."""
    memory = Memory()
    for day in range(5):
        at = MIDNIGHT + day * DAY + 2 * HOUR
        left = [
            memory.met(at),
            memory.met(at + STEP, 9.0),
            memory.met(at + 2 * STEP, key=LOW),
            memory.met(at + 3 * STEP, 20.0, LEVEL),
        ]
    assert all(habit for _, habit in left)
    assert memory.record["count"][0].tolist() == [5] + [0] * (KINDS - 1)


def test_what_an_unknown_error_leaves_behind_is_not_and_another_features_is_its_own() -> None:
    memory = Memory()
    memory.met(MIDNIGHT, 65_535.0)
    assert memory.met(MIDNIGHT + STEP, 50.0, LOW)[0] == math.inf
    assert memory.met(MIDNIGHT + 2 * STEP, 50.0, HIGH + WAYS)[0] == math.inf
    assert memory.met(MIDNIGHT + DAY, 50.0, HIGH + WAYS)[0] < math.inf


def test_of_a_fast_stream_what_comes_again_within_minutes_is_one() -> None:
    record = np.zeros(1, RECURRENCE)
    for minute in range(0, 60, 4):
        period, _ = recurring(record[0], HIGH, 50.0, MIDNIGHT + minute * MINUTE, 1.0)
    assert period == math.inf
    assert record["count"][0, 0] == 1


def test_what_was_met_often_outlives_what_came_once() -> None:
    memory = Memory()
    for day in range(10):
        memory.met(MIDNIGHT + day * DAY, 1.0)
    for k in range(3 * KINDS):
        memory.met(MIDNIGHT + 10 * DAY + 6 * k * HOUR, 10.0 * 3.0**k)  # each larger than all before
    assert memory.met(MIDNIGHT + 14 * DAY, 1.0)[0] < math.log10(2 * A_DAY)


def test_years_of_a_job_are_counted_as_its_days() -> None:
    memory = Memory()
    for day in range(4 * MOST):
        period, habit = memory.met(MIDNIGHT + day * DAY)
    assert memory.record["count"][0, 0] <= MOST
    assert habit
    assert period == pytest.approx(math.log10(A_DAY), abs=0.01)


def test_times_before_1970_are_as_good() -> None:
    early, late = Memory(), Memory()
    for day in range(5):
        assert early.met(-40_000 * DAY + day * DAY) == late.met(MIDNIGHT + day * DAY)


def test_without_an_interval_nothing_is_known() -> None:
    record = np.zeros(1, RECURRENCE)
    assert recurring(record[0], 1, 5.0, MIDNIGHT, 0.0) == (math.inf, False)
    assert not record["count"].any()


# --- In a stream ------------------------------------------------------------------------------------------------------


def nightly(
    seed: int, days: int = 21, size: float = 50.0, step: int = STEP, features: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Return values about 10, and `size` more for ten minutes from 02:00 each day; and the rows of the jobs' nights.

    All features do the job at once, each in its own unit: [rows, features].
    """
    time = clocked(days * DAY // step, step)
    running = (time % DAY >= 2 * HOUR) & (time % DAY < 2 * HOUR + 10 * MINUTE)
    near = (time % DAY >= 2 * HOUR) & (time % DAY < 3 * HOUR)
    noise = np.random.default_rng(seed).standard_normal((len(time), features))
    return (10.0 + size * running[:, None] + noise) * 10.0 ** np.arange(features), near


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("step", "days"), [(STEP, 21), (MINUTE, 10)])
def test_a_nightly_job_is_told_in_no_more_than_its_first_nights(seed: int, step: int, days: int) -> None:
    """Its begin, its end, and the level that it leaves behind."""
    value, near = nightly(seed, days, step=step)
    told = [k for k in judged(value, step=step).alerts if near[k]]
    assert all(k < 3 * DAY // step for k in told)


@pytest.mark.parametrize("seed", range(3))
def test_a_nightly_job_of_several_features_is_told_a_few_times_in_its_life(seed: int) -> None:
    """They differ more from night to night than one does. It was told each night."""
    value, near = nightly(seed, features=4)
    assert len({k // A_DAY for k in judged(value).alerts if near[k]}) <= 5


def hourly(step: int, days: int, every: int = HOUR) -> np.ndarray:
    """Return values about 100, and 30 more for ten minutes in each `every` ns."""
    time = clocked(days * DAY // step, step)
    return 100.0 + 30.0 * (time % every < 10 * MINUTE) + np.random.default_rng(1).standard_normal(len(time))


@pytest.mark.parametrize("every", [HOUR, 3 * HOUR])
@pytest.mark.parametrize("step", [SECOND, 10 * SECOND])
def test_what_comes_far_oftener_than_a_stream_may_tell_is_usual(step: int, every: int) -> None:
    """At an event a second an hour is as rare as once in 3,600, and the threshold once in 200,000."""
    alerts = judged(hourly(step, 2, every), step=step).alerts
    assert len([k for k in alerts if k < DAY // step]) <= 6
    assert not [k for k in alerts if k >= DAY // step]


def test_and_what_is_far_larger_than_that_is_told() -> None:
    value = hourly(10 * SECOND, 2)
    at = 8640 + 4 * 360 + 180
    value[at : at + 3] += 100.0
    assert any(at <= k < at + 3 for k in judged(value, step=10 * SECOND).alerts)


def test_a_counter_that_restarts_is_not_told_each_time() -> None:
    """Every five hours or so, at an event each second: 34 times a week, of which 3 may be told."""
    rng = np.random.default_rng(2)
    parts = [np.cumsum(rng.poisson(20.0, rng.integers(14_000, 22_000))) for _ in range(8)]
    alerts = judged(np.concatenate(parts).astype(np.float64), step=SECOND).alerts
    assert len([k for k in alerts if k > sum(len(part) for part in parts[:4])]) <= 1


@pytest.mark.parametrize("features", [1, 4])
@pytest.mark.parametrize("seed", range(3))
def test_but_one_of_more_than_twice_its_size_is_told(seed: int, features: int) -> None:
    value, _ = nightly(seed, features=features)
    night = slice(15 * A_DAY + 24, 15 * A_DAY + 26)
    value[night] += 75.0 * 10.0 ** np.arange(features)
    assert any(night.start <= k < night.stop for k in judged(value).alerts)


@pytest.mark.parametrize("features", [1, 4])
@pytest.mark.parametrize("seed", range(3))
def test_and_so_is_one_at_another_time_of_the_day(seed: int, features: int) -> None:
    """It recurs, but a stream that has a budget left tells what is not by habit."""
    value, _ = nightly(seed, features=features)
    noon = 15 * A_DAY + 144
    value[noon : noon + 2] += 100.0 * 10.0 ** np.arange(features)
    assert any(noon <= k < noon + 2 for k in judged(value).alerts)


@pytest.mark.parametrize("seed", range(3))
def test_a_job_excuses_no_feature_that_is_far_off_beside_it(seed: int) -> None:
    """The same job of three features, and the fourth three times as far off."""
    value, _ = nightly(seed, features=4)
    night = slice(15 * A_DAY + 24, 15 * A_DAY + 26)
    value[night, 3] += 150.0 * 1e3

    assert any(night.start <= k < night.stop for k in judged(value).alerts)

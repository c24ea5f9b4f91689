"""What comes again: how often, whether by habit, and what is not the same."""

import math

import numpy as np
import pytest

from detector.scoring.recurrence import ALIKE, DOUBT, KINDS, MOST, RECURRENCE, recurring
from tests.detector.scoring.support import DAY, HOUR, MIDNIGHT, MINUTE, clocked, judged

STEP = 5 * MINUTE
A_DAY = DAY // STEP


class Memory:
    """A stream's memory, with an event every five minutes."""

    def __init__(self) -> None:
        self.record = np.zeros(1, RECURRENCE)

    def met(self, time: int, size: float = 50.0, key: int = 1) -> tuple[float, bool]:
        return recurring(self.record[0], key, size, time, STEP * 1e-9)


def test_the_first_of_its_kind_may_claim_anything() -> None:
    memory = Memory()
    assert memory.met(MIDNIGHT) == (math.inf, False)
    assert memory.met(MIDNIGHT + STEP)[0] == math.inf  # it lasts
    assert memory.met(MIDNIGHT + DAY, key=2)[0] == math.inf  # another feature
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


def nightly(seed: int, days: int = 21, size: float = 50.0) -> tuple[np.ndarray, np.ndarray]:
    """Return values about 10, and `size` more for ten minutes from 02:00 each day; and the rows of the jobs' nights."""
    time = clocked(days * A_DAY)
    running = (time % DAY >= 2 * HOUR) & (time % DAY < 2 * HOUR + 10 * MINUTE)
    near = (time % DAY >= 2 * HOUR) & (time % DAY < 3 * HOUR)
    return 10.0 + size * running + np.random.default_rng(seed).standard_normal(len(time)), near


@pytest.mark.parametrize("seed", range(3))
def test_a_nightly_job_is_told_at_most_twice_in_its_life(seed: int) -> None:
    """By its size; that a value between those of all nights is new may be told."""
    value, near = nightly(seed)
    told = [k for k, channel in judged(value).channels() if near[k] and channel != "novel"]
    assert len({k // A_DAY for k in told}) <= 2


@pytest.mark.parametrize("seed", range(3))
def test_but_one_of_more_than_twice_its_size_is_told(seed: int) -> None:
    value, _ = nightly(seed)
    night = slice(15 * A_DAY + 24, 15 * A_DAY + 26)
    value[night] += 75.0
    assert any(night.start <= k < night.stop for k in judged(value).alerts)


@pytest.mark.parametrize("seed", range(3))
def test_and_so_is_one_at_another_time_of_the_day(seed: int) -> None:
    """It recurs, but a stream that has a budget left tells what is not by habit."""
    value, _ = nightly(seed)
    noon = 15 * A_DAY + 144
    value[noon : noon + 2] += 100.0
    assert any(noon <= k < noon + 2 for k in judged(value).alerts)

"""How rare a run of equal values is, by the lane's own runs."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detector.scoring.channels.still import LONG, MIN_EVENTS, MIN_RUNS, STILL_STATE, measure_still, usual_longest


def measured(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return claims [events] and the record."""
    record, claims = np.zeros(1, STILL_STATE), np.empty(len(values))
    for k, x in enumerate(values.tolist()):
        claims[k] = measure_still(record[0], k, x, values[k - 1] if k else 0.0)
    return claims, record


def runs(rng: np.random.Generator, count: int, p: float) -> np.ndarray:
    """Return a series that repeats each of `count` values a geometric number of times, 1 at least."""
    return np.repeat(np.arange(count, dtype=np.float64), rng.geometric(p, count))


@given(st.integers(0, 2**32 - 1), st.integers(0, 300))
@settings(deadline=None)
def test_a_series_that_never_repeats_a_value_is_never_still(seed: int, rows: int) -> None:
    assert not measured(np.random.default_rng(seed).permutation(rows).astype(np.float64))[0].any()


def test_nor_is_one_that_always_rests() -> None:
    assert not measured(np.full(5_000, 3.0))[0].any()
    assert not measured(np.repeat([1.0, 2.0, 3.0], 500))[0].any()


def test_a_rest_after_a_burst_is_no_pause_where_most_events_rest() -> None:
    """Forty runs of one event and one of 40,000: by their number a run of ten would be far out."""
    values = np.concatenate((np.zeros(40_000), np.random.default_rng(5).standard_normal(40), np.zeros(5_000)))

    assert not measured(values)[0].any()
    assert measured(values[39_900:])[0][-1] > 4.0


@pytest.mark.parametrize("resting", [0.0, 0.3])
def test_an_outage_or_nights_do_not_hide_the_next_outage(resting: float) -> None:
    """A value that rests at night, 480 events of each day's 1,440 at most, or not; five hours' outage; one of two."""
    values = np.random.default_rng(6).standard_normal(12 * 1440)
    values[np.arange(len(values)) % 1440 < resting * 1440] = 0.0
    values[10_500:10_800] = values[10_499]
    values[-400:] = values[-401]

    claims = measured(values)[0][-400:]

    assert claims[12] > 5.0


def test_a_stuck_sensor_is_the_longer_the_rarer() -> None:
    """Of a series that never repeats a value: how often it had the chance is all that is known."""
    values = np.random.default_rng(1).standard_normal(2_000)
    claims = measured(np.append(values, np.full(300, values[-1])))[0][2_000:]

    assert (np.diff(claims) >= 0.0).all()
    assert claims[100] > 4.0
    assert claims[-1] > claims[100] + 0.5


def test_a_usual_run_claims_nothing_and_one_far_longer_much() -> None:
    rng = np.random.default_rng(2)
    values = runs(rng, 1_000, 0.1)  # ten events each, one in twenty longer than 28
    claims, _ = measured(np.append(values, np.full(200, -1.0)))

    assert np.quantile(claims[500 : len(values)], 0.9) == 0.0
    assert claims[len(values) + 10] == 0.0
    assert claims[-1] > 4.0


def test_claims_of_runs_come_about_as_often_as_they_say() -> None:
    """Runs of a geometric length, many seeds: runs of claim r, one each, once in 10^r events."""
    count, loud = 0, np.zeros(2)
    for seed in range(30):
        values = runs(np.random.default_rng(seed), 2_000, 0.3)
        claims = measured(values)[0][1_000:]
        begins = np.flatnonzero(np.diff(values[1_000:]) != 0.0)
        longest = np.maximum.reduceat(claims, np.append(0, begins + 1))
        count += len(claims)
        loud += [(longest >= r).sum() for r in (2.5, 3.0)]

    for found, r in zip(loud, (2.5, 3.0), strict=True):
        assert found / count * 10.0**r < 3.0


def test_nothing_is_said_before_some_twenty_changes_and_sixty_events() -> None:
    values = np.append(np.arange(MIN_RUNS, dtype=np.float64), np.full(500, -1.0))
    assert not measured(values)[0].any()
    values = np.append(np.arange(MIN_RUNS + 2, dtype=np.float64), np.full(500, -1.0))
    claims = measured(values)[0]
    assert not claims[: MIN_EVENTS + 1].any()
    assert claims[MIN_EVENTS + 1] > 0.0


def test_the_usual_longest_run_is_about_the_longest_there_was() -> None:
    rng = np.random.default_rng(3)
    values = runs(rng, 1_500, 0.1)

    record = measured(values)[1]

    changes = np.flatnonzero(np.diff(values))
    assert usual_longest(record[0]) == pytest.approx(np.diff(changes).max(), rel=0.6)
    assert record["bound"][0] == pytest.approx(np.log(np.quantile(np.diff(changes), 1 - LONG)), abs=0.3)


def test_a_value_that_never_stayed_and_stays_for_an_hour_is_far_out() -> None:
    """Twelve equal values after 2,000 that differed: once in 300,000 events and more; three may be a poll's hiccup."""
    values = np.random.default_rng(4).standard_normal(2_000)
    claims = measured(np.append(values, np.full(12, values[-1])))[0][2_000:]

    assert claims[10] > 5.46 + 1.4  # a fleet of 10,000 at ten alerts a day, and the channel's price
    assert claims[1] < 3.0 + 1.4


@pytest.mark.parametrize("share", [0.02, 0.1, 0.5])
def test_values_that_do_stay_at_times_are_judged_by_that(share: float) -> None:
    """Of a value that stays with a probability, no run is called rarer than a tenth of what it is."""
    loudest = np.zeros(3)
    for seed in range(20):
        rng = np.random.default_rng(seed)
        values = np.cumsum(rng.random(6_000) >= share).astype(float)
        claims = measured(values)[0][2_000:]
        loudest += [(np.diff((claims > level).astype(int)) == 1).sum() / len(claims) / 20 for level in (2, 3, 4)]
    assert (loudest <= 10.0 * 10.0 ** -np.array([2.0, 3.0, 4.0])).all()

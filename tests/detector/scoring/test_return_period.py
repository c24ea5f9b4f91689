"""Return periods: true on exponential tails, and not led astray by what they are to find."""

import math
from collections.abc import Iterable

import numpy as np
import pytest
from scipy import optimize

from detector.scoring.return_period import (
    CLUSTER_GAP,
    COMMON,
    CUT_CORRECTION,
    MAX_MEMORY,
    MEMORY,
    PERIOD,
    WINSOR,
    begin,
    memory_of,
    return_period,
)


def fresh() -> np.ndarray:
    record = np.zeros(1, PERIOD)
    begin(record[0], 0.0, 0.25, 0.005)
    return record


def periods(severities: Iterable[float], record: np.ndarray | None = None) -> np.ndarray:
    record = fresh() if record is None else record
    return np.array([return_period(record[0], float(y)) for y in severities])


def asked(record: np.ndarray, y: float) -> float:
    """Return what the record says of `y`, and leave it as it is."""
    return float(return_period(record.copy()[0], y))


@pytest.mark.parametrize("scale", [0.1, 0.5, 2.0])
def test_as_many_events_exceed_a_return_period_as_it_says(scale: float) -> None:
    """Log severities with an exponential tail: what comes once in 10^r events does so within a factor of two."""
    found = np.concatenate(
        [periods(scale * np.random.default_rng(seed).exponential(size=16_000))[6_000:] for seed in range(40)]
    )

    for r in (2.0, 2.5, 3.0):
        assert 0.5 < (found >= r).mean() * 10.0**r < 2.0


def test_what_lies_at_the_bound_is_common_and_what_lies_higher_is_always_rarer() -> None:
    record = fresh()
    periods(np.random.default_rng(1).exponential(size=5_000), record)

    assert asked(record, record["bound"][0]) == pytest.approx(COMMON, abs=1e-3)
    severities = np.linspace(-5.0, 60.0, 1000)
    found = np.array([asked(record, y) for y in severities.tolist()])
    assert (np.diff(found) >= 0.0).all()
    assert (np.diff(found[severities > record["bound"][0] + 2.0]) > 0.0).all()  # no ceiling
    assert found[0] == 0.0


def test_a_tail_remembers_events_and_of_a_fast_stream_two_days_of_them() -> None:
    assert memory_of(0.0) == memory_of(3600.0) == memory_of(10.0) == MEMORY
    assert memory_of(1.0) == 2 * 86_400
    assert memory_of(0.01) == MAX_MEMORY


def test_a_fast_streams_tail_still_knows_the_noise_of_the_day_before() -> None:
    rng = np.random.default_rng(11)
    severities = np.concatenate([3.0 + rng.exponential(size=20_000), rng.exponential(size=60_000)]).tolist()
    forgets, knows = fresh(), fresh()
    for y in severities:
        return_period(forgets[0], y)
        return_period(knows[0], y, memory_of(1.0))

    of_all = 3.0 + math.log(0.25 / 10.0**-COMMON)  # that a share as large of all 80,000 exceeds
    assert knows["bound"][0] == pytest.approx(of_all, abs=0.2)
    assert forgets["bound"][0] < of_all - 0.5


def test_the_longest_memory_still_lets_the_bound_fall() -> None:
    record = fresh()
    record["events"], record["bound"], record["excess"] = 2_000_000, 2.0, 0.25
    for _ in range(10_000):
        return_period(record[0], -5.0, MAX_MEMORY)

    assert 2.0 - float(record["bound"][0]) == pytest.approx(0.25 * 10_000 / MAX_MEMORY, rel=0.2)


def test_the_bound_is_exceeded_by_its_share() -> None:
    severities = np.random.default_rng(2).standard_normal(40_000)
    record, above = fresh(), 0

    for k, y in enumerate(severities.tolist()):
        above += k >= 10_000 and y > record["bound"][0]
        return_period(record[0], y)

    assert above / 30_000 == pytest.approx(10.0**-COMMON, rel=0.15)


def test_cutting_excesses_is_corrected_for() -> None:
    """Of an exponential X of mean 1 the mean m of min(X, WINSOR m) is the root of m = 1 - exp(-WINSOR m)."""
    m = optimize.brentq(lambda m: 1.0 - math.exp(-WINSOR * m) - m, 0.1, 1.0)

    assert pytest.approx(1.0 / m) == CUT_CORRECTION


def test_a_long_incident_counts_as_one_peak() -> None:
    """Or else two hundred events of an incident would make the next such incident look like an everyday thing."""

    def second(length: int) -> float:
        severities = np.random.default_rng(3).exponential(size=6_000)
        severities[2_000 : 2_000 + length] = 12.0
        severities[5_000] = 12.0
        return periods(severities)[5_000]

    assert second(60) == pytest.approx(second(1), abs=0.4)
    assert second(60) > 3.0


def test_a_peak_ends_when_long_enough_nothing_lay_above_the_bound() -> None:
    record = fresh()
    periods(np.random.default_rng(4).exponential(size=5_000), record)
    periods(np.full(int(CLUSTER_GAP) + 1, -5.0), record)
    before = int(record["peaks"][0])

    periods([20.0, *[-5.0] * int(CLUSTER_GAP), 20.0, *[-5.0] * int(CLUSTER_GAP)], record)
    assert record["peaks"][0] == before
    periods([-5.0], record)
    assert record["peaks"][0] == before + 1


def test_one_wild_severity_hides_nothing_that_comes_after() -> None:
    calm = np.random.default_rng(5).exponential(size=5_000)
    wild = calm.copy()
    wild[3_000] = 700.0  # e^700: the logarithm of about the largest number there is
    one, two = fresh(), fresh()
    periods(calm, one)
    periods(wild, two)

    for y in (6.0, 8.0, 12.0):
        assert asked(two, y) == pytest.approx(asked(one, y), abs=0.35)


def test_anomalies_are_not_learnt_as_the_streams_own_tail() -> None:
    """Fifteen peaks of 12 in 6,000 events: an estimator that takes them in full says that 8 is nothing."""
    severities = np.random.default_rng(6).exponential(size=6_000)
    severities[300::400] = 12.0
    record = fresh()
    periods(severities, record)

    assert asked(record, 12.0) > 3.0


def test_a_stream_that_changed_is_followed() -> None:
    """Twice as severe for good: after one memory the old bound is no more."""
    rng = np.random.default_rng(7)
    record = fresh()
    periods(rng.exponential(size=4_000), record)
    periods(3.0 + rng.exponential(size=int(MEMORY)), record)

    assert record["bound"][0] == pytest.approx(3.0 + math.log(50.0), rel=0.1)


def test_a_constant_severity_is_no_event() -> None:
    assert periods(np.zeros(3_000))[1_000:].max() <= COMMON + 0.5


def test_numbers_stay_finite_for_any_severity() -> None:
    severities = np.random.default_rng(8).choice([-2.3, 0.0, 1e-300, 5.0, 700.0, -700.0], 5_000)

    assert np.isfinite(periods(severities)).all()

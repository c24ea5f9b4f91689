"""A statistic's unit against numpy's quantiles of all that was learnt."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from detector.scoring.batch import MEASURED
from detector.scoring.units import (
    COUPLING,
    ERROR,
    FAR,
    LEVEL,
    LEVEL_WARM_UP_EVENTS,
    LINEAR_UNITS,
    MAX_MASS,
    MIN_COUPLING_UNIT,
    SLOW,
    SLOW_GROWTH,
    SMOOTHED,
    STATISTICS,
    UNITS,
    WARM_UP_EVENTS,
    WIDTH,
    softened,
    to_units,
)

SAMPLES: dict[str, Callable[[np.random.Generator], np.ndarray]] = {
    "lognormal": lambda rng: rng.lognormal(3.0, 1.0, 6000),
    "normal": lambda rng: np.abs(rng.standard_normal(6000)),
    "half zeros": lambda rng: np.abs(rng.standard_normal(6000)) * (rng.random(6000) < 0.5),
    "tiny": lambda rng: rng.lognormal(-60.0, 1.0, 6000),
    "drifting": lambda rng: rng.lognormal(0.0, 1.0, 6000) * np.linspace(1, 1e3, 6000),
    "a huge value midway": lambda rng: np.insert(rng.lognormal(0.0, 1.0, 6000), 3000, 1e30),
}


def learnt(
    sizes: np.ndarray, statistic: int = ERROR, *, least: float = 1e-12, record: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Learn sizes of one statistic, the others unknown; return the record and MEASURED of each."""
    record = np.zeros(1, UNITS) if record is None else record
    measured, row = np.zeros(len(sizes), MEASURED), np.full(len(STATISTICS), math.nan)
    for k, size in enumerate(sizes.tolist()):
        row[statistic] = size
        to_units(record[0], row, least, measured[k])
    return record, measured


@pytest.mark.parametrize("kind", SAMPLES)
def test_a_unit_is_the_size_that_one_in_a_hundred_of_its_past_exceeds(kind: str) -> None:
    sizes = SAMPLES[kind](np.random.default_rng(1))

    record, _ = learnt(sizes)

    weight = SLOW_GROWTH ** np.arange(len(sizes), dtype=np.float64)
    order = np.argsort(sizes)
    share = np.cumsum(weight[order]) / weight.sum()
    low, high = sizes[order][np.searchsorted(share, [0.986, 0.994])]  # a sample's own quantile is some ranks uncertain
    assert low * math.exp(-0.5 * WIDTH) <= record["slow_unit"][0, ERROR] <= high * math.exp(0.5 * WIDTH)


@pytest.mark.parametrize("statistic", [ERROR, LEVEL, COUPLING])
def test_there_are_no_units_before_the_warm_up(statistic: int) -> None:
    warm_up = LEVEL_WARM_UP_EVENTS if statistic == LEVEL else WARM_UP_EVENTS
    sizes = np.abs(np.random.default_rng(2).standard_normal(600))

    units = learnt(sizes, statistic)[1]["units"]

    assert not units[:warm_up].any()
    assert units[warm_up:, statistic].all()
    assert np.median(units[400:, statistic] / sizes[400:]) * 2.576 == pytest.approx(1.0, rel=0.25)
    assert not np.delete(units, statistic, axis=1).any()


def test_what_is_not_known_teaches_nothing() -> None:
    record, _ = learnt(np.abs(np.random.default_rng(3).standard_normal(500)))
    before = record.copy()

    _, measured = learnt(np.full(100, math.nan), record=record)

    for name in ("origin", "slow_unit", "fast_unit", "seen"):
        np.testing.assert_array_equal(record[name], before[name])
    for name in ("slow", "fast"):  # all counts are halved at times
        found, wanted = (r[name][0, ERROR].astype(float) for r in (record, before))
        np.testing.assert_allclose(found / found.sum(), wanted / wanted.sum(), atol=1e-3)
    assert not measured["units"].any()
    assert not measured["slow_units"].any()


def test_a_larger_surprise_is_always_larger_in_units() -> None:
    """Linear to LINEAR_UNITS, by the logarithm beyond; nowhere a jump, nowhere an end."""
    record, _ = learnt(np.abs(np.random.default_rng(4).standard_normal(500)))
    unit = max(record["slow_unit"][0, ERROR], record["fast_unit"][0, ERROR])

    sizes = unit * np.geomspace(0.1, 1e12, 400)
    units = np.array([learnt(np.array([x]), record=record.copy())[1]["units"][0, ERROR] for x in sizes])

    assert (np.diff(units) > 0.0).all()
    linear = units < LINEAR_UNITS
    np.testing.assert_allclose(units[linear], (sizes / unit)[linear], rtol=1e-6)
    assert softened(LINEAR_UNITS * (1 + 1e-9)) == pytest.approx(LINEAR_UNITS)
    assert units[-1] > 3 * LINEAR_UNITS


def test_the_least_unit_keeps_errors_small_against_the_range_small() -> None:
    sizes = np.append(np.full(500, 1e-9), 1e-3)

    assert learnt(sizes)[1]["units"][-1, ERROR] > LINEAR_UNITS
    assert learnt(sizes, least=0.1)[1]["units"][-1, ERROR] == pytest.approx(0.01)


def test_a_couplings_unit_has_its_own_minimum() -> None:
    sizes = np.append(np.full(500, 1e-9), MIN_COUPLING_UNIT / 2)

    assert learnt(sizes, COUPLING, least=100.0)[1]["units"][-1, COUPLING] == pytest.approx(0.5)


def test_a_lane_that_turns_noisy_has_its_new_unit_within_hours() -> None:
    rng = np.random.default_rng(7)
    sizes = np.abs(np.concatenate([rng.standard_normal(8_000), 10 * rng.standard_normal(600)]))

    _, measured = learnt(sizes)
    units, slow = measured["units"][:, ERROR], measured["slow_units"]

    assert units[8_000:8_020].max() > 3.0
    assert np.quantile(units[8_200:], 0.9) < 1.2
    assert (slow[8_200:] >= units[8_200:]).all()  # by the slow memory alone


def test_a_level_and_a_slow_error_have_no_fast_memory() -> None:
    rng = np.random.default_rng(8)
    sizes = np.abs(np.concatenate([rng.standard_normal(8_000), 10 * rng.standard_normal(50)]))

    for statistic in (LEVEL, SLOW):
        assert learnt(sizes, statistic)[1]["units"][8_000:, statistic].max() > 5.0


def test_slow_units_join_the_largest_error_with_coupling_and_slow_error() -> None:
    rng = np.random.default_rng(9)
    record, measured = np.zeros(1, UNITS), np.zeros(1, MEASURED)
    rows = np.abs(rng.standard_normal((500, len(STATISTICS))))
    for row in rows:
        to_units(record[0], row, 1e-12, measured[0])
    unit = record["slow_unit"][0].copy()
    rows[-1] *= 2.0

    to_units(record[0], rows[-1], 1e-12, measured[0])

    u = rows[-1] / unit
    wanted = math.sqrt(max(u[ERROR], u[SMOOTHED], u[FAR]) ** 2 + u[COUPLING] ** 2 + u[SLOW] ** 2)
    assert measured["slow_units"][0] == pytest.approx(wanted, rel=1e-6)


def test_counts_grow_to_a_bound_and_what_is_old_is_forgotten() -> None:
    """Twenty half-lives of the fast memory: without halving, its counts would be 1e8."""
    rng = np.random.default_rng(10)

    record, _ = learnt(np.concatenate([100.0 * rng.lognormal(0, 1, 2500), rng.lognormal(0, 1, 5000)]))

    for memory, row in (("slow", 0), ("fast", 0)):
        assert record[memory][0, row].sum(dtype=np.int64) == pytest.approx(record[f"{memory}_mass"][0], abs=20)
        assert 0.45 * MAX_MASS < record[f"{memory}_mass"][0] <= MAX_MASS
    assert record["fast_unit"][0, ERROR] == pytest.approx(math.exp(stats.norm.ppf(0.99)), rel=0.5)
    assert record["slow_unit"][0, ERROR] > 10 * record["fast_unit"][0, ERROR]


@pytest.mark.parametrize("first", [1e-300, 1e-9, 1e-3, 1e3, 1e9, 1e30])
def test_however_far_the_first_size_lay_off_a_unit_finds_the_others(first: float) -> None:
    """Rounding dust of a constant that begins to move; a sensor's first value."""
    sizes = np.abs(np.random.default_rng(12).standard_normal(5_000))

    record, _ = learnt(np.insert(sizes, 0, first))

    wanted = np.quantile(sizes, 0.99)
    assert record["slow_unit"][0, ERROR] == pytest.approx(wanted, rel=0.25)
    assert record["fast_unit"][0, ERROR] == pytest.approx(wanted, rel=0.4)


def test_one_wild_size_does_not_move_the_bins() -> None:
    sizes = np.abs(np.random.default_rng(13).standard_normal(2_000))
    one = learnt(sizes)[0]

    for wild in (1e-300, 1e9, 1e30):
        two = learnt(np.insert(sizes, 1_000, wild))[0]
        assert two["origin"][0, ERROR] == one["origin"][0, ERROR]
        assert two["slow_unit"][0, ERROR] == pytest.approx(one["slow_unit"][0, ERROR], rel=0.1)


def test_a_values_last_bit_changes_a_unit_little() -> None:
    sizes = np.random.default_rng(11).lognormal(0.0, 1.0, 3000)
    edges = sizes[0] * np.exp(WIDTH * np.arange(-8, 8))  # values on bins' own places and edges are the worst
    sizes = np.concatenate([sizes, np.repeat(edges, 10), np.repeat(edges * math.exp(0.5 * WIDTH), 10)])

    one, two = learnt(sizes)[0], learnt(sizes * (1 + 1e-9))[0]

    np.testing.assert_allclose(two["slow_unit"][0, ERROR], one["slow_unit"][0, ERROR], rtol=1e-5)
    np.testing.assert_allclose(two["fast_unit"][0, ERROR], one["fast_unit"][0, ERROR], rtol=1e-5)

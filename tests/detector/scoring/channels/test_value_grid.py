"""What the grid remembers against a plain list of the last values."""

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from detector.scoring.channels.value_grid import (
    CELLS,
    DAMPING,
    NARROW,
    REACH,
    STRETCH,
    SWEEP,
    TICK,
    WARM_UP_EVENTS,
    distance,
    grid,
)

GRID = grid(CELLS)
SERIES = {
    "normal": lambda rng, n: rng.standard_normal(n),
    "spiky": lambda rng, n: rng.standard_normal(n) + 30.0 * (rng.random(n) < 0.003),
    "walk": lambda rng, n: np.cumsum(rng.standard_normal(n)),
    "growing": lambda rng, n: np.linspace(0, 1e6, n) + rng.standard_normal(n),
    "large offset": lambda rng, n: 1e4 + rng.standard_normal(n),
    "levels": lambda rng, n: np.repeat(rng.choice([1.0, 2.0, 5.0, 9.0], n // 100), 100),
    "narrowing": lambda rng, n: rng.standard_normal(n) * np.geomspace(1e3, 1.0, n),
    "tiny": lambda rng, n: 1e-280 * rng.standard_normal(n),
    "huge": lambda rng, n: 1e29 * rng.standard_normal(n),
}


def met(values: np.ndarray, cells: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return raw distances, nearest values, ages and the cells' widths; a highest of 0 leaves distances as they are."""
    cells = np.zeros(1, GRID) if cells is None else cells
    found = np.empty((4, len(values)))
    for k, x in enumerate(values.tolist()):
        cells["highest"] = 0.0
        found[:3, k] = distance(cells[0], x, k, 1.0)
        found[3, k] = cells["width"][0]
    return found[0], found[1], found[2], found[3]


@pytest.mark.parametrize("kind", SERIES)
def test_the_distance_is_that_to_the_nearest_value_met_before(kind: str) -> None:
    """While nothing is forgotten yet; to a cell, since a cell keeps its least and its largest value."""
    values = SERIES[kind](np.random.default_rng(1), 3_000)

    far, nearest, _, width = met(values)

    for k in range(WARM_UP_EVENTS + 1, len(values)):
        past = values[:k]
        truth = np.abs(past - values[k]).min()
        extent = max(past.max(), values[k]) - min(past.min(), values[k])
        if truth > 0.0:  # the range is known to a cell on either side, too
            assert far[k] <= truth / max(extent - 2 * width[k], truth) + 1e-9
        assert far[k] >= (truth - width[k]) / max(extent + 2 * width[k], NARROW * CELLS * width[k], 1e-300) - 1e-9
        assert np.abs(past - nearest[k]).min() <= width[k]


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=12), st.integers(0, 2**32 - 1))
@example([0.0, 5e-324], 0)  # a difference that nothing can be divided by
@settings(max_examples=50, deadline=None)
def test_a_value_met_before_is_never_new(levels: list[float], seed: int) -> None:
    """However the grid has grown, and whatever was between."""
    values = np.random.default_rng(seed).choice(levels, 500)
    values[1 : len(levels) + 1] = levels  # the very first value does not count

    far, _, _, _ = met(values)

    assert far[WARM_UP_EVENTS:].max() <= 1e-6


@pytest.mark.parametrize("kind", ["normal", "walk", "narrowing", "levels"])
def test_halving_forgets_nothing_that_was_met_of_late(kind: str) -> None:
    rng = np.random.default_rng(2)
    values = SERIES[kind](rng, 12_000)
    again = np.arange(11_000, 12_000, 7)
    values[again] = values[again - rng.integers(1, 7_000, len(again))]

    assert met(values)[0][again].max() <= 1e-6


@pytest.mark.parametrize("constant", [5.0, 0.1, -7.3, 1e9 / 3])
def test_what_stays_constant_is_never_new_however_narrow_the_cells_become(constant: float) -> None:
    rng = np.random.default_rng(3)
    values = constant + np.concatenate([rng.standard_normal(200), np.zeros(3 * REACH)])

    assert met(values)[0][250:].max() <= 1e-6


def test_a_value_between_counts_by_its_distance() -> None:
    base = np.tile([0.0, 10.0, 4.0], 100)

    for x, wanted in ((4.0, 0.0), (6.0, 0.2), (20.0, 0.5), (-90.0, 0.9)):
        far, nearest, age, _ = met(np.append(base, x))
        assert far[-1] == pytest.approx(wanted, abs=0.02)
        assert nearest[-1] == pytest.approx(base[np.abs(base - x).argmin()], abs=0.2)
        assert 0.0 <= age[-1] <= TICK


def test_the_age_is_how_many_events_ago_the_nearest_was_met() -> None:
    values = np.random.default_rng(4).uniform(0, 1, 5_000)
    values[1_000] = 5.0
    values[4_000] = 5.5

    age = met(values)[2]

    assert age[4_000] == pytest.approx(3_000, abs=TICK)


def test_values_beyond_the_memory_are_new_again() -> None:
    values = np.random.default_rng(5).uniform(0, 1, REACH + 3_000)
    values[[100, 3_000, REACH + 2_900]] = 5.0
    later = values.copy()
    later[3_000 + REACH - TICK] = 5.0

    assert met(values)[0][[100, 3_000]] == pytest.approx([0.8, 0.0], abs=0.01)
    assert met(later)[0][3_000 + REACH - TICK] == 0.0
    values[3_000] = 0.5
    assert met(values)[0][-100] > 0.7


def test_ages_go_round_and_neither_lose_nor_revive_a_value() -> None:
    rng = np.random.default_rng(6)
    values = rng.uniform(0, 1, 2 * 255 * TICK)
    once, again = 255 * TICK - 1_000, 255 * TICK + 1_000  # before and after the ages go round
    values[[once, again, once + 255 * TICK]] = 5.0

    far = met(values)[0]

    assert far[once] > 0.7
    assert far[again] < 1e-6
    assert far[once + 255 * TICK] > 0.7
    assert np.quantile(far[400:], 0.99) < 0.02


def test_a_wild_value_stretches_the_grid_by_ten_ranges_only() -> None:
    rng = np.random.default_rng(7)
    for wild in (1e3, 65_535.0, 1e30, -1e30):
        values = rng.uniform(0, 1, 2_000)
        values[1_000], values[1_500] = wild, 3.0
        cells = np.zeros(1, GRID)

        far = met(values, cells)[0]

        assert far[1_000] > 0.9
        assert far[1_500] > 2.0 / (STRETCH + 4.0)
        assert cells["width"][0] * CELLS < 4 * (STRETCH + 1)


def test_a_hair_is_no_difference() -> None:
    base = np.full(500, 7.25)

    assert met(np.append(base, 7.25 * (1 + 1e-9)))[0][-1] == 0.0
    assert met(np.append(base, np.nextafter(7.25, 8)))[0][-1] == 0.0
    assert met(np.append(base, 7.5))[0][-1] == pytest.approx(1.0)


def test_nothing_is_new_in_a_young_lane() -> None:
    assert not met(np.random.default_rng(8).standard_normal(WARM_UP_EVENTS))[0].any()


def test_a_distance_is_damped_by_the_highest_of_late() -> None:
    cells, highest = np.zeros(1, GRID), 0.0
    rng = np.random.default_rng(9)
    for k, x in enumerate((rng.standard_normal(1_000) ** 3).tolist()):
        twin = cells.copy()
        twin["highest"] = 0.0
        weight = rng.uniform(0.1, 2.0)
        raw = distance(twin[0], x, k, weight)[0]  # r^2 / r
        found = distance(cells[0], x, k, weight)[0]
        assert found == pytest.approx(raw * raw / (raw + 2.0 * highest + 1e-12), rel=1e-4, abs=1e-9)
        highest = max(highest * DAMPING, raw)

    halved = np.zeros(1, GRID)
    met(np.tile([0.0, 1.0], 100), halved)
    halved["highest"] = 0.5
    for k in range(200, 500):
        distance(halved[0], k % 2, k, 1.0)
    assert halved["highest"][0] == pytest.approx(0.25, rel=0.01)


def test_the_range_is_measured_again_as_what_is_old_is_forgotten() -> None:
    rng = np.random.default_rng(10)
    values = np.concatenate([rng.uniform(0, 100, 500), rng.uniform(40, 41, 2 * (REACH + SWEEP + 2 * TICK))])
    cells = np.zeros(1, GRID)

    met(values, cells)

    cell = float(cells["width"][0])
    assert [cells["low"][0], cells["high"][0]] == pytest.approx([40.0, 41.0], abs=2 * cell)
    assert cell * CELLS < 20.0


def test_numbers_stay_finite_for_any_values() -> None:
    rng = np.random.default_rng(11)
    values = rng.standard_normal(3_000) * 10.0 ** rng.choice([-300.0, -30.0, 0.0, 30.0], 3_000)

    far, _, _, width = met(values)

    assert np.isfinite(far).all()
    assert ((far >= 0.0) & (far <= 1.0)).all()
    assert all(math.isfinite(b) for _, b in pairwise(width.tolist()))

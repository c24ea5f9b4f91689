"""Gap novelty against a plain search for the nearest of the last values."""

import math

import numpy as np
import pytest
from detector.scoring.novelty import (
    CELLS,
    DAMPING_DECAY,
    FRACTION,
    MEMORY,
    QUIET,
    ROUND,
    SWEEP,
    TICK,
    damped,
    gap,
    remember,
)

REACH = 800


def gaps(values: np.ndarray, reach: int = REACH, memory: np.ndarray | None = None) -> np.ndarray:
    m = np.zeros(1, MEMORY) if memory is None else memory
    found = np.empty(len(values))
    for k, x in enumerate(values.tolist()):
        found[k] = gap(m[0], x, reach, False)
        remember(m[0], x)
    return found


def plain_gaps(values: np.ndarray, reach: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the distances to the nearest of the last `reach` values, and those values' ranges."""
    nearest, extent = np.full(len(values), math.nan), np.full(len(values), math.nan)
    for k in range(1, len(values)):
        past = values[max(k - reach, 0) : k]
        nearest[k] = np.abs(past - values[k]).min()
        extent[k] = max(past.max(), values[k]) - min(past.min(), values[k])
    return nearest, extent


SERIES = {
    "normal": lambda rng: rng.standard_normal(5000),
    "spiky": lambda rng: rng.standard_normal(5000) + 30.0 * (rng.random(5000) < 0.003),
    "walk": lambda rng: np.cumsum(rng.standard_normal(5000)),
    "growing": lambda rng: np.linspace(0, 1e6, 5000) + rng.standard_normal(5000),
    "large offset": lambda rng: 1e9 + rng.standard_normal(5000),
    "levels": lambda rng: np.repeat(rng.choice([1.0, 2.0, 5.0, 9.0], 50), 100),
    "tiny": lambda rng: 1e-290 * rng.standard_normal(5000),
    "huge": lambda rng: 1e29 * rng.standard_normal(5000),
}


@pytest.mark.parametrize("kind", SERIES)
def test_novelty_is_the_distance_to_the_nearest_recent_value(kind: str) -> None:
    values = SERIES[kind](np.random.default_rng(1))
    memory = np.zeros(1, MEMORY)

    found = gaps(values, memory=memory)

    # What is remembered: at least the last REACH less what a cell keeps one value of, at most what the next sweep and
    # a stamp's grain leave. An older or a newer value may be nearest, so the truth lies between two plain searches.
    few, some_extent = plain_gaps(values, REACH - TICK)
    many, most_extent = plain_gaps(values, REACH + SWEEP + 2 * TICK)
    cell = memory["width"][0]  # as it is at the end: grids only widen
    settled = np.arange(len(values)) > 100
    low = (many - cell / FRACTION) / (most_extent + 2 * cell)
    high = (few + cell) / np.maximum(some_extent - 2 * cell, 1e-300)
    assert (found[settled] >= np.floor(low[settled] * 1e9) / 1e9).all()
    assert (found[settled] <= np.minimum(high[settled], 1.0) + 1e-12).all()
    assert cell * CELLS < 20 * np.ptp(values)


def test_a_seen_value_is_not_novel_and_one_between_scores_by_distance() -> None:
    base = np.tile([0.0, 10.0, 4.0], 100)

    assert gaps(np.append(base, 4.0))[-1] == 0.0
    assert gaps(np.append(base, 6.0))[-1] == pytest.approx(0.2, abs=1e-4)
    assert gaps(np.append(base, 20.0))[-1] == pytest.approx(0.5, abs=1e-4)
    assert gaps(np.append(base, -90.0))[-1] == pytest.approx(0.9, abs=1e-4)


def test_the_first_value_is_not_novel_and_the_second_is_fully_novel() -> None:
    assert gaps(np.array([5.0, 5.0, 5.0, 6.0])).tolist() == [0.0, 0.0, 0.0, 1.0]


def test_values_beyond_the_memory_are_novel_again() -> None:
    rng = np.random.default_rng(2)
    values = rng.uniform(0, 1, 3000)
    values[100], values[500], values[2900] = 5.0, 5.0, 5.0

    found = gaps(values)

    assert found[100] > 0.7
    assert found[500] < 1e-3
    assert found[2900] > 0.7


def test_counter_wraparound_neither_loses_nor_revives_values() -> None:
    memory = np.zeros(1, MEMORY)
    memory["events"] = ROUND * TICK - 1200  # shortly before they go round
    rng = np.random.default_rng(3)
    values = rng.uniform(1, 2, 3000)
    values[[100, 1150, 1500, 2900]] = 5.0  # the last lies beyond reach of the others

    found = gaps(values, memory=memory)

    assert np.quantile(found[400:], 0.99) < 0.02
    assert found[1150] > 0.5
    assert found[1500] < 1e-3
    assert found[2900] > 0.5


def test_one_outlier_does_not_distort_novelty_for_good() -> None:
    """It stretches the grid so far that what is ordinary lies in a few cells, each of which keeps one value."""
    for wild in (1e3, 1e6, 1e12, 1e30):
        rng = np.random.default_rng(4)
        values = rng.uniform(0, 1, 6000)
        values[1000], values[5500] = wild, 3.0

        found = gaps(values)

        assert found[1000] > 0.9, wild
        assert found[5500] > 0.5, wild
        again = 1000 + REACH + SWEEP + 4 * QUIET
        assert np.quantile(found[again:5500], 0.99) < 0.05, wild


def test_after_a_reset_nothing_is_novel_during_warm_up() -> None:
    values = np.random.default_rng(5).uniform(0, 1, 2400)
    values[1000] = 1e9

    found = gaps(values)

    restart = int(np.flatnonzero(found[1001:] > 0)[0]) + 1001
    assert 1000 + REACH + QUIET - TICK < restart <= 1000 + REACH + SWEEP + 2 * TICK + QUIET
    assert found[restart:].max() < 0.2


def test_in_a_young_stream_nothing_is_novel() -> None:
    memory = np.zeros(1, MEMORY)
    values = np.random.default_rng(7).uniform(0, 1, 200)

    young = []
    for x in values[:50].tolist():
        young.append(gap(memory[0], x, REACH, True))
        remember(memory[0], x)

    assert young == [0.0] * 50
    assert gap(memory[0], 3.0, REACH, False) > 0.5
    assert gap(memory[0], float(values[7]), REACH, False) < 1e-3


def test_damping_scales_novelty_by_the_streams_recent_novelty() -> None:
    memory = np.zeros(1, MEMORY)
    sequence = np.random.default_rng(6).random(2000) ** 8
    highest = 0.0
    for g in sequence.tolist():
        assert damped(memory[0], g) == pytest.approx(g * g / (g + 2.0 * highest + 1e-12), rel=1e-12)
        highest = max(highest * DAMPING_DECAY, g)

    fresh = np.zeros(1, MEMORY)
    assert damped(fresh[0], 0.5) == pytest.approx(0.5)
    assert damped(fresh[0], 0.5) == pytest.approx(0.5 / 3)
    for _ in range(300):
        damped(fresh[0], 0.0)
    assert fresh["highest"][0] == pytest.approx(0.25, rel=0.01)

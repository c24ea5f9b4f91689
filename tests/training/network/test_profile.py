"""Values by time of day in 16 bits against the same in float64."""

import numpy as np
import pytest

from training.network.profile import FARTHEST, LEARNT, LEAST_WEIGHT, learn, learnt, profile, refit, usual_value

SLOTS = 24
SERIES = {
    "sine": lambda rng, n: 10.0 * np.sin(2 * np.pi * np.arange(n) / SLOTS) + rng.standard_normal(n),
    "large offset": lambda rng, n: 1e9 + rng.standard_normal(n),
    "first far off": lambda rng, n: np.where(np.arange(n) == 0, 0.0, 1e6 + rng.standard_normal(n)),
    "growing": lambda rng, n: np.geomspace(1e-3, 1e6, n),
    "heavy tails": lambda rng, n: rng.standard_t(1, n),
    "tiny": lambda rng, n: 1e-60 * rng.standard_normal(n),
    "huge": lambda rng, n: 1e30 * rng.choice([-1.0, 1.0], n),
    "steps": lambda rng, n: rng.integers(0, 3, n).astype(np.float64),
}


def fresh() -> np.void:
    return np.zeros(1, profile(SLOTS))[0]


@pytest.mark.parametrize("kind", SERIES)
def test_slots_hold_running_means_to_a_few_steps(kind: str) -> None:
    values = SERIES[kind](np.random.default_rng(1), 40 * SLOTS)
    usual, count, p = np.zeros(SLOTS), np.zeros(SLOTS, int), fresh()
    for k, x in enumerate(values.tolist()):
        slot = k % SLOTS
        count[slot] += 1
        usual[slot] += max(LEAST_WEIGHT, 1.0 / count[slot]) * (x - usual[slot])
        learn(p, slot, x)
        if k % SLOTS == 7:
            refit(p, 0.0, np.inf)
        assert learnt(p, slot) == min(count[slot], LEARNT)
    found = np.array([usual_value(p, slot) for slot in range(SLOTS)])
    reach = np.abs(values - values[0]).max()
    assert np.abs(found - usual).max() <= 2.0 * reach / 4096 + 1e-15 * np.abs(values).max()


def test_after_a_far_value_is_forgotten_steps_are_fine_again() -> None:
    rng, p = np.random.default_rng(2), fresh()
    learn(p, 0, 0.0)
    for _ in range(40):
        for slot in range(SLOTS):
            learn(p, slot, 1e6 + rng.standard_normal())
        refit(p, 0.0, np.inf)
    assert 0.0 < p["step"] < 1e-2


def test_equal_values_stay_exact() -> None:
    p = fresh()
    for slot in 2 * [*range(SLOTS)]:
        learn(p, slot, 0.1)
    assert [usual_value(p, slot) for slot in range(SLOTS)] == [0.1] * SLOTS
    learn(p, 3, 1e12)
    assert usual_value(p, 4) == 0.1


def test_a_slot_that_learnt_nothing_is_not_known() -> None:
    p = fresh()
    learn(p, 5, 7.0)
    assert [learnt(p, slot) for slot in range(SLOTS)] == [int(slot == 5) for slot in range(SLOTS)]


def test_what_lies_farther_from_the_center_than_asked_is_cut() -> None:
    p = fresh()
    for slot in range(SLOTS):
        learn(p, slot, 1e6 if slot == 0 else float(slot))
    refit(p, 12.0, 100.0)
    assert usual_value(p, 0) == pytest.approx(112.0, abs=1e6 / 2048)
    assert (np.abs(np.asarray(p["code"]) >> 2) <= FARTHEST).all()

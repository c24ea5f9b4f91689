"""The claim of a value that was never met, and what tempers it."""

import math

import numpy as np
import pytest

from detector.scoring.batch import MEASURED
from detector.scoring.channels.novel import (
    ALARMING,
    ALARMING_PERIOD,
    ERROR_WEIGHT,
    NOVEL_STATE,
    measure_novelty,
)
from tests.detector.scoring.support import assert_same


def claimed(
    values: np.ndarray,
    *,
    errors: np.ndarray | float = 0.0,
    tails: np.ndarray | float = 0.3,
    gaps: tuple[int, ...] = (),
    unit: float = 0.0,
    record: np.ndarray | None = None,
) -> np.ndarray:
    """Return MEASURED of values whose forecasts erred by so much, with such tails."""
    record = np.zeros(1, NOVEL_STATE) if record is None else record
    out = np.zeros(len(values), MEASURED)
    out["error"], out["tail"] = errors, tails
    for k, x in enumerate(values.tolist()):
        measure_novelty(record[0], k, x, 100.0, unit, k in gaps, out[k])
    return out


def series(rows: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).uniform(90.0, 110.0, rows)


def test_the_never_seen_is_claimed_and_the_seen_is_not() -> None:
    values = series(1_000)
    values[[600, 800]] = 150.0

    found = claimed(values, tails=np.where(values > 140, 3.0, 0.3))

    assert found["novel"][600] > ALARMING_PERIOD + 1
    assert found["novel"][800] == 0.0
    assert found["nearest"][600] == pytest.approx(110.0, abs=0.5)
    assert np.quantile(found["novel"][200:600], 0.95) < 2.0


def test_a_value_never_seen_inside_the_range_is_claimed_too() -> None:
    values = np.tile([90.0, 91.0, 109.0, 110.0], 250)
    values[900] = 100.0

    assert claimed(values, tails=np.where(values == 100.0, 3.0, 0.3))["novel"][900] > ALARMING_PERIOD


def test_the_claim_is_the_logarithm_of_the_distance() -> None:
    """At a tail of one or more and a skill of one; r^2 / r of a first novelty is r."""
    values = np.tile([0.0, 100.0], 200)
    claims = []
    for x in (101.0, 110.0, 200.0):
        record = np.zeros(1, NOVEL_STATE)
        claimed(values, record=record)
        record["context"] = 0.4  # (0.5 / (0.4 + 0.1)) to any power is 1
        out = np.zeros(1, MEASURED)
        out["tail"] = 2.0
        record["value"]["highest"] = 0.0
        measure_novelty(record[0], len(values), x, 100.0, 0.0, False, out[0])
        claims.append(float(out["novel"][0]))

    wanted = [ALARMING_PERIOD + math.log10((x - 100.0) / x / ALARMING) for x in (101.0, 110.0, 200.0)]
    assert claims == pytest.approx(wanted, abs=0.1)


def test_what_the_forecast_expected_is_no_news() -> None:
    """Less by the tail: a trend reaches a new value with every event."""
    values = np.append(series(600), 150.0)

    by_tail = [
        claimed(values, tails=np.append(np.full(600, 0.3), tail))["novel"][-1] for tail in (0.0, 0.01, 0.1, 1.0, 5.0)
    ]

    assert by_tail[0] == 0.0
    assert by_tail == sorted(by_tail)
    assert by_tail[3] == by_tail[4]


@pytest.mark.parametrize(("beyond", "error", "share"), [(0.1, 2.0, 0.5), (0.1, 0.5, 1.0), (0.3, 2.0, 1.0)])
def test_the_next_extreme_of_noise_is_worth_less(beyond: float, error: float, share: float) -> None:
    """By a large error and less than a fifth of a unit beyond what was met; both in units of the error."""
    unit, values = 10.0, series(1_001)
    values[1_000] = values[:1_000].max() + beyond * unit
    errors = np.full(1_001, error * unit)
    tails = np.full(1_001, 0.3)
    tails[1_000] = 2.0

    plain = claimed(values, errors=errors, tails=tails)["novel"][1_000]
    tempered = claimed(values, errors=errors, tails=tails, unit=unit)["novel"][1_000]

    assert plain > 1.0
    assert plain - tempered == pytest.approx(-math.log10(share), abs=0.02 if share == 1.0 else 0.2)


def test_novelty_where_all_surprises_is_worth_less() -> None:
    values = np.append(series(600), 150.0)

    calm, wild = (claimed(values, tails=np.append(np.full(600, t), 3.0))["novel"][-1] for t in (0.2, 2.0))

    assert calm > wild + 0.5


def test_an_error_never_made_before_is_claimed_at_its_weight() -> None:
    rng = np.random.default_rng(2)
    values, errors = series(600), rng.uniform(-1, 1, 600)
    values[500] = values[100]
    errors[500] = 9.0

    found = claimed(values, errors=errors)["novel"]

    assert ALARMING_PERIOD < found[500] <= ALARMING_PERIOD + math.log10(ERROR_WEIGHT * 2.0 / ALARMING)
    assert found[500] > found[200:500].max()


@pytest.mark.parametrize("x", [89.0, 150.0])
def test_at_a_gaps_end_a_value_out_of_the_range_is_claimed(x: float) -> None:
    values = np.append(series(600), x)

    assert claimed(values, tails=np.append(np.full(600, 0.3), 3.0), gaps=(600,))["novel"][-1] > ALARMING_PERIOD


def test_at_a_gaps_end_what_lies_within_the_range_is_not() -> None:
    """However new the value is, and however wrong the forecast was."""
    values = np.append(np.tile([90.0, 91.0, 109.0, 110.0], 150), 100.0)
    tails, errors = np.append(np.full(600, 0.3), 5.0), np.append(np.zeros(600), 50.0)

    assert claimed(values, tails=tails, errors=errors)["novel"][-1] > ALARMING_PERIOD
    assert claimed(values, tails=tails, errors=errors, gaps=(600,))["novel"][-1] == 0.0


def test_across_a_gap_only_the_value_is_remembered() -> None:
    values, errors = np.append(series(600), 150.0), np.append(np.random.default_rng(3).uniform(-1, 1, 600), 50.0)
    record = np.zeros(1, NOVEL_STATE)
    claimed(values[:600], errors=errors[:600], record=record)
    before = record.copy()

    out = np.zeros(1, MEASURED)
    out["error"], out["tail"] = 50.0, 6.0
    measure_novelty(record[0], 600, 150.0, 100.0, 0.0, True, out[0])

    assert record["context"] == before["context"]
    assert_same(record["error"], before["error"])
    assert record["value"]["high"][0] == 150.0


def test_nothing_is_claimed_while_the_lane_is_young() -> None:
    assert not claimed(series(50))["novel"].any()


def spiked(spikes: range, spread: float = 10.0) -> np.ndarray:
    """Return claims of a series that is well predicted, but for an error of 4 now and then."""
    errors = np.random.default_rng(2).uniform(-1.0, 1.0, 3000)
    errors[spikes] = 4.0
    rng = np.random.default_rng(3)
    return claimed(100.0 + rng.uniform(-spread, spread, 3000), errors=errors)["novel"]


def test_an_error_that_was_doubted_is_told_again() -> None:
    """Another of its size tells the doubting memory as much as the first did; the plain one knows it."""
    again = spiked(range(1500, 2900, 700))[2200]

    assert again > ALARMING_PERIOD
    assert spiked(range(1500, 2900, 700), spread=1.5)[2200] < 1.0  # no trust in a network that predicts nothing


def test_what_is_new_all_the_time_is_worth_no_doubt() -> None:
    assert spiked(range(1500, 2900, 20))[2880] < 1.0

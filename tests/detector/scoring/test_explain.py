"""The numbers of an alert's sentence, by the channel that spoke."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from detector.scoring.batch import MEASURED, VERDICT
from detector.scoring.channels.value_grid import TICK
from detector.scoring.claims import COUPLING, FORECAST, LEVEL, NOVEL, STILL, SYMBOL
from detector.scoring.explain import explain
from detector.scoring.lane import lane_score
from detector.scoring.units import ERROR, FAR, SMOOTHED
from detector.scoring.units import LEVEL as LEVELLED
from tests.detector.scoring.support import SECOND

NUMBERS = ("observed", "expected", "lower", "upper", "seconds", "usual_seconds")


def lane() -> np.ndarray:
    """Return a lane whose errors' units are 1, 2 and 3, and its level's 4."""
    record = np.zeros(1, lane_score())
    record["units"]["slow_unit"][0, [ERROR, SMOOTHED, FAR, LEVELLED]] = 1.0, 2.0, 3.0, 4.0
    return record


def explained(channel: int, record: np.ndarray, *, observed: float = 50.0, **measured: Any) -> dict[str, float]:
    """Return what an alert prints of a lane that expected 40, in a network's band of 35 to 45; NaN is left out."""
    v, m = np.zeros(1, VERDICT), np.zeros(1, MEASURED)
    v["channel"] = channel
    m["known"], m["expected"], m["error"], m["least"] = True, 40.0, observed - 40.0, 0.1
    for name, value in measured.items():
        m[name] = value
    explain(v[0], m[0], record[0], observed, 100 * SECOND, 5.0, (35.0, 45.0))
    return {name: float(v[name][0]) for name in NUMBERS if not math.isnan(v[name][0])}


def units(error: float, smoothed: float, far: float) -> list[float]:
    return [error, smoothed, far, 0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("sizes", "expected", "unit"),
    [(units(9.0, 3.0, 3.0), 40.0, 1.0), (units(3.0, 9.0, 3.0), 44.0, 2.0), (units(3.0, 4.0, 9.0), 30.0, 3.0)],
)
def test_a_forecasts_band_is_that_of_its_largest_error(sizes: list[float], expected: float, unit: float) -> None:
    found = explained(FORECAST, lane(), units=sizes, smoothed_error=6.0, far_error=20.0)

    assert found == {"observed": 50.0, "expected": expected, "lower": expected - unit, "upper": expected + unit}


def test_where_an_error_is_within_its_unit_the_networks_band_is_printed() -> None:
    wide = lane()
    wide["units"]["slow_unit"][0, ERROR] = 30.0

    found = explained(FORECAST, wide, units=units(0.4, 0.1, 0.1))

    assert found == {"observed": 50.0, "expected": 40.0, "lower": 35.0, "upper": 45.0}


def test_and_none_where_that_holds_the_value_too() -> None:
    wide = lane()
    wide["units"]["slow_unit"][0, ERROR] = 30.0

    assert explained(FORECAST, wide, observed=44.0, units=units(0.4, 0.1, 0.1)) == {"observed": 44.0, "expected": 40.0}


def test_a_level_stands_beside_the_hours_usual() -> None:
    record = lane()
    record["level"]["difference"] = 9.0

    assert explained(LEVEL, record, usual=20.0) == {"observed": 29.0, "expected": 20.0, "lower": 16.0, "upper": 24.0}
    record["level"]["difference"] = 3.0
    assert explained(LEVEL, record, usual=20.0) == {"observed": 23.0, "expected": 20.0}


def test_a_standstill_has_its_time_and_the_usual_longest() -> None:
    record = lane()
    record["since"], record["still"]["bound"], record["still"]["runs"] = 10 * SECOND, math.log(8.0), 10

    found = explained(STILL, record)

    assert found == pytest.approx({"observed": 50.0, "expected": 40.0, "seconds": 90.0, "usual_seconds": 40.0})


def test_coupling_says_what_the_other_features_let_expect() -> None:
    assert explained(COUPLING, lane(), coupled=44.0) == {"observed": 50.0, "expected": 44.0}


def test_novelty_says_what_is_nearest_and_when_it_was_met() -> None:
    """Without digits that are not known; it may have been met up to a tick later than its age."""
    found = explained(NOVEL, lane(), nearest=42.008, nearest_within=0.0156, nearest_age=2.0 * TICK)

    assert found == {"observed": 50.0, "expected": 42.0, "seconds": 3 * TICK * 5.0}
    assert explained(NOVEL, lane(), nearest=4_207.0, nearest_within=15.0, nearest_age=0.0)["expected"] == 4_210.0
    assert explained(NOVEL, lane(), nearest=42.008, nearest_within=0.0, nearest_age=0.0)["expected"] == 42.008


def test_a_symbol_has_no_numbers() -> None:
    assert explained(SYMBOL, lane(), known=False) == {}


sizes = st.floats(-1e9, 1e9)


@given(st.sampled_from([FORECAST, LEVEL, STILL, COUPLING, NOVEL]), st.lists(sizes, min_size=12, max_size=12))
def test_no_numbers_belie_their_alert(channel: int, drawn: list[float]) -> None:
    """Whatever was measured: no value lies inside its band, no pause is shorter than the usual longest."""
    record = lane()
    record["units"]["slow_unit"][0] = np.abs(drawn[:6])
    record["level"]["difference"] = drawn[6]
    record["since"], record["still"]["runs"] = int(drawn[7]), 100
    record["still"]["bound"], record["still"]["scale"] = abs(drawn[8]) % 20.0, 0.3

    found = explained(
        channel, record, observed=drawn[9], units=np.abs(drawn[:6]), smoothed_error=drawn[10], far_error=drawn[11],
        usual=drawn[8],
    )  # fmt: skip

    assert not found.get("lower", math.inf) <= found["observed"] <= found.get("upper", -math.inf)
    assert not found.get("usual_seconds", -math.inf) >= found.get("seconds", math.inf)

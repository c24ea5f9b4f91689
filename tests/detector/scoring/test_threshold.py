"""A stream's threshold: from the budget and its rate, and what youth adds."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detector.scoring.threshold import MIN_THRESHOLD_ONE, MIN_THRESHOLD_SEVERAL, threshold_of, youth


def of(interval: float, per_week: float = 7.0, fixed: float = math.nan, *, several: bool = True) -> float:
    return float(threshold_of(interval, per_week, fixed, several))


def test_the_threshold_follows_from_the_budget_and_the_streams_rate() -> None:
    assert of(60.0) == pytest.approx(math.log10(10_080 / 7))
    assert of(1.0, per_week=1.0) == pytest.approx(math.log10(604_800))
    assert of(300.0, per_week=0.7) == pytest.approx(math.log10(2016 / 0.7))
    assert of(1.0, several=False) == of(1.0) > MIN_THRESHOLD_ONE


def test_slow_streams_and_those_of_an_unknown_rate_have_the_least_threshold() -> None:
    for interval in (0.0, 3600.0):
        assert of(interval) == MIN_THRESHOLD_SEVERAL
        assert of(interval, several=False) == MIN_THRESHOLD_ONE


def test_the_operators_own_threshold_holds_at_any_rate() -> None:
    assert of(0.0, fixed=1.5) == of(1.0, fixed=1.5, several=False) == 1.5


def test_a_young_stream_needs_more_by_what_its_past_does_not_bear_out() -> None:
    assert youth(3.0, 10.0) == pytest.approx(2.0)
    assert youth(3.0, 100.0) == pytest.approx(1.0)
    assert youth(3.0, 1000.0) == youth(3.0, 1e6) == 0.0
    assert youth(3.0, 0.0) == youth(3.0, -59.0) == 3.0


@given(st.floats(2.0, 7.0), st.floats(-60.0, 1e7), st.floats(0.0, 1e7))
@settings(deadline=None)
def test_youth_only_passes(threshold: float, events: float, more: float) -> None:
    assert 0.0 <= youth(threshold, events + more) <= youth(threshold, events) <= threshold

"""The forecast's own probability against scipy's distributions."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from detector.scoring.student import BAND_DEVIATE, log_normaliser, normal_deviate, rarity, student_deviate


@pytest.mark.parametrize("z", [0.0, 1e-9, 0.5, 1.0, 3.0, 4.999, 5.0, 12.0, 19.9, 20.1, 37.0])
def test_rarity_is_the_normal_distributions_two_sided_tail(z: float) -> None:
    wanted = -(math.log(2.0) + stats.norm.logsf(z)) / math.log(10.0)

    assert rarity(z) == pytest.approx(wanted, rel=1e-5, abs=1e-12)


def test_a_larger_deviate_is_always_rarer() -> None:
    """Without a ceiling, and across the change from one formula to the other."""
    z = np.concatenate([np.linspace(0.0, 30.0, 3001), np.geomspace(31.0, 1e6, 100)])

    assert (np.diff([rarity(x) for x in z.tolist()]) > 0.0).all()


@settings(deadline=None)
@given(st.floats(1.0, 1e4))
def test_the_densitys_normaliser_is_students(nu: float) -> None:
    assert log_normaliser(nu) == pytest.approx(-stats.t.logpdf(0.0, nu), abs=1e-8)


@pytest.mark.parametrize("nu", [2.0, 3.0, 5.0, 10.0, 60.0])
@pytest.mark.parametrize("t", [0.1, 0.5, 1.0, 3.0, 10.0, 100.0])
def test_a_normal_deviate_is_as_rare_as_students_t(nu: float, t: float) -> None:
    assert normal_deviate(math.log1p(t * t / nu), nu) == pytest.approx(stats.norm.isf(stats.t.sf(t, nu)), rel=0.06)


@pytest.mark.parametrize("nu", [3.0, 10.0, 60.0])
def test_rarity_by_way_of_the_normal_is_near_students_own_tail(nu: float) -> None:
    for t in (0.5, 2.0, 5.0, 20.0, 1e3):
        assert rarity(normal_deviate(math.log1p(t * t / nu), nu)) == pytest.approx(
            -math.log10(2.0 * stats.t.sf(t, nu)), rel=0.09
        )


@given(st.floats(1e-6, 1e6), st.floats(2.0, 100.0))
@settings(deadline=None)
def test_the_two_deviates_are_inverse_to_each_other(t: float, nu: float) -> None:
    assert student_deviate(normal_deviate(math.log1p(t * t / nu), nu), nu) == pytest.approx(t, rel=1e-6)


@pytest.mark.parametrize("nu", [2.0, 5.0, 60.0])
def test_the_band_holds_99_percent(nu: float) -> None:
    assert 2.0 * stats.t.sf(student_deviate(BAND_DEVIATE, nu), nu) == pytest.approx(0.01, rel=0.25)

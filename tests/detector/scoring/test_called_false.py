"""Kinds of errors that were called false, beside those that recur."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from detector.scoring.called_false import AS_LARGE, call_false, has_kinds, take_back, was_called_false
from detector.scoring.claims import COUPLING, FORECAST, LEVEL, NOVEL, STILL, SYMBOL
from detector.scoring.recurrence import KINDS, RECURRENCE, recurring
from detector.scoring.verdicts import taught

DAY = 86_400 * 10**9
ABOVE = 1  # key of an error above the expectation, of the first lane


@pytest.fixture
def kept() -> NDArray[np.void]:
    return np.zeros(1, RECURRENCE)


def test_an_error_is_of_a_kind_by_size_sign_lane_and_channel(kept: NDArray[np.void]) -> None:
    call_false(kept[0], 0, 40.0, FORECAST, DAY)
    near = 0.95 * AS_LARGE
    assert all(was_called_false(kept[0], 0, size, FORECAST) for size in (40.0, 40.0 * near, 40.0 / near))
    far = 1.1 * AS_LARGE
    assert not any(was_called_false(kept[0], 0, size, FORECAST) for size in (40.0 * far, 40.0 / far, -40.0, 0.0))
    assert not was_called_false(kept[0], 1, 40.0, FORECAST)
    assert not any(was_called_false(kept[0], 0, 40.0, channel) for channel in (LEVEL, STILL, COUPLING, NOVEL, SYMBOL))


def test_once_more_is_the_same_and_taken_back_is_as_before(kept: NDArray[np.void]) -> None:
    call_false(kept[0], 0, 40.0, FORECAST, DAY)
    once = kept.copy()
    call_false(kept[0], 0, 40.0, FORECAST, 2 * DAY)
    assert kept.tobytes() == once.tobytes()
    call_false(kept[0], 0, 40.0, NOVEL, DAY)
    assert was_called_false(kept[0], 0, 40.0, NOVEL)
    take_back(kept[0], 0, 40.0, NOVEL)
    assert kept.tobytes() == once.tobytes()


def test_recurrences_of_a_kind_are_counted_and_do_not_move_it(kept: NDArray[np.void]) -> None:
    call_false(kept[0], 0, 40.0, FORECAST, DAY)
    for day in range(2, 30):
        recurring(kept[0], ABOVE, 55.0, day * DAY, 60.0)
    assert kept["count"].max() > 20
    assert was_called_false(kept[0], 0, 40.0, FORECAST)
    assert not was_called_false(kept[0], 0, 55.0, FORECAST)


def test_kinds_that_were_called_false_outlast_others_and_the_oldest_goes_first(kept: NDArray[np.void]) -> None:
    sizes = [10.0**n for n in range(1, KINDS + 2)]
    for n, size in enumerate(sizes[:-1]):
        call_false(kept[0], 0, size, FORECAST, (n + 1) * DAY)
    assert all(was_called_false(kept[0], 0, size, FORECAST) for size in sizes[:-1])
    call_false(kept[0], 0, sizes[-1], FORECAST, 9 * DAY)
    assert [was_called_false(kept[0], 0, size, FORECAST) for size in sizes] == [False, *[True] * KINDS]
    take_back(kept[0], 0, sizes[2], FORECAST)
    recurring(kept[0], ABOVE, 1e-6, 10 * DAY, 60.0)
    assert [was_called_false(kept[0], 0, size, FORECAST) for size in sizes] == [False, True, False, True, True]


def test_what_has_no_size_has_no_kind_and_lifts_the_threshold() -> None:
    assert [has_kinds(channel, 3.0) for channel in range(6)] == [c in (FORECAST, LEVEL, NOVEL) for c in range(6)]
    assert not any(has_kinds(FORECAST, size) for size in (0.0, math.nan, math.inf))
    assert taught(0, "false", "", of_a_kind=False) > taught(0, "false", "", of_a_kind=True) == 0
    lifted = taught(0, "false", "", of_a_kind=False)
    assert taught(lifted, "right", "false", of_a_kind=False) == 0, "what is taken back goes, and nothing is below 0"
    assert taught(5, "right", "", of_a_kind=True) == taught(5, "right", "", of_a_kind=False) < 5

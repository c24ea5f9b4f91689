"""Which times lie in a calendar's windows: column by column, and the same however they are asked for."""

from __future__ import annotations

import numpy as np

from detector.calendars.windows import Calendar, merged

DAY = 86_400 * 10**9


def weekly(begin: int, end: int) -> list[tuple[int, int]]:
    """A day and a half each week, and half a day that touches it."""
    first = begin // (7 * DAY) - 1
    return [
        (at * 7 * DAY + more, at * 7 * DAY + more + length)
        for at in range(first, end // (7 * DAY) + 1)
        for more, length in ((0, 3 * DAY // 2), (3 * DAY // 2, DAY // 2))
    ]


def test_times_are_held_as_each_by_itself_in_any_order_over_years() -> None:
    rng = np.random.default_rng(0)
    times = rng.integers(-100 * 365 * DAY, 200 * 365 * DAY, 2_000)
    times[:100] = times[:100] // (7 * DAY) * (7 * DAY)  # on an edge
    calendar = Calendar("weekly", weekly)
    expected = times % (7 * DAY) < 2 * DAY
    assert calendar.hold(times).tolist() == expected.tolist()
    assert [bool(calendar.hold(times[k : k + 1])[0]) for k in range(300)] == expected[:300].tolist()
    assert Calendar("weekly", weekly).hold(np.sort(times)[::-1]).tolist() == expected[np.argsort(times)[::-1]].tolist()
    assert calendar.hold(times[:0]).tolist() == []


def test_spans_that_overlap_or_touch_are_one_window() -> None:
    found = merged([(5, 6), (0, 2), (1, 4), (4, 5), (8, 9)])
    assert (found.begin.tolist(), found.end.tolist()) == ([0, 8], [6, 9])


def test_without_windows_nothing_is_held() -> None:
    never = Calendar("never", lambda begin, end: ())
    assert not never.hold(np.arange(5) * DAY).any()
    assert len(never.next(0, 3).begin) == 0

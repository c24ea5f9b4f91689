"""Windows of time as columns, and a calendar that makes them year by year as they are asked for.

Whether a time lies in a window depends on the time alone, so a replay finds the same.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from detector.calendars.recurring import Spans

Int64 = NDArray[np.int64]

LATEST = 2**63 - 1  # ns
YEARS_KEPT = 100  # of a calendar's windows: with one an hour, 14 MB
YEARS_AHEAD = 10  # how far the next window is looked for: a leap day may be eight years away


class Windows(NamedTuple):
    """Spans of time, none of which touches another, ascending."""

    begin: Int64  # [windows] ns since 1970, UTC
    end: Int64  # [windows] the first ns after it

    def hold(self, time: Int64) -> NDArray[np.bool_]:
        """Return which times, ns, lie in one of them; of any shape."""
        at = np.searchsorted(self.begin, time, side="right") - 1
        inside: NDArray[np.bool_] = (at >= 0) & (time < np.append(self.end, 0)[at])
        return inside


class Calendar:
    """Windows that come again and again."""

    def __init__(self, name: str, spans: Spans) -> None:
        self.name, self._spans = name, spans
        self._of_year = functools.lru_cache(YEARS_KEPT)(self._windows)

    def hold(self, time: Int64) -> NDArray[np.bool_]:
        """Return which times, ns [times], lie in a window."""
        held = np.zeros(len(time), np.bool_)
        first, last = _years(np.array([time.min(initial=LATEST), time.max(initial=-LATEST)])).tolist()
        if first == last:  # nearly always, and a third of the work
            return self._of_year(first).hold(time)
        years = _years(time)
        for year in np.unique(years).tolist():
            here = years == year
            held[here] = self._of_year(year).hold(time[here])
        return held

    def next(self, time: int, count: int) -> Windows:
        """Return the windows that lie at or after a time, ns: so many, or those of the next years."""
        (year,) = _years(np.array([time])).tolist()
        spans: list[tuple[int, int]] = []
        for ahead in range(YEARS_AHEAD):
            begin, end = self._of_year(year + ahead)
            spans += zip(begin.tolist(), end.tolist(), strict=True)
            found = merged(span for span in spans if span[1] > time)
            if len(found.begin) > count:  # the last of a year may go on in the next
                break
        return Windows(found.begin[:count], found.end[:count])

    def _windows(self, year: int) -> Windows:
        begin, end = (int(np.datetime64(year + more, "Y").astype("datetime64[ns]").astype(np.int64)) for more in (0, 1))
        return merged(span for span in self._spans(begin, end) if span[1] > begin and span[0] < end)


def _years(time: Int64) -> Int64:
    """Return the years of times, ns, since 1970, in UTC."""
    return time.astype("datetime64[ns]").astype("datetime64[Y]").astype(np.int64)


def merged(spans: Iterable[tuple[int, int]]) -> Windows:
    """Return spans as windows: those that overlap or touch are one."""
    begin, end = list[int](), list[int]()
    for first, last in sorted(spans):
        if end and first <= end[-1]:
            end[-1] = max(end[-1], last)
        else:
            begin.append(first)
            end.append(last)
    return Windows(np.array(begin, np.int64), np.array(end, np.int64))

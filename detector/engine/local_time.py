"""Local time: the clock by which streams have their days and weeks.

A rhythm follows people's clocks, which some time zones change twice a year. What is usual at an hour is therefore kept
by local time; everything else, and all that is written, is in UTC. Nothing of a time zone is part of a state.
"""

from __future__ import annotations

import functools
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import numpy as np
from numpy.typing import NDArray

Int64 = NDArray[np.int64]

DAY = 86_400
LAST_YEAR = 2100  # beyond, the last offset holds


def local_time(time: Int64, timezone: str) -> Int64:
    """Return times, ns since 1970 in UTC, by the clock of a time zone: ns since that clock showed 1970.

    A pure function of each time. Raises zoneinfo.ZoneInfoNotFoundError for a name that the machine does not know.
    """
    if timezone == "UTC":
        return time
    changes, offsets = _offsets(timezone)
    return time + offsets[np.searchsorted(changes, time, side="right")]


@functools.cache
def _offsets(timezone: str) -> tuple[Int64, Int64]:
    """Return when a zone's clock changes, ns, and its offsets from UTC before, between and after, ns."""
    zone, epoch = ZoneInfo(timezone), datetime(1970, 1, 1, tzinfo=UTC)

    def offset(seconds: int) -> int:
        there = (epoch + timedelta(seconds=seconds)).astimezone(zone).utcoffset()
        return int(there.total_seconds()) if there is not None else 0

    end = int(datetime(LAST_YEAR, 1, 1, tzinfo=UTC).timestamp())
    changes, offsets = [], [offset(0)]
    for day in range(0, end, DAY):
        after = offset(day + DAY)
        if after != offsets[-1]:
            low, high = day, day + DAY
            while high - low > 1:
                middle = (low + high) // 2
                low, high = (middle, high) if offset(middle) == offsets[-1] else (low, middle)
            changes.append(high)
            offsets.append(after)
    return np.array(changes, np.int64) * 10**9, np.array(offsets, np.int64) * 10**9

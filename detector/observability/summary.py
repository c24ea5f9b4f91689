"""What the daemon has done, in one line an hour and one at the end, so that a quiet log shows that it is alive."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable

logger = logging.getLogger(__name__)

EVERY_SECONDS = 3600.0
COUNTED = ("scored", "rejected", "late", "duplicate", "alerts")


class RunSummary:
    """Counts by the names of COUNTED."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began = self._logged_at = clock()  # s
        self._all, self._recent = Counter[str](), Counter[str]()

    def count(self, **found: int) -> None:
        """Add the counts of a batch."""
        self._recent.update(found)

    def log_hourly(self, streams: int, lag: int) -> None:
        """Log once an hour what was counted, how many streams are in memory and how many records wait to be read."""
        if self._clock() - self._logged_at < EVERY_SECONDS:
            return
        logger.info("in the last hour: %s; %d streams in memory, %d records behind", _words(self._recent), streams, lag)
        self._logged_at = self._clock()
        self._settle()

    def log_total(self) -> None:
        """Log what was counted in the whole run."""
        self._settle()
        logger.info("in %.0f s: %s", self._clock() - self._began, _words(self._all))

    def _settle(self) -> None:
        self._all.update(self._recent)
        self._recent.clear()


def _words(counts: Counter[str]) -> str:
    return ", ".join(f"{counts[name]} {name}" for name in COUNTED)

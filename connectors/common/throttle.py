"""Log lines that would repeat, at most once a minute."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable

LOG_SECONDS = 60.0


class LogThrottle:
    """Lets a line be logged at once, and then at most once in `seconds`. Thread-safe."""

    def __init__(self, seconds: float = LOG_SECONDS, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds, self._clock = seconds, clock
        self._lock = threading.Lock()
        self._count = 0
        self._logged_at = -math.inf  # by the clock, s

    def due(self, count: int = 1) -> int:
        """Count events. Returns the number since the last line if one may be logged now, else 0."""
        with self._lock:
            self._count += count
            now = self._clock()
            if not self._count or now - self._logged_at < self._seconds:
                return 0
            due, self._count, self._logged_at = self._count, 0, now
            return due

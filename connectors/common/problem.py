"""What a part that works in a thread of its own cannot do at present, so that others see it who cannot hear it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

CALM_SECONDS = 30.0  # without a failure for so long, a problem is over
LASTING_SECONDS = 60.0  # a problem that goes on for so long is worth more than a line of the log


class OngoingProblem:
    """`met` and `over` are for the part's own thread, the rest for any. Times are monotonic, s."""

    def __init__(self, calm_seconds: float = CALM_SECONDS, clock: Callable[[], float] = time.monotonic) -> None:
        """Take a problem for over where it is not met again for `calm_seconds`."""
        self._calm, self._clock = calm_seconds, clock
        self._state = (-math.inf, -math.inf, "")  # first met, last met, why; one object, for other threads read it

    def report(self, why: str) -> bool:
        """Note a failure; return whether it is another one than before, and so worth a line."""
        now = self._clock()
        before = self.current
        self._state = (self._state[0] if before else now, now, why)
        return why != before

    def clear(self) -> None:
        """Note that all is well."""
        self._state = (-math.inf, -math.inf, "")

    @property
    def current(self) -> str:
        """Return what is wrong at present; empty where nothing is."""
        _, last, why = self._state
        return why if self._clock() - last < self._calm else ""

    def persistent(self) -> str:
        """Return what has been wrong for LASTING_SECONDS, and since when; empty where nothing has."""
        first, _, why = self._state
        since = self._clock() - first
        return f"{why} (for {since:.0f} s)" if self.current and since >= LASTING_SECONDS else ""

"""Background threads: running work in one, and what one fails to do at present, for health checks and metrics."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

_Result = TypeVar("_Result")

CALM_SECONDS = 30.0  # without a failure for so long, a problem counts as solved
LASTING_SECONDS = 60.0  # a problem that lasts longer is reported by the health check


def run_in_thread(work: Callable[[], _Result], name: str = "run-in-thread") -> Future[_Result]:
    """Run a call that takes no deadline in a daemon thread, which does not keep the process from ending."""
    future: Future[_Result] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # noqa: BLE001 - raised where the result is awaited
            future.set_exception(error)

    threading.Thread(target=run, name=name, daemon=True).start()
    return future


class OngoingProblem:
    """The failure that a thread keeps meeting. `report` and `clear` are for that thread, the rest for any."""

    def __init__(self, calm_seconds: float = CALM_SECONDS, clock: Callable[[], float] = time.monotonic) -> None:
        """Count a problem as solved if it is not reported again for `calm_seconds`."""
        self._calm, self._clock = calm_seconds, clock
        self._state = (-math.inf, -math.inf, "")  # first and last reported (s), why; one object: threads read it

    def report(self, why: str) -> bool:
        """Record a failure; return whether it is new or has changed, and so is worth a log line."""
        now = self._clock()
        before = self.current
        self._state = (self._state[0] if before else now, now, why)
        return why != before

    def clear(self) -> None:
        """Record that all is well."""
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

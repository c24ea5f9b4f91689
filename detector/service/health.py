"""Whether the loop turns, and whether it gets anywhere."""

from __future__ import annotations

import time

ALIVE_SECONDS = 60.0  # without a turn of the loop, after which /livez says so


class Health:
    """`beat` is for the loop; `live` may be asked by any thread. Times are monotonic, s."""

    def __init__(self, stalled_after_seconds: float) -> None:
        self._stalled_after = stalled_after_seconds
        self._beat_at = self._moved_at = time.monotonic()
        self._progress: object = None

    def beat(self) -> None:
        """Note that the loop turns."""
        self._beat_at = time.monotonic()

    def watch(self, progress: object, *, waiting: bool) -> None:
        """Note how far the work has come, anything that can be compared, and whether any waits that could be done."""
        if not waiting or progress != self._progress:
            self._moved_at = time.monotonic()
        self._progress = progress

    def live(self) -> tuple[bool, str]:
        """Return whether the process does what it is there for, and what tells so."""
        now = time.monotonic()
        idle, stalled = now - self._beat_at, now - self._moved_at
        if stalled >= self._stalled_after:
            return False, f"events wait, and none was processed for {stalled:.0f} s (processing.stalled_after_seconds)"
        return idle < ALIVE_SECONDS, f"the loop last turned {idle:.1f} s ago"

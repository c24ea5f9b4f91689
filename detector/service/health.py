"""Whether the loop turns and gets anywhere (/livez), and whether events are scored (/readyz)."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from connectors.common.background import OngoingProblem
from detector.checkpointing.checkpointer import Checkpointer
from detector.checkpointing.deadlines import BrokerWait
from detector.service.rebalance import RebalanceHandler
from detector.service.reporter import Reporter

ALIVE_SECONDS = 60.0  # without a turn of the loop, after which /livez says so


class Health:
    """`beat` is for the loop, and calls `on_beat`; `live` may be asked by any thread. Times are monotonic, s."""

    def __init__(self, stalled_after_seconds: float, on_beat: Callable[[], None] = lambda: None) -> None:
        self._stalled_after, self._on_beat = stalled_after_seconds, on_beat
        self._beat_at = self._moved_at = time.monotonic()
        self._progress: object = None

    def beat(self) -> None:
        """Note that the loop turns."""
        self._beat_at = time.monotonic()
        self._on_beat()

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


class Readiness:
    """Whether events are scored. For any thread."""

    def __init__(
        self,
        broker_wait: BrokerWait,
        checkpointer: Checkpointer,
        rebalance: RebalanceHandler,
        reporter: Reporter,
        problems: Mapping[str, OngoingProblem],
    ) -> None:
        self._broker_wait, self._checkpointer, self.rebalance = broker_wait, checkpointer, rebalance
        self._reporter, self._problems = reporter, problems

    def ready(self) -> tuple[bool, str]:
        """Return whether events are scored, and why not, or a word on its state."""
        if self._broker_wait.shutting_down:
            return False, "stopping"
        if overdue := self._checkpointer.overdue():
            return False, overdue
        if restoring := len(self._checkpointer.restoring):
            return False, f"restoring the states of {restoring} partitions"
        problems = {part: problem.persistent() for part, problem in self._problems.items()}
        if failing := "; ".join(text for part, text in problems.items() if text and part != "retraining"):
            return False, failing
        if (standby := self._checkpointer.standby) is not None:
            return standby
        if not self.rebalance.assigned:
            return False, "waiting for partitions"
        # ready all the same: a restart would not help, and others would get no more of what cannot be read; without a
        # retraining scoring continues with the model as it is
        return True, "; ".join(filter(None, (self._reporter.nothing_read or "scoring", problems["retraining"])))

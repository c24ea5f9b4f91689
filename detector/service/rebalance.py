"""What follows as the group gives partitions to this worker and takes them away."""

from __future__ import annotations

from connectors.batches import Partition
from connectors.protocols import RebalanceCallbacks
from connectors.sink_group import SinkGroup
from detector.checkpointing.checkpointer import Checkpointer
from detector.checkpointing.deadlines import BrokerWait
from detector.service.poison_events import PoisonGuard


class RebalanceHandler:
    """For the daemon's thread, save `assigned`."""

    def __init__(
        self,
        checkpointer: Checkpointer,
        guard: PoisonGuard,
        sinks: SinkGroup,
        broker_wait: BrokerWait,
        *,
        assigned: bool,
    ) -> None:
        self._checkpointer, self._guard = checkpointer, guard
        self._sinks, self._broker_wait = sinks, broker_wait
        self.assigned = assigned  # whether there has ever been something to read

    def callbacks(self) -> RebalanceCallbacks:
        """Return what a source is to call."""
        return RebalanceCallbacks(
            start=self._checkpointer.start_offset,
            on_assigned=self._on_assigned,
            on_revoked=self._on_revoked,
            on_lost=self._on_lost,
            on_placed=self._checkpointer.on_placed,
        )

    def _on_assigned(self, partitions: list[Partition]) -> None:
        if not self.assigned:
            # a topic that cannot be written fails now, not at the first alert
            self._broker_wait.until_brokers_answer(self._sinks.open)
        self.assigned = True
        self._checkpointer.assign(partitions)

    def _on_revoked(self, partitions: list[Partition]) -> None:
        self._checkpointer.revoke(partitions)
        self._guard.revoke(partitions)

    def _on_lost(self, partitions: list[Partition]) -> None:
        self._checkpointer.lost(partitions)
        self._guard.revoke(partitions)

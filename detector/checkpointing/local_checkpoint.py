"""Checkpoints in the local store: states, offsets and the sinks' positions in one transaction of SQLite."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from connectors.batches import Partition
from connectors.kafka.writer import UndeliveredError
from detector.checkpointing.checkpointer import Checkpointer, CheckpointParts
from detector.config.settings import Settings


class LocalCheckpointer(Checkpointer):
    """States stay with this worker, whichever partitions it has."""

    def __init__(
        self, settings: Settings, parts: CheckpointParts, offsets: dict[Partition, int], metadata: dict[str, Any]
    ) -> None:
        super().__init__(settings, parts, offsets, metadata)
        if parts.store.positions():
            parts.store.clear(None)  # what is saved from now on is not in the changelog
        parts.incidents.found(parts.store.open_incidents())

    def start_offset(self, partition: Partition) -> int | None:
        """Return the store's offset, which rules over what is committed in Kafka."""
        return self.offsets.get(partition)

    def assign(self, partitions: list[Partition]) -> None:
        """Do nothing: states are here."""

    def on_placed(self, offsets: Mapping[Partition, int]) -> None:
        """Note where reading begins. It is made durable at once: a partition may be silent until after a restart."""
        if any(self.offsets.get(partition) != offset for partition, offset in offsets.items()):
            self.offsets.update(offsets)
            self.commit_soon()

    def lost(self, partitions: list[Partition]) -> None:
        """Save what was done all the same: others' progress does not touch the local store."""
        self.revoke(partitions)

    def _save(self, rows: Iterator[tuple[str, bytes]], meta: Mapping[str, Any]) -> None:
        self._parts.store.save(rows, (), meta)

    def _commit_offsets(self) -> None:
        self._parts.broker_wait.run(lambda: self._parts.source.commit(self.offsets))

    def _restore(self, why: Exception) -> None:
        parts = self._parts
        if isinstance(why, UndeliveredError):
            parts.metrics.checkpoint_failures.inc()
        parts.streams.roll_back()
        parts.incidents.found(parts.store.open_incidents())
        self.offsets.update(self._start_offsets)
        parts.source.rewind(self._start_offsets)

"""Rows of the local store for the engine: a damaged one resets its stream, or is read again from the changelog."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence

from connectors.batches import Partition
from detector.checkpointing.store import DamagedRowError, SqliteStore
from detector.observability.metrics import Metrics

logger = logging.getLogger(__name__)


class StoredRows:
    """What the store has of streams that are not in memory."""

    def __init__(self, store: SqliteStore, metrics: Metrics) -> None:
        self._store, self._metrics = store, metrics
        self.backfilling: set[Partition] = set()  # whose rows the changelog does not have yet

    def load(self, names: Sequence[str]) -> Iterator[bytes | None]:
        """Yield streams' rows one by one: of a batch that brings many back not all may fit into memory at once.

        Raises DamagedRowError where rolling back brings the row from the changelog.
        """
        for name in names:
            try:
                yield from self._store.load([name])
            except DamagedRowError as error:
                if self._discard_local_copy(name):
                    raise
                logger.error("state of stream %r was reset: %s", name, error)  # noqa: TRY400 - one line tells it
                self._metrics.streams_begun_anew["damaged"].inc()
                yield None

    def _discard_local_copy(self, stream: str) -> bool:
        """Drop the local copy of the partition that a damaged row is of; False where the changelog does not have it."""
        partition = self._store.partition_of(stream)
        if partition is None or partition in self.backfilling:
            return False
        logger.error(
            "%s/%d: the local copy of its states is damaged at stream %r; it is rebuilt from the changelog",
            *(*partition, stream),
        )
        self._store.clear(partition)
        return True

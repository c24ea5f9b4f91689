"""States that follow their partitions: written with the offsets in one transaction, brought back on assignment.

What the daemon does differently where `state.changelog` is on. A checkpoint is one Kafka transaction: the changelog
records of all streams that changed, a mark for each partition, the offsets, and with exactly-once the scores, alerts
and dead letters since the last one. Only then does the local store, a cache, take the same rows. Whatever goes wrong
before the transaction is committed, memory goes back to what the store and the changelog say, and the source with it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from kafka.future import Future

from connectors.batches import Partition
from connectors.kafka.changelog import too_small
from connectors.kafka.changelog_format import (
    MIN_MESSAGE_BYTES,
    Mark,
    compressed,
    mark_record,
    part_bytes,
    state_key,
    state_records,
)
from connectors.kafka.errors import KafkaConnectorError
from connectors.kafka.settings import KafkaSettings
from connectors.kafka.source import KafkaSource
from connectors.kafka.transactions import TransactionalWriter
from detector.checkpointing.recovery import ADOPTED, ChangelogRecovery, Restored
from detector.checkpointing.store import PartitionPosition, PartitionRow, SqliteStore
from detector.observability.metrics import Metrics
from detector.state.records import head_of, incident_of
from detector.state.stream_cache import StreamCache, partition_hash

logger = logging.getLogger(__name__)

BACKFILL_ROWS = 1_000  # of a store are held at once, 31 MB, to be written to an empty changelog


class ChangelogCheckpointer:
    """The states of the partitions that this worker has. For the daemon's thread."""

    def __init__(
        self,
        settings: KafkaSettings,
        streams: StreamCache,
        store: SqliteStore,
        writer: TransactionalWriter,
        metrics: Metrics,
        *,
        version: str,
        standby: bool,
        stored: Callable[[Sequence[str]], Iterable[bytes | None]],  # gives streams' rows of the local store
    ) -> None:
        self._stored = stored
        self._settings, self._streams, self._store, self._writer = settings, streams, store, writer
        self._metrics, self._version = metrics, version
        self.recovery = ChangelogRecovery(
            settings, store, layouts=streams.states.layouts, member=writer.transactional_id, standby=standby
        )
        self.offsets: dict[Partition, int] = {}  # of the next event, of partitions that are read
        self.restoring: dict[Partition, float] = {}  # that wait for their states, and since when (monotonic, s)
        self._start_offsets: dict[Partition, int] = {}  # where those without a state were begun
        self._backfilling: set[Partition] = set()  # whose states are to be written to an empty changelog
        self._committed: dict[Partition, int] = {}  # offsets that were committed
        self._repartitioned: set[str] = set()  # streams that changed partition since the last commit
        self._store.restrict_to(())

    def open(self) -> None:
        """Connect, which ends the transaction that a former life of this worker has left open; may wait long."""
        self._writer.open()

    def close(self) -> None:
        """Let go of the changelog; a transaction that is open is given up."""
        self.recovery.stop()
        self._writer.close()

    # -- the group gives and takes ------------------------------------------------------------------------------------

    def assign(self, partitions: Iterable[Partition]) -> None:
        """Bring the states of partitions that are ours now; `resume_restored` places them once that is done."""
        now = time.monotonic()
        for partition in partitions:
            self.restoring[partition] = now
            self.offsets.pop(partition, None)
            self._committed.pop(partition, None)
            self._backfilling.discard(partition)
        self._restrict_store()
        self.recovery.restore(partitions)
        self._metrics.partitions_restoring.set(len(self.restoring))

    def revoke(self, partitions: Iterable[Partition]) -> None:
        """Forget partitions that are not ours any more, saved or not."""
        for partition in partitions:
            self.restoring.pop(partition, None)
            for offsets in (self.offsets, self._start_offsets, self._committed):
                offsets.pop(partition, None)
            self._backfilling.discard(partition)
            self._streams.forget(self._streams.on_partition(partition))
        self.recovery.revoke(partitions)
        self._restrict_store()
        self._metrics.partitions_restoring.set(len(self.restoring))

    def resume_restored(self, source: KafkaSource, former: Mapping[Partition, int]) -> None:
        """Let reading begin where states have been brought. Raises what a changelog is refused for.

        `former` are offsets that a store without a changelog has kept.
        """
        for restored in self.recovery.finished():
            partition = restored.partition
            if partition not in self.restoring:
                continue
            offset = restored.source_offset
            if restored.empty:
                offset = former.get(partition) if offset is None else offset
                if offset is not None:
                    self._adopt_unassigned(partition, offset)
            if offset is None:
                offset = self._start_offsets.get(partition)
            self._log_restored(restored)
            source.seek({partition: offset})

    def on_placed(self, offsets: Mapping[Partition, int]) -> bool:
        """Note where reading goes on; return whether any of that was not known: then it is to be committed at once."""
        news = False
        for partition, offset in offsets.items():
            waited = self.restoring.pop(partition, None) is not None
            if waited or partition in self.offsets:
                news = news or (self._start_offsets if waited else self.offsets).get(partition) != offset
                self.offsets[partition] = offset
            if waited:
                self._start_offsets[partition] = offset
        self._metrics.partitions_restoring.set(len(self.restoring))
        return news

    def note_repartitioned(self, streams: Iterable[str]) -> None:
        """Note streams that came on another partition than before."""
        self._repartitioned.update(streams)

    # -- a checkpoint, and what becomes of it -------------------------------------------------------------------------

    def commit(self, source: KafkaSource, meta: Mapping[str, Any], wait: Callable[[Callable[[], None]], bool]) -> None:
        """Write what changed, commit, and let the store take it. Raises TransactionError: then `roll_back`."""
        rows: dict[Partition, list[PartitionRow]] = {partition: [] for partition in self.offsets}
        owned = {partition_hash(*partition): partition for partition in self.offsets}
        drained: list[str] = []
        try:
            for partition in self._backfilling & self.offsets.keys():
                self._backfill(partition)
            for name, row in self._streams.drain():
                drained.append(name)
                if (place := owned.get(head_of(row).partition)) is not None:
                    rows[place].append(_row_of(name, row))
            self._write_tombstones(rows)
            for partition, changed in rows.items():
                self._write(partition, changed)
            ahead = {p: at for p, at in self.offsets.items() if rows[p] or self._committed.get(p) != at}
            places = self._write_marks(ahead)
            if not wait(lambda: self._writer.commit(ahead, source.member())):
                return
        except BaseException:
            self._streams.forget(drained)
            raise
        self._repartitioned.clear()
        self._committed.update(ahead)
        self._backfilling -= ahead.keys()
        rows = {partition: changed for partition, changed in rows.items() if changed}
        self._metrics.transactions["committed"].inc()
        self._store.save_partitions(rows, {partition: place() for partition, place in places.items()}, meta)

    def roll_back(self, source: KafkaSource, wait: Callable[[Callable[[], None]], None]) -> None:
        """Go back to what was last committed: streams that changed since are brought back from the store."""
        self._metrics.transactions["aborted"].inc()
        self._streams.roll_back()
        self._repartitioned.clear()
        mine = [*self.offsets, *self.restoring]
        source.hold(mine)
        wait(self._writer.reopen)  # which ends what was open, so that nothing of ours stands in the changelog's way
        self.assign(mine)

    def discard_local_copy(self, stream: str) -> bool:
        """Drop the local copy of the partition that a damaged row is of: after `roll_back` the changelog gives it anew.

        False, and nothing is dropped, where the changelog does not have these rows.
        """
        partition = self._store.partition_of(stream)
        if partition is None or partition in self._backfilling:
            return False
        logger.error(
            "%s/%d: the local copy of its states is damaged at stream %r and is built anew from the changelog",
            *(*partition, stream),
        )
        self._store.clear(partition)
        return True

    def _restrict_store(self) -> None:
        self._store.restrict_to([*self.offsets, *self.restoring])

    def _write_tombstones(self, rows: dict[Partition, list[PartitionRow]]) -> None:
        """Where a stream has changed partition, its state leaves the former one's changelog."""
        if not self._repartitioned:
            return
        now = {row.stream: partition for partition, changed in rows.items() for row in changed}
        for stream in self._repartitioned & now.keys():
            for partition in rows:
                if partition != now[stream]:
                    self._writer.send(
                        *(self._settings.changelog_of(partition.topic), state_key(stream), None, None),
                        partition.partition,
                    )

    def _write(self, partition: Partition, changed: Iterable[PartitionRow]) -> None:
        changelog, at = self._settings.changelog_of(partition.topic), self.offsets[partition]
        most = self._writer.sizes.most_bytes(changelog)
        if most < MIN_MESSAGE_BYTES:
            raise KafkaConnectorError(str(too_small(changelog, most)))
        part = part_bytes(most)
        for stream, frame, incident in changed:
            for key, value in state_records(stream, partition, at, frame or b"", part, incident=incident is not None):
                self._writer.send(changelog, key, value, None, partition.partition)

    def _write_marks(self, offsets: Mapping[Partition, int]) -> dict[Partition, Callable[[], PartitionPosition]]:
        """Write what each partition's states stand for; return what gives its place in the store afterwards."""
        places: dict[Partition, Callable[[], PartitionPosition]] = {}
        for partition, offset in offsets.items():
            mark = Mark(
                group=self._settings.group_id,
                member=self._writer.transactional_id,
                layout=self._streams.states.layout,
                longwatch=self._version,
                streams=self._store.row_count(partition),
            )
            key, value = mark_record(partition, offset, mark)
            sent = self._writer.send(
                self._settings.changelog_of(partition.topic), key, value, None, partition.partition
            )
            if sent is not None:  # else the commit fails
                places[partition] = partial(self._position_of, partition, offset, sent)
        return places

    def _position_of(self, partition: Partition, offset: int, mark: Future) -> PartitionPosition:
        """Return what the store stands for once a mark has been written."""
        after = int(mark.value.offset) + 2  # the transaction's own mark comes next
        return PartitionPosition(self.recovery.identity(partition.topic), after, offset, self._writer.transactional_id)

    def _adopt_unassigned(self, partition: Partition, offset: int) -> None:
        """Take the store's rows for a partition's whose changelog is empty; the next commit writes them there."""
        self._backfilling.add(partition)
        mine, names = partition_hash(*partition), self._store.unassigned()
        self._store.save_partitions({}, {partition: PartitionPosition(ADOPTED, 0, offset)})
        self._store.restrict_to(None)
        try:
            for some in _in_portions(names):
                loaded = zip(some, self._stored(some), strict=True)
                rows = [_row_of(name, row) for name, row in loaded if row and head_of(row).partition == mine]
                self._store.save_partitions({partition: rows}, {})
        finally:
            self._restrict_store()

    def _backfill(self, partition: Partition) -> None:
        names = self._store.streams_of(partition)
        for some in _in_portions(names):
            loaded = zip(some, self._stored(some), strict=True)
            self._write(partition, [_row_of(name, row) for name, row in loaded if row])
        logger.info("%s/%d: %d states of the local store go into the empty changelog", *partition, len(names))

    def _log_restored(self, restored: Restored) -> None:
        m = self._metrics
        m.streams_begun_anew["damaged"].inc(restored.damaged)
        m.restore_seconds.observe([restored.seconds])
        m.restored_streams.inc(restored.streams)
        logger.info(
            "%s/%d: states restored in %.1f s, %d read from the changelog (%.0f/s); going on at offset %s",
            *restored.partition,
            restored.seconds,
            restored.streams,
            restored.streams / max(restored.seconds, 1e-9),
            "unknown" if restored.source_offset is None else restored.source_offset,
        )


def _row_of(name: str, row: bytes) -> PartitionRow:
    return PartitionRow(name, compressed(row), incident_of(row))


def _in_portions(names: list[str]) -> Iterator[list[str]]:
    for at in range(0, len(names), BACKFILL_ROWS):
        yield names[at : at + BACKFILL_ROWS]

"""Checkpoints in a transaction of Kafka: states follow their partitions, and come back on assignment.

A checkpoint is one transaction: the changelog records of all streams that changed, a mark for each partition, the
offsets, and with exactly-once the scores, alerts and dead letters since the last one. Only then does the local store, a
cache, take the same rows. Whatever goes wrong before the transaction is committed, memory goes back to what the store
and the changelog say, and the source with it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
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
from connectors.kafka.source import KafkaSource
from connectors.kafka.transactions import TransactionalWriter
from connectors.kafka.writer import UndeliveredError
from connectors.protocols import DEFERRED
from detector.checkpointing.checkpointer import Checkpointer, CheckpointParts
from detector.checkpointing.recovery import ADOPTED, ChangelogRecovery, Restored
from detector.checkpointing.store import PartitionPosition, PartitionRow, StoredRows
from detector.config.settings import Settings
from detector.state.former import head_of, incident_of
from detector.state.names import partition_hash

logger = logging.getLogger(__name__)

# What a partition's owner has to commit is done in a fraction of a second; meanwhile the group does not wait
REVOKE_SECONDS = 20.0
BACKFILL_ROWS = 1_000  # of a store are held at once, 31 MB, to be written to an empty changelog


class ChangelogCheckpointer(Checkpointer):
    """States follow their partitions, through a changelog and with offsets in one transaction of Kafka."""

    def __init__(
        self,
        settings: Settings,
        parts: CheckpointParts,
        metadata: dict[str, Any],
        source: KafkaSource,
        writer: TransactionalWriter,
        stored: StoredRows,
        *,
        former: Mapping[Partition, int],
    ) -> None:
        """`former` are offsets that a store has kept from before there was a changelog."""
        super().__init__(settings, parts, {}, metadata)
        self._source, self._writer, self._stored, self._former = source, writer, stored, former
        self._streams, self._store, self._metrics = parts.streams, parts.store, parts.metrics
        self._recovery = ChangelogRecovery(
            settings.kafka,
            self._store,
            layouts=self._streams.states.layouts,
            member=writer.transactional_id,
            standby=settings.state.standby,
        )
        self.problems["changelog"] = self._recovery.problem
        self._first_offsets: dict[Partition, int] = {}  # where those without a state were begun
        self._committed: dict[Partition, int] = {}  # offsets that were committed
        self._repartitioned: set[str] = set()  # streams that changed partition since the last commit
        self._store.restrict_to(())

    def start(self) -> None:
        """Start to read changelogs, in advance on a standby."""
        self._recovery.start()

    def close(self) -> None:
        """Stop reading changelogs, and give up a transaction that is open."""
        self._recovery.stop()
        self._writer.close()

    # -- partitions ---------------------------------------------------------------------------------------------------

    @property
    def progress(self) -> int:
        """Return what counts up while states are restored."""
        return self._recovery.progress

    @property
    def standby(self) -> tuple[bool, str] | None:
        """Whether this worker could take over any partition within seconds; None once it has one."""
        if not self._settings.state.standby or self.offsets:
            return None
        ready = self._recovery.standby_ready
        return ready, "standing by" if ready else "reading the changelog, to stand by"

    def start_offset(self, partition: Partition) -> int | None:
        """Return DEFERRED: `resume_restored` seeks to where the changelog says."""
        return DEFERRED

    def assign(self, partitions: list[Partition]) -> None:
        """Bring the states of partitions that are ours now; `resume_restored` lets reading begin once that is done."""
        # it ends the transaction that a former life of this worker has left open
        self._parts.broker_wait.until_brokers_answer(self._writer.open)
        self._restore_states(partitions)

    def _restore_states(self, partitions: Iterable[Partition]) -> None:
        for partition in partitions:
            self.restoring.add(partition)
            self.offsets.pop(partition, None)
            self._committed.pop(partition, None)
            self._stored.backfilling.discard(partition)
        self._restrict_store()
        self._recovery.restore(partitions)
        self._metrics.partitions_restoring.set(len(self.restoring))

    def resume_restored(self) -> None:
        """Let reading begin where states have come. Raises what a changelog is refused for."""
        for restored in self._recovery.finished():
            partition = restored.partition
            if partition not in self.restoring:
                continue
            offset = restored.source_offset
            if restored.empty:
                offset = self._former.get(partition) if offset is None else offset
                if offset is not None:
                    self._adopt_unassigned(partition, offset)
            if offset is None:
                offset = self._first_offsets.get(partition)
            self._log_restored(restored)
            self._source.seek({partition: offset})

    def on_placed(self, offsets: Mapping[Partition, int]) -> None:
        """Note where reading starts or resumes; what was not known is committed at once."""
        for partition in offsets:
            self._parts.incidents.found(self._store.open_incidents(partition))
        # the next owner of these partitions must find the same offsets
        self.dirty = True
        news = False
        for partition, offset in offsets.items():
            waited = partition in self.restoring
            self.restoring.discard(partition)
            if waited or partition in self.offsets:
                news = news or (self._first_offsets if waited else self.offsets).get(partition) != offset
                self.offsets[partition] = offset
            if waited:
                self._first_offsets[partition] = offset
        self._metrics.partitions_restoring.set(len(self.restoring))
        if news:
            self.commit_soon()

    def lost(self, partitions: list[Partition]) -> None:
        """Forget partitions, and go back: nothing of them can be committed any more."""
        self._forget_states(partitions)
        self._forget_offsets(partitions)
        self.roll_back(UndeliveredError("partitions were lost: this worker was not heard of for too long"))

    def _commit_before_revoke(self) -> None:
        with self._parts.broker_wait.revoking_within(REVOKE_SECONDS):
            self.commit()

    def _forget_states(self, partitions: Iterable[Partition]) -> None:
        for partition in partitions:
            self.restoring.discard(partition)
            for offsets in (self.offsets, self._first_offsets, self._committed):
                offsets.pop(partition, None)
            self._stored.backfilling.discard(partition)
            self._streams.forget(self._streams.on_partition(partition))
        self._recovery.revoke(partitions)
        self._restrict_store()
        self._parts.incidents.revoke(partitions)
        self._metrics.partitions_restoring.set(len(self.restoring))

    def record_repartitioned(self, streams: Iterable[str]) -> None:
        """Note streams that came on another partition than before."""
        self._repartitioned.update(streams)

    # -- a checkpoint, and what becomes of it -------------------------------------------------------------------------

    def use_model(self, version: str) -> None:
        """Record the model before the first transaction that uses it, so a restart cannot resume with another."""
        super().use_model(version)
        self._store.save_partitions({}, {}, self.meta())

    def _flush(self) -> bool:
        return self._settings.exactly_once or super()._flush()  # with exactly-once the transaction flushes

    def _save(self, rows: Iterator[tuple[str, bytes]], meta: Mapping[str, Any]) -> None:
        """Write what changed, commit, and let the store take it. Raises TransactionError: then `roll_back`."""
        changed: dict[Partition, list[PartitionRow]] = {partition: [] for partition in self.offsets}
        owned = {partition_hash(*partition): partition for partition in self.offsets}
        drained: list[str] = []
        try:
            for partition in self._stored.backfilling & self.offsets.keys():
                self._backfill(partition)
            for name, row in rows:
                drained.append(name)
                if (place := owned.get(head_of(row).partition)) is not None:
                    changed[place].append(_row_of(name, row))
            self._write_tombstones(changed)
            for partition, some in changed.items():
                self._write(partition, some)
            ahead = {p: at for p, at in self.offsets.items() if changed[p] or self._committed.get(p) != at}
            marks = self._write_marks(ahead)
            if not self._parts.broker_wait.run(lambda: self._writer.commit(ahead, self._source.member())):
                return
        except BaseException:
            self._streams.forget(drained)
            raise
        self._repartitioned.clear()
        self._committed.update(ahead)
        self._stored.backfilling.difference_update(ahead)
        changed = {partition: some for partition, some in changed.items() if some}
        self._metrics.transactions["committed"].inc()
        positions = {
            partition: PartitionPosition(
                self._recovery.identities[partition.topic],
                int(mark.value.offset) + 2,  # the transaction's own mark comes next
                ahead[partition],
                self._writer.transactional_id,
            )
            for partition, mark in marks.items()
        }
        self._store.save_partitions(changed, positions, meta)

    def _commit_offsets(self) -> None:
        pass  # the transaction has them

    def _restore(self, why: Exception) -> None:
        self._metrics.transactions["aborted"].inc()
        self._streams.roll_back()
        self._repartitioned.clear()
        mine = [*self.offsets, *self.restoring]
        self._source.hold(mine)
        # it ends an open transaction, which would block readers of the changelog
        self._parts.broker_wait.until_brokers_answer(self._writer.reopen)
        self._restore_states(mine)

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
                        *(self._settings.kafka.changelog_of(partition.topic), state_key(stream), None, None),
                        partition.partition,
                    )

    def _write(self, partition: Partition, changed: Iterable[PartitionRow]) -> None:
        changelog, at = self._settings.kafka.changelog_of(partition.topic), self.offsets[partition]
        most = self._writer.sizes.most_bytes(changelog)
        if most < MIN_MESSAGE_BYTES:
            raise too_small(changelog, most)
        part = part_bytes(most)
        for stream, frame, incident in changed:
            for key, value in state_records(stream, partition, at, frame or b"", part, incident=incident is not None):
                self._writer.send(changelog, key, value, None, partition.partition)

    def _write_marks(self, offsets: Mapping[Partition, int]) -> dict[Partition, Future]:
        """Write what each partition's states stand for; return what says where, once it is committed."""
        marks: dict[Partition, Future] = {}
        for partition, offset in offsets.items():
            mark = Mark(
                group=self._settings.kafka.group_id,
                member=self._writer.transactional_id,
                layout=self._streams.states.layouts[0],
                longwatch=self.metadata["longwatch"],
                streams=self._store.row_count(partition),
            )
            key, value = mark_record(partition, offset, mark)
            sent = self._writer.send(
                self._settings.kafka.changelog_of(partition.topic), key, value, None, partition.partition
            )
            if sent is not None:  # else the commit fails
                marks[partition] = sent
        return marks

    def _adopt_unassigned(self, partition: Partition, offset: int) -> None:
        """Take the store's rows for a partition's whose changelog is empty; the next commit writes them there."""
        self._stored.backfilling.add(partition)
        names = self._store.unassigned()
        self._store.save_partitions({}, {partition: PartitionPosition(ADOPTED, 0, offset)})
        self._store.restrict_to(None)
        try:
            for rows in self._stored_rows(partition, names):
                self._store.save_partitions({partition: rows}, {})
        finally:
            self._restrict_store()

    def _backfill(self, partition: Partition) -> None:
        names = self._store.streams_of(partition)
        for rows in self._stored_rows(partition, names):
            self._write(partition, rows)
        logger.info("%s/%d: %d states of the local store go into the empty changelog", *partition, len(names))

    def _stored_rows(self, partition: Partition, names: list[str]) -> Iterator[list[PartitionRow]]:
        """Yield the rows of those of the streams that are of a partition, some at once."""
        mine = partition_hash(*partition)
        for at in range(0, len(names), BACKFILL_ROWS):
            some = names[at : at + BACKFILL_ROWS]
            loaded = zip(some, self._stored.load(some), strict=True)
            yield [_row_of(name, row) for name, row in loaded if row and head_of(row).partition == mine]

    def _log_restored(self, restored: Restored) -> None:
        m = self._metrics
        m.streams_begun_anew["damaged"].inc(restored.damaged)
        m.restore_seconds.observe([restored.seconds])
        m.restored_streams.inc(restored.streams)
        logger.info(
            "%s/%d: states restored in %.1f s, %d read from the changelog (%.0f/s); reading from offset %s",
            *restored.partition,
            restored.seconds,
            restored.streams,
            restored.streams / max(restored.seconds, 1e-9),
            "unknown" if restored.source_offset is None else restored.source_offset,
        )


def _row_of(name: str, row: bytes) -> PartitionRow:
    return PartitionRow(name, compressed(row), incident_of(row))

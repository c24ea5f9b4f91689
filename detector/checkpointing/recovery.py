"""A thread that brings the local store in step with the changelog: of partitions that this worker gets, and in advance.

The store is a cache of the changelog. For each partition it knows up to which record it is in step; from there the
rest is read, or all of it where the changelog is another one than it was. A partition is restored once everything has
been read that stood in its changelog when it was assigned, transactions of former owners included: each of these has
ended by then, and whatever they write later cannot be committed. With `standby`, partitions of other workers are
followed all the time, so that little is left to be read when one of them is assigned.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field

from kafka.errors import KafkaError, OffsetOutOfRangeError

from connectors.batches import Partition
from connectors.common.background import OngoingProblem
from connectors.common.throttle import LogThrottle
from connectors.kafka.changelog import RIGHTS, Changelogs
from connectors.kafka.changelog_format import Assembler, ChangelogError, Entry, Mark, compressed, restored
from connectors.kafka.connect import connect
from connectors.kafka.diagnosis import unreachable_brokers
from connectors.kafka.errors import KafkaConnectorError, explain_error, is_permanent
from connectors.kafka.raw_record import RawRecord
from connectors.kafka.settings import KafkaSettings
from connectors.kafka.transactions import end_transaction_of
from detector.checkpointing.state_directory import UnsavedError
from detector.checkpointing.store import PartitionPosition, PartitionRow, SqliteStore
from detector.errors import StateError
from detector.state.former import TAKEN_OVER, incident_of
from detector.state.names import partition_hash

logger = logging.getLogger(__name__)

POLL_MS = 100
QUIET_MS = 20  # while a partition waits to be restored
PROGRESS_LOG_SECONDS = 5.0  # between two lines about progress
# Blocked by an open transaction for so long: its worker is gone, or it would have ended it before the revocation
STALE_TRANSACTION_SECONDS = 1.0
RETRY_SECONDS = 1.0
STOP_SECONDS = 2.0


ADOPTED = ""  # a position's identity: its rows are of a time before the changelog, and were never written to it


@dataclass(frozen=True, slots=True)
class Restored:
    """A partition whose rows in the store are those that the changelog held."""

    partition: Partition
    source_offset: int | None  # of the next event; None: nothing is known of this partition
    streams: int  # rows that were read
    seconds: float
    empty: bool  # the changelog holds nothing, so what the store has must be written to it
    damaged: int  # records whose streams start from an empty state


@dataclass(slots=True)
class _RecoveringPartition:
    """A partition on its way."""

    stored: PartitionPosition
    assembler: Assembler
    end: int | None = None  # restored once the position is there; None: followed in advance
    goal: int = 0  # what stood there when following began
    began: float = field(default_factory=time.monotonic)
    first: int = 0
    rows: int = 0
    records: int = 0
    whole: bool = False  # read from its beginning
    former: PartitionPosition | None = None  # what the store's rows stand for, which the first record replaces
    mark: Mark | None = None
    moved_at: float = field(default_factory=time.monotonic)
    ended: bool = False  # the former owner's transaction


def _incident(entry: Entry, partition: Partition) -> int | None:
    """Return what the store keeps of an open incident; where a former version did not write it, the row says it."""
    if entry.incident is not None:
        return partition_hash(*partition) if entry.incident else None
    try:
        return incident_of(restored(entry.row) if entry.compressed else entry.row)
    except ValueError:  # seen when the stream comes
        return None


class ChangelogRecovery(threading.Thread):
    """See the module. `restore`, `revoke` and `finished` are for the daemon's thread, and return at once.

    `layouts` are digests of the rows that this version reads, its own first; `member` is this worker's transactional
    id.
    """

    def __init__(
        self, settings: KafkaSettings, store: SqliteStore, *, layouts: Sequence[str], member: str, standby: bool = False
    ) -> None:
        super().__init__(name="changelog-recovery", daemon=True)
        self._settings, self._store = settings, store
        self._layouts, self._member, self._standby = layouts, member, standby
        self._former_found = False  # states of a former layout: it is said once
        self._lock = threading.Lock()
        self._requested: set[Partition] = set()  # to be restored
        self._owned: set[Partition] = set()  # restored, or to be
        self._finished: list[Restored] = []
        self._failure: BaseException | None = None
        self._stopping = threading.Event()
        self._recovering: dict[Partition, _RecoveringPartition] = {}  # of this thread
        self.identities: dict[str, str] = {}  # what tells one changelog from any other, by the source's topic
        self._progress_throttle = LogThrottle(PROGRESS_LOG_SECONDS)
        self.standby_ready = not standby  # whether everything that stood in the changelogs at the start has been read
        self.problem = OngoingProblem()
        self.progress = 0  # counts rows and ends, to show that it moves

    def restore(self, partitions: Iterable[Partition]) -> None:
        """Bring these partitions' rows in step, or see once more that they are."""
        with self._lock:
            self._requested |= set(partitions)
            self._owned |= set(partitions)

    def revoke(self, partitions: Iterable[Partition]) -> None:
        """Restore these no further: another worker has them."""
        with self._lock:
            self._requested -= set(partitions)
            self._owned -= set(partitions)
            self._finished = [restored for restored in self._finished if restored.partition in self._owned]

    def finished(self) -> list[Restored]:
        """Return what has been restored since the last call. Raises what ended the thread."""
        if self._failure is not None:
            raise self._failure
        with self._lock:
            finished, self._finished = self._finished, []
            return finished

    def stop(self) -> None:
        """End the thread, within about STOP_SECONDS."""
        self._stopping.set()
        if self.is_alive():
            self.join(STOP_SECONDS)

    # -- the thread ---------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Read until stopped; an outage is waited for, other failures are raised by `finished`."""
        while not self._stopping.is_set():
            try:
                changelogs = connect(self._settings, lambda: Changelogs(self._settings), self._stopping)
                if changelogs is None:
                    return
                with closing(changelogs):
                    self._recover(changelogs)
            except OffsetOutOfRangeError:
                self._retry("a changelog was truncated: checking its offsets again")
            except (KafkaError, KeyError) as error:  # KeyError: the client's, where a partition has no answer
                why = explain_error(error, self._settings, topic="the changelog", right=RIGHTS)
                if is_permanent(error):
                    self._failure = KafkaConnectorError(f"the changelog cannot be read: {why}")
                    return
                self._retry(f"reading the changelog fails: {unreachable_brokers(self._settings) or why}")
            except UnsavedError as error:
                self._retry(f"restoring paused: {error}")
            except BaseException as error:  # noqa: BLE001 - the daemon's thread raises it
                self._failure = error
                return
            with self._lock:
                self._requested |= self._recovering.keys() & self._owned
            self._recovering.clear()

    def _retry(self, why: str) -> None:
        if self.problem.report(why):
            logger.warning("%s; trying again", why)
        self._stopping.wait(RETRY_SECONDS)

    def _recover(self, changelogs: Changelogs) -> None:
        prepared: dict[str, int] = {}
        while not self._stopping.is_set():
            self._sync_assignment(changelogs, prepared)
            waiting = any(task.end is not None for task in self._recovering.values())
            polled = changelogs.poll(QUIET_MS if waiting else POLL_MS)
            if not self._recovering:
                self._stopping.wait(QUIET_MS / 1000)
            for partition, records in polled.items():
                if task := self._recovering.get(partition):
                    self._apply(partition, task, records)
            for partition, task in list(self._recovering.items()):
                self._finish_if_restored(changelogs, partition, task)
            self._log_progress()
            if not self.standby_ready:
                self.standby_ready = all(changelogs.position(p) >= f.goal for p, f in self._recovering.items())

    def _sync_assignment(self, changelogs: Changelogs, prepared: dict[str, int]) -> None:
        """Begin with what was requested since, and with what is followed in advance; drop what was revoked."""
        with self._lock:
            requested, self._requested = self._requested, set()
            owned = set(self._owned)
        try:
            self._start_recoveries(requested, owned, changelogs, prepared)
        except BaseException:
            with self._lock:
                self._requested |= requested & self._owned  # keep the request
            raise

    def _start_recoveries(
        self, requested: set[Partition], owned: set[Partition], changelogs: Changelogs, prepared: dict[str, int]
    ) -> None:
        left = {p for p, f in self._recovering.items() if (p not in owned) == (f.end is not None)} - requested
        for partition in left:
            del self._recovering[partition]
        if self._standby:
            for topic in self._settings.topics if not self._settings.topic_pattern else ():
                if topic not in prepared:
                    prepared[topic] = changelogs.prepare(topic)
        for topic in {partition.topic for partition in requested}:
            if topic not in prepared or any(p.partition >= prepared[topic] for p in requested if p.topic == topic):
                prepared[topic] = changelogs.prepare(topic)
        others: set[Partition] = set()
        if self._standby:
            others = {Partition(topic, number) for topic, count in prepared.items() for number in range(count)}
            others -= owned | self._recovering.keys()
        if not (requested or others or left):
            return
        self.identities = {topic: changelogs.identity(topic) for topic in prepared}
        ends = changelogs.ends(requested | others) if requested | others else {}
        places = self._store.positions()
        for partition, (first, end) in ends.items():
            task = self._start_recovery(changelogs, partition, places.get(partition), first, end)
            task.end, task.goal = end if partition in requested else None, end
            self._recovering[partition] = task
        changelogs.follow({partition: task.stored.position for partition, task in self._recovering.items()})

    def _start_recovery(
        self,
        changelogs: Changelogs,
        partition: Partition,
        stored: PartitionPosition | None,
        first: int,
        end: int,
    ) -> _RecoveringPartition:
        """Return where to begin: at what the store is in step with, else with everything."""
        identity = changelogs.identity(partition.topic)
        assembler = Assembler(self._settings.changelog_of(partition.topic), partition)
        if stored is not None and stored.identity == identity and first <= stored.position <= end:
            return _RecoveringPartition(stored, assembler, first=stored.position)
        # whether it holds anything is known once it has been read: there may be nothing but aborted transactions
        return _RecoveringPartition(
            PartitionPosition(identity, first, None), assembler, first=first, whole=True, former=stored
        )

    def _replace(self, partition: Partition, task: _RecoveringPartition) -> None:
        """Let the rows that are here make room for those of the changelog."""
        former = task.former
        if former is not None and former.identity != ADOPTED:
            logger.warning(
                "%s/%d: the changelog is not the one that the local store is a copy of (it holds %d to %d, the store is"
                " at %d): rebuilding the local copy",
                *(*partition, task.first, task.goal, former.position),
            )
        self._store.clear(partition)

    def _apply(self, partition: Partition, task: _RecoveringPartition, records: list[RawRecord]) -> None:
        if task.whole and not task.records:
            self._replace(partition, task)
        task.records += len(records)
        rows: dict[str, PartitionRow] = {}
        stored, damaged = task.stored, task.assembler.damaged
        offset, member = stored.source_offset, stored.member
        for at, _, key, value in records:
            entry = task.assembler.take(at, key, value)
            if entry is None:
                continue
            if entry.mark is not None:
                offset, member, task.mark = entry.offset, entry.mark.member, entry.mark
                if entry.mark.layout not in self._layouts:
                    raise self._other_layout(partition, entry.mark)
                if entry.mark.layout != self._layouts[0] and not self._former_found:
                    self._former_found = True
                    logger.warning(
                        "changelog %s: its states were written by longwatch %s in a former layout: %s",
                        *(self._settings.changelog_of(partition.topic), entry.mark.longwatch, TAKEN_OVER),
                    )
                if entry.mark.group != self._settings.group_id:
                    raise ChangelogError(
                        f"changelog {self._settings.changelog_of(partition.topic)}/{partition.partition} is of group"
                        f" {entry.mark.group!r}, not {self._settings.group_id!r}: set kafka.changelog_topic to a name"
                        " of this group's own"
                    )
            elif entry.gone:
                rows[entry.stream] = PartitionRow(entry.stream, None)
            else:
                frame = entry.row if entry.compressed else compressed(entry.row)
                rows[entry.stream] = PartitionRow(entry.stream, frame, _incident(entry, partition))
        task.stored = PartitionPosition(stored.identity, task.assembler.resume(records[-1][0] + 1), offset, member)
        task.rows += len(rows)
        task.moved_at = time.monotonic()
        self.progress += len(rows)
        self._store.save_partitions({partition: list(rows.values())}, {partition: task.stored})
        if task.assembler.damaged > damaged:
            logger.error(
                "%s/%d: %d records of the changelog are damaged (checksum mismatch), the last before offset %d: their"
                " streams start from an empty state",
                *(*partition, task.assembler.damaged - damaged, task.stored.position),
            )

    def _finish_if_restored(self, changelogs: Changelogs, partition: Partition, task: _RecoveringPartition) -> None:
        """See whether a partition is restored; where an open transaction blocks it, end that."""
        if task.end is None:
            return
        position = changelogs.position(partition)
        if (safe := task.assembler.resume(position)) > task.stored.position:
            task.stored = task.stored._replace(position=safe)
            task.moved_at = time.monotonic()
        if position < task.end:
            if time.monotonic() - task.moved_at > STALE_TRANSACTION_SECONDS and not task.ended:
                task.ended = True
                self._end_transaction(partition, task.stored.member)
            return
        source_offset = task.stored.source_offset
        if empty := task.whole and not task.records:  # the rows that are here, if any, are all that there is
            source_offset = None if task.former is None else task.former.source_offset
        else:
            self._check(partition, task)
            self._store.save_partitions({}, {partition: task.stored})
        del self._recovering[partition]
        changelogs.follow({p: f.stored.position for p, f in self._recovering.items()})
        seconds = time.monotonic() - task.began
        restored = Restored(
            *(partition, source_offset, task.rows, seconds, empty),
            task.assembler.damaged,
        )
        with self._lock:
            if partition in self._owned and partition not in self._requested:
                self._finished.append(restored)
        self.progress += 1

    def _check(self, partition: Partition, task: _RecoveringPartition) -> None:
        mark = task.mark
        changelog = f"changelog {self._settings.changelog_of(partition.topic)}/{partition.partition}"
        if task.whole and mark is None:
            logger.error(
                "%s holds states but does not say for which offset: it has been truncated; streams whose states are"
                " missing start from an empty state",
                changelog,
            )
        elif task.whole and mark is not None and (held := self._store.row_count(partition)) < mark.streams:
            logger.error(
                "%s holds %d states of at least %d that were written: it has been truncated, or was not compacted but"
                " deleted; the other streams start from an empty state",
                *(changelog, held, mark.streams),
            )

    def _other_layout(self, partition: Partition, mark: Mark) -> StateError:
        """Return the error for states of another version; what was read of them leaves the store."""
        for other, task in self._recovering.items():
            if task.rows:
                self._store.clear(other)
        return StateError(
            f"changelog {self._settings.changelog_of(partition.topic)}/{partition.partition}: its states were last"
            f" written by longwatch {mark.longwatch} in layout {mark.layout}, this one reads {self._layouts[0]}:"
            f" run the same longwatch (and model.horizons) on every worker of group {mark.group}, or set"
            " kafka.changelog_topic to a new name, and every stream starts from an empty state"
        )

    def _end_transaction(self, partition: Partition, member: str) -> None:
        """End what its former owner left open: the group has given the partition to us."""
        if not member or member == self._member:
            logger.warning(
                "%s/%d: waiting for a transaction in the changelog to end, %.0f s at most"
                " (kafka.transaction_timeout_seconds)",
                *(*partition, self._settings.transaction_timeout_seconds),
            )
            return
        logger.info("%s/%d: ending the transaction that %s has left open", *partition, member)
        try:
            end_transaction_of(self._settings, member)
        except KafkaConnectorError as error:
            logger.warning("the transaction of %s cannot be ended, its time-out must: %s", member, error)

    def _log_progress(self) -> None:
        if not self._progress_throttle.due():
            return
        now = time.monotonic()
        for partition, task in self._recovering.items():
            if task.end is not None and now - task.began > PROGRESS_LOG_SECONDS:
                done = (task.stored.position - task.first) / max(1, task.end - task.first)
                rate = task.rows / (now - task.began)
                logger.info("restoring %s/%d: %.0f %%, %d states, %.0f/s", *partition, 100 * done, task.rows, rate)

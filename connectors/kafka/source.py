"""Kafka as a source of events: a member of a consumer group, on kafka-python."""

from __future__ import annotations

import contextlib
import logging
import queue
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from functools import partial

from kafka import KafkaConsumer, OffsetAndMetadata, TopicPartition
from kafka.errors import FencedInstanceIdError, KafkaError
from kafka.structs import ConsumerGroupMetadata

from connectors.batches import Partition, RawBatch
from connectors.common.background import OngoingProblem
from connectors.kafka.errors import KafkaConnectorError, explain_error
from connectors.kafka.fetch_thread import UNASSIGNED_ERRORS, FetchThread, Polled, RebalanceEvent
from connectors.kafka.polling import ANSWER_MS, MAX_POLL_RECORDS, add_records, consumer_options
from connectors.kafka.settings import KafkaSettings
from connectors.kafka.start_offsets import StartOffsets
from connectors.protocols import DEFERRED, RebalanceCallbacks

log = logging.getLogger(__name__)

STALLED_SECONDS = 120.0  # a client that does not return for so long hangs: each of its own waits is shorter
RETRY_SECONDS = 0.3  # between two lookups of the offsets that the broker holds
CLOSE_SECONDS = 10.0  # leaving the group takes one request, at most ANSWER_MS


class KafkaSource:
    """Records of the partitions that the group gives to this member.

    Nothing is connected before the first `poll`. `poll` returns in time even without a broker; it raises
    AuthenticationError or TlsError if the broker refuses us, and KafkaConnectorError if retrying is useless. All
    methods are for one thread, except `lag`.
    """

    grouped = True

    def __init__(
        self,
        settings: KafkaSettings,
        *,
        read_committed: bool = False,
        max_poll_records: int | None = None,
        owned: Iterable[Partition] = (),
    ) -> None:
        """`owned`: the partitions that this member owned when it ended, as far as it knows."""
        self._settings = settings
        self._callbacks = RebalanceCallbacks()
        before = [TopicPartition(*partition) for partition in owned]
        most = max_poll_records or MAX_POLL_RECORDS
        options = partial(consumer_options, settings, read_committed=read_committed, max_poll_records=most)
        self._reader = FetchThread(settings, options, owned=before)
        self._failure: BaseException | None = None
        self._held: deque[Polled] = deque()  # taken from the thread, but paused before they were returned
        self._next: dict[TopicPartition, int] = {}  # assigned partitions: offset of the next record to return
        self._revoked_offsets: dict[TopicPartition, int] = {}  # likewise, of revoked and lost partitions
        self._start_offsets = StartOffsets(settings, {partition.topic for partition in before})
        self._commit_failed = False

    @property
    def problems(self) -> dict[str, OngoingProblem]:
        """What fails in the thread that reads."""
        return {"kafka": self._reader.problem}

    def subscribe(self, callbacks: RebalanceCallbacks) -> None:
        """Call these as partitions come and go."""
        self._callbacks = callbacks

    def poll(self, timeout_seconds: float) -> RawBatch:
        """Return the next records, at most max_poll_records; none after the time-out, while paused, in an outage.

        Or none, but the next offsets: behind transaction markers and aborted records.
        """
        deadline = time.monotonic() + timeout_seconds
        if self._failure is not None:
            raise self._failure
        if self._reader.ident is None:
            self._reader.start()
        while self._held and not self._reader.paused:
            batch = self._columns(self._held.popleft())
            if batch or batch.passed:
                return batch
        while True:
            try:
                item = self._reader.inbox.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                self._check_that_it_moves()
                return RawBatch()
            if isinstance(item, BaseException):
                self._failure = item
                raise item
            if isinstance(item, RebalanceEvent):
                self._handle_rebalance(item)
                self._reader.progress = time.monotonic()  # until now it waited for this thread
                continue
            if not isinstance(item, Polled):
                item()
                continue
            self._reader.progress = time.monotonic()
            self._reader.demand.release()
            for partition in self._reader.held:
                item.drop(partition)  # read before it was held
            if not self._reader.paused:
                return self._columns(item)
            self._held.append(item)

    def fingerprints(self) -> dict[str, Sequence[int | str]]:
        """Return nothing: topics are no files."""
        return {}

    def finished(self) -> bool:
        """Kafka never ends."""
        return False

    def pause(self) -> None:
        """Return no records until `resume`. Keep calling `poll`: it keeps this member in the group."""
        self._reader.paused = True

    def resume(self) -> None:
        """Return records again, first those that were fetched before the pause."""
        self._reader.paused = False

    def commit(self, offsets: Mapping[Partition, int]) -> None:
        """Commit the offset of the next record to read of each assigned partition; others are ignored.

        A failed commit is only logged: the local store's offsets take precedence, and the next commit retries. Raises
        KafkaConnectorError if another member uses this one's group_instance_id: only a commit reveals that.
        """
        consumer = self._reader.consumer
        mine = {
            TopicPartition(*partition): OffsetAndMetadata(offset, "", -1)
            for partition, offset in offsets.items()
            if TopicPartition(*partition) in self._next
        }
        # in an outage every checkpoint would wait for its time-out
        if consumer is None or not mine or self._reader.outage:
            return
        try:
            consumer.commit(mine, timeout_ms=ANSWER_MS)
        except FencedInstanceIdError as error:
            raise KafkaConnectorError(explain_error(error, self._settings)) from None
        except KafkaError as error:
            if not self._commit_failed:
                log.warning(
                    "Offsets of group %s were not committed to Kafka (%s): the local store's offsets are used, and the"
                    " next checkpoint retries",
                    *(self._settings.group_id, explain_error(error, self._settings)),
                )
            self._commit_failed = True
        else:
            self._commit_failed = False

    def hold(self, partitions: Iterable[Partition]) -> None:
        """Return no records of these assigned partitions, not even those already fetched, until `seek`."""
        for partition in {TopicPartition(*p) for p in partitions} & (self._next.keys() | self._reader.held.keys()):
            self._hold(partition)

    def seek(self, offsets: Mapping[Partition, int | None]) -> None:
        """Resume held partitions at these offsets; None: as if no state were known."""
        known = {TopicPartition(*partition): offset for partition, offset in offsets.items()}
        tokens = {partition: self._reader.held[partition] for partition in known if partition in self._reader.held}

        def work(consumer: KafkaConsumer) -> None:  # on the fetch thread, since the broker may be slow
            # skip partitions revoked (and maybe reassigned) since: the newer assignment seeks them
            mine = {p: known[p] for p, token in tokens.items() if self._reader.held.get(p) is token}
            found = self._start_offsets.resolve(consumer, mine, {}) if mine else {}
            self._reader.inbox.put(partial(self._resume_at, found, tokens))
            if mine.keys() - found.keys():  # the broker did not answer
                self._reader.closing.wait(RETRY_SECONDS)
                self._reader.work.put(work)

        self._reader.work.put(work)

    @property
    def rewinds(self) -> bool:
        """Whether `rewind` works."""
        return True

    def rewind(self, offsets: Mapping[Partition, int]) -> None:
        """Read partitions again from these offsets: assigned ones now, lost ones when they come back."""
        for partition, offset in offsets.items():
            if (reached := self._revoked_offsets.get(TopicPartition(*partition))) is not None:
                self._revoked_offsets[TopicPartition(*partition)] = min(reached, offset)
        self.hold(offsets)
        self.seek(offsets)

    def member(self) -> ConsumerGroupMetadata | None:
        """Return the group membership that a transaction needs; None before this member has joined."""
        consumer = self._reader.consumer
        return None if consumer is None else consumer.group_metadata()

    @property
    def outage(self) -> bool:
        """Whether the broker gives no answer at present."""
        return self._reader.outage

    def lag(self) -> dict[Partition, int]:
        """Return how far each assigned partition is from the end of what can be read, as of the last fetch.

        In offsets, transaction markers included. With read_committed, records of open transactions do not count.
        """
        consumer = self._reader.consumer
        lags = {}
        for partition, position in self._next.copy().items():
            end = self._start_offsets.end.get(partition, 0)
            if consumer is not None:
                with contextlib.suppress(*UNASSIGNED_ERRORS):
                    end = max(end, consumer.highwater(partition) or 0)
            lags[Partition(*partition)] = max(0, end - position)
        return lags

    def share(self) -> float:
        """Return the share of all partitions of the topics read that this member has; 0: none, or not known."""
        count = self._reader.partitions()
        return len(self._next.keys() | self._reader.held.keys()) / count if count else 0.0

    def close(self) -> None:
        """Leave the group (a static member stays until its session ends). No callback is called: checkpoint before."""
        reader = self._reader
        self._failure = KafkaConnectorError("the Kafka source is closed")
        reader.closing.set()
        reader.demand.release()
        deadline = time.monotonic() + CLOSE_SECONDS
        while reader.is_alive() and time.monotonic() < deadline:
            try:
                item = reader.inbox.get(timeout=0.05)
            except queue.Empty:
                continue
            if isinstance(item, RebalanceEvent):
                item.finish()
        if reader.is_alive():
            log.warning("the Kafka client did not close within %.0f s; abandoned", CLOSE_SECONDS)

    def _columns(self, polled: Polled) -> RawBatch:
        batch = RawBatch()
        for partition, records in polled.records.items():
            add_records(batch, partition, records)
            self._next[partition] = records[-1][0] + 1
        for partition, position in polled.positions.items():
            if position > self._next.get(partition, position):
                self._next[partition] = batch.passed[Partition(*partition)] = position
        return batch

    def _check_that_it_moves(self) -> None:
        """Raise if the client hangs: better to exit and be restarted than to be alive without processing."""
        stalled = time.monotonic() - self._reader.progress
        if self._reader.consumer is not None and stalled > STALLED_SECONDS:
            raise KafkaConnectorError(f"The Kafka client has not returned for {stalled:.0f} s: restart the daemon")

    def _handle_rebalance(self, change: RebalanceEvent) -> None:
        """Run the callback and seek partitions; the fetch thread continues, whatever is raised."""
        partitions = [Partition(*partition) for partition in change.partitions]
        if change.kind != "misplaced":
            log.info("Partitions %s: %s", change.kind, ", ".join(f"{p.topic}/{p.partition}" for p in partitions))
        try:
            if change.kind == "assigned":
                self._start_offsets.note_assigned(change.partitions, self._reader.topics_at_first)
                self._callbacks.on_assigned(partitions)
                starts = {partition: self._callbacks.start(Partition(*partition)) for partition in change.partitions}
                for partition in [partition for partition, at in starts.items() if at == DEFERRED]:
                    self._hold(partition)
                    del starts[partition]
                self._place(starts)
            elif change.kind == "revoked":
                self._callbacks.on_revoked(partitions)
                self._forget(change.partitions)
            elif change.kind == "lost":
                self._forget(change.partitions)
                self._callbacks.on_lost(partitions)
            else:
                wrong = [partition for partition in change.partitions if partition not in self._reader.held]
                self._place({p: change.offsets.get(p, self._next.get(p)) for p in wrong}, refused=True)
        finally:
            change.finish()

    def _forget(self, partitions: Iterable[TopicPartition]) -> None:
        for partition in partitions:
            if (reached := self._next.pop(partition, None)) is not None:
                self._revoked_offsets[partition] = reached
            self._start_offsets.end.pop(partition, None)
            self._reader.held.pop(partition, None)
            for polled in self._held:
                polled.drop(partition)

    def _hold(self, partition: TopicPartition) -> None:
        """Hold a partition until `seek`. A position, any, keeps the client from looking for one itself."""
        self._reader.held[partition] = object()
        first = self._next.pop(partition, None) is None
        for polled in self._held:
            polled.drop(partition)
        if (consumer := self._reader.consumer) is not None and first:
            with contextlib.suppress(*UNASSIGNED_ERRORS):
                consumer.pause(partition)
                consumer.seek(partition, 0)

    def _resume_at(self, offsets: Mapping[TopicPartition, int], tokens: Mapping[TopicPartition, object]) -> None:
        """Resume at these offsets the partitions that are still held since the same assignment."""
        placed = {}
        for partition, offset in offsets.items():
            if self._reader.held.get(partition) is tokens[partition] and self._seek(partition, offset):
                del self._reader.held[partition]  # now the fetch thread resumes it
                placed[Partition(*partition)] = offset
        self._callbacks.on_placed(placed)

    def _seek(self, partition: TopicPartition, offset: int) -> bool:
        """Seek in the client; False if the partition was revoked, of which an event is under way."""
        if (consumer := self._reader.consumer) is None:
            return False
        try:
            consumer.seek(partition, offset)
        except UNASSIGNED_ERRORS:
            return False
        self._next[partition] = offset
        return True

    def _place(self, known: Mapping[TopicPartition, int | None], *, refused: bool = False) -> None:
        """Seek each partition to its start offset; one that comes back resumes where it was left."""
        consumer = self._reader.consumer
        if consumer is not None and known:
            found = self._start_offsets.resolve(consumer, known, self._revoked_offsets, refused=refused)
            self._callbacks.on_placed({Partition(*p): offset for p, offset in found.items() if self._seek(p, offset)})

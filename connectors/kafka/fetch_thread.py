"""The thread that owns kafka-python's consumer: it connects, polls, keeps the membership alive and watches for outages.

It prefetches one poll's records while the caller processes those before, so that the client's work in Python overlaps
with the engine's, which releases the interpreter's lock. The inbox brings to the caller, in order: records, rebalance
events (the thread waits until `finish` is called, heartbeats continue), answers to work that the caller has asked for,
and the error that ended the thread.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable, Collection, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from kafka import AsyncConsumerRebalanceListener, KafkaConsumer, TopicPartition
from kafka.errors import (
    IllegalStateError,
    KafkaError,
    LogTruncationError,
    NoOffsetForPartitionError,
    OffsetOutOfRangeError,
    RetriableError,
)
from kafka.future import Future

from connectors.common.background import OngoingProblem
from connectors.kafka.client_internals import client_class, drop_paused_fetch, position_of, request_rebalance
from connectors.kafka.connect import connect, probe
from connectors.kafka.diagnosis import explain_unseen_topics, unreachable_brokers
from connectors.kafka.errors import KafkaConnectorError, explain_error
from connectors.kafka.polling import ANSWER_MS, new_consumer, polled_records
from connectors.kafka.raw_record import RawRecord
from connectors.kafka.settings import KafkaSettings

log = logging.getLogger(__name__)

POLL_MS = 500  # one wait; close() and pause() take effect within it
# With a pattern the client (3.0.12) asks for all topics before it joins, in every poll, and forgets a join that was
# answered meanwhile: if a poll has no time for both, it never joins
PATTERN_POLL_MS = 2_000
HELD_POLL_MS = 20  # while a partition is held: reading begins so soon after `seek`
QUIET_SECONDS = 5.0  # without records for so long, ask the broker whether it is there
TOPIC_CHECK_SECONDS = 2.0  # how often to look for a topic that does not exist yet
DIAGNOSIS_SECONDS = 30.0  # how often to ask why it is not seen

# What the client raises about a partition that is not assigned. It revokes partitions in its own thread before the
# caller handles the event, so this may happen at any call, and is harmless
UNASSIGNED_ERRORS = (KeyError, ValueError, IllegalStateError)

Answer = Callable[[], None]  # of work, for the caller to run
Work = Callable[[KafkaConsumer], None]
_NOWHERE: Mapping[TopicPartition, int] = MappingProxyType({})


class Polled(NamedTuple):
    """What one poll returned, for the caller to hand out in this order."""

    records: dict[TopicPartition, list[RawRecord]]
    positions: dict[TopicPartition, int]  # next offsets: behind transaction markers and aborted records, too

    def drop(self, partition: TopicPartition) -> None:
        """Remove a partition."""
        self.records.pop(partition, None)
        self.positions.pop(partition, None)


class RebalanceEvent(NamedTuple):
    """A change of the assignment that the caller must handle; the thread waits for `finish()`.

    `kind` is "assigned", "revoked", "lost" or "misplaced" (the broker has no record at a partition's position).
    """

    kind: str
    partitions: list[TopicPartition]
    finish: Callable[[], None]
    offsets: Mapping[TopicPartition, int] = _NOWHERE  # misplaced: end of the common log


class FetchThread(threading.Thread):
    """Reads for one source. `consumer` is None until connected; `outage` is true while the broker gives no answer."""

    def __init__(
        self, settings: KafkaSettings, options: Callable[[], dict[str, Any]], *, owned: Collection[TopicPartition]
    ) -> None:
        """`options` returns the consumer's; `owned`: what this member owned when it ended, as far as it knows."""
        super().__init__(name="kafka-reader", daemon=True)
        self.inbox: queue.SimpleQueue[Polled | RebalanceEvent | Answer | BaseException] = queue.SimpleQueue()
        self.work: queue.SimpleQueue[Work] = queue.SimpleQueue()  # runs with the consumer between two polls
        # assigned, but not read before `seek`; the value, written by the caller, identifies the assignment
        self.held: dict[TopicPartition, object] = {}
        self.demand = threading.Semaphore(0)  # released by the caller for each batch of records that it takes
        self.closing = threading.Event()
        self.paused = False
        self.consumer: KafkaConsumer | None = None
        self.outage = False
        self.progress = time.monotonic()  # when the client last returned
        self._settings, self._options = settings, options
        self.problem = OngoingProblem()
        self._client: Any | None = None  # kafka-python's network client
        self._heard = self.progress  # when the broker last answered
        self._poll_ms = PATTERN_POLL_MS if settings.topic_pattern else POLL_MS
        self._positions: dict[TopicPartition, int] = {}  # as the caller knows them
        self.topics_at_first: set[str] | None = None  # that existed at the first assignment
        self._owned = set(owned) if settings.group_instance_id else set()
        self._owed_at = 0.0  # when to look for a rebalance that this member owes its group
        self._next_topic_check = 0.0
        self._next_diagnosis = 0.0
        self._missing: set[str] = set()
        self._reasons: dict[str, str] = {}  # why topics cannot be seen, as logged; empty: they do not exist

    def run(self) -> None:
        """Connect and read until `closing`; end with the error in the inbox where there is one."""
        try:
            consumer = connect(self._settings, self._make_consumer, self.closing)
            if consumer is None:
                return
            try:
                self._subscribe(consumer)
                self._loop(consumer)
            finally:
                self.consumer = None
                consumer.close(autocommit=False, timeout_ms=ANSWER_MS)
        except BaseException as error:  # noqa: BLE001 - the caller's thread raises it from poll
            self.inbox.put(error)

    def _make_consumer(self) -> KafkaConsumer:
        options = self._options()
        if (kind := client_class()) is not None:

            def make_client(**options: Any) -> Any:
                if self._client is not None:  # of a failed attempt: its thread would keep running
                    self._client.close()
                self._client = kind(**options)
                return self._client

            options["kafka_client"] = make_client
        return new_consumer(options)

    def _subscribe(self, consumer: KafkaConsumer) -> None:
        settings = self._settings
        listener = _Listener(self)
        if pattern := settings.whole_name_pattern():
            consumer.subscribe(pattern=pattern.pattern, listener=listener)
            source = f"topics that match {settings.topic_pattern!r}"
        else:
            consumer.subscribe(topics=settings.topics, listener=listener)
            source = ", ".join(settings.topics)
        self._heard = self.progress = time.monotonic()
        self._owed_at = self._heard + settings.session_timeout_seconds
        self._next_topic_check = self._heard + TOPIC_CHECK_SECONDS  # the first metadata are still on their way
        self.consumer = consumer
        log.info("Connected to Kafka at %s; group %s reads %s", settings.bootstrap_servers, settings.group_id, source)

    def _loop(self, consumer: KafkaConsumer) -> None:
        while not self.closing.is_set():
            for _ in range(self.work.qsize()):
                self.work.get()(consumer)
            self._apply_pause(consumer)
            self._rebalance_owed(consumer)
            records = self._poll(consumer)
            moved = self._moved(consumer)
            if records:
                self._answered()  # a position alone may have been set by `seek`
            if records or moved:
                self.inbox.put(Polled(records, moved))
                self.demand.acquire()
            else:
                self._watch_topics()
                self._watch_broker(consumer)
            self.progress = time.monotonic()

    def _apply_pause(self, consumer: KafkaConsumer) -> None:
        """Pause or resume every assigned partition, also those assigned since."""
        assigned, paused = consumer.assignment(), consumer.paused()
        wanted = assigned if self.paused else assigned.intersection(list(self.held))  # the caller may change it
        for partition in wanted ^ paused:
            with contextlib.suppress(*UNASSIGNED_ERRORS):
                (consumer.pause if partition in wanted else consumer.resume)(partition)
                if partition not in wanted:
                    drop_paused_fetch(consumer, partition)

    def _rebalance_owed(self, consumer: KafkaConsumer) -> None:
        """Ask for a rebalance, once, if a static member has returned to fewer partitions than it owned.

        A member that gives partitions away joins its group again at once, and only then others get them. Killed in
        between it returns under its name, which makes no rebalance: they would have no owner until the next one.
        """
        if not self._owned or time.monotonic() < self._owed_at:
            return
        if (missing := self._owned - consumer.assignment()) and request_rebalance(consumer):
            names = ", ".join(f"{p.topic}/{p.partition}" for p in sorted(missing))
            log.info("Asked the group to rebalance: this member owned %s when it ended, and does not any more", names)
        self._owned = set()

    def _moved(self, consumer: KafkaConsumer) -> dict[TopicPartition, int]:
        """Return the next offsets of the partitions where they have changed."""
        # a held partition has no meaningful position
        read = consumer.assignment().difference(list(self.held))
        try:
            found = {p: at for p in read if (at := position_of(consumer, p, ANSWER_MS)) is not None}
        except (KafkaError, *UNASSIGNED_ERRORS):  # only if the client has to be asked
            return {}
        moved = {p: at for p, at in found.items() if self._positions.get(p) != at}
        self._positions = found
        return moved

    def _poll(self, consumer: KafkaConsumer) -> dict[TopicPartition, list[RawRecord]]:
        """Poll once; what the client raises becomes a rebalance event, an error for a person, or a retry."""
        try:
            return polled_records(consumer, HELD_POLL_MS if self.held else self._poll_ms)
        except (NoOffsetForPartitionError, OffsetOutOfRangeError) as error:
            self.deliver("misplaced", error.args[0])
        except LogTruncationError as error:
            at = {partition: end.offset for partition, end in error.divergent_offsets.items() if end is not None}
            self.deliver("misplaced", list(error.divergent_offsets), at)
        except RetriableError as error:
            log.debug("Polling Kafka failed, trying again: %s", error)
            self.closing.wait(POLL_MS / 1000)
        except KafkaError as error:
            raise KafkaConnectorError(f"Reading from Kafka failed: {explain_error(error, self._settings)}") from error
        return {}

    def deliver(
        self, kind: str, partitions: Collection[TopicPartition], truncated: Mapping[TopicPartition, int] = _NOWHERE
    ) -> None:
        """Deliver an event to the caller and wait, in this thread, until it is handled."""
        seen = threading.Event()
        self.inbox.put(RebalanceEvent(kind, sorted(partitions), seen.set, truncated))
        seen.wait()

    async def deliver_from_client(self, kind: str, partitions: Collection[TopicPartition]) -> None:
        """Deliver an event to the caller and wait on the client's event loop, which continues heartbeats."""
        if self.closing.is_set() or not partitions:
            return
        seen = Future()

        def finish() -> None:
            seen.success(None)
            if self._client is not None:
                self._client.wakeup()  # the client's loop may be asleep: the future alone does not wake it

        self.inbox.put(RebalanceEvent(kind, sorted(partitions), finish))
        await seen

    def note_topics(self) -> None:
        """Note, the first time, which topics exist: others are new."""
        if self.topics_at_first is None and self._client is not None:
            self.topics_at_first = set(self._client.cluster.topics())

    def partitions(self) -> int:
        """Return how many partitions the topics read have together, as far as is known. For any thread."""
        if self._client is None:
            return 0
        cluster, pattern = self._client.cluster, self._settings.whole_name_pattern()
        topics = self._settings.topics if pattern is None else filter(pattern.match, cluster.topics())
        return sum(len(cluster.partitions_for_topic(topic) or ()) for topic in topics)

    def _watch_topics(self) -> None:
        """Log once which topics do not exist, and keep looking for them."""
        now = time.monotonic()
        if now < self._next_topic_check or self.outage or self._client is None:
            return
        self._next_topic_check = now + TOPIC_CHECK_SECONDS
        known = self._client.cluster.topics()
        pattern = self._settings.whole_name_pattern()
        if pattern is None:
            missing = set(self._settings.topics) - known
        else:
            missing = set() if any(pattern.match(topic) for topic in known) else {self._settings.topic_pattern}
        if missing and (missing - self._missing or now >= self._next_diagnosis):
            self._next_diagnosis = now + DIAGNOSIS_SECONDS
            self._report_missing(missing, "topics" if pattern is None else "topic_pattern")
        if found := self._missing - missing:
            log.info("Topic found: %s", ", ".join(sorted(found)))
        self._missing = missing
        if missing:
            self._client.cluster.request_update()

    def _report_missing(self, missing: Collection[str], setting: str) -> None:
        """Log why each topic cannot be seen, unless that was logged."""
        settings = self._settings
        if setting == "topic_pattern":
            known = dict.fromkeys(missing, unreachable_brokers(settings))
        else:
            known = explain_unseen_topics(settings, missing)
        for topic in sorted(missing):
            why = known.get(topic, "")
            if self._reasons.get(topic) == why:
                continue
            self._reasons[topic] = why
            if why:
                log.warning("Topic %s (kafka.%s) cannot be read: %s; trying again", topic, setting, why)
            else:
                log.warning(
                    "No such topic on %s yet: %s (kafka.%s); waiting for it to be created",
                    *(settings.bootstrap_servers, topic, setting),
                )

    def _watch_broker(self, consumer: KafkaConsumer) -> None:
        """After some quiet, ask the broker for its newest offsets; log once that it is down, once that it is back."""
        if time.monotonic() - self._heard < QUIET_SECONDS:
            return
        reason: str | None
        assigned = consumer.assignment()
        try:
            if assigned:
                consumer.end_offsets(list(assigned), timeout_ms=ANSWER_MS)
                reason = None
            else:
                reason = probe(self._settings)
        except (KafkaError, KeyError) as error:  # KeyError: the client's, where a partition has no answer
            settings = self._settings
            reason = probe(settings) or unreachable_brokers(settings) or explain_error(error, settings)
        if reason is None:
            self._answered()
            return
        self.problem.report(f"Kafka gives no answer: {reason}")
        if not self.outage:
            self.outage = True
            log.warning("Kafka gives no answer (%s); waiting, reading resumes by itself", reason)

    def _answered(self) -> None:
        now = time.monotonic()
        if self.outage:
            log.info("Kafka answers again after %.0f s", now - self._heard)
            self.outage = False
            self.problem.clear()
        self._heard = now


class _Listener(AsyncConsumerRebalanceListener):  # type: ignore[misc]  # kafka-python has no types
    """Delivers the client's rebalance callbacks to the caller's thread."""

    def __init__(self, reader: FetchThread) -> None:
        self._reader = reader

    async def on_partitions_assigned(self, assigned: Collection[TopicPartition]) -> None:
        self._reader.note_topics()
        await self._reader.deliver_from_client("assigned", assigned)

    async def on_partitions_revoked(self, revoked: Collection[TopicPartition]) -> None:
        await self._reader.deliver_from_client("revoked", revoked)

    async def on_partitions_lost(self, lost: Collection[TopicPartition]) -> None:
        await self._reader.deliver_from_client("lost", lost)

"""A topic's retained history: each record from the oldest that the broker holds to the newest at the start, once.

For training. No group is joined and nothing is committed, so the daemon's own reading is unaffected. One partition is
read after another: the same history comes in the same order, whatever brokers answer first.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Mapping

from kafka import TopicPartition
from kafka.errors import KafkaError, RetriableError

from connectors.batches import Partition, RawBatch
from connectors.kafka.connect import probe, quieten_client
from connectors.kafka.diagnosis import explain_unseen_topics, unreachable_brokers
from connectors.kafka.errors import KafkaConnectorError, explain_error
from connectors.kafka.polling import MAX_POLL_RECORDS, add_records, consumer_options, new_consumer, polled_records
from connectors.kafka.settings import KafkaSettings

log = logging.getLogger(__name__)

ANSWER_MS = 30_000  # limit of one question about offsets; a topic of a thousand partitions asks every broker
STALLED_SECONDS = 60.0  # without a record: a restarted broker is back by then
NAMED = 10  # topics, where an error lists those that are there


class KafkaHistory:
    """All that the topics of the settings hold, as a source that ends. Connects when created.

    Raises KafkaConnectorError for brokers that cannot be reached or stay down, for topics that do not exist or hold
    nothing, and AuthenticationError or TlsError where a broker refuses us.
    """

    def __init__(self, settings: KafkaSettings, *, max_poll_records: int = MAX_POLL_RECORDS) -> None:
        self._settings = settings
        self._left: deque[TopicPartition] = deque()  # still to be read, the first of them is being read
        self._end: dict[TopicPartition, int] = {}
        self._next: dict[TopicPartition, int] = {}
        self._moved = 0.0  # when a record last came
        quieten_client()
        if (reason := probe(settings)) is not None:
            raise KafkaConnectorError(
                f"No Kafka broker at kafka.bootstrap_servers={settings.bootstrap_servers} ({reason}): is it running, "
                "and is this its address?"
            )
        options = consumer_options(settings, max_poll_records=max_poll_records) | {
            "group_id": None,
            "group_instance_id": None,
            "auto_offset_reset": "earliest",  # what is deleted meanwhile is skipped
        }
        try:
            self._consumer = new_consumer(options)
        except KafkaError as error:
            raise self._failed("Connecting to", error) from None
        try:
            self._find_ends(self._partitions())
            self._begin_next()
        except KafkaError as error:
            self.close()
            raise self._failed("Asking for the history held by", error) from None
        except KafkaConnectorError:
            self.close()
            raise
        log.info("Reading %d records of %d partitions", sum(self.lag().values()), len(self._left))

    def poll(self, timeout_seconds: float) -> RawBatch:
        """Return the next records, at most max_poll_records; empty after the time-out or at the end."""
        deadline = time.monotonic() + timeout_seconds
        while self._left:
            partition = self._left[0]
            seconds = max(deadline - time.monotonic(), 0.0)
            try:
                polled = polled_records(self._consumer, round(seconds * 1000))
                position = self._consumer.position(partition, timeout_ms=ANSWER_MS)
            except RetriableError as error:
                log.debug("Polling Kafka failed, trying again: %s", error)
                polled, position = {}, None
                time.sleep(min(seconds, 0.2))
            except KafkaError as error:
                raise self._failed("Reading from", error) from None
            end = self._end[partition]
            records = [record for record in polled.get(partition, ()) if record[0] < end]
            self._watch(partition, position)
            if self._next[partition] >= end:
                self._left.popleft()
                self._begin_next()
            if records:
                batch = RawBatch()
                add_records(batch, partition, records)
                return batch
            if time.monotonic() >= deadline:
                break
        return RawBatch()

    def finished(self) -> bool:
        """Whether all that existed at the start has been returned."""
        return not self._left

    def commit(self, offsets: Mapping[Partition, int]) -> None:
        """Do nothing: reading history leaves no trace."""

    def lag(self) -> dict[Partition, int]:
        """Return how many offsets of each partition are still to be read."""
        return {Partition(*partition): max(end - self._next[partition], 0) for partition, end in self._end.items()}

    def close(self) -> None:
        """Disconnect."""
        self._consumer.close(autocommit=False, timeout_ms=ANSWER_MS)

    def _partitions(self) -> list[TopicPartition]:
        settings = self._settings
        known = self._consumer.topics()
        pattern = settings.whole_name_pattern()
        wanted = settings.topics if pattern is None else sorted(filter(pattern.match, known))
        missing = [topic for topic in wanted if topic not in known]
        if missing or not wanted:
            if missing and (reasons := explain_unseen_topics(settings, missing)):
                found = "; ".join(f"{topic}: {why}" for topic, why in reasons.items())
                raise KafkaConnectorError(f"{settings.bootstrap_servers} does not show (kafka.topics) {found}")
            found = (
                f"{settings.topic_pattern} (kafka.topic_pattern)" if pattern else f"{', '.join(missing)} (kafka.topics)"
            )
            names = sorted(topic for topic in known if not topic.startswith("__"))  # Kafka's own
            there = ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")
            raise KafkaConnectorError(
                f"{settings.bootstrap_servers} shows no topic {found}; it shows: {there or 'none'}"
            )
        return [
            TopicPartition(topic, number)
            for topic in wanted
            for number in sorted(self._consumer.partitions_for_topic(topic))
        ]

    def _find_ends(self, partitions: list[TopicPartition]) -> None:
        """Look up where each partition begins and, for now, ends. Raises KafkaConnectorError if all are empty."""
        try:
            self._next = self._consumer.beginning_offsets(partitions, timeout_ms=ANSWER_MS)
            self._end = self._consumer.end_offsets(partitions, timeout_ms=ANSWER_MS)
        except KeyError as error:  # the client's, where a partition has no answer
            raise KafkaConnectorError(f"Kafka does not say which offsets it holds of {error}: try again") from None
        self._left.extend(partition for partition in partitions if self._end[partition] > self._next[partition])
        if not self._left:
            topics = ", ".join(sorted({partition.topic for partition in partitions}))
            raise KafkaConnectorError(
                f"{topics}: all {len(partitions)} partitions are empty; there is nothing to train on until records are "
                "written, or the topic's retention has become longer"
            )

    def _begin_next(self) -> None:
        if self._left:
            partition = self._left[0]
            self._consumer.assign([partition])
            self._consumer.seek(partition, self._next[partition])
            self._moved = time.monotonic()

    def _watch(self, partition: TopicPartition, position: int | None) -> None:
        """Note how far the partition has been read. Raises KafkaConnectorError if nothing comes any more."""
        if position is not None and position > self._next[partition]:
            self._next[partition] = position
            self._moved = time.monotonic()
        elif time.monotonic() - self._moved > STALLED_SECONDS:
            reason = probe(self._settings) or "though the broker answers"
            raise KafkaConnectorError(
                f"{partition.topic}/{partition.partition}: nothing after offset {self._next[partition]} of "
                f"{self._end[partition]} for {STALLED_SECONDS:.0f} s ({reason}): try again"
            )

    def _failed(self, what: str, error: Exception) -> KafkaConnectorError:
        settings = self._settings
        why = unreachable_brokers(settings) or explain_error(error, settings)
        return KafkaConnectorError(f"{what} Kafka at {settings.bootstrap_servers} failed: {why}")

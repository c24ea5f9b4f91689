"""Kafka as a sink of scores, alerts and refused records; all three write through one producer."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from kafka import KafkaProducer
from kafka.errors import (
    InvalidRecordError,
    InvalidTimestampError,
    KafkaError,
    KafkaTimeoutError,
    MessageSizeTooLargeError,
    RecordListTooLargeError,
)
from kafka.future import Future

from connectors.batches import Alert, Rejected, Scores
from connectors.common.throttle import LogThrottle
from connectors.encode import alert_record, contributions_of, score_records, shortened
from connectors.kafka.client_internals import end_sender
from connectors.kafka.connect import connect, probe
from connectors.kafka.diagnosis import unreachable_brokers
from connectors.kafka.errors import explain_error, is_permanent
from connectors.kafka.record_sizes import MAX_REQUEST_BYTES, Header, RecordSizes, record_bytes
from connectors.kafka.settings import KafkaConnectorError, KafkaSettings

log = logging.getLogger(__name__)

LINGER_MS = 20  # scores come in micro-batches: a full request is worth more than 20 ms
BATCH_BYTES = 64 * 1024  # at 16 KiB, the client's default, it makes four times as many requests
MAX_UNFLUSHED_BYTES = 32 * 1024 * 1024  # the client itself has no bound: above it a write waits for the broker
RECORD_BYTES = 500  # what a record costs in memory beside its value: key, headers and the client's own objects
METADATA_SECONDS = 15.0  # how long a topic may take to appear: brokers make it on the first question, or never
CLOCK_SECONDS = 60.0  # a wall clock that has moved by more against the monotonic one has been set
NO_TIME = -1  # a record without a time of its own, which brokers take at any time
CLOSE_SECONDS = 2.0  # a daemon that stops has 3 s for this
GROUP_HEADER = "group"  # of an alert's record
LOOK_SECONDS = 0.5  # between two looks at whether a wait is still wanted
TOO_LARGE = (MessageSizeTooLargeError, RecordListTooLargeError)

Headers = list[Header]


class UndeliveredError(KafkaConnectorError):
    """The brokers did not take what was written, for now. After `reopen` it can be written again."""


class RefusedTimeError(UndeliveredError):
    """The broker refused records for their time. Next time they are written without one."""


class RefusedSizeError(UndeliveredError):
    """The broker refused a record for its size. Next time there is less room for it."""


class KafkaWriter:
    """One idempotent producer (acks=all), shared by the sinks below. Not connected before `open` or the first record.

    The first failure stays: `flush` raises it again and again until `begin_again`, so that no checkpoint covers what
    was not delivered. It is an UndeliveredError where another try may help. `waiting` is called twice a second while
    `send` waits for room; what it raises ends the wait.
    """

    def __init__(self, settings: KafkaSettings, waiting: Callable[[], None] = lambda: None) -> None:
        self.settings = settings
        self.sizes = RecordSizes(settings)
        self._waiting = waiting
        self._producer: KafkaProducer | None = None
        self._closed = False
        self._unflushed_bytes = 0
        self._failure: KafkaConnectorError | None = None
        self._wrong_clock: float | None = None  # what it was ahead of the monotonic one when a broker refused its time

    def open(self) -> None:
        """Connect, waiting for the broker up to delivery_timeout_seconds, and see that every topic is there.

        Raises KafkaConnectorError naming the setting of a topic that does not exist and is not made by the broker;
        UndeliveredError where no broker can be asked.
        """
        producer = self._connected()
        for name in ("scores_topic", "alerts_topic", "dead_letter_topic"):
            topic = getattr(self.settings, name)
            if not topic:
                continue
            try:
                producer.partitions_for(topic)
            except KafkaError as error:
                if isinstance(error, KafkaTimeoutError) and (reason := probe(self.settings)) is not None:
                    raise UndeliveredError(self._no_broker(reason)) from None
                if isinstance(error, KafkaTimeoutError) and (lost := unreachable_brokers(self.settings)):
                    raise UndeliveredError(lost) from None
                why = "no such topic: make it, or set the name of one that exists, or an empty one"
                if not isinstance(error, KafkaTimeoutError):
                    why = explain_error(error, self.settings, topic=topic, right="Write")
                raise KafkaConnectorError(f"kafka.{name}: topic {topic!r} cannot be written: {why}") from None

    def send(
        self,
        topic: str,
        key: bytes | None,
        value: bytes | None,
        headers: Headers | None = None,
        partition: int | None = None,
    ) -> Future | None:
        """Hand a record to the producer; waits where too much is on its way. Raises as `flush` does.

        Without a `partition` the key's hash chooses it. No value: a tombstone, for topics that are compacted. Returns
        kafka-python's future of the record; None where it failed at once.
        """
        if self._failure is not None:
            raise self._failure
        producer = self._producer if self._producer is not None else self._connected()
        sent: Future | None = None
        size = record_bytes(key, value, headers or ())
        try:
            sent = producer.send(topic, value, key, headers, partition, self._timestamp())
            sent = sent.add_errback(self._failed_by, producer, topic, size)
        except KafkaError as error:
            self._failed(topic, error, size)
        self._unflushed_bytes += len(value or b"") + RECORD_BYTES
        if self._unflushed_bytes > MAX_UNFLUSHED_BYTES:
            self._flush(self._most_seconds, self._waiting)
        return sent

    def flush(self) -> None:
        """Return when the brokers have all that was sent; KafkaConnectorError where they have not, or not in time."""
        self._flush(self._most_seconds)

    def reopen(self) -> None:
        """Forget what has failed, to write it again, and connect anew as `open` does; its topics are known."""
        self.begin_again()
        self._connected()

    def begin_again(self) -> None:
        """Forget what was not flushed. The next use connects anew."""
        producer, self._producer = self._producer, None
        self._failure, self._unflushed_bytes = None, 0
        if producer is not None:
            self._release(producer)

    def _release(self, producer: KafkaProducer) -> None:
        """Let a client go at once, whatever it still has to send."""
        threading.Thread(target=_close, args=(producer, 0.0), name="kafka-release", daemon=True).start()

    def _timestamp(self) -> int | None:
        """Return the time to write a record with; None: now, by the wall clock."""
        if self._wrong_clock is None:
            return None
        if abs(time.time() - time.monotonic() - self._wrong_clock) < CLOCK_SECONDS:
            return NO_TIME
        log.info("The clock has been set: records are written with their time again")
        self._wrong_clock = None
        return None

    def _see_time(self, error: BaseException) -> bool:
        """Whether a broker refused a record for its time; then the next ones are written without."""
        refused = isinstance(error, InvalidTimestampError) or (
            isinstance(error, InvalidRecordError) and "Timestamp" in str(error)
        )
        if refused and self._wrong_clock is None:
            self._wrong_clock = time.time() - time.monotonic()
            log.error(
                "Kafka refuses this machine's time (%s): set its clock right; until then records are written without"
                " a time",
                error,
            )
        return refused

    def _see_size(self, topic: str, error: BaseException, size: int) -> bool:
        """Whether a record was refused for its size; then the next ones of its topic are smaller."""
        refused = isinstance(error, TOO_LARGE)
        if refused and size:
            self.sizes.refused(topic, size)
        return refused

    def close(self) -> None:
        """Let go, after CLOSE_SECONDS at most: what must not be lost is flushed before. A second time does nothing."""
        if self._closed:
            return
        self._closed = True
        try:
            self._flush(CLOSE_SECONDS)
        finally:
            if self._producer is not None:
                _close(self._producer, CLOSE_SECONDS if self._failure is None else 0.0)

    @property
    def _most_seconds(self) -> float:
        return self.settings.delivery_timeout_seconds + CLOSE_SECONDS  # the producer gives records up before

    def _flush(self, seconds: float, waiting: Callable[[], None] = lambda: None) -> None:
        producer, deadline = self._producer, time.monotonic() + seconds
        while producer is not None and self._unflushed_bytes and self._failure is None:
            left = deadline - time.monotonic()
            try:
                producer.flush(timeout=max(0.0, min(left, LOOK_SECONDS)))
                break
            except KafkaError as error:  # not yet, or a batch has been cut in two; of what is lost its own record tells
                if left <= LOOK_SECONDS:
                    self._failed("", error)
            waiting()
        self._unflushed_bytes = 0
        if self._failure is not None:
            raise self._failure

    def _failed_by(self, producer: KafkaProducer, topic: str, size: int, error: BaseException) -> None:
        """Keep a failure unless the producer has been given up: what it still had is written again by the next one."""
        if producer is self._producer:
            self._failed(topic, error, size)

    def _failed(self, topic: str, error: BaseException, size: int = 0) -> None:
        """Keep the first failure, of a record of `size` bytes if of one; called on the producer's thread, too."""
        kind = KafkaConnectorError if is_permanent(error) else UndeliveredError
        if self._see_time(error):
            kind = RefusedTimeError
        elif self._see_size(topic, error, size):
            kind = RefusedSizeError
        if self._failure is None:
            why = explain_error(error, self.settings, topic=topic, right="Write")
            self._failure = kind(
                f"Kafka at {self.settings.bootstrap_servers} did not take what was written"
                f"{f' to topic {topic}' if topic else ''}: {why}"
            )

    def _connected(self) -> KafkaProducer:
        if self._closed:
            raise KafkaConnectorError("the Kafka writer is closed")
        if self._producer is None:
            enough = threading.Event()
            timer = threading.Timer(self.settings.delivery_timeout_seconds, enough.set)
            timer.daemon = True
            timer.start()
            began = time.monotonic()
            try:
                self._producer = connect(self.settings, self._make_producer, enough)
            finally:
                timer.cancel()
            if self._producer is None:
                waited = f"none within {time.monotonic() - began:.0f} s (kafka.delivery_timeout_seconds)"
                raise UndeliveredError(self._no_broker(waited))
        return self._producer

    def _no_broker(self, reason: str) -> str:
        return f"No Kafka broker at kafka.bootstrap_servers={self.settings.bootstrap_servers} to write to: {reason}"

    def _topics(self) -> list[str]:
        """Return the topics that are written; "" for none."""
        settings = self.settings
        return [settings.scores_topic, settings.alerts_topic, settings.dead_letter_topic]

    def _producer_options(self) -> dict[str, Any]:
        """Return further options of the producer."""
        return {}

    def _make_producer(self) -> KafkaProducer:
        settings = self.settings
        options: dict[str, Any] = settings.client_options()
        delivery_ms = round(settings.delivery_timeout_seconds * 1000)
        try:
            return KafkaProducer(
                **options,
                acks="all",
                enable_idempotence=True,
                compression_type=None if settings.compression == "none" else settings.compression,
                linger_ms=LINGER_MS,
                batch_size=min(BATCH_BYTES, self.sizes.smallest(filter(None, self._topics()))),
                max_request_size=MAX_REQUEST_BYTES,
                delivery_timeout_ms=delivery_ms,
                request_timeout_ms=min(30_000, delivery_ms // 2),  # the client wants it shorter than the whole
                max_block_ms=round(METADATA_SECONDS * 1000),
                metrics_enabled=False,
                **self._producer_options(),
            )
        except RuntimeError as error:  # the codec's package is not there
            raise KafkaConnectorError(f"kafka.compression = {settings.compression!r}: {error}") from None


def _close(producer: KafkaProducer, seconds: float) -> None:
    """Close a client; what it has not sent by then it does not send any more."""
    try:
        producer.close(timeout=seconds)
    except KafkaError:
        end_sender(producer, CLOSE_SECONDS)
        with contextlib.suppress(KafkaError):
            producer.close(timeout=0)


class _KafkaSink:
    """What the three sinks share. `on_too_large` is told "cut" or "left_out" of each record that its topic cannot take.

    A size is never a failure: the largest contributions are kept, as many as fit, and where not even a record without
    any fits it is left out. Both are counted and told.
    """

    def __init__(self, writer: KafkaWriter, on_too_large: Callable[[str], None] = lambda _: None) -> None:
        self._writer = writer
        self._on_too_large = on_too_large
        self._throttles = {outcome: LogThrottle() for outcome in ("cut", "left_out")}

    def flush(self) -> None:
        """Return when all that was written is with the brokers; KafkaConnectorError when it cannot be."""
        self._writer.flush()

    def position(self) -> dict[str, int]:
        """Nothing can be taken back from Kafka: a replayed span is written again, with the same offsets in it."""
        return {}

    def restore(self, position: Mapping[str, int]) -> None:
        """Forget what could not be written: it is part of what will be replayed."""
        self._writer.begin_again()

    def close(self) -> None:
        """Flush and close the writer, which the sinks share."""
        self._writer.close()

    def _send(
        self, topic: str, key: bytes, value: bytes, contributions: Callable[[], Mapping[str, float]], headers: Headers
    ) -> None:
        """Send a record of a score or an alert, cut to what its topic takes."""
        room = self._writer.sizes.room(topic, key, headers)
        if len(value) > room:
            cut, left_out = shortened(value, contributions(), room)
            if len(cut) > room:
                self._report_too_large("left_out", topic, f"of {key!r:.300} with {len(value)} bytes")
                return
            self._report_too_large(
                "cut", topic, f"of {key!r:.300}: {left_out} features left out, {len(value)} bytes before"
            )
            value = cut
        self._writer.send(topic, key, value, headers)

    def _report_too_large(self, outcome: str, topic: str, what: str) -> None:
        self._on_too_large(outcome)
        if self._throttles[outcome].due():
            log.warning(
                "topic %s takes records of %d bytes, so one was %s, %s (told once a minute; max.message.bytes is the"
                " topic's; counted by longwatch_records_too_large_total)",
                *(topic, self._writer.sizes.most_bytes(topic), outcome.replace("_", " "), what),
            )


class KafkaScoreSink(_KafkaSink):
    """Writes a record for each score to kafka.scores_topic, keyed by stream."""

    def write(self, scores: Scores) -> None:
        """Write a batch's scores in their order."""
        topic = self._writer.settings.scores_topic
        for row, (key, value) in enumerate(score_records(scores)):
            self._send(topic, key, value, partial(contributions_of, scores, row), [])


class KafkaAlertSink(_KafkaSink):
    """Writes a record for each alert to kafka.alerts_topic, keyed by stream.

    Headers: `webhook-id`, by which repeats are known, and `group`, whose alert it is.
    """

    def write(self, alerts: Sequence[Alert]) -> None:
        """Write alerts in their order."""
        settings = self._writer.settings
        group = (GROUP_HEADER, settings.group_id.encode())
        for alert in alerts:
            key, value = alert_record(alert)
            headers = [("webhook-id", f"{alert.id}-{alert.status}".encode()), group]
            self._send(settings.alerts_topic, key, value, partial(getattr, alert, "contributions"), headers)


class KafkaDeadLetterSink(_KafkaSink):
    """Writes refused records to kafka.dead_letter_topic: the raw bytes, and in headers where and why.

    Headers: topic, partition, offset, reason, detail, and size where the value had to be cut to what the topic takes.
    """

    def write(self, rejected: Sequence[Rejected]) -> None:
        """Write refusals in their order."""
        topic = self._writer.settings.dead_letter_topic
        for record in rejected:
            headers = [
                ("topic", record.topic.encode()),
                ("partition", str(record.partition).encode()),
                ("offset", str(record.offset).encode()),
                ("reason", record.reason.encode()),
                ("detail", record.detail.encode("utf-8", "replace")),
            ]
            raw = record.raw
            if len(raw) > self._writer.sizes.room(topic, None, headers):
                headers.append(("size", str(len(raw)).encode()))
                room = self._writer.sizes.room(topic, None, headers)
                where = f"from {record.topic}/{record.partition}, offset {record.offset}, with {len(raw)} bytes"
                if room < 0:
                    self._report_too_large("left_out", topic, where)
                    continue
                self._report_too_large("cut", topic, where)
                raw = raw[:room]
            self._writer.send(topic, None, raw, headers)

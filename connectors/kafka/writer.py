"""The idempotent producer that all sinks share: delivery bounded in time, size and memory."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable
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

from connectors.kafka.client_internals import end_sender
from connectors.kafka.client_options import client_options
from connectors.kafka.connect import connect, probe
from connectors.kafka.diagnosis import unreachable_brokers
from connectors.kafka.errors import KafkaConnectorError, explain_error, is_permanent
from connectors.kafka.record_sizes import MAX_REQUEST_BYTES, Header, RecordSizes, record_bytes
from connectors.kafka.settings import KafkaSettings

log = logging.getLogger(__name__)

LINGER_MS = 20  # scores come in micro-batches: a full request is worth more than 20 ms
BATCH_BYTES = 64 * 1024  # at 16 KiB, the client's default, it makes four times as many requests
MAX_UNFLUSHED_BYTES = 32 * 1024 * 1024  # the client itself has no limit: above it a write waits for the broker
RECORD_BYTES = 500  # what a record costs in memory in addition to its value: key, headers and the client's own objects
METADATA_SECONDS = 15.0  # how long a topic may take to appear: brokers create it on the first request, or never
CLOCK_SECONDS = 60.0  # a wall clock that has moved by more against the monotonic one has been set
NO_TIME = -1  # a record without a time, which brokers always accept
CLOSE_SECONDS = 2.0  # a daemon that stops has 3 s for this
LOOK_SECONDS = 0.5  # between two calls of `waiting`
TOO_LARGE = (MessageSizeTooLargeError, RecordListTooLargeError)

Headers = list[Header]


class UndeliveredError(KafkaConnectorError):
    """The brokers did not take what was written, for now. After `reopen` it can be retried."""


class KafkaWriter:
    """One idempotent producer (acks=all), shared by the sinks below. Not connected before `open` or the first record.

    The first failure stays: `flush` raises it until `reset`, so that no checkpoint covers what was not delivered. It is
    an UndeliveredError if a retry may help: what was refused for its time is then written without one, what was refused
    for its size is cut. `waiting` is called twice a second while `send` waits for room; what it raises ends the wait.
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
        """Connect, waiting for the broker up to delivery_timeout_seconds, and check that every topic exists.

        Raises KafkaConnectorError naming the setting of a topic that does not exist and is not created by the broker;
        UndeliveredError if no broker answers.
        """
        producer = self._connected()
        for name, topic in self.settings.outputs.items():
            try:
                producer.partitions_for(topic)
            except KafkaTimeoutError:
                if (reason := probe(self.settings)) is not None:
                    raise UndeliveredError(self._no_broker(reason)) from None
                if lost := unreachable_brokers(self.settings):
                    raise UndeliveredError(lost) from None
                why = "no such topic: create it, or set the name of one that exists, or an empty one"
            except KafkaError as error:
                why = explain_error(error, self.settings, topic=topic, right="Write")
            else:
                continue
            raise KafkaConnectorError(f"kafka.{name}: topic {topic!r} cannot be written: {why}")

    def send(
        self,
        topic: str,
        key: bytes | None,
        value: bytes | None,
        headers: Headers | None = None,
        partition: int | None = None,
    ) -> Future | None:
        """Hand a record to the producer; waits if too much is in flight. Raises as `flush` does.

        Without a `partition` the key's hash chooses it. No value: a tombstone, for compacted topics. Returns
        kafka-python's future of the record; None if it failed at once.
        """
        if self._failure is not None:
            raise self._failure
        producer = self._producer if self._producer is not None else self._connected()
        self._before_record(producer)
        sent: Future | None = None
        size = record_bytes(key, value, headers or ())
        try:
            sent = producer.send(topic, value, key, headers, partition, self._timestamp())
            sent = sent.add_errback(self._failed_by, producer, topic, size)
        except KafkaError as error:
            self._failed(topic, error, size)
        self._unflushed_bytes += len(value or b"") + RECORD_BYTES
        if self._unflushed_bytes > MAX_UNFLUSHED_BYTES:
            self._flush(waiting=self._waiting)
        return sent

    def flush(self) -> None:
        """Return when the brokers have all that was sent; KafkaConnectorError if they have not, or not in time."""
        self._flush()

    def reopen(self) -> None:
        """Forget what has failed, and connect again; the topics were checked by `open`."""
        self.reset()
        self._connected()

    def reset(self) -> None:
        """Forget what was not flushed. The next use connects again."""
        producer, self._producer = self._producer, None
        self._failure, self._unflushed_bytes = None, 0
        if producer is not None:
            self._release(producer)

    def _release(self, producer: KafkaProducer) -> None:
        """Close a client at once, in the background, whatever it still has to send."""
        threading.Thread(target=_close, args=(producer, 0.0), name="kafka-release", daemon=True).start()

    def _timestamp(self) -> int | None:
        """Return the time to write a record with; None: now, by the wall clock."""
        if self._wrong_clock is None:
            return None
        if abs(time.time() - time.monotonic() - self._wrong_clock) < CLOCK_SECONDS:
            return NO_TIME
        log.info("The clock was corrected: records are written with a time again")
        self._wrong_clock = None
        return None

    def _see_time(self, error: BaseException) -> None:
        """Note whether a broker refused a record for its time: then the next ones are written without."""
        refused = isinstance(error, InvalidTimestampError) or (
            isinstance(error, InvalidRecordError) and "Timestamp" in str(error)
        )
        if refused and self._wrong_clock is None:
            self._wrong_clock = time.time() - time.monotonic()
            log.error(
                "Kafka refuses this machine's time (%s): correct the clock; until then records have no time", error
            )

    def close(self) -> None:
        """Close within CLOSE_SECONDS; flush before what must not be lost. A second call does nothing."""
        if self._closed:
            return
        self._closed = True
        try:
            self._flush(CLOSE_SECONDS)
        finally:
            if self._producer is not None:
                _close(self._producer, CLOSE_SECONDS if self._failure is None else 0.0)

    def _flush(self, seconds: float | None = None, waiting: Callable[[], None] = lambda: None) -> None:
        if seconds is None:
            seconds = self.settings.delivery_timeout_seconds + CLOSE_SECONDS  # the producer gives up earlier
        producer, deadline = self._producer, time.monotonic() + seconds
        while producer is not None and self._unflushed_bytes and self._failure is None:
            left = deadline - time.monotonic()
            try:
                producer.flush(timeout=max(0.0, min(left, LOOK_SECONDS)))
                break
            except KafkaError as error:  # not yet, or a batch was split; lost records report themselves
                if left <= LOOK_SECONDS:
                    self._failed("", error)
            waiting()
        self._unflushed_bytes = 0
        if self._failure is not None:
            raise self._failure

    def _failed_by(self, producer: KafkaProducer, topic: str, size: int, error: BaseException) -> None:
        """Keep a failure, but not of an abandoned producer, whose records the next one writes again."""
        if producer is self._producer:
            self._failed(topic, error, size)

    def _failed(self, topic: str, error: BaseException, size: int = 0) -> None:
        """Keep the first failure, of a record of `size` bytes (0: of none); called on the producer's thread, too."""
        self._see_time(error)
        if size and isinstance(error, TOO_LARGE):
            self.sizes.refused(topic, size)
        if self._failure is None:
            self._failure = self._failure_of(topic, error)

    def _failure_of(self, topic: str, error: BaseException) -> KafkaConnectorError:
        """Return what an error of the client is for the caller."""
        kind = KafkaConnectorError if is_permanent(error) else UndeliveredError
        why = explain_error(error, self.settings, topic=topic, right="Write")
        where = f" to topic {topic}" if topic else ""
        return kind(f"Kafka at {self.settings.bootstrap_servers} did not take what was written{where}: {why}")

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
        """Return the topics that are written."""
        return list(self.settings.outputs.values())

    def _before_record(self, producer: KafkaProducer) -> None:
        """Do what must come before a record is sent; raises as `send` does."""

    def _producer_options(self) -> dict[str, Any]:
        """Return further options of the producer."""
        return {}

    def _make_producer(self) -> KafkaProducer:
        settings = self.settings
        options: dict[str, Any] = client_options(settings)
        delivery_ms = round(settings.delivery_timeout_seconds * 1000)
        try:
            return KafkaProducer(
                **options,
                acks="all",
                enable_idempotence=True,
                compression_type=None if settings.compression == "none" else settings.compression,
                linger_ms=LINGER_MS,
                batch_size=min(BATCH_BYTES, self.sizes.smallest(self._topics())),
                max_request_size=MAX_REQUEST_BYTES,
                delivery_timeout_ms=delivery_ms,
                request_timeout_ms=min(30_000, delivery_ms // 2),  # the client wants it shorter than the whole
                max_block_ms=round(METADATA_SECONDS * 1000),
                metrics_enabled=False,
                **self._producer_options(),
            )
        except RuntimeError as error:  # the codec's package is missing
            raise KafkaConnectorError(f"kafka.compression = {settings.compression!r}: {error}") from None


def _close(producer: KafkaProducer, seconds: float) -> None:
    """Close a client; what it has not sent by then is dropped."""
    try:
        producer.close(timeout=seconds)
    except KafkaError:
        end_sender(producer, CLOSE_SECONDS)
        with contextlib.suppress(KafkaError):
            producer.close(timeout=0)

"""Alerts from the alert topic to a sink: what an aborted transaction has written is never seen here.

With exactly-once a worker's alert counts once its transaction is committed. So receivers are not fed by the engine but
from the topic, by a separate consumer group whose members are the workers: each alert goes to one of them.
"""

from __future__ import annotations

import contextlib
import logging
import math
import threading
import time
from collections.abc import Collection, Iterable

import msgspec
from kafka import KafkaConsumer, OffsetAndMetadata, TopicPartition
from kafka.errors import KafkaError, NoOffsetForPartitionError, OffsetOutOfRangeError

from connectors.batches import Alert
from connectors.common.background import OngoingProblem
from connectors.decode.timestamps import parse_time
from connectors.json_records import AlertRecord
from connectors.kafka.client_internals import position_of, request_rebalance
from connectors.kafka.connect import connect
from connectors.kafka.errors import KafkaConnectorError, explain_error, is_permanent
from connectors.kafka.polling import ANSWER_MS, consumer_options
from connectors.kafka.settings import KafkaSettings
from connectors.kafka.sinks import GROUP_HEADER
from connectors.protocols import AlertSink, NotWrittenError

log = logging.getLogger(__name__)

POLL_MS = 300
MAX_POLL_RECORDS = 500  # alerts of one poll: each may have a megabyte
# A new group begins with the alerts since the worker's start, and a little before: clocks differ, and another worker
# may have written some. The outbox recognises by their ids those that it has delivered.
BEFORE_START_SECONDS = 60.0
RETRY_SECONDS = 1.0
STOP_SECONDS = 2.0


def alert_of(value: bytes) -> Alert:
    """Return the alert in a record of the alert topic; ValueError if there is none."""
    try:
        record = msgspec.structs.asdict(msgspec.json.decode(value, type=AlertRecord))
        record["started_at"] = parse_time(record["started_at"])
        record["ended_at"] = None if record["ended_at"] is None else parse_time(record["ended_at"])
        return Alert(**record)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise ValueError(f"no alert of longwatch: {error}") from error


class AlertFeed(threading.Thread):
    """Hands committed alerts to `sink`, and then commits the offsets: after a crash some may be repeated.

    The topic may hold other groups' alerts as well: those whose record names another group are left to it. A record
    that names none was written by an older version, and is taken: better twice than never.

    `failure` is what ended the thread, None while it runs; `problem` what it retries.
    """

    def __init__(self, settings: KafkaSettings, sink: AlertSink) -> None:
        super().__init__(name="alert-feed", daemon=True)
        self._settings, self._sink = settings, sink
        self._group, self._own = settings.feed_group, settings.group_id.encode()
        self._since_ms = round((time.time() - BEFORE_START_SECONDS) * 1000)
        self._stopping = threading.Event()
        self._committed: dict[TopicPartition, int] = {}  # as far as this thread knows
        self.failure: BaseException | None = None
        self.problem = OngoingProblem()

    def run(self) -> None:
        """Feed until stopped; waits for brokers that are down."""
        while not self._stopping.is_set():
            try:
                consumer = connect(self._settings, self._make_consumer, self._stopping)
                if consumer is None:
                    return
                try:
                    consumer.subscribe(topics=[self._settings.alerts_topic])
                    # a static member may owe its group a rebalance (FetchThread._rebalance_owed); here one costs little
                    static = self._settings.group_instance_id
                    owed_at = time.monotonic() + self._settings.session_timeout_seconds if static else math.inf
                    while not self._stopping.is_set():
                        self._feed(consumer)
                        if time.monotonic() >= owed_at:
                            owed_at = math.inf
                            request_rebalance(consumer)
                finally:
                    with contextlib.suppress(KafkaError):
                        consumer.close(autocommit=False, timeout_ms=ANSWER_MS)
            except (KafkaError, KeyError) as error:  # KeyError: the client's, where a partition has no answer
                why = explain_error(error, self._settings, topic=self._settings.alerts_topic, group=self._group)
                why = f"alerts cannot be read for receivers: {why}"
                if is_permanent(error):
                    self.failure = KafkaConnectorError(why)
                    return
                if self.problem.report(why):
                    log.warning("%s; trying again", why)
                self._stopping.wait(RETRY_SECONDS)
            except BaseException as error:  # noqa: BLE001 - the daemon's thread raises it
                self.failure = error
                return

    def check(self) -> None:
        """Raise what ended the thread, if anything has."""
        if self.failure is not None:
            raise self.failure

    def close(self) -> None:
        """End the thread, within about STOP_SECONDS, and the sink."""
        self._stopping.set()
        if self.is_alive():
            self.join(STOP_SECONDS)
        self._sink.close()

    def _feed(self, consumer: KafkaConsumer) -> None:
        try:
            polled = consumer.poll(timeout_ms=POLL_MS)
        except NoOffsetForPartitionError as error:
            self._begin(consumer, error.args[0])
            return
        except OffsetOutOfRangeError as error:
            self._begin_at_the_first(consumer, error.args[0])
            return
        alerts: list[Alert] = []
        for partition, records in polled.items():
            for record in records:
                if dict(record.headers).get(GROUP_HEADER, self._own) != self._own:
                    continue
                try:
                    alerts.append(alert_of(record.value or b""))
                except ValueError as error:
                    log.warning("%s/%d, offset %d: not sent: %s", *partition, record.offset, error)
        if alerts:
            self._sink.write(alerts)
            if not self._durable():
                return
        self._commit(consumer, consumer.assignment())

    def _commit(self, consumer: KafkaConsumer, partitions: Iterable[TopicPartition]) -> None:
        """Commit the positions, which are also behind what gives no record, such as transaction markers.

        Retention may delete all records: a committed offset before the end would be out of range then.
        """
        found = {partition: position_of(consumer, partition, ANSWER_MS) for partition in partitions}
        reached = {p: at for p, at in found.items() if at is not None and at != self._committed.get(p)}
        if not reached:
            return
        try:
            consumer.commit({p: OffsetAndMetadata(at, "", -1) for p, at in reached.items()}, timeout_ms=ANSWER_MS)
        except KafkaError as error:
            if is_permanent(error):
                raise
            log.debug("offsets of group %s were not committed (%s): some alerts may come again", self._group, error)
            self.problem.report(f"offsets of group {self._group} cannot be committed: {type(error).__name__}: {error}")
        else:
            self._committed.update(reached)

    def _durable(self) -> bool:
        """Wait until the sink has stored what it was given; False if the thread ends before."""
        while not self._stopping.is_set():
            try:
                self._sink.flush()
            except NotWrittenError as error:
                if self.problem.report(f"alerts for receivers wait: {error}"):
                    log.error("alerts for receivers wait: %s", error)  # noqa: TRY400 - its text says it all
                self._stopping.wait(RETRY_SECONDS)
            else:
                return True
        return False

    def _begin(self, consumer: KafkaConsumer, partitions: Collection[TopicPartition]) -> None:
        """Seek partitions for which the group has committed nothing, and commit that for all its members."""
        # the ends first: what is written between the two requests is behind them
        ends = consumer.end_offsets(list(partitions), timeout_ms=ANSWER_MS)
        found = consumer.offsets_for_times(dict.fromkeys(partitions, self._since_ms))
        begin = {p: ends[p] if found.get(p) is None else min(found[p].offset, ends[p]) for p in partitions}
        self._place(consumer, begin)

    def _begin_at_the_first(self, consumer: KafkaConsumer, partitions: Collection[TopicPartition]) -> None:
        """Resume with the oldest alerts that exist: the outbox recognises by their ids those that it has had."""
        first = consumer.beginning_offsets(list(partitions), timeout_ms=ANSWER_MS)
        log.warning(
            "alerts for receivers: %s; resuming with the oldest that exist",
            ", ".join(
                f"{p.topic}/{p.partition} lost the next records to retention and begins at {first[p]}" for p in first
            ),
        )
        self._place(consumer, first)

    def _place(self, consumer: KafkaConsumer, offsets: dict[TopicPartition, int]) -> None:
        for partition, offset in offsets.items():
            consumer.seek(partition, offset)
        self._commit(consumer, offsets)

    def _make_consumer(self) -> KafkaConsumer:
        settings = self._settings
        instance = f"{settings.group_instance_id}-webhook" if settings.group_instance_id else None
        options = consumer_options(settings, read_committed=True, max_poll_records=MAX_POLL_RECORDS) | {
            "group_id": self._group,
            "group_instance_id": instance,
            "allow_auto_create_topics": True,  # it may be here before the first alert
        }
        return KafkaConsumer(**options)

"""Kafka as a sink of scores, alerts and rejected records; all three write through one producer."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from connectors.batches import Alert, Rejected, Scores
from connectors.common.throttle import LogThrottle
from connectors.encode import alert_record, contributions_of, score_records, shortened
from connectors.kafka.writer import Headers, KafkaWriter

log = logging.getLogger(__name__)

GROUP_HEADER = "group"  # of an alert's record


class _KafkaSink:
    """What the three sinks share. `on_too_large` receives "cut" or "left_out" for each record over its limit.

    A size is never a failure: as many of the largest contributions are kept as fit, and if not even a record without
    any fits, it is left out. Both are counted and logged.
    """

    full = False  # where too much is on its way a write waits

    def __init__(self, writer: KafkaWriter, on_too_large: Callable[[str], None] = lambda _: None) -> None:
        self._writer = writer
        self._on_too_large = on_too_large
        self._throttles = {outcome: LogThrottle() for outcome in ("cut", "left_out")}

    def flush(self) -> None:
        """Return when all that was written is with the brokers; KafkaConnectorError when it cannot be."""
        self._writer.flush()

    def position(self) -> dict[str, int]:
        """Nothing can be taken back from Kafka: replayed events are written again, with the same offsets."""
        return {}

    def restore(self, position: Mapping[str, int]) -> None:
        """Forget what could not be written: it will be replayed."""
        self._writer.reset()

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
                "topic %s takes records of %d bytes, so one was %s, %s (logged once a minute; max.message.bytes is the"
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
    """Writes rejected records to kafka.dead_letter_topic: the raw bytes, and in headers where and why.

    Headers: topic, partition, offset, reason, detail, and size where the value had to be cut to what the topic takes.
    """

    def write(self, rejected: Sequence[Rejected]) -> None:
        """Write rejected records in their order."""
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

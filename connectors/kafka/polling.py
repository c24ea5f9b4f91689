"""Polling a consumer for records as plain tuples, parsed by compiled code if the client's release allows it.

Everything that reads Kafka polls through here: the source, the changelog, and a topic's history.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kafka import KafkaConsumer, TopicPartition

from connectors.kafka.client_internals import has
from connectors.kafka.raw_record import RawRecord


def use_compiled_parser(consumer: KafkaConsumer) -> None:
    """Let a new consumer parse fetched records by compiled code, if its release allows it."""
    if has("records"):
        from connectors.kafka import record_parser  # noqa: PLC0415 - it builds on the parts in question

        record_parser.use_compiled_parser(consumer)


def polled_records(consumer: KafkaConsumer, timeout_ms: int) -> dict[TopicPartition, list[RawRecord]]:
    """Poll a consumer that went through `use_compiled_parser`, once; raises what the client raises."""
    polled: Mapping[TopicPartition, list[Any]] = consumer.poll(timeout_ms=timeout_ms)
    if has("records"):
        return dict(polled)
    return {
        partition: [(r.offset, -1 if r.timestamp is None else r.timestamp, r.key, r.value) for r in records]
        for partition, records in polled.items()
    }

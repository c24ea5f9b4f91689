"""Consumers, and polling them for records as plain tuples, parsed by compiled code if the client's release allows it.

Everything that reads Kafka polls through here: the source, the changelog, and a topic's history.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kafka import KafkaConsumer, TopicPartition
from kafka.coordinator.assignors.cooperative_sticky import CooperativeStickyAssignor

from connectors.batches import Partition, RawBatch
from connectors.kafka.client_internals import has
from connectors.kafka.client_options import client_options
from connectors.kafka.raw_record import RawRecord, raw_record
from connectors.kafka.settings import KafkaSettings

ANSWER_MS = 5_000  # limit of one question to the broker: offsets, commit, leaving the group
MAX_POLL_RECORDS = 5_000  # unless source.max_poll_records says otherwise
METADATA_MAX_AGE_MS = 60_000  # new partitions, and topics that fit the pattern, are found in a minute, not in five
BOOTSTRAP_MS = 10_000  # the probe has just found a broker, so this is ample


def consumer_options(
    settings: KafkaSettings, *, read_committed: bool = False, max_poll_records: int = MAX_POLL_RECORDS
) -> dict[str, Any]:
    """Return kafka-python's options for the consumer that the settings ask for; offsets are kept by the caller."""
    return client_options(settings) | {
        "group_id": settings.group_id,
        "group_instance_id": settings.group_instance_id or None,
        "partition_assignment_strategy": [CooperativeStickyAssignor],
        "session_timeout_ms": round(settings.session_timeout_seconds * 1000),
        "heartbeat_interval_ms": round(settings.session_timeout_seconds * 1000 / 4),
        "max_poll_interval_ms": round(settings.max_poll_interval_seconds * 1000),
        "max_poll_records": max_poll_records,
        "enable_auto_commit": False,
        "isolation_level": "read_committed" if read_committed else "read_uncommitted",
        "auto_offset_reset": "none",  # missing and impossible offsets are resolved and logged here
        "allow_auto_create_topics": False,
        "metadata_max_age_ms": METADATA_MAX_AGE_MS,
        "metrics_enabled": False,
        "bootstrap_timeout_ms": BOOTSTRAP_MS,
    }


def new_consumer(options: dict[str, Any]) -> KafkaConsumer:
    """Return a consumer whose records are parsed by compiled code, if its release allows it; for `polled_records`."""
    consumer = KafkaConsumer(**options)
    if has("records"):
        from connectors.kafka import record_parser  # noqa: PLC0415 - it builds on the parts in question

        record_parser.use_compiled_parser(consumer)
    return consumer


def polled_records(consumer: KafkaConsumer, timeout_ms: int) -> dict[TopicPartition, list[RawRecord]]:
    """Poll a consumer of `new_consumer` once; raises what the client raises."""
    polled: Mapping[TopicPartition, list[Any]] = consumer.poll(timeout_ms=timeout_ms)
    if has("records"):
        return dict(polled)
    return {partition: list(map(raw_record, records)) for partition, records in polled.items()}


def add_records(batch: RawBatch, partition: TopicPartition, records: list[RawRecord]) -> None:
    """Add a partition's records to a batch that has none of it."""
    batch.partition += [len(batch.partitions)] * len(records)
    batch.partitions.append(Partition(*partition))
    offset, received, key, value = zip(*records, strict=True)
    batch.offset += offset
    batch.received += received
    batch.key += key
    # a tombstone has no value: decoding rejects the empty one, with its offset
    batch.value += [data or b"" for data in value]

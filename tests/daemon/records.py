"""What the daemon wrote to topics and files, and how two runs compare."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.consumer.fetcher import ConsumerRecord

from tests.brokers import Broker
from tests.daemon.support import PATIENCE

TOLERANCE = 1e-5  # of scores and what goes with them, on one machine


def open_producer(broker: Broker) -> KafkaProducer:
    """Return a producer that loses nothing."""
    return KafkaProducer(bootstrap_servers=broker.bootstrap, acks="all", linger_ms=5, batch_size=65_536)


def read_topic(
    broker: Broker, topic: str, partitions: int = 1, isolation: str = "read_uncommitted"
) -> list[ConsumerRecord]:
    """Return all records that a topic holds now, and that a reader with this isolation level sees."""
    consumer = KafkaConsumer(
        bootstrap_servers=broker.bootstrap,
        enable_auto_commit=False,
        isolation_level=isolation,
        max_poll_records=5_000,
    )
    try:
        wanted = [TopicPartition(topic, partition) for partition in range(partitions)]
        consumer.assign(wanted)
        consumer.seek_to_beginning()
        ends = consumer.end_offsets(wanted)
        records: list[ConsumerRecord] = []
        deadline = time.monotonic() + PATIENCE
        while any(consumer.position(partition) < end for partition, end in ends.items()):
            assert time.monotonic() < deadline, f"{topic}: {len(records)} records read of {ends}"
            for batch in consumer.poll(500).values():
                records += batch
        return records
    finally:
        consumer.close()


Place = tuple[str, int, int]  # topic or file, partition, offset
Record = dict[str, Any]


def read_lines(path: Path) -> list[Record]:
    """Return the records of a JSON-lines file."""
    return [msgspec.json.decode(line) for line in path.read_bytes().splitlines()]


def place_of(record: Record) -> Place:
    """Return where the event of a score or an alert stood."""
    return record["topic"], record["partition"], record["offset"]


def by_place(records: Sequence[Record]) -> dict[Place, list[Record]]:
    """Return score records by their event's place."""
    found: dict[Place, list[Record]] = {}
    for record in records:
        found.setdefault(place_of(record), []).append(record)
    return found


def difference(one: Any, other: Any, where: str = "") -> str:
    """Return where two records differ by more than TOLERANCE, "" where nowhere."""
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        return next((found for name in one if (found := difference(one[name], other[name], f"{where}.{name}"))), "")
    if isinstance(one, float) and isinstance(other, float):
        same = abs(one - other) <= TOLERANCE * max(1.0, abs(one), abs(other))
    else:
        same = type(one) is type(other) and one == other
    return "" if same else f"{where}: {one!r}, expected {other!r}"


def alerts_by_id(records: Sequence[Record]) -> dict[str, Record]:
    """Return alerts by id and status; fails where one id has two contents."""
    found: dict[str, Record] = {}
    for record in records:
        name = f"{record['id']}-{record['status']}"
        assert not difference(record, found.setdefault(name, record)), f"{name} was reported in two ways"
    return found

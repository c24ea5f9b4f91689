"""Records on a real broker, and sources that read them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from kafka.errors import KafkaError
from kafka.protocol.consumer import OffsetSpec

from connectors.batches import Partition, RawBatch
from connectors.kafka.settings import KafkaSettings
from connectors.kafka.source import KafkaSource
from connectors.kafka.transactions import TransactionalWriter
from connectors.protocols import RebalanceCallbacks
from tests.brokers import Broker

DEADLINE = 240.0  # s, of any wait here; a rebalance after a kill takes the session's 6 s and a round
WRITTEN_MS = round(time.time() * 1000)  # not long ago: brokers delete what is older than a week
Topic = Callable[..., str]


def produce(broker: Broker, topic: str, numbers: range, partitions: int = 1, **options: Any) -> None:
    """Write each number as a record's value, round robin over the partitions."""
    producer = KafkaProducer(bootstrap_servers=broker.bootstrap, linger_ms=5, **options)
    sent = [
        producer.send(
            topic, str(n).encode(), key=b"k%d" % (n % 7), partition=n % partitions, timestamp_ms=WRITTEN_MS + n
        )
        for n in numbers
    ]
    for future in sent:
        future.get(timeout=DEADLINE)
    producer.close(timeout=DEADLINE)


def settings(broker: Broker, *topics: str, **more: Any) -> KafkaSettings:
    values: dict[str, Any] = {
        "bootstrap_servers": broker.bootstrap,
        "group_id": f"group-{time.monotonic_ns()}",
        "session_timeout_seconds": 6,
    }
    if topics:
        values["topics"] = list(topics)
    return KafkaSettings(**{**values, **more})


def subscribed(config: KafkaSettings, **more: Any) -> KafkaSource:
    """Return a source with these callbacks and other arguments."""
    callbacks = {name: more.pop(name) for name in RebalanceCallbacks.__slots__ if name in more}
    source = KafkaSource(config, **more)
    source.subscribe(RebalanceCallbacks(**callbacks))
    return source


class Member:
    """A source that a thread polls, as a daemon's loop does."""

    def __init__(self, config: KafkaSettings, **callbacks: Any) -> None:
        self.events: list[tuple[str, list[Partition]]] = []
        self.owned: set[Partition] = set()
        self.values: list[int] = []
        self.next: dict[Partition, int] = {}
        self.error: BaseException | None = None
        self.threads: set[str] = set()
        self.source = subscribed(
            config, on_assigned=self.assigned, on_revoked=self.revoked, on_lost=self.lost, **callbacks
        )
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def assigned(self, partitions: list[Partition]) -> None:
        self.events.append(("assigned", partitions))
        self.owned |= set(partitions)

    def revoked(self, partitions: list[Partition]) -> None:
        self.threads.add(threading.current_thread().name)
        self.events.append(("revoked", partitions))
        self.source.commit(self.next)
        self.owned -= set(partitions)

    def lost(self, partitions: list[Partition]) -> None:
        self.events.append(("lost", partitions))
        self.owned -= set(partitions)

    def run(self) -> None:
        try:
            while not self.stop.is_set():
                batch = self.source.poll(0.2)
                self.values += [int(value) for value in batch.value]
                self.next.update(next_offsets(batch))
                if len(batch):
                    self.source.commit(self.next)
        except BaseException as error:  # noqa: BLE001 - close() raises it in the test's thread
            self.error = error

    def close(self) -> None:
        self.stop.set()
        self.thread.join(DEADLINE)
        assert not self.thread.is_alive()
        self.source.close()
        if self.error is not None:
            raise self.error


def next_offsets(batch: RawBatch) -> dict[Partition, int]:
    return {batch.partitions[code]: offset + 1 for code, offset in zip(batch.partition, batch.offset, strict=True)}


def read(source: KafkaSource, count: int, deadline: float = DEADLINE) -> list[int]:
    """Poll until `count` records came, and return their values as numbers."""
    values: list[int] = []
    end = time.monotonic() + deadline
    while len(values) < count:
        assert time.monotonic() < end, f"{len(values)} of {count} records within {deadline:.0f} s"
        values += [int(value) for value in source.poll(0.5).value]
    return values


def assigned(source: KafkaSource) -> Mapping[Partition, int]:
    return source.lag()


def delete_before(broker: Broker, topic: str, offset: int) -> None:
    admin = KafkaAdminClient(bootstrap_servers=broker.bootstrap)
    try:
        admin.delete_records({TopicPartition(topic, 0): offset})
        earliest = admin.list_partition_offsets({TopicPartition(topic, 0): OffsetSpec.EARLIEST})
        assert earliest[TopicPartition(topic, 0)].offset == offset
    finally:
        admin.close()


def end_transaction(writer: TransactionalWriter, end: str = "commit_transaction") -> None:
    """End a writer's transaction, without offsets of a group, by the method of its client with this name."""
    getattr(writer._producer, end)()
    writer._in_transaction = False


def committed(broker: Broker, group: str, topic: str, partition: int) -> int | None:
    consumer = KafkaConsumer(bootstrap_servers=broker.bootstrap, group_id=group, enable_auto_commit=False)
    try:
        return consumer.committed(TopicPartition(topic, partition), timeout_ms=10_000)
    except KafkaError as error:
        pytest.fail(f"no committed offset to be had: {error}")
    finally:
        consumer.close()

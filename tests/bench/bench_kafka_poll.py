"""Records a second: KafkaSource against a bare kafka-python poll loop over the same topic, turn by turn.

    python -m tests.bench.bench_kafka_poll [records]

Both are timed from the first records they hand out, so that joining the group does not count. The last columns show
what the source's read-ahead brings where the caller's own work releases the interpreter's lock, as torch and numba do
(here: a sleep of the same length as the poll).
"""

from __future__ import annotations

import sys
import time
import uuid
from collections.abc import Callable, Iterator
from statistics import median

from kafka import KafkaConsumer, KafkaProducer

from connectors.kafka.polling import MAX_POLL_RECORDS
from connectors.kafka.settings import KafkaSettings
from connectors.kafka.source import KafkaSource
from tests.brokers import find_broker

VALUE = b'{"stream":"web-1/cpu","timestamp":1763712000000,"values":{"user":0.41,"system":0.07}}'.ljust(150)
PARTITIONS = 4
ROUNDS = 5


def fill(bootstrap: str, topic: str, records: int) -> None:
    """Write `records` values of 150 bytes, keyed, spread over the partitions."""
    producer = KafkaProducer(bootstrap_servers=bootstrap, linger_ms=20, batch_size=64 * 1024, metrics_enabled=False)
    for number in range(records):
        producer.send(topic, VALUE, key=b"web-%d" % (number % 50), partition=number % PARTITIONS)
    producer.flush(120)
    producer.close()


def bare(settings: KafkaSettings) -> Iterator[int]:
    """Yield the number of records of each poll of kafka-python alone."""
    consumer = KafkaConsumer(
        settings.topics[0],
        bootstrap_servers=settings.bootstrap_servers,
        group_id=settings.group_id,
        auto_offset_reset="earliest",
        enable_auto_commit=False,
        max_poll_records=MAX_POLL_RECORDS,
    )
    try:
        while True:
            yield sum(len(batch) for batch in consumer.poll(1_000).values())
    finally:
        consumer.close()


def source(settings: KafkaSettings) -> Iterator[int]:
    """Yield the number of records of each poll of the source, in columns."""
    reader = KafkaSource(settings)
    try:
        while True:
            yield len(reader.poll(1.0))
    finally:
        reader.close()


def rate(counts: Iterator[int], records: int, work_seconds: float = 0.0) -> float:
    """Return records a second after the first batch; `work_seconds` a record are slept through as the caller's work."""
    first = next(count for count in counts if count)
    time.sleep(first * work_seconds)
    seen = first
    began = time.perf_counter()
    while seen < records:
        count = next(counts)
        seen += count
        time.sleep(count * work_seconds)
        if time.perf_counter() - began > 120:
            raise RuntimeError(f"{seen} of {records} records within 120 s")
    return (records - first) / (time.perf_counter() - began)


def main() -> None:
    """Print the rates of each round, and of their medians the ratio."""
    records = int(sys.argv[1]) if len(sys.argv) > 1 else 200_000
    broker = find_broker()
    broker.start()
    try:
        topic = broker.create_topic(f"bench-{uuid.uuid4().hex[:8]}", PARTITIONS)
        fill(broker.bootstrap, topic, records)

        def measure(way: Callable[[KafkaSettings], Iterator[int]], work_seconds: float = 0.0) -> float:
            settings = KafkaSettings(
                bootstrap_servers=broker.bootstrap, topics=[topic], group_id=f"bench-{uuid.uuid4().hex}"
            )
            counts = way(settings)
            try:
                return rate(counts, records, work_seconds)
            finally:
                counts.close()  # type: ignore[attr-defined]  # both ways are generators

        print(f"{broker.kind} broker, {records:,} records of {len(VALUE)} bytes, {PARTITIONS} partitions")
        print(f"{'round':>6}{'bare/s':>15}{'source/s':>15}{'bare+work/s':>15}{'source+work/s':>15}")
        rows = []
        for number in range(ROUNDS):
            plain = measure(bare), measure(source)
            work = 1 / plain[0]
            rows.append((*plain, measure(bare, work), measure(source, work)))
            print(f"{number + 1:>6}" + "".join(f"{value:>15,.0f}" for value in rows[-1]))
        medians = [median(column) for column in zip(*rows, strict=True)]
        print("median" + "".join(f"{value:>15,.0f}" for value in medians))
        print(f"source / bare: {medians[1] / medians[0]:.2f}; beside other work: {medians[3] / medians[2]:.2f}")
    finally:
        broker.close()


if __name__ == "__main__":
    main()

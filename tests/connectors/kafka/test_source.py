"""The Kafka source against a real broker."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from kafka import KafkaProducer
from pydantic import ValidationError

from connectors.batches import Partition, RawBatch
from connectors.kafka.settings import KafkaSettings
from connectors.kafka.source import KafkaSource
from tests.brokers import Broker
from tests.connectors.kafka.support import DEADLINE, WRITTEN_MS, Topic, assigned, produce, read, settings

pytestmark = pytest.mark.kafka


def test_every_record_arrives_once_in_partition_order_with_its_columns(
    broker: Broker, topic: Topic, open_source: Callable[..., KafkaSource]
) -> None:
    name = topic(partitions=3)
    produce(broker, name, range(300), partitions=3)
    source = open_source(settings(broker, name), max_poll_records=40)
    rows: list[tuple[Partition, int, int, bytes | None, int]] = []
    end = time.monotonic() + DEADLINE
    while len(rows) < 300:
        assert time.monotonic() < end
        batch = source.poll(0.5)
        assert len(batch) <= 40
        partitions = [batch.partitions[code] for code in batch.partition]
        rows += zip(partitions, batch.offset, batch.received, batch.key, map(int, batch.value), strict=True)
    for partition in range(3):
        mine = [row[1:] for row in rows if row[0] == (name, partition)]
        numbers = range(partition, 300, 3)
        assert mine == [(i, WRITTEN_MS + n, b"k%d" % (n % 7), n) for i, n in enumerate(numbers)]
    assert not source.finished()


def test_a_tombstone_is_an_empty_value(broker: Broker, topic: Topic, open_source: Callable[..., KafkaSource]) -> None:
    name = topic()
    producer = KafkaProducer(bootstrap_servers=broker.bootstrap)
    producer.send(name, key=b"k", value=None).get(timeout=DEADLINE)
    producer.close()
    source = open_source(settings(broker, name))
    batch = RawBatch()
    end = time.monotonic() + DEADLINE
    while not batch:
        assert time.monotonic() < end
        batch = source.poll(0.5)
    assert batch.value == [b""]
    assert batch.key == [b"k"]


def test_lag_counts_records_not_yet_returned(
    broker: Broker, topic: Topic, open_source: Callable[..., KafkaSource]
) -> None:
    name = topic()
    produce(broker, name, range(100))
    source = open_source(settings(broker, name), max_poll_records=10)
    assert read(source, 10) == list(range(10))
    assert source.lag() == {(name, 0): 90}
    read(source, 90)
    assert source.lag() == {(name, 0): 0}


def test_a_topic_pattern_must_match_the_whole_name(
    broker: Broker, topic: Topic, open_source: Callable[..., KafkaSource]
) -> None:
    prefix = f"p{time.monotonic_ns()}"
    one, not_whole, longer = topic(prefix=f"{prefix}-a"), topic(prefix=f"x-{prefix}-a"), f"{prefix}-b-tail"
    broker.create_topic(longer)
    for name in (one, not_whole, longer):
        produce(broker, name, range(5))
    source = open_source(settings(broker, topic_pattern=rf"{prefix}-a.*|{prefix}-b"))
    assert read(source, 5) == list(range(5))
    assert {partition.topic for partition in assigned(source)} == {one}


def test_a_matching_topic_created_later_is_read(
    apache: Broker, topic: Topic, open_source: Callable[..., KafkaSource], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("connectors.kafka.polling.METADATA_MAX_AGE_MS", 1_000)
    prefix = f"p{time.monotonic_ns()}"
    produce(apache, topic(prefix=f"{prefix}-a"), range(5))
    source = open_source(settings(apache, topic_pattern=rf"{prefix}-.*"))
    assert read(source, 5) == list(range(5))
    later = topic(prefix=f"{prefix}-b")
    produce(apache, later, range(5, 10))
    assert read(source, 5) == list(range(5, 10))


def test_a_paused_source_stays_in_the_group_and_loses_nothing(
    broker: Broker, topic: Topic, open_source: Callable[..., KafkaSource]
) -> None:
    name = topic(partitions=2)
    produce(broker, name, range(1_000), partitions=2)
    lost: list[list[Partition]] = []
    source = open_source(settings(broker, name, session_timeout_seconds=4), on_lost=lost.append, max_poll_records=100)
    before = read(source, 100)
    source.pause()
    end = time.monotonic() + 7
    while time.monotonic() < end:
        assert len(source.poll(0.2)) == 0
    source.resume()
    assert sorted(before + read(source, 1_000 - len(before))) == list(range(1_000))
    assert lost == []
    assert len(source.poll(0.5)) == 0


def test_the_local_stores_offset_wins_over_the_committed_one(
    broker: Broker, topic: Topic, open_source: Callable[..., KafkaSource]
) -> None:
    name = topic(partitions=2)
    produce(broker, name, range(100), partitions=2)
    config = settings(broker, name)
    first = open_source(config)
    read(first, 100)
    first.commit({Partition(name, 0): 30, Partition(name, 1): 40})
    first.close()
    second = open_source(config, start=lambda partition: 45 if partition.partition == 0 else None)
    values = read(second, 5 + 10)
    assert sorted(values) == sorted([*range(90, 100, 2), *range(81, 100, 2)])
    assert len(second.poll(0.5)) == 0


def test_without_any_offset_auto_offset_reset_decides(
    broker: Broker, topic: Topic, open_source: Callable[..., KafkaSource]
) -> None:
    if broker.kind == "tansu":
        pytest.skip("Tansu names the beginning of its last batch as a partition's end")
    name = topic()
    produce(broker, name, range(10))
    source = open_source(settings(broker, name, auto_offset_reset="latest"))
    end = time.monotonic() + DEADLINE
    while not assigned(source):
        assert time.monotonic() < end
        assert len(source.poll(0.1)) == 0
    produce(broker, name, range(10, 15))
    assert read(source, 5) == list(range(10, 15))


@pytest.mark.parametrize("codec", ["gzip", "lz4", "zstd", "snappy"])
def test_compressed_topics_are_read(
    broker: Broker, topic: Topic, open_source: Callable[..., KafkaSource], codec: str
) -> None:
    name = topic()
    produce(broker, name, range(500), compression_type=codec)
    assert read(open_source(settings(broker, name)), 500) == list(range(500))


def test_contradicting_settings_are_refused() -> None:
    for values, reported in [
        ({"topics": ["a"], "topic_pattern": "b"}, "keep one of them"),
        ({"topics": []}, "kafka.topics is empty"),
        ({"topic_pattern": "("}, "no regular expression"),
        ({"topics": ["a", "longwatch-alerts"]}, "kafka.alerts_topic"),
        ({"security_protocol": "SASL_SSL"}, "needs kafka.sasl_username"),
        ({"ssl_certfile": "x.pem"}, "belong together"),
    ]:
        with pytest.raises(ValidationError, match=reported):
            KafkaSettings(**values)  # type: ignore[arg-type]  # each is one of several types


@pytest.mark.parametrize("also", ["changelogs", "results"])
def test_a_groups_output_topics_are_never_its_input(
    apache: Broker, topic: Topic, open_source: Callable[..., KafkaSource], also: str
) -> None:
    events = topic()
    part = events.removeprefix("events-")
    own = {name: f"{name}-{part}" for name in ("scores_topic", "alerts_topic", "dead_letter_topic")}
    config = settings(apache, topic_pattern=f".*{events if also == 'changelogs' else part}.*", **own)
    changelog = config.changelog_of(events)
    for name in (*own.values(), changelog, config.changelog_of(changelog)):
        produce(apache, apache.create_topic(name), range(100, 110))
    produce(apache, events, range(10))
    source = open_source(config)
    assert sorted(read(source, 10)) == list(range(10))
    assert not any(len(source.poll(0.5)) for _ in range(4))
    assert {partition.topic for partition in source.lag()} == {events}

"""`longwatch train --from-kafka`: what a topic holds, read from a real broker without a trace in any group."""

from __future__ import annotations

import json
import math
import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kafka import KafkaAdminClient, KafkaProducer, TopicPartition

from connectors.batches import Partition
from connectors.kafka.errors import KafkaConnectorError
from connectors.kafka.history import KafkaHistory
from connectors.kafka.settings import KafkaSettings
from detector.commands import train as train_command
from detector.commands.train import TrainingSource, train
from detector.config.settings import Settings
from tests.brokers import Broker
from tests.fleets import odd_waves
from tests.ports import own_port
from training.network.model import Forecaster
from training.network.registry import ModelCard, Registry
from training.network.shape import Shape
from training.retrain import challenger

pytestmark = pytest.mark.kafka

Topic = Callable[..., str]


def write(broker: Broker, topic: str, values: dict[int, list[bytes]]) -> None:
    """Write records, by partition."""
    producer = KafkaProducer(bootstrap_servers=broker.bootstrap, linger_ms=5)
    sent = [
        producer.send(topic, value, partition=partition, key=b"key")
        for partition, records in values.items()
        for value in records
    ]
    for future in sent:
        future.get(timeout=240)
    producer.close(timeout=240)


def events(stream: str, values: np.ndarray) -> list[bytes]:
    return [
        json.dumps({"stream": stream, "timestamp": 1_700_000_000 + 60 * n, "value": value}).encode()
        for n, value in enumerate(values.tolist())
    ]


def settings(broker: Broker, *topics: str, **more: Any) -> KafkaSettings:
    return KafkaSettings(**({"bootstrap_servers": broker.bootstrap, "topics": list(topics)} | more))


def read(source: KafkaHistory) -> list[tuple[int, int, bytes]]:
    """Read to the end, closing; return partition, offset and value."""
    found = []
    try:
        while not source.finished():
            batch = source.poll(5.0)
            for code, offset, value in zip(batch.partition, batch.offset, batch.value, strict=True):
                found.append((batch.partitions[code].partition, offset, value))
    finally:
        source.close()
    return found


def test_every_partition_is_read_up_to_its_end_at_the_start(broker: Broker, topic: Topic) -> None:
    if broker.kind == "tansu":
        pytest.skip("Tansu names the beginning of its last batch as a partition's end")
    name = topic(partitions=3)
    wanted = {partition: [b"%d" % n for n in range(1000 * partition)] for partition in (0, 1, 2)}
    write(broker, name, wanted)
    source = KafkaHistory(settings(broker, name), max_poll_records=300)
    assert source.lag() == {Partition(name, 0): 0, Partition(name, 1): 1000, Partition(name, 2): 2000}
    write(broker, name, {1: [b"late"], 2: [b"late"]})
    found = read(source)
    assert found == [(p, n, value) for p, values in wanted.items() for n, value in enumerate(values)]
    assert sum(source.lag().values()) == 0


def test_records_deleted_by_retention_during_the_read_are_skipped(apache: Broker, topic: Topic) -> None:
    name = topic()
    write(apache, name, {0: [b"%d" % n for n in range(10)]})
    source = KafkaHistory(settings(apache, name), max_poll_records=2)
    admin = KafkaAdminClient(bootstrap_servers=apache.bootstrap)
    admin.delete_records({TopicPartition(name, 0): -1})
    admin.close()
    assert len(read(source)) <= 10  # it may have been fetched already
    assert source.finished()


def test_topics_of_a_pattern_are_read_in_name_order(broker: Broker, topic: Topic) -> None:
    prefix = f"pattern-{uuid.uuid4().hex[:8]}"  # a long-running broker has those of former runs
    names = sorted(topic(prefix=prefix) for _ in range(2))
    for name in names:
        write(broker, name, {0: [name.encode()]})
    pattern = KafkaSettings(bootstrap_servers=broker.bootstrap, topic_pattern=f"{prefix}-.*")
    assert [value.decode() for _, _, value in read(KafkaHistory(pattern))] == names


def test_records_deleted_by_retention_are_left_out(apache: Broker, topic: Topic) -> None:
    name = topic()
    write(apache, name, {0: [b"%d" % n for n in range(100)]})
    admin = KafkaAdminClient(bootstrap_servers=apache.bootstrap)
    from kafka import TopicPartition

    admin.delete_records({TopicPartition(name, 0): 60})
    admin.close()
    assert [offset for _, offset, _ in read(KafkaHistory(settings(apache, name)))] == list(range(60, 100))


def test_errors_name_the_existing_topics_and_what_to_do(broker: Broker, topic: Topic) -> None:
    empty = topic(partitions=2)
    with pytest.raises(KafkaConnectorError, match=rf"{empty}: all 2 partitions are empty"):
        KafkaHistory(settings(broker, empty))
    with pytest.raises(KafkaConnectorError, match=r"shows no topic missing \(kafka.topics\); it shows: .+"):
        KafkaHistory(settings(broker, empty, "missing"))
    with pytest.raises(KafkaConnectorError, match=r"no topic nothing\.\* \(kafka.topic_pattern\)"):
        KafkaHistory(KafkaSettings(bootstrap_servers=broker.bootstrap, topic_pattern="nothing.*"))


def test_an_unreachable_broker_is_an_error_at_once() -> None:
    server = f"127.0.0.1:{own_port()}"
    with pytest.raises(KafkaConnectorError, match=rf"No Kafka broker at kafka.bootstrap_servers={server} \(.*refused"):
        KafkaHistory(KafkaSettings(bootstrap_servers=server))


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_command, "SERIES_PLAN", replace(train_command.SERIES_PLAN, steps=60))
    monkeypatch.setattr(challenger, "REPLAY_POOL", 32)
    monkeypatch.setattr(challenger, "REPLAY_JUDGES", 32)
    monkeypatch.setattr(challenger, "REPLAY_MARGIN", math.inf)


@pytest.mark.usefixtures("short")
def test_training_on_a_topic_leaves_no_consumer_group(broker: Broker, topic: Topic, tmp_path: Path) -> None:
    if broker.kind == "tansu":
        pytest.skip("Tansu names the beginning of its last batch as a partition's end")
    name = topic(partitions=2)
    waves = odd_waves(2, 3000)
    write(broker, name, {p: [*events(f"wave-{p}", wave), b"not JSON"] for p, wave in enumerate(waves)})
    Registry(tmp_path / "small").save(
        Forecaster(Shape(hidden_size=8)).weights, ModelCard(parent="", trained_at=1.0, seed=0, rows=0, figures={})
    )
    chosen = Settings.model_validate(
        {
            "kafka": settings(broker, name, group_id=f"group-of-{name}").model_dump(),
            "model": {"directory": str(tmp_path / "small")},
        }
    )
    summaries = [train(TrainingSource.of_kafka(chosen), tmp_path / f"models-{n}", chosen) for n in range(2)]
    summary = summaries[0]
    assert (summary.recording.kept, len(summary.recording.recorded.held)) == (6000, 2)
    assert summary.events.rejected == {"not_json": 2}
    assert summary.version is not None, str(summary)
    assert summaries[1].version == summary.version  # the same history, read in the same order
    admin = KafkaAdminClient(bootstrap_servers=broker.bootstrap)
    try:
        assert f"group-of-{name}" not in str(admin.list_groups())
    finally:
        admin.close()

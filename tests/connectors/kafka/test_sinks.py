"""The Kafka sinks against a real broker: what is written is read back."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from kafka import KafkaConsumer, TopicPartition
from kafka.consumer.fetcher import ConsumerRecord
from kafka.producer.sender import Sender

from connectors.batches import Alert, EventBatch, Partition, Rejected, Scores
from connectors.encode import alert_record, score_records
from connectors.kafka.errors import KafkaConnectorError
from connectors.kafka.settings import KafkaSettings
from connectors.kafka.sinks import KafkaAlertSink, KafkaDeadLetterSink, KafkaScoreSink
from connectors.kafka.writer import KafkaWriter, UndeliveredError
from tests.brokers import Broker
from tests.daemon.support import PATIENCE, until

pytestmark = pytest.mark.kafka

Topic = Callable[..., str]


@pytest.fixture
def open_writer(broker: Broker) -> Iterator[Callable[..., KafkaWriter]]:
    writers: list[KafkaWriter] = []

    def make(**more: Any) -> KafkaWriter:
        values: dict[str, Any] = {"bootstrap_servers": broker.bootstrap, "alerts_topic": "", "dead_letter_topic": ""}
        writers.append(KafkaWriter(KafkaSettings(**{**values, **more})))
        return writers[-1]

    yield make
    for writer in writers:
        writer.close()


def read(bootstrap: str, topic: str, count: int, partitions: int = 1) -> list[ConsumerRecord]:
    consumer = KafkaConsumer(bootstrap_servers=bootstrap, auto_offset_reset="earliest", enable_auto_commit=False)
    try:
        consumer.assign([TopicPartition(topic, partition) for partition in range(partitions)])
        records: list[ConsumerRecord] = []
        end = time.monotonic() + PATIENCE
        while len(records) < count and time.monotonic() < end:
            for batch in consumer.poll(500).values():
                records += batch
        return records
    finally:
        consumer.close()


def make_scores(count: int) -> Scores:
    batch = EventBatch(
        streams=["a", "b"],
        features=["cpu"],
        partitions=[Partition("events", 0)],
        stream=np.arange(count, dtype=np.int32) % 2,
        time=np.arange(count, dtype=np.int64) * 1_000_000_000,
        received=np.zeros(count, np.int64),
        partition=np.zeros(count, np.int32),
        offset=np.arange(count, dtype=np.int64),
        start=np.arange(count + 1, dtype=np.int64),
        feature=np.zeros(count, np.int32),
        value=np.arange(count, dtype=np.float64),
    )
    rows = np.arange(count, dtype=np.int64)
    ones = np.ones(count)
    return Scores(
        batch=batch,
        event=rows,
        score=ones * 2.5,
        threshold=ones * 4,
        rank=ones * 0.7,
        channel=np.zeros(count, np.int8),
        interval=ones,
        alert=np.zeros(count, np.bool_),
        warming=np.zeros(count, np.bool_),
        surprise=ones,
        start=np.arange(count + 1, dtype=np.int64),
        observation=rows,
        expected=ones,
        lower=ones * 0.5,
        upper=ones * 1.5,
        contribution=ones,
        model_version="m1",
    )


def make_alert(status: str) -> Alert:
    return Alert(
        id="a-17",
        stream="web-1/größe",
        status=status,
        severity="critical",
        started_at=1_763_712_000_000_000_000,
        ended_at=None if status == "firing" else 1_763_712_060_000_000_000,
        score=6.5,
        threshold=4.0,
        observed={"cpu": 0.99},
        expected={"cpu": 0.4},
        lower={"cpu": 0.3},
        upper={"cpu": 0.5},
        contributions={"cpu": 1.0},
        model_version="m1",
        topic="events",
        partition=0,
        offset=17,
    )


@pytest.mark.parametrize("compression", ["none", "gzip", "lz4", "zstd", "snappy"])
def test_scores_are_keyed_by_stream_and_keep_their_order(
    broker: Broker, topic: Topic, open_writer: Callable[..., KafkaWriter], compression: str
) -> None:
    name = topic(partitions=3)
    sink = KafkaScoreSink(open_writer(scores_topic=name, compression=compression))
    scores = make_scores(1_000)
    sink.write(scores)
    sink.flush()
    records = read(broker.bootstrap, name, 1_000, partitions=3)
    assert len(records) == 1_000
    for stream in (b"a", b"b"):
        mine = [record for record in records if record.key == stream]
        assert len({record.partition for record in mine}) == 1
        assert [record.value for record in mine] == [value for key, value in score_records(scores) if key == stream]
    assert sink.position() == {}
    sink.restore({})


def test_an_alerts_header_identifies_its_repeats(
    broker: Broker, topic: Topic, open_writer: Callable[..., KafkaWriter]
) -> None:
    name = topic()
    sink = KafkaAlertSink(open_writer(alerts_topic=name))
    alerts = [make_alert("firing"), make_alert("resolved")]
    sink.write(alerts)
    sink.flush()
    records = read(broker.bootstrap, name, 2)
    assert [(record.key, record.value) for record in records] == [alert_record(alert) for alert in alerts]
    assert [dict(record.headers)["webhook-id"] for record in records] == [b"a-17-firing", b"a-17-resolved"]
    assert json.loads(records[0].value)["stream"] == "web-1/größe"


def test_a_dead_letter_is_the_raw_bytes_with_origin_and_reason_in_headers(
    broker: Broker, topic: Topic, open_writer: Callable[..., KafkaWriter]
) -> None:
    name = topic()
    sink = KafkaDeadLetterSink(open_writer(dead_letter_topic=name))
    raws = [b"\xff\x00 not json", b"", b"x" * 5_000_000]
    sink.write(
        [Rejected("events", 3, 10 + i, "not_json", "found \udc80, expected {", raw) for i, raw in enumerate(raws)]
    )
    sink.flush()
    records = read(broker.bootstrap, name, 3)
    assert [record.value for record in records[:2]] == raws[:2]
    assert raws[2].startswith(records[2].value)
    assert len(records[2].value) > 1_000_000
    headers = [dict(record.headers) for record in records]
    assert headers[0] == {
        "topic": b"events",
        "partition": b"3",
        "offset": b"10",
        "reason": b"not_json",
        "detail": b"found ?, expected {",
    }
    assert headers[2]["size"] == b"5000000"


def test_an_unwritable_topic_is_an_error_with_its_setting_when_the_writer_opens(
    apache: Broker, open_writer: Callable[..., KafkaWriter], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("connectors.kafka.writer.METADATA_SECONDS", 2.0)
    writer = open_writer(alerts_topic="never-made")
    with pytest.raises(KafkaConnectorError, match=r"kafka\.alerts_topic: topic 'never-made'"):
        writer.open()


def test_flush_raises_a_failed_delivery_again_and_again(
    apache: Broker, open_writer: Callable[..., KafkaWriter], topic: Topic
) -> None:
    writer = open_writer(alerts_topic=topic())
    writer.send(writer.settings.alerts_topic, b"k", b"x" * 2_000_000)  # over what client and broker take
    for _ in range(2):
        with pytest.raises(KafkaConnectorError, match="did not take what was written to topic"):
            writer.flush()
    with pytest.raises(KafkaConnectorError):
        writer.close()


def test_without_a_broker_flush_times_out(own_broker: Broker) -> None:
    before = senders()
    own_broker.start()
    own_broker.create_topic("alerts")
    writer = KafkaWriter(
        KafkaSettings(bootstrap_servers=own_broker.bootstrap, alerts_topic="alerts", delivery_timeout_seconds=3)
    )
    writer.send("alerts", b"k", b"1")
    writer.flush()
    own_broker.stop()
    writer.send("alerts", b"k", b"2")
    with pytest.raises(UndeliveredError, match="did not take"):
        writer.flush()
    with pytest.raises(KafkaConnectorError):
        writer.close()
    until(lambda: not senders() - before, "the client has ended")
    assert [record.value for record in after_restart(own_broker, "alerts", 1)] == [b"1"]


def test_a_send_blocked_by_a_full_buffer_can_be_cancelled(own_broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    """It runs on the daemon's own thread: without the callback it would seem dead and not stop on request."""
    looks: list[int] = []
    before = senders()

    def look() -> None:
        looks.append(0)
        if len(looks) == 4:
            raise UndeliveredError("enough")

    own_broker.start()
    own_broker.create_topic("alerts")
    monkeypatch.setattr("connectors.kafka.writer.MAX_UNFLUSHED_BYTES", 10_000)
    settings = KafkaSettings(bootstrap_servers=own_broker.bootstrap, alerts_topic="alerts", dead_letter_topic="")
    writer = KafkaWriter(settings, look)
    writer.open()
    own_broker.stop()
    writer.send("alerts", b"k", b"0")
    assert not looks
    with pytest.raises(UndeliveredError, match="enough"):
        writer.send("alerts", b"k", bytes(20_000))
    own_broker.start()
    writer.reopen()  # what was not written is dropped; its owner writes it again
    until(lambda: len(senders() - before) == 1, "the former client has ended")
    writer.send("alerts", b"k", b"1")
    writer.close()
    assert read(own_broker.bootstrap, "alerts", 1)[-1].value == b"1"


def test_a_short_outage_delays_flush_without_loss_or_duplicates(own_broker: Broker) -> None:
    own_broker.start()
    own_broker.create_topic("alerts")
    writer = KafkaWriter(KafkaSettings(bootstrap_servers=own_broker.bootstrap, alerts_topic="alerts"))
    writer.send("alerts", b"k", b"0")
    writer.flush()
    own_broker.stop()
    for n in range(1, 200):
        writer.send("alerts", b"k", str(n).encode())
    own_broker.start()
    writer.flush()
    writer.close()
    assert [record.value for record in read(own_broker.bootstrap, "alerts", 200)] == [b"%d" % n for n in range(200)]


def test_opening_a_writer_without_a_broker_fails_after_the_delivery_timeout() -> None:
    writer = KafkaWriter(KafkaSettings(bootstrap_servers="127.0.0.1:1", delivery_timeout_seconds=1))
    with pytest.raises(KafkaConnectorError, match=r"127\.0\.0\.1:1 "):
        writer.send("alerts", b"k", b"1")
    writer.close()


def senders() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if isinstance(thread, Sender)}


def after_restart(broker: Broker, topic: str, count: int) -> list[ConsumerRecord]:
    broker.start()
    return read(broker.bootstrap, topic, count)

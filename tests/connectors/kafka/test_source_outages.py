"""The Kafka source where the broker, a topic or records are missing."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable

import pytest

from connectors.batches import Partition
from connectors.kafka.connect import FIRST_DELAY_SECONDS
from connectors.kafka.errors import KafkaConnectorError
from connectors.kafka.settings import KafkaSettings
from connectors.kafka.source import KafkaSource
from tests.brokers import Broker
from tests.connectors.kafka.support import DEADLINE, Topic, committed, delete_before, produce, read, settings
from tests.daemon.support import until

pytestmark = pytest.mark.kafka


@pytest.mark.parametrize(
    ("stored", "reset", "first"), [(3, "earliest", 10), (3, "latest", 10), (500, "earliest", 10), (500, "latest", 20)]
)
def test_an_offset_out_of_range_is_logged_and_skips_no_event_unless_configured(
    apache: Broker,
    topic: Topic,
    open_source: Callable[..., KafkaSource],
    caplog: pytest.LogCaptureFixture,
    stored: int,
    reset: str,
    first: int,
) -> None:
    name = topic()
    produce(apache, name, range(20))
    delete_before(apache, name, 10)
    source = open_source(settings(apache, name, auto_offset_reset=reset), start=lambda _: stored)
    values = []
    end = time.monotonic() + DEADLINE
    while "out of range" not in caplog.text:
        assert time.monotonic() < end
        values += [int(value) for value in source.poll(0.1).value]
    produce(apache, name, range(20, 25))
    values += read(source, 25 - first - len(values))
    assert values == list(range(first, 25))
    warnings = [record.getMessage() for record in caplog.records if "out of range" in record.getMessage()]
    assert len(warnings) == 1
    assert f"{name}/0: offset {stored} is out of range, the broker holds 10 to 20" in warnings[0]
    assert f"reading from {first}" in warnings[0]


def test_records_deleted_while_paused_are_logged_and_skipped(
    apache: Broker, topic: Topic, open_source: Callable[..., KafkaSource], caplog: pytest.LogCaptureFixture
) -> None:
    name = topic()
    produce(apache, name, range(10))
    source = open_source(settings(apache, name))
    assert read(source, 10) == list(range(10))
    source.pause()
    end = time.monotonic() + 2.5
    while time.monotonic() < end:  # the reader pauses within its next poll
        source.poll(0.1)
    produce(apache, name, range(10, 40))
    delete_before(apache, name, 30)
    source.resume()
    assert read(source, 10)[-10:] == list(range(30, 40))
    assert any("holds 30 to 40" in record.getMessage() for record in caplog.records)


def test_a_source_opened_before_the_broker_waits_logs_it_and_then_reads(
    own_broker: Broker, open_source: Callable[..., KafkaSource], caplog: pytest.LogCaptureFixture
) -> None:
    source = open_source(settings(own_broker, "events"))
    began = time.monotonic()

    def reported() -> list[str]:
        assert len(source.poll(0.3)) == 0
        return [record.getMessage() for record in caplog.records if "No Kafka broker yet" in record.getMessage()]

    until(lambda: len(reported()) >= 3, "each attempt is logged, and poll keeps its timeout meanwhile")
    lines = reported()
    waits = 0.75 * FIRST_DELAY_SECONDS * (2 ** (len(lines) - 1) - 1)
    assert time.monotonic() - began >= waits, "ever more rarely"
    assert own_broker.bootstrap in lines[0]
    assert "refused" in lines[0]
    own_broker.start()
    own_broker.create_topic("events")
    produce(own_broker, "events", range(10))
    assert read(source, 10) == list(range(10))


def test_close_interrupts_the_wait_for_a_broker(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("connectors.kafka.connect.FIRST_DELAY_SECONDS", 10_000.0)
    before = set(threading.enumerate())
    source = KafkaSource(KafkaSettings(bootstrap_servers="127.0.0.1:1"))
    until(lambda: len(source.poll(0.2)) == 0 and "No Kafka broker yet" in caplog.text, "it waits for its next attempt")
    assert set(threading.enumerate()) - before
    source.close()
    until(lambda: set(threading.enumerate()) <= before, "the reader has ended")
    with pytest.raises(KafkaConnectorError, match="closed"):
        source.poll(0.1)


def test_a_port_that_does_not_speak_kafka_is_logged(
    open_source: Callable[..., KafkaSource], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("connectors.kafka.connect.CONNECT_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as server:
        source = open_source(KafkaSettings(bootstrap_servers=f"127.0.0.1:{server.getsockname()[1]}"))
        reported = "does not answer as a Kafka broker with kafka.security_protocol=PLAINTEXT"
        until(lambda: len(source.poll(0.2)) == 0 and reported in caplog.text, "it is logged")


def test_a_missing_topic_is_logged_once_and_read_when_created(
    broker: Broker,
    open_source: Callable[..., KafkaSource],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if broker.kind == "tansu":
        pytest.skip("Tansu makes every topic that is asked for")
    caplog.set_level(logging.INFO)
    monkeypatch.setattr("connectors.kafka.fetch_thread.TOPIC_CHECK_SECONDS", 0.2)
    name = f"late-{time.monotonic_ns()}"
    source = open_source(settings(broker, name))
    until(lambda: len(source.poll(0.2)) == 0 and "No such topic" in caplog.text, "the missing topic is logged")
    end = time.monotonic() + 1.5
    while time.monotonic() < end:
        source.poll(0.2)
    assert caplog.text.count("No such topic") == 1
    assert f"{name} (kafka.topics)" in caplog.text
    broker.create_topic(name, 2)
    produce(broker, name, range(20), partitions=2)
    assert sorted(read(source, 20)) == list(range(20))


def test_a_broker_outage_is_logged_once_and_loses_nothing(
    own_broker: Broker,
    open_source: Callable[..., KafkaSource],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr("connectors.kafka.fetch_thread.QUIET_SECONDS", 0.5)
    own_broker.start()
    own_broker.create_topic("events", 2)
    produce(own_broker, "events", range(100), partitions=2)
    placed: list[dict[Partition, int]] = []
    config = settings(own_broker, "events")
    source = open_source(config, on_placed=placed.append)
    assert sorted(read(source, 100)) == list(range(100))
    own_broker.stop()
    cpu, began = time.process_time(), time.monotonic()

    def poll_and_commit() -> None:
        assert len(source.poll(0.5)) == 0
        source.commit({Partition("events", 0): 50})

    until(lambda: poll_and_commit() or "Kafka gives no answer" in caplog.text, "the outage is logged")
    for _ in range(4):
        poll_and_commit()
    assert time.process_time() - cpu < 0.5 * (time.monotonic() - began), "the wait is not a busy one"
    assert caplog.text.count("Kafka gives no answer") == 1
    placed.clear()
    with monkeypatch.context() as impatient:
        impatient.setattr("connectors.kafka.start_offsets.ANSWER_MS", 500)
        source.rewind({Partition("events", 0): 40})
        until(lambda: source.poll(0.1) is not None and placed, "the rewind is accepted")
    for _ in range(4):
        source.poll(0.5)
    assert source.outage
    assert "Kafka answers again" not in caplog.text
    own_broker.start()
    produce(own_broker, "events", range(100, 200), partitions=2)
    assert sorted(read(source, 110))[10:] == list(range(100, 200))
    until(lambda: source.poll(0.1) is not None and "Kafka answers again" in caplog.text, "the recovery is logged")

    def commits() -> bool:  # while the member joins its group again the broker may refuse, as every checkpoint may find
        source.poll(0.1)
        source.commit({Partition("events", 0): 100, Partition("events", 1): 100})
        return committed(own_broker, config.group_id, "events", 0) == 100

    until(commits, "it is committed")


def test_a_hanging_client_is_an_error(
    broker: Broker, topic: Topic, open_source: Callable[..., KafkaSource], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("connectors.kafka.source.STALLED_SECONDS", 0.5)
    monkeypatch.setattr("connectors.kafka.fetch_thread.POLL_MS", 3_000)  # a wait that takes longer than it may
    source = open_source(settings(broker, topic()))
    with pytest.raises(KafkaConnectorError, match="has not returned"):
        until(lambda: source.poll(0.2) is None, "poll raises")

"""The Kafka source against a real broker."""

from __future__ import annotations

import logging
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from kafka.errors import KafkaError
from kafka.protocol.consumer import OffsetSpec
from pydantic import ValidationError

from connectors.batches import Partition, RawBatch
from connectors.kafka.connect import FIRST_DELAY_SECONDS
from connectors.kafka.source import LATER, KafkaConnectorError, KafkaSettings, KafkaSource
from tests.brokers import Broker

pytestmark = pytest.mark.kafka

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


class Member:
    """A source that a thread polls, as a daemon's loop does."""

    def __init__(self, config: KafkaSettings, **callbacks: Any) -> None:
        self.events: list[tuple[str, list[Partition]]] = []
        self.owned: set[Partition] = set()
        self.values: list[int] = []
        self.next: dict[Partition, int] = {}
        self.error: BaseException | None = None
        self.threads: set[str] = set()
        self.source = KafkaSource(
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


def until(condition: Callable[[], Any], what: str, deadline: float = DEADLINE) -> None:
    end = time.monotonic() + deadline
    while not condition():
        if time.monotonic() > end:
            pytest.fail(f"not within {deadline:.0f} s: {what}")
        time.sleep(0.02)


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


@pytest.fixture
def open_source() -> Iterator[Callable[..., KafkaSource]]:
    """Make sources that are closed after the test."""
    sources: list[KafkaSource] = []

    def make(config: KafkaSettings, **callbacks: Any) -> KafkaSource:
        sources.append(KafkaSource(config, **callbacks))
        return sources[-1]

    yield make
    for source in sources:
        source.close()


@pytest.fixture
def open_member() -> Iterator[Callable[..., Member]]:
    members: list[Member] = []

    def make(config: KafkaSettings, **callbacks: Any) -> Member:
        members.append(Member(config, **callbacks))
        return members[-1]

    yield make
    for member in members:
        member.close()


def test_every_record_comes_once_in_its_partitions_order_with_its_columns(
    broker: Broker, topic: Topic, open_source: Callable[..., KafkaSource]
) -> None:
    name = topic(partitions=3)
    produce(broker, name, range(300), partitions=3)
    source = open_source(settings(broker, name, max_poll_records=40))
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


def test_a_tombstone_comes_as_an_empty_value(
    broker: Broker, topic: Topic, open_source: Callable[..., KafkaSource]
) -> None:
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


def test_lag_counts_what_has_not_been_handed_out(
    broker: Broker, topic: Topic, open_source: Callable[..., KafkaSource]
) -> None:
    name = topic()
    produce(broker, name, range(100))
    source = open_source(settings(broker, name, max_poll_records=10))
    assert read(source, 10) == list(range(10))
    assert source.lag() == {(name, 0): 90}
    read(source, 90)
    assert source.lag() == {(name, 0): 0}


def test_two_members_share_the_partitions_and_the_rest_takes_over_when_one_leaves(
    apache: Broker, topic: Topic, open_member: Callable[..., Member]
) -> None:
    name = topic(partitions=4)
    config = settings(apache, name)
    first = open_member(config)
    until(lambda: len(first.owned) == 4, "the first member owns all 4 partitions")
    second = open_member(config)
    until(lambda: len(first.owned) == 2 and len(second.owned) == 2, "each member owns 2 partitions")
    assert first.owned.isdisjoint(second.owned)
    revoked = [partitions for kind, partitions in first.events if kind == "revoked"]
    assert [len(partitions) for partitions in revoked] == [2], "only the partitions that move are revoked"
    assert first.threads == {first.thread.name}, "callbacks run on the thread that polls"
    produce(apache, name, range(400), partitions=4)
    until(lambda: len(first.values) + len(second.values) == 400, "400 records came")
    assert sorted(first.values + second.values) == list(range(400))
    assert first.values
    assert second.values
    second.close()
    until(lambda: len(first.owned) == 4, "the first member owns all again")
    produce(apache, name, range(400, 500), partitions=4)
    until(lambda: set(range(400, 500)) <= set(first.values), "the records of all partitions come to the first")


def test_a_killed_members_partitions_come_to_the_other_after_the_session(
    apache: Broker, topic: Topic, open_member: Callable[..., Member]
) -> None:
    name = topic(partitions=4)
    config = settings(apache, name)
    code = (
        "import sys; from connectors.kafka.source import *\n"
        "config = KafkaSettings.model_validate_json(sys.argv[1])\n"
        "source = KafkaSource(config, on_assigned=lambda partitions: print(len(partitions), flush=True))\n"
        "while True: source.poll(0.5)\n"
    )
    checkout = Path(__file__).parents[3]
    victim = subprocess.Popen(
        [sys.executable, "-c", code, config.model_dump_json(exclude={"sasl_password", "ssl_key_password"})],
        stdout=subprocess.PIPE,
        cwd=checkout,
    )
    try:
        assert victim.stdout is not None
        assert victim.stdout.readline() == b"4\n"
        survivor = open_member(config)
        until(lambda: len(survivor.owned) == 2, "the second member owns 2 partitions")
        victim.kill()
        until(lambda: len(survivor.owned) == 4, "the survivor owns all partitions")
    finally:
        victim.kill()
        victim.wait(DEADLINE)
        victim.stdout.close()


def test_a_static_member_that_comes_back_in_time_keeps_its_partitions_and_disturbs_nobody(
    apache: Broker, topic: Topic, open_member: Callable[..., Member]
) -> None:
    name = topic(partitions=4)
    config = settings(apache, name, session_timeout_seconds=20)
    other = open_member(config.model_copy(update={"group_instance_id": "other"}))
    static = open_member(config.model_copy(update={"group_instance_id": "static"}))
    until(lambda: len(static.owned) == 2 and len(other.owned) == 2, "each owns 2 partitions")
    before, events = set(static.owned), list(other.events)
    static.close()
    again = open_member(config.model_copy(update={"group_instance_id": "static"}))
    until(lambda: len(again.owned) == 2, "the member is back")
    assert again.owned == before
    assert other.events == events


def test_a_second_daemon_with_the_same_instance_id_is_told(
    apache: Broker, topic: Topic, open_member: Callable[..., Member]
) -> None:
    name = topic()
    config = settings(apache, name, group_instance_id="twin")
    first = open_member(config)
    until(lambda: first.owned, "the first member owns the partition")
    second = open_member(config)
    until(lambda: second.owned, "the second member has taken over")
    produce(apache, name, range(10))
    until(lambda: first.error, "the first member is told as it checkpoints")
    error, first.error = first.error, None
    assert isinstance(error, KafkaConnectorError)
    assert "group_instance_id=twin" in str(error)


def test_a_session_that_the_broker_does_not_allow_is_refused_with_what_to_set(
    apache: Broker, topic: Topic, open_source: Callable[..., KafkaSource]
) -> None:
    source = open_source(settings(apache, topic(), session_timeout_seconds=1_200))  # tests.brokers allows 600
    with pytest.raises(KafkaConnectorError, match=r"session_timeout_seconds = 1200 .*group\.max\.session"):
        read(source, 1)


def test_a_pattern_reads_the_topics_whose_whole_name_it_matches(
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


def test_a_topic_that_fits_the_pattern_and_is_made_later_is_read(
    apache: Broker, topic: Topic, open_source: Callable[..., KafkaSource], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("connectors.kafka.fetch_thread.METADATA_MAX_AGE_MS", 1_000)
    prefix = f"p{time.monotonic_ns()}"
    produce(apache, topic(prefix=f"{prefix}-a"), range(5))
    source = open_source(settings(apache, topic_pattern=rf"{prefix}-.*"))
    assert read(source, 5) == list(range(5))
    later = topic(prefix=f"{prefix}-b")
    produce(apache, later, range(5, 10))
    assert read(source, 5) == list(range(5, 10))


def test_a_partition_that_was_given_away_unheard_is_held_and_placed_without_harm(
    apache: Broker, topic: Topic, open_source: Callable[..., KafkaSource], open_member: Callable[..., Member]
) -> None:
    """The client lets go of a partition before the source's thread hears of it, which may be busy with a roll-back."""
    name = topic(partitions=2)
    config = settings(apache, name)
    placed: list[dict[Partition, int]] = []
    source = open_source(config, start=lambda _: LATER, on_placed=placed.append)
    mine = [Partition(name, 0), Partition(name, 1)]
    until(lambda: source.poll(0.1) is not None and len(source._deferred) == 2, "both partitions are assigned")
    reader = source._reader
    assert reader is not None
    source.place({mine[0]: 0, mine[1]: 0})
    other = open_member(config)
    consumer = reader.consumer
    assert consumer is not None
    until(lambda: len(consumer.assignment()) == 1, "the client has let one go")
    source.hold(mine)  # raised KeyError
    source.place(dict.fromkeys(mine, 0))
    assert source.lag() == {}
    until(lambda: source.poll(0.1) is not None and any(placed), "what is left is placed")
    until(lambda: other.owned, "the other one has its partition")
    assert {partition for offsets in placed for partition in offsets} == set(mine) - other.owned
    produce(apache, name, range(10), partitions=2)
    until(lambda: (b := source.poll(0.1)) is not None and len(b), "what is left is read")
    until(lambda: len(other.values) == 5, "the other one reads, too")


def test_a_paused_source_stays_in_the_group_and_loses_nothing(
    broker: Broker, topic: Topic, open_source: Callable[..., KafkaSource]
) -> None:
    name = topic(partitions=2)
    produce(broker, name, range(1_000), partitions=2)
    lost: list[list[Partition]] = []
    source = open_source(settings(broker, name, max_poll_records=100, session_timeout_seconds=4), on_lost=lost.append)
    before = read(source, 100)
    source.pause()
    end = time.monotonic() + 7
    while time.monotonic() < end:
        assert len(source.poll(0.2)) == 0
    source.resume()
    assert sorted(before + read(source, 1_000 - len(before))) == list(range(1_000))
    assert lost == []
    assert len(source.poll(0.5)) == 0


def test_the_local_stores_offset_rules_over_the_committed_one(
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


@pytest.mark.parametrize(
    ("stored", "reset", "first"), [(3, "earliest", 10), (3, "latest", 10), (500, "earliest", 10), (500, "latest", 20)]
)
def test_an_offset_out_of_range_is_told_and_no_event_is_passed_over_unless_that_is_wanted(
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
    assert f"going on at {first}" in warnings[0]


def test_records_deleted_while_the_source_was_paused_are_told_and_skipped(
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


def test_a_source_opened_before_the_broker_waits_says_so_and_reads_when_it_comes(
    own_broker: Broker, open_source: Callable[..., KafkaSource], caplog: pytest.LogCaptureFixture
) -> None:
    source = open_source(settings(own_broker, "events"))
    began = time.monotonic()

    def told() -> list[str]:
        assert len(source.poll(0.3)) == 0
        return [record.getMessage() for record in caplog.records if "No Kafka broker yet" in record.getMessage()]

    until(lambda: len(told()) >= 3, "each attempt is told, and poll keeps its time-out meanwhile")
    lines = told()
    waits = 0.75 * FIRST_DELAY_SECONDS * (2 ** (len(lines) - 1) - 1)
    assert time.monotonic() - began >= waits, "ever more rarely"
    assert own_broker.bootstrap in lines[0]
    assert "refused" in lines[0]
    own_broker.start()
    own_broker.create_topic("events")
    produce(own_broker, "events", range(10))
    assert read(source, 10) == list(range(10))


def test_close_ends_the_wait_for_a_broker_at_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("connectors.kafka.connect.FIRST_DELAY_SECONDS", 10_000.0)
    source = KafkaSource(KafkaSettings(bootstrap_servers="127.0.0.1:1"))
    until(lambda: len(source.poll(0.2)) == 0 and "No Kafka broker yet" in caplog.text, "it waits for its next attempt")
    reader = source._reader
    assert reader is not None
    source.close()
    until(lambda: not reader.is_alive(), "the reader has ended")
    with pytest.raises(KafkaConnectorError, match="closed"):
        source.poll(0.1)


def test_a_port_that_is_open_but_speaks_no_kafka_is_told(
    open_source: Callable[..., KafkaSource], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("connectors.kafka.connect.CONNECT_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as server:
        source = open_source(KafkaSettings(bootstrap_servers=f"127.0.0.1:{server.getsockname()[1]}"))
        told = "does not answer as a Kafka broker with kafka.security_protocol=PLAINTEXT"
        until(lambda: len(source.poll(0.2)) == 0 and told in caplog.text, "it is told")


def test_a_topic_that_does_not_exist_is_told_once_and_read_when_it_is_made(
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
    until(lambda: len(source.poll(0.2)) == 0 and "No such topic" in caplog.text, "the missing topic is told")
    end = time.monotonic() + 1.5
    while time.monotonic() < end:
        source.poll(0.2)
    assert caplog.text.count("No such topic") == 1
    assert f"{name} (kafka.topics)" in caplog.text
    broker.create_topic(name, 2)
    produce(broker, name, range(20), partitions=2)
    assert sorted(read(source, 20)) == list(range(20))


def test_a_broker_that_goes_away_and_comes_back_is_told_once_and_nothing_is_lost(
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
    source = open_source(settings(own_broker, "events"), on_placed=placed.append)
    assert sorted(read(source, 100)) == list(range(100))
    own_broker.stop()
    cpu, began = time.process_time(), time.monotonic()

    def poll_and_commit() -> None:
        assert len(source.poll(0.5)) == 0
        source.commit({Partition("events", 0): 50})

    until(lambda: poll_and_commit() or "Kafka gives no answer" in caplog.text, "the outage is told")
    for _ in range(4):
        poll_and_commit()
    assert time.process_time() - cpu < 0.5 * (time.monotonic() - began), "the wait is not a busy one"
    assert caplog.text.count("Kafka gives no answer") == 1
    placed.clear()
    with monkeypatch.context() as impatient:
        impatient.setattr("connectors.kafka.source.ANSWER_MS", 500)
        source.rewind({Partition("events", 0): 40})
        until(lambda: source.poll(0.1) is not None and placed, "reading is to go on ten records before")
    for _ in range(4):
        source.poll(0.5)
    assert source.outage
    assert "Kafka answers again" not in caplog.text
    own_broker.start()
    produce(own_broker, "events", range(100, 200), partitions=2)
    assert sorted(read(source, 110))[10:] == list(range(100, 200))
    until(lambda: source.poll(0.1) is not None and "Kafka answers again" in caplog.text, "the return is told")

    def commits() -> bool:  # while the member joins its group again the broker may refuse, as every checkpoint may find
        source.poll(0.1)
        source.commit({Partition("events", 0): 100, Partition("events", 1): 100})
        return committed(own_broker, source, "events", 0) == 100

    until(commits, "it is committed")


def test_commit_says_where_the_next_member_goes_on_and_leaves_foreign_partitions_alone(
    broker: Broker, topic: Topic, open_source: Callable[..., KafkaSource]
) -> None:
    name = topic(partitions=2)
    produce(broker, name, range(100), partitions=2)
    source = open_source(settings(broker, name))
    source.commit({Partition(name, 0): 7})  # before anything is connected: nothing to do
    read(source, 100)
    source.commit({Partition(name, 0): 17, Partition("another", 3): 5})
    assert committed(broker, source, name, 0) == 17
    assert committed(broker, source, name, 1) is None


def test_a_commit_that_fails_is_logged_and_not_raised(
    apache: Broker, topic: Topic, open_source: Callable[..., KafkaSource], caplog: pytest.LogCaptureFixture
) -> None:
    name = topic()
    produce(apache, name, range(10))
    # shorter than the setting may be, so that the test is short
    lost: list[list[Partition]] = []
    source = open_source(
        settings(apache, name).model_copy(update={"max_poll_interval_seconds": 3.0}), on_lost=lost.append
    )
    read(source, 10)
    produce(apache, name, range(10, 20))
    time.sleep(5)  # takes nothing for longer than max_poll_interval: the client leaves the group
    source.commit({Partition(name, 0): 10})
    assert "not committed" in caplog.text
    assert read(source, 10)[-10:] == list(range(10, 20)), "the member joins again by itself"
    until(lambda: source.poll(0.1) is not None and lost, "the loss is told")
    assert lost == [[Partition(name, 0)]]


def test_a_client_that_hangs_is_told_rather_than_waited_for(
    broker: Broker, topic: Topic, open_source: Callable[..., KafkaSource], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("connectors.kafka.source.STALLED_SECONDS", 0.5)
    monkeypatch.setattr("connectors.kafka.fetch_thread.POLL_MS", 3_000)  # a wait that takes longer than it may
    source = open_source(settings(broker, topic()))
    with pytest.raises(KafkaConnectorError, match="has not returned"):
        until(lambda: source.poll(0.2) is None, "poll raises")


@pytest.mark.parametrize("codec", ["gzip", "lz4", "zstd", "snappy"])
def test_compressed_topics_are_read(
    broker: Broker, topic: Topic, open_source: Callable[..., KafkaSource], codec: str
) -> None:
    name = topic()
    produce(broker, name, range(500), compression_type=codec)
    assert read(open_source(settings(broker, name)), 500) == list(range(500))


def test_settings_that_cannot_work_are_refused() -> None:
    for values, told in [
        ({"topics": ["a"], "topic_pattern": "b"}, "keep one of them"),
        ({"topics": []}, "kafka.topics is empty"),
        ({"topic_pattern": "("}, "no regular expression"),
        ({"topics": ["a", "longwatch-alerts"]}, "kafka.alerts_topic"),
        ({"security_protocol": "SASL_SSL"}, "needs kafka.sasl_username"),
        ({"ssl_certfile": "x.pem"}, "belong together"),
    ]:
        with pytest.raises(ValidationError, match=told):
            KafkaSettings(**values)  # type: ignore[arg-type]  # each is one of several types


@pytest.mark.parametrize("also", ["changelogs", "results"])
def test_a_groups_own_topics_are_never_its_input_whatever_the_pattern(
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


def delete_before(broker: Broker, topic: str, offset: int) -> None:
    admin = KafkaAdminClient(bootstrap_servers=broker.bootstrap)
    try:
        admin.delete_records({TopicPartition(topic, 0): offset})
        earliest = admin.list_partition_offsets({TopicPartition(topic, 0): OffsetSpec.EARLIEST})
        assert earliest[TopicPartition(topic, 0)].offset == offset
    finally:
        admin.close()


def committed(broker: Broker, source: KafkaSource, topic: str, partition: int) -> int | None:
    consumer = KafkaConsumer(
        bootstrap_servers=broker.bootstrap, group_id=source._settings.group_id, enable_auto_commit=False
    )
    try:
        return consumer.committed(TopicPartition(topic, partition), timeout_ms=10_000)
    except KafkaError as error:
        pytest.fail(f"no committed offset to be had: {error}")
    finally:
        consumer.close()

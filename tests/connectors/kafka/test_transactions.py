"""Transactions against a real broker: all of it is seen, or nothing; and a source that waits to be placed."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from kafka import KafkaConsumer, TopicPartition
from kafka.errors import KafkaError, ProducerFencedError

from connectors.batches import Partition
from connectors.kafka.errors import KafkaConnectorError
from connectors.kafka.settings import KafkaSettings
from connectors.kafka.transactions import TransactionalWriter, TransactionError, end_transaction_of
from connectors.protocols import DEFERRED
from tests.brokers import Broker
from tests.connectors.kafka.support import DEADLINE, end_transaction, next_offsets, produce, settings, subscribed
from tests.daemon.support import until

pytestmark = pytest.mark.kafka

Topic = Callable[..., str]


def seen(broker: Broker, topic: str) -> list[bytes]:
    """Return what a reader with read_committed sees."""
    consumer = KafkaConsumer(
        bootstrap_servers=broker.bootstrap, isolation_level="read_committed", enable_auto_commit=False
    )
    try:
        partition = TopicPartition(topic, 0)
        consumer.assign([partition])
        consumer.seek_to_beginning()
        values: list[bytes] = []
        end = consumer.end_offsets([partition])[partition]
        deadline = time.monotonic() + DEADLINE
        while consumer.position(partition) < end and time.monotonic() < deadline:
            values += [record.value for record in consumer.poll(300).get(partition, [])]
        return values
    finally:
        consumer.close()


@pytest.fixture
def writer(apache: Broker) -> Iterator[Callable[..., TransactionalWriter]]:
    made: list[TransactionalWriter] = []

    def make(name: str = "", **more: Any) -> TransactionalWriter:
        config = KafkaSettings(
            bootstrap_servers=apache.bootstrap,
            alerts_topic="",
            dead_letter_topic="",
            delivery_timeout_seconds=20,
            **more,
        )
        made.append(TransactionalWriter(config, name or f"longwatch-{uuid.uuid4().hex}"))
        return made[-1]

    yield make
    for one in made:
        one.close()


class Reader:
    """A source that commits within transactions."""

    def __init__(self, config: KafkaSettings, **more: Any) -> None:
        self.offsets: dict[Partition, int] = {}
        self.source = subscribed(config, **more)

    def read(self, count: int) -> list[int]:
        values: list[int] = []
        deadline = time.monotonic() + DEADLINE
        while len(values) < count:
            assert time.monotonic() < deadline, f"{len(values)} of {count}"
            batch = self.source.poll(0.2)
            values += [int(value) for value in batch.value]
            self.offsets.update(next_offsets(batch))
        return values


@pytest.fixture
def reader(apache: Broker) -> Iterator[Callable[..., Reader]]:
    made: list[Reader] = []

    def make(*topics: str, **more: Any) -> Reader:
        keys = ("start", "on_placed", "on_assigned", "on_lost", "read_committed", "max_poll_records")
        callbacks = {key: more.pop(key) for key in keys if key in more}
        made.append(Reader(settings(apache, *topics, **more), **callbacks))
        return made[-1]

    yield make
    for one in made:
        one.source.close()


def three_read(broker: Broker, topic: Topic, reader: Callable[..., Reader]) -> Reader:
    """Return a reader of a topic that has read its three events."""
    events = topic()
    produce(broker, events, range(3))
    source = reader(events)
    source.read(3)
    return source


def test_results_and_offsets_are_committed_together(
    apache: Broker, topic: Topic, writer: Callable[..., TransactionalWriter], reader: Callable[..., Reader]
) -> None:
    events, results = topic(), topic()
    produce(apache, events, range(20))
    first = reader(events, group_id="together")
    values = first.read(20)
    mine = writer()
    for value in values:
        mine.send(results, None, b"%d" % value)
    assert seen(apache, results) == []
    mine.commit(first.offsets, first.source.member())
    assert seen(apache, results) == [b"%d" % value for value in range(20)]
    first.source.close()
    produce(apache, events, range(20, 25))
    assert reader(events, group_id="together").read(5) == [20, 21, 22, 23, 24]


def test_aborted_results_are_never_seen_and_the_writer_stays_usable(
    apache: Broker, topic: Topic, writer: Callable[..., TransactionalWriter], reader: Callable[..., Reader]
) -> None:
    source, results = three_read(apache, topic, reader), topic()
    mine = writer()
    mine.send(results, None, b"wrong")
    mine.flush()
    mine.reset()
    mine.send(results, None, b"right")
    mine.commit(source.offsets, source.source.member())
    assert seen(apache, results) == [b"right"]


def test_a_former_writer_is_fenced(
    apache: Broker, topic: Topic, writer: Callable[..., TransactionalWriter], reader: Callable[..., Reader]
) -> None:
    source, results = three_read(apache, topic, reader), topic()
    zombie, name = writer("one-name"), "one-name"
    zombie.send(results, None, b"zombie")
    zombie.flush()
    successor = writer(name)
    successor.send(results, None, b"successor")
    successor.commit(source.offsets, source.source.member())
    with pytest.raises(TransactionError, match="another process has the transactional id one-name"):
        zombie.commit(source.offsets, source.source.member())
    assert seen(apache, results) == [b"successor"]


@pytest.mark.parametrize(
    "error",
    [
        ProducerFencedError(),
        KafkaError("Cannot perform send because a previous request has failed.", ProducerFencedError()),
        KafkaError(f"Cannot execute because we are in an error state: {ProducerFencedError()}"),
    ],
    ids=["itself", "in a later send", "in a later call"],
)
def test_every_call_of_a_fenced_writer_reports_it(error: KafkaError) -> None:
    """Which one that is, is a race within the client."""
    fenced = TransactionalWriter(KafkaSettings(), "one-name")
    fenced._failed("scores", error)
    assert isinstance(fenced._failure, TransactionError)
    assert "(topic scores): it was longer than" in str(fenced._failure)
    assert "another process has the transactional id one-name" in str(fenced._failure)


def test_offsets_of_a_former_group_member_are_refused(
    apache: Broker, topic: Topic, writer: Callable[..., TransactionalWriter], reader: Callable[..., Reader]
) -> None:
    source, results = three_read(apache, topic, reader), topic()
    member = source.source.member()
    source.source.close()
    mine = writer()
    mine.send(results, None, b"x")
    with pytest.raises(TransactionError, match="CommitFailed"):
        mine.commit(source.offsets, member)
    mine.reset()
    mine.send(results, None, b"x")
    with pytest.raises(TransactionError, match="not a member of the group"):
        mine.commit(source.offsets, None)
    assert seen(apache, results) == []


def test_an_open_transaction_can_be_ended_by_its_transactional_id(
    apache: Broker, topic: Topic, writer: Callable[..., TransactionalWriter]
) -> None:
    results = topic()
    left = writer("left-open")
    left.send(results, None, b"x")
    left.flush()
    end_transaction_of(left.settings, "left-open")
    other = writer()
    other.send(results, None, b"y")
    other.flush()
    assert seen(apache, results) == [], "the other one is open, so nothing is stable but the aborted record"


def test_a_too_large_record_does_not_fail_its_transaction(
    topic: Topic, writer: Callable[..., TransactionalWriter]
) -> None:
    mine, results = writer(), topic()
    mine.send(results, None, bytes(2 << 20))
    with pytest.raises(KafkaConnectorError, match="MessageSizeTooLarge") as reported:
        mine.flush()
    assert not isinstance(reported.value, TransactionError), "trying again would not help"


def test_a_partition_is_not_read_before_its_seek(apache: Broker, topic: Topic, reader: Callable[..., Reader]) -> None:
    events = topic(partitions=2)
    produce(apache, events, range(20), partitions=2)
    placed: dict[Partition, int] = {}
    one = reader(events, start=lambda p: DEFERRED if p.partition else None, on_placed=placed.update)
    assert one.read(10) == list(range(0, 20, 2))
    assert not any(len(one.source.poll(0.1)) for _ in range(5))
    one.source.seek({Partition(events, 1): 4})
    assert one.read(6) == list(range(9, 20, 2))
    assert placed == {Partition(events, 0): 0, Partition(events, 1): 4}


def test_a_held_partition_is_read_again_from_its_seek(
    apache: Broker, topic: Topic, reader: Callable[..., Reader]
) -> None:
    events = topic()
    produce(apache, events, range(2_000))
    one = reader(events, max_poll_records=100)
    first = one.read(300)
    one.source.hold([Partition(events, 0)])
    assert not any(len(one.source.poll(0.05)) for _ in range(5)), "not even what has been fetched already"
    one.source.seek({Partition(events, 0): 100})
    again = one.read(1_900)
    assert first[:100] + again == list(range(2_000))


def test_a_read_committed_source_sees_no_aborted_event(
    apache: Broker, topic: Topic, writer: Callable[..., TransactionalWriter], reader: Callable[..., Reader]
) -> None:
    events = topic()
    producers = [writer(), writer()]
    for turn in range(6):
        for number, mine in enumerate(producers):
            mine.send(events, None, b"%d" % (10 * turn + number), None, 0)
            mine.flush()
        aborted, committed = producers if turn % 2 else producers[::-1]
        for mine, end in ((committed, "commit_transaction"), (aborted, "abort_transaction")):
            end_transaction(mine, end)
    assert reader(events, read_committed=True).read(6) == [0, 11, 20, 31, 40, 51]


@pytest.mark.parametrize("read_committed", [False, True], ids=["all", "committed"])
@pytest.mark.parametrize("ends", ["committed", "aborted", "left open", "aborted at first"])
def test_lag_is_zero_once_every_readable_record_is_read(
    apache: Broker,
    topic: Topic,
    writer: Callable[..., TransactionalWriter],
    reader: Callable[..., Reader],
    ends: str,
    read_committed: bool,
) -> None:
    """A transaction marker is an offset without a record; aborted and open records are invisible."""
    events, mine = topic(), writer()
    if ends == "aborted at first":
        transaction(mine, events, range(5), "abort_transaction")
    transaction(mine, events, range(5), "commit_transaction")
    if ends in ("aborted", "left open"):
        transaction(mine, events, range(5), "abort_transaction" if ends == "aborted" else None)
    one = reader(events, read_committed=read_committed)
    one.read(5 if read_committed or ends == "committed" else 10)
    assert comes_to_no_lag(one, events)


def test_lag_returns_to_zero_after_a_rewind_or_a_pause(
    apache: Broker, topic: Topic, writer: Callable[..., TransactionalWriter], reader: Callable[..., Reader]
) -> None:
    events, mine = topic(), writer()
    transaction(mine, events, range(5), "commit_transaction")
    transaction(mine, events, range(5), "abort_transaction")
    one = reader(events, read_committed=True)
    one.read(5)
    assert comes_to_no_lag(one, events)
    one.source.rewind({Partition(events, 0): 2})
    assert one.read(3) == [2, 3, 4]
    one.source.pause()
    transaction(mine, events, range(5, 8), "commit_transaction")
    assert not any(len(one.source.poll(0.1)) for _ in range(10))
    one.source.resume()
    assert one.read(3) == [5, 6, 7]
    assert comes_to_no_lag(one, events)


def transaction(mine: TransactionalWriter, topic: str, values: range, end: str | None) -> None:
    """Write values in a transaction; `end` is the client's method that ends it."""
    for value in values:
        mine.send(topic, None, b"%d" % value, None, 0)
    mine.flush()
    if end:
        end_transaction(mine, end)


def comes_to_no_lag(one: Reader, topic: str) -> bool:
    until(lambda: one.source.poll(0.1) is not None and one.source.lag() == {Partition(topic, 0): 0}, "no lag")
    return True

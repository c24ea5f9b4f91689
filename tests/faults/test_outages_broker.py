"""The broker slow, gone and back, one of three lost, with a transaction under way: nothing lost, nothing twice."""

from __future__ import annotations

import signal
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kafka.errors import KafkaError

from connectors.batches import Partition
from connectors.kafka.settings import KafkaSettings
from connectors.kafka.source import KafkaSource
from tests.brokers import Broker, _OwnProcess, need_kafka_home
from tests.daemon.fleet import make_fleet
from tests.daemon.receiver import Receiver
from tests.daemon.records import by_place, difference, open_producer
from tests.daemon.support import PATIENCE, until
from tests.faults.cluster import NODES, Cluster
from tests.faults.support import Stream, Topics, Undisturbed, assert_once, scored_events, webhook_ids

pytestmark = pytest.mark.kafka

FLEET = make_fleet(streams=8, rows=500, seed=3)
EVENTS = 8 * 500


def committed_to(topics: Topics, share: float, seconds: float = PATIENCE) -> None:
    def reached() -> bool:
        try:
            return scored_events(topics) >= EVENTS * share
        except KafkaError:  # this test's own client met the broker that is away
            return False

    until(reached, f"{share:.0%} is committed", seconds=seconds, every=0.3)


def send(broker: Broker, number: int) -> None:
    assert isinstance(broker, _OwnProcess)
    assert broker._process is not None
    broker._process.send_signal(number)


def test_partitions_that_are_rewound_repeatedly_are_always_read_on(apache: Broker) -> None:
    """As after every aborted transaction: records the client has buffered must not keep it from fetching."""
    topic = apache.create_topic(f"back-{uuid.uuid4().hex[:8]}", 4)
    producer = open_producer(apache)
    for number in range(400):
        producer.send(topic, b"x" * 100, partition=number % 4)
    producer.close()
    source = KafkaSource(KafkaSettings(bootstrap_servers=apache.bootstrap, topics=[topic]), max_poll_records=50)
    reached: dict[Partition, int] = {}
    try:
        for turn in range(8):
            for partition in reached:
                reached[partition] = 0
            source.rewind(reached)
            deadline = time.monotonic() + PATIENCE
            while sum(reached.values()) < 400:
                raw = source.poll(0.2)
                for code, offset in zip(raw.partition, raw.offset, strict=True):
                    assert offset == reached.get(raw.partitions[code], 0)
                    reached[raw.partitions[code]] = offset + 1
                assert time.monotonic() < deadline, f"turn {turn}: stopped at {reached}"
    finally:
        source.close()


def test_a_broker_that_is_slow_and_then_silent_is_waited_for(own_broker: Broker, tmp_path: Path) -> None:
    own_broker.start()
    topics = Topics(own_broker, tmp_path, uuid.uuid4().hex[:8])
    with Stream(topics, FLEET) as stream, topics.worker("a", kafka__session_timeout_seconds=3) as worker:
        stream.until(EVENTS * 0.2)
        committed_to(topics, 0.2)
        stream.until(EVENTS * 0.6)
        try:
            for _ in range(5):  # three quarters of the time it does nothing
                send(own_broker, signal.SIGSTOP)
                time.sleep(0.3)
                send(own_broker, signal.SIGCONT)
                time.sleep(0.1)
            send(own_broker, signal.SIGSTOP)
            time.sleep(4.5)  # longer than the session: the group has forgotten the worker by then
            assert worker.get("/livez")[0] == 200
        finally:
            send(own_broker, signal.SIGCONT)
        stream.finish()
        committed_to(topics, 1.0)
        assert worker.terminate()[0] == 0
    assert_once(topics.scored(), Undisturbed(tmp_path, FLEET).scores(topics))


@pytest.mark.parametrize(
    "way",
    [
        {"processing__guarantee": "at_least_once"},
        pytest.param({"processing__guarantee": "at_least_once", "state__changelog": True}, marks=pytest.mark.faults),
        {"processing__guarantee": "exactly_once"},
    ],
    ids=["at_least_once", "changelog", "exactly_once"],
)
def test_events_whose_commit_timed_out_are_scored_again_by_the_same_process(
    way: dict[str, Any], own_broker: Broker, tmp_path: Path
) -> None:
    """Away for several times `kafka.delivery_timeout_seconds`: nothing is restarted, nothing is lost."""
    own_broker.start()
    topics = Topics(own_broker, tmp_path, uuid.uuid4().hex[:8])
    fleet = make_fleet(streams=8, rows=700, seed=4)
    more = {**way, "kafka__delivery_timeout_seconds": 3, "source__max_poll_records": 10}
    with Stream(topics, fleet) as stream, topics.worker("a", **more) as worker:
        stream.finish()
        until(lambda: worker.metrics().sum("events_total") > 500, "the work has begun")
        with worker.halted():
            own_broker.stop()  # scores of what had been fetched are on their way
        worker.line("rolling back to the last checkpoint")
        until(lambda: worker.get("/livez")[0] == 200, "it is alive")
        worker.line("trying again")
        own_broker.start()
        committed_to(topics, fleet.rows / FLEET.rows)
        assert worker.terminate()[0] == 0
    expected = Undisturbed(tmp_path, fleet).scores(topics)
    if way["processing__guarantee"] == "exactly_once":
        assert_once(topics.scored(), expected)
        return
    found, wanted = by_place(topics.scored()), by_place(expected)
    assert found.keys() == wanted.keys()
    for place, records in found.items():
        for record in records:
            assert not difference(record, wanted[place][0]), place


@pytest.mark.faults
def test_a_broker_that_is_gone_for_a_minute_is_waited_for(own_broker: Broker, tmp_path: Path) -> None:
    own_broker.start()
    topics = Topics(own_broker, tmp_path, uuid.uuid4().hex[:8])
    with Receiver() as receiver, Stream(topics, FLEET) as stream:
        topics.receiver = receiver
        with topics.worker("a", source__max_poll_records=50) as worker:
            stream.until(EVENTS * 0.5)
            committed_to(topics, 0.2)
            own_broker.stop()
            began = time.monotonic()
            while time.monotonic() < began + 60:
                assert worker.get("/livez")[0] == 200
                time.sleep(1.0)
            own_broker.start()
            back = time.monotonic()
            stream.finish()
            committed_to(topics, 1.0)
            print(f"\n  a minute without a broker: all was scored {time.monotonic() - back:.1f} s after its return")
            expected = Undisturbed(tmp_path, FLEET)
            wanted = webhook_ids(expected.alerts(topics))
            until(lambda: set(receiver.ids) >= wanted, "all alerts are delivered", every=0.2)
            assert worker.terminate()[0] == 0
        assert_once(topics.scored(), expected.scores(topics))
        assert set(receiver.ids) == wanted


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    found = Cluster(need_kafka_home("no clusters"))
    try:
        found.start()
        yield found
    finally:
        found.close()


@pytest.mark.faults
@pytest.mark.timeout(1_800)
def test_each_of_three_brokers_is_killed_in_turn(cluster: Cluster, tmp_path: Path) -> None:
    """So each partition of events, scores, states and offsets loses its leader, and the transaction its coordinator."""
    topics = Topics(cluster, tmp_path, uuid.uuid4().hex[:8])
    mine = [topics.events, topics.scores, topics.alerts, topics.changelog, "__consumer_offsets", "__transaction_state"]
    # the client now and then never hears of a transaction whose coordinator was killed: then this is how long it waits
    more = {"kafka__changelog_replication_factor": NODES, "kafka__delivery_timeout_seconds": 15}
    paused: list[float] = []
    with Stream(topics, FLEET) as stream, topics.worker("a", **more) as worker:
        stream.until(EVENTS * 0.1)
        committed_to(topics, 0.1)
        for node in range(1, NODES + 1):
            cluster.wait_for_copies(mine)
            share = 0.1 + node * 0.3
            stream.until(EVENTS * (share - 0.15))
            cluster.kill(node)
            began = time.monotonic()
            stream.until(EVENTS * share)
            committed_to(topics, share - 0.01)
            paused.append(time.monotonic() - began)
            assert worker.get("/livez")[0] == 200
            cluster.start_node(node)
        stream.finish()
        committed_to(topics, 1.0)
        assert worker.terminate()[0] == 0
    assert_once(topics.scored(), Undisturbed(tmp_path, FLEET).scores(topics))
    print(f"\n  a third of the brokers lost: scored again {', '.join(f'{s:.1f}' for s in paused)} s after each kill")

"""The way of committed alerts from their topic to the webhook: whose they are, and what retention does to it."""

from __future__ import annotations

import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition

from connectors.batches import Alert
from connectors.encode import alert_record
from connectors.kafka.alert_feed import AlertFeed
from connectors.kafka.settings import KafkaSettings
from connectors.kafka.sinks import KafkaAlertSink
from connectors.kafka.transactions import TransactionalWriter
from tests.brokers import Broker
from tests.daemon.support import until

pytestmark = pytest.mark.kafka

Topic = Callable[..., str]


def alert(name: str) -> Alert:
    return Alert(
        id=name, stream="s", status="firing", severity="warning", started_at=1, ended_at=None, score=7.0, threshold=5.0,
        observed={"x": 1.0}, expected={"x": 0.0}, lower={"x": -1.0}, upper={"x": 1.0}, contributions={"x": 1.0},
        model_version="m", topic="t", partition=0, offset=1,
    )  # fmt: skip


class Taken:
    """A sink that keeps the ids of what it was given."""

    def __init__(self) -> None:
        self.ids: list[str] = []

    def write(self, alerts: Sequence[Alert]) -> None:
        self.ids += [one.id for one in alerts]

    def flush(self) -> None:
        pass

    def position(self) -> dict[str, int]:
        return {}

    def restore(self, position: Any) -> None:
        pass

    def close(self) -> None:
        pass


class Group:
    """A worker's writer of alerts, and the feeds that bring them to a sink."""

    def __init__(self, broker: Broker, topic: str) -> None:
        self.settings = KafkaSettings(
            bootstrap_servers=broker.bootstrap,
            group_id=f"group-{uuid.uuid4().hex[:8]}",
            alerts_topic=topic,
            session_timeout_seconds=6,
        )
        self._writer = TransactionalWriter(self.settings, self.settings.group_id)
        self._feeds: list[AlertFeed] = []

    def write(self, *ids: str) -> None:
        """Write alerts in a transaction, and commit it."""
        KafkaAlertSink(self._writer).write([alert(name) for name in ids])
        self._writer.flush()
        producer = self._writer._producer
        assert producer is not None
        producer.commit_transaction()
        self._writer._in_transaction = False

    def feed(self, **other: Any) -> Taken:
        taken = Taken()
        settings = self.settings.model_copy(update=other)
        self._feeds.append(AlertFeed(settings, taken))  # type: ignore[arg-type]  # it is one by its methods
        self._feeds[-1].start()
        return taken

    def stop(self) -> None:
        while self._feeds:
            self._feeds.pop().close()

    def committed(self) -> int | None:
        """Return the offset that the feed's group has committed."""
        consumer = KafkaConsumer(
            bootstrap_servers=self.settings.bootstrap_servers, group_id=f"{self.settings.group_id}-webhook"
        )
        try:
            found = consumer.committed(TopicPartition(self.settings.alerts_topic, 0), timeout_ms=10_000)
            return None if found is None else int(found)
        finally:
            consumer.close(autocommit=False)

    def feed_first(self) -> Taken:
        """Start the feed and wait until it has sent a first alert."""
        taken = self.feed()
        self.write("first")
        until(lambda: taken.ids == ["first"], "the first alert comes")
        return taken

    def close(self) -> None:
        self.stop()
        self._writer.close()


@pytest.fixture
def group(apache: Broker) -> Iterator[Callable[[str], Group]]:
    made: list[Group] = []

    def make(topic: str) -> Group:
        made.append(Group(apache, topic))
        return made[-1]

    yield make
    for one in made:
        one.close()


def delete_all(broker: Broker, topic: str) -> int:
    """Delete every record, as retention does with a quiet topic, and return where it begins, and ends, now."""
    admin = KafkaAdminClient(bootstrap_servers=broker.bootstrap)
    try:
        found: dict[TopicPartition, Any] = admin.delete_records({TopicPartition(topic, 0): -1})
        return int(found[TopicPartition(topic, 0)]["low_watermark"])
    finally:
        admin.close()


def test_the_alert_feed_resumes_after_retention_emptied_its_topic(
    apache: Broker, topic: Topic, group: Callable[[str], Group]
) -> None:
    alerts = topic()
    mine = group(alerts)
    taken = mine.feed_first()
    until(lambda: mine.committed() == 2, "the end of the transaction is passed over", every=0.2)
    mine.stop()
    mine.write("lost to retention")
    assert delete_all(apache, alerts) == 4
    taken = mine.feed()
    mine.write("second")
    until(lambda: taken.ids == ["second"], "alerts go on")
    until(lambda: mine.committed() == 6, "and their offsets are committed", every=0.2)


def test_the_alert_feed_continues_when_its_topic_is_emptied_while_it_reads(
    apache: Broker, topic: Topic, group: Callable[[str], Group]
) -> None:
    alerts = topic()
    mine = group(alerts)
    taken = mine.feed_first()
    delete_all(apache, alerts)
    time.sleep(1.0)  # a fetch or two
    mine.write("second")
    until(lambda: taken.ids == ["first", "second"], "alerts go on")


def test_alerts_written_while_a_new_group_finds_its_start_are_sent(
    topic: Topic, group: Callable[[str], Group], monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = group(topic())
    asked: list[str] = []

    def then_write(name: str) -> Callable[..., Any]:
        ask = getattr(KafkaConsumer, name)

        def answer(*arguments: Any, **more: Any) -> Any:
            found = ask(*arguments, **more)
            asked.append(name)
            if len(asked) == 1:
                mine.write("between two questions")
            return found

        return answer

    for name in ("offsets_for_times", "end_offsets"):
        monkeypatch.setattr(KafkaConsumer, name, then_write(name))
    taken = mine.feed()
    until(lambda: taken.ids == ["between two questions"], "the alert comes")


def test_each_group_sends_its_own_alerts_and_unowned_ones(
    apache: Broker, topic: Topic, group: Callable[[str], Group]
) -> None:
    alerts = topic()
    one, other = group(alerts), group(alerts)
    taken, others = one.feed(), other.feed()
    one.write("one")
    other.write("other")
    producer = KafkaProducer(bootstrap_servers=apache.bootstrap)
    producer.send(alerts, key=b"s", value=alert_record(alert("of a version that did not say"))[1])
    producer.close(timeout=240)
    until(lambda: len(taken.ids) > 1 and len(others.ids) > 1, "both have their own")
    assert taken.ids == ["one", "of a version that did not say"]
    assert others.ids == ["other", "of a version that did not say"]


def test_alerts_of_a_partition_that_a_killed_static_worker_was_giving_away_are_sent(
    apache: Broker, topic: Topic, group: Callable[[str], Group]
) -> None:
    alerts = topic(partitions=2)
    mine = group(alerts)
    code = (
        "import os, sys\n"
        "from kafka import ConsumerRebalanceListener, KafkaConsumer\n"
        "from kafka.coordinator.assignors.cooperative_sticky import CooperativeStickyAssignor\n"
        "class Victim(ConsumerRebalanceListener):\n"
        "    def on_partitions_assigned(self, assigned): print(len(assigned), flush=True)\n"
        "    def on_partitions_revoked(self, revoked): os.kill(os.getpid(), 9)\n"
        "servers, group, topic = sys.argv[1:]\n"
        "consumer = KafkaConsumer(bootstrap_servers=servers, group_id=group, group_instance_id='static-webhook',\n"
        "    partition_assignment_strategy=[CooperativeStickyAssignor], session_timeout_ms=20000)\n"
        "consumer.subscribe(topics=[topic], listener=Victim())\n"
        "while True: consumer.poll(timeout_ms=500)\n"
    )
    command = [sys.executable, "-c", code, apache.bootstrap, f"{mine.settings.group_id}-webhook", alerts]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as victim:
        try:
            assert victim.stdout is not None
            assert victim.stdout.readline() == b"2\n"
            other = mine.feed(session_timeout_seconds=20)
            assert victim.wait(240) == -9
        finally:
            victim.kill()
    back = mine.feed(group_instance_id="static", session_timeout_seconds=20)
    producer = KafkaProducer(bootstrap_servers=apache.bootstrap)
    for partition in range(2):
        producer.send(alerts, partition=partition, key=b"s", value=alert_record(alert(f"of {partition}"))[1])
    producer.close(timeout=240)
    until(lambda: {*other.ids, *back.ids} == {"of 0", "of 1"}, "the alerts of both partitions come")

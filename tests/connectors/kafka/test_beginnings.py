"""Where reading of a partition begins, and that this is not decided twice."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest
from kafka import KafkaAdminClient
from kafka.errors import KafkaError

from connectors.batches import Partition
from connectors.kafka.source import KafkaSource
from connectors.protocols import DEFERRED
from tests.brokers import Broker
from tests.connectors.kafka.daemons import running, write
from tests.connectors.kafka.support import produce, settings, subscribed
from tests.daemon.records import read_topic
from tests.daemon.support import until

pytestmark = pytest.mark.kafka
Topic = Callable[..., str]


def committed(broker: Broker, group: str, topic: str) -> dict[int, int]:
    """Return the group's committed offsets by partition."""
    admin = KafkaAdminClient(bootstrap_servers=broker.bootstrap)
    try:
        found = admin.list_group_offsets(group)
        offsets = found.get(group, found)
        return {p.partition: at.offset for p, at in offsets.items() if p.topic == topic and at.offset >= 0}
    except KafkaError:  # the group is not known yet
        return {}
    finally:
        admin.close()


@pytest.mark.parametrize(("guarantee", "state"), [("at_least_once", "kept"), ("exactly_once", "lost")])
def test_events_written_during_downtime_are_scored_even_in_previously_empty_partitions(
    apache: Broker, topic: Topic, tmp_path: Path, guarantee: str, state: str
) -> None:
    events, scores, group = topic(partitions=2), topic(), f"group-{uuid.uuid4().hex[:8]}"
    more = {
        "kafka.topics": f'["{events}"]',
        "kafka.group_id": group,
        "kafka.scores_topic": scores,
        "processing.guarantee": guarantee,
    }
    for number in range(2):
        write(apache, events, number, [b"before"] * 3)  # "latest" passes these over
    with running(apache, tmp_path / "first", **more):
        until(lambda: committed(apache, group, events) == {0: 4, 1: 4}, "where reading began is committed", 20)
    for number in range(2):
        record = '{"stream": "s%d", "timestamp": %d, "values": {"x": 1.5}}'
        times = [time.time_ns() // 10**6 - ago for ago in range(7, 0, -1)]
        write(apache, events, number, [(record % (number, at)).encode() for at in times])
    with running(apache, tmp_path / ("first" if state == "kept" else "second"), **more):
        until(lambda: len(read_topic(apache, scores, 1, "read_committed")) == 14, "all 14 are scored")
        until(lambda: committed(apache, group, events) == {0: 12, 1: 12}, "the marks of transactions are passed, too")


@pytest.mark.parametrize(
    ("made", "placed"),
    [
        *(("a partition", "by the source"), ("a partition", "later"), ("a partition while it was away", "later")),
        ("a topic of the pattern", "by the source"),
    ],
)
def test_topics_and_partitions_created_later_are_read_from_their_beginning(
    apache: Broker, topic: Topic, monkeypatch: pytest.MonkeyPatch, made: str, placed: str
) -> None:
    """Otherwise records written before the topic is discovered would be skipped."""
    monkeypatch.setattr("connectors.kafka.polling.METADATA_MAX_AGE_MS", 3_000)
    prefix = f"p{uuid.uuid4().hex[:8]}"
    events = topic(prefix=prefix)
    produce(apache, events, range(5))
    names = {"topic_pattern": f"{prefix}-.*"} if made == "a topic of the pattern" else {"topics": [events]}
    config = settings(apache, auto_offset_reset="latest", **names)

    def opened() -> KafkaSource:
        source = subscribed(
            config,
            start=lambda _: DEFERRED if placed == "later" else None,
            on_assigned=assigned.update,
            owned=assigned,
        )
        sources.append(source)
        return source

    def begins(source: KafkaSource, count: int) -> bool:
        values.extend(map(int, source.poll(0.1).value))
        source.seek(dict.fromkeys(assigned - source.lag().keys(), None))
        return len(source.lag()) == count

    values: list[int] = []
    assigned: set[Partition] = set()
    sources: list[KafkaSource] = []
    try:
        source = opened()
        until(lambda: begins(source, 1), "reading has begun")
        assert source.lag() == {Partition(events, 0): 0}, "at the end"
        source.commit({Partition(events, 0): 5})
        if made == "a partition while it was away":
            source.close()
        if made == "a topic of the pattern":
            later, number = topic(prefix=prefix), 0
        else:
            later, number = events, 1
            admin = KafkaAdminClient(bootstrap_servers=apache.bootstrap)
            admin.create_partitions({events: 2})
            admin.close()
        write(apache, later, number, [b"%d" % n for n in range(100, 110)])
        if made == "a partition while it was away":
            source = opened()
        until(lambda: begins(source, 2), "it is found")
        until(lambda: begins(source, 2) and len(values) == 10, "all of it is read")
        assert values == list(range(100, 110))
    finally:
        for one in sources:
            one.close()

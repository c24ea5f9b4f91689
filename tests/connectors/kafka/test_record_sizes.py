"""What is larger than its topic takes is cut until it fits, and never stops anything."""

from __future__ import annotations

import json
import logging
import os
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kafka import KafkaAdminClient, KafkaProducer
from kafka.admin import ConfigResource, NewTopic
from kafka.consumer.fetcher import ConsumerRecord
from kafka.errors import MessageSizeTooLargeError

from connectors.batches import Alert, EventBatch, Partition, Rejected, Scores
from connectors.encode import alert_record, score_records
from connectors.kafka.settings import KafkaSettings
from connectors.kafka.sinks import KafkaAlertSink, KafkaDeadLetterSink, KafkaScoreSink
from connectors.kafka.transactions import TransactionalWriter
from connectors.kafka.writer import KafkaWriter, UndeliveredError
from tests.brokers import Broker
from tests.connectors.kafka.daemons import running, write
from tests.connectors.kafka.support import end_transaction
from tests.daemon.records import read_topic
from tests.daemon.support import until

pytestmark = pytest.mark.kafka

Narrow = Callable[[int], str]
FEATURES = [f"{number:04d}-{'x' * 250}" for number in range(1_000)]


@pytest.fixture
def narrow(apache: Broker) -> Iterator[Narrow]:
    """Make topics whose records may have so many bytes."""
    admin = KafkaAdminClient(bootstrap_servers=apache.bootstrap)

    def make(most: int) -> str:
        name = f"narrow-{uuid.uuid4().hex[:10]}"
        admin.create_topics([NewTopic(name, 1, 1, topic_configs={"max.message.bytes": str(most)})])
        admin.wait_for_topics([name])
        return name

    yield make
    admin.close()


@pytest.fixture(params=["plain", "transactional"])
def open_writer(request: pytest.FixtureRequest, apache: Broker) -> Iterator[Callable[..., KafkaWriter]]:
    opened: list[KafkaWriter] = []

    def make(**topics: Any) -> KafkaWriter:
        names = {"scores_topic": "", "alerts_topic": "", "dead_letter_topic": "", **topics}
        settings = KafkaSettings(bootstrap_servers=apache.bootstrap, delivery_timeout_seconds=20, **names)
        plain = request.param == "plain"
        opened.append(KafkaWriter(settings) if plain else TransactionalWriter(settings, uuid.uuid4().hex))
        return opened[-1]

    yield make
    for writer in opened:
        writer.close()


def wide_scores(features: int, events: int = 1) -> Scores:
    """Return scores of events with many long names; each feature contributes a little more than the one before."""
    observations = features * events
    start = np.arange(events + 1, dtype=np.int64) * features
    batch = EventBatch(
        streams=["wide"],
        features=FEATURES[:features],
        partitions=[Partition("events", 0)],
        stream=np.zeros(events, np.int32),
        time=np.arange(events, dtype=np.int64),
        received=np.zeros(events, np.int64),
        partition=np.zeros(events, np.int32),
        offset=np.arange(events, dtype=np.int64),
        start=start,
        feature=np.tile(np.arange(features, dtype=np.int32), events),
        value=np.ones(observations),
    )
    rows, ones = np.arange(observations), np.ones(observations)
    return Scores(
        batch=batch,
        event=np.arange(events),
        score=np.full(events, 2.5),
        threshold=np.full(events, 4.0),
        rank=np.full(events, 0.7),
        channel=np.zeros(events, np.int8),
        interval=np.ones(events),
        alert=np.zeros(events, np.bool_),
        warming=np.zeros(events, np.bool_),
        surprise=np.ones(events),
        start=start,
        observation=rows,
        expected=ones / 3,
        lower=ones / 7,
        upper=ones,
        contribution=np.tile(np.arange(1.0, features + 1), events),
        model_version="m1",
    )


def wide_alert(features: int) -> Alert:
    values = dict.fromkeys(FEATURES[:features], 1 / 3)
    return Alert(
        id="wide-17",
        stream="wide",
        status="firing",
        severity="critical",
        started_at=1_763_712_000_000_000_000,
        ended_at=None,
        score=6.5,
        threshold=4.0,
        observed={**values},
        expected={**values},
        lower=values,
        upper=values,
        contributions={name: float(number) for number, name in enumerate(FEATURES[:features])},
        model_version="m1",
        topic="events",
        partition=0,
        offset=17,
        channel="novel",
        feature=FEATURES[features - 1],
        summary="12.7 is new",
        evidence={"observed": 12.7, "nearest": 9.1},
    )


def written(writer: KafkaWriter, topic: str, count: int) -> list[ConsumerRecord]:
    """Commit what a writer wrote, and return it."""
    writer.flush()
    if isinstance(writer, TransactionalWriter) and writer._in_transaction:
        end_transaction(writer)
    records = read_topic_of(writer.settings.bootstrap_servers, topic)
    assert len(records) == count
    return records


def read_topic_of(bootstrap: str, topic: str) -> list[ConsumerRecord]:
    return read_topic(Broker(bootstrap), topic, 1, "read_committed")


def taken_until_refused(broker: Broker, topic: str, size: int) -> int:
    """Write records of a size until the broker refuses one, and return how many it took: it applies limits later."""
    producer = KafkaProducer(bootstrap_servers=broker.bootstrap)
    taken = 0

    def refused() -> bool:
        nonlocal taken
        try:
            producer.send(topic, bytes(size)).get(timeout=60)
        except MessageSizeTooLargeError:
            return True
        taken += 1
        return False

    until(refused, "the broker applies the limit")
    producer.close()
    return taken


def assert_the_largest_are_kept(record: dict[str, Any], features: int) -> None:
    kept = list(record["observed"])
    assert record["features_left_out"] == features - len(kept) > 0
    assert kept == FEATURES[features - len(kept) : features], "those with the largest contributions"
    for field in ("expected", "lower", "upper", "contributions"):
        assert record.get(field, record["observed"]).keys() == record["observed"].keys()


# the client's own bound is below what a topic takes by default; a narrow topic's is below the client's
@pytest.mark.parametrize("most", [1_048_588, 20_000], ids=["default", "narrow"])
def test_scores_and_alerts_keep_the_largest_contributions_that_fit(
    narrow: Narrow, open_writer: Callable[..., KafkaWriter], caplog: pytest.LogCaptureFixture, most: int
) -> None:
    scores_topic, alerts_topic = narrow(most), narrow(most)
    writer = open_writer(scores_topic=scores_topic, alerts_topic=alerts_topic, compression="zstd")
    scores, alerts, outcomes = KafkaScoreSink(writer), KafkaAlertSink(writer), []
    for sink in (scores, alerts):
        sink._on_too_large = outcomes.append
    whole, alert = wide_scores(1_000, events=3), wide_alert(1_000)
    small = wide_scores(10, events=50)
    scores.write(whole)
    scores.write(small)
    alerts.write([alert])
    records = written(writer, scores_topic, 53)
    assert [record.value for record in records[3:]] == [value for _, value in score_records(small)], "as they were"
    (reported,) = written(writer, alerts_topic, 1)
    for record, before in [*zip(records[:3], score_records(whole), strict=False), (reported, alert_record(alert))]:
        assert (0.9 if most < 1 << 20 else 0.99) * min(most, 1 << 20) < len(record.value) < min(most, 1 << 20)
        cut, full = json.loads(record.value), json.loads(before[1])
        assert_the_largest_are_kept(cut, 1_000)
        assert cut.get("evidence") == full.get("evidence"), "it is not by feature"
        assert {name: cut[name] for name in full if type(full[name]) is not dict} == {
            name: value for name, value in full.items() if type(value) is not dict
        }
    assert outcomes == ["cut"] * 4
    lines = [
        r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING and "features left out" in r.message
    ]
    assert len(lines) == 2, "one of each sink, though more were cut"


def test_a_dead_letter_is_cut_to_the_topics_limit_with_its_original_size(
    narrow: Narrow, open_writer: Callable[..., KafkaWriter]
) -> None:
    topic = narrow(100_000)
    writer = open_writer(dead_letter_topic=topic)
    sink = KafkaDeadLetterSink(writer)
    raws = [b"x" * 99_000, os.urandom(240_000)]
    sink.write([Rejected("events", 3, 10, "not_json", "found \udc80, expected {", raw) for raw in raws])
    whole, cut = written(writer, topic, 2)
    assert whole.value == raws[0]
    assert "size" not in dict(whole.headers)
    assert raws[1].startswith(cut.value)
    assert 99_000 < len(cut.value) < 100_000
    assert dict(cut.headers)["size"] == b"240000"


def test_a_record_too_large_even_without_features_is_dropped(
    narrow: Narrow, open_writer: Callable[..., KafkaWriter]
) -> None:
    topic, refused, outcomes = narrow(300), narrow(300), []
    writer = open_writer(scores_topic=topic, dead_letter_topic=refused)
    KafkaScoreSink(writer, outcomes.append).write(wide_scores(3))
    letters = KafkaDeadLetterSink(writer, outcomes.append)
    letters.write([Rejected("events", 3, 10, "not_json", "why " * 100, b"raw")])
    letters.write([Rejected("e", 3, 10, "x", "", b"raw")])
    assert [record.value for record in written(writer, refused, 1)] == [b"raw"]
    written(writer, topic, 0)
    assert outcomes == ["left_out", "left_out"]


@pytest.mark.parametrize("reported", [True, False], ids=["the broker tells", "the broker tells nothing"])
def test_a_too_large_record_error_states_the_topics_limit(
    apache: Broker,
    narrow: Narrow,
    open_writer: Callable[..., KafkaWriter],
    monkeypatch: pytest.MonkeyPatch,
    reported: bool,
) -> None:
    """Where a topic takes less than before, or DescribeConfigs is not allowed."""
    topic = narrow(1_048_588)
    writer = open_writer(scores_topic=topic)
    sink = KafkaScoreSink(writer)
    sink.write(wide_scores(1))
    written(writer, topic, 1)
    admin = KafkaAdminClient(bootstrap_servers=apache.bootstrap)
    admin.alter_configs([ConfigResource("TOPIC", topic, {"max.message.bytes": "60000"})])
    admin.close()
    taken = taken_until_refused(apache, topic, 100_000)
    if not reported:
        monkeypatch.setattr("connectors.kafka.record_sizes.max_message_bytes", lambda *_: {})

    def refused() -> str:
        try:
            sink.write(wide_scores(500))
            writer.flush()
        except UndeliveredError as error:
            sink.restore({})
            return str(error)
        return ""

    tries = list(iter(refused, ""))
    assert len(tries) == 1 if reported else 1 < len(tries) < 10, f"the daemon gives up after ten in a row: {tries}"
    assert_the_largest_are_kept(json.loads(written(writer, topic, taken + 2)[-1].value), 500)


def test_batches_of_small_records_fit_the_topics_limit(narrow: Narrow, open_writer: Callable[..., KafkaWriter]) -> None:
    topic = narrow(5_000)
    writer = open_writer(scores_topic=topic)
    for number in range(500):
        writer.send(topic, b"k", b"%1000d" % number)
    assert [int(record.value) for record in written(writer, topic, 500)] == list(range(500))


@pytest.mark.parametrize("guarantee", ["at_least_once", "exactly_once"])
def test_the_daemon_keeps_scoring_with_records_of_any_size(
    apache: Broker, topic: Callable[..., str], narrow: Narrow, tmp_path: Path, guarantee: str
) -> None:
    """States, scores and refused records, each too large for its topic as a whole."""
    events, scores, letters, group = topic(), narrow(50_000), narrow(50_000), f"group-{uuid.uuid4().hex[:8]}"
    changelog = f"{group}-{events}-changelog"
    admin = KafkaAdminClient(bootstrap_servers=apache.bootstrap)
    admin.create_topics(
        [NewTopic(changelog, 1, 1, topic_configs={"max.message.bytes": "30000", "cleanup.policy": "compact"})]
    )
    admin.close()
    more = {
        "kafka.topics": f'["{events}"]',
        "kafka.group_id": group,
        "kafka.auto_offset_reset": "earliest",
        "kafka.scores_topic": scores,
        "kafka.dead_letter_topic": letters,
        "processing.guarantee": guarantee,
        "state.checkpoint_interval_seconds": "0.5",
    }
    now = time.time_ns() // 10**6

    def event(number: int) -> bytes:
        values = dict.fromkeys(FEATURES[:200], number + 0.5)
        return json.dumps({"stream": "wide", "timestamp": now + number, "values": values}).encode()

    write(apache, events, 0, [event(0), b"x" * 240_000, event(1)])
    with running(apache, tmp_path / "first", **more) as daemon:
        until(lambda: len(read_topic(apache, scores, 1, "read_committed")) == 2, "both are scored")
        until(lambda: len(read_topic(apache, letters, 1, "read_committed")) == 1, "the refused one is there")
        until(lambda: not daemon.checkpointer.dirty, "it is saved")
        value = daemon.metrics.registry.get_sample_value
        outcomes = {name: value("longwatch_records_too_large_total", {"outcome": name}) for name in ("cut", "left_out")}
        assert outcomes == {"cut": 3, "left_out": 0}
    write(apache, events, 0, [event(2)])
    with running(apache, tmp_path / "second", **more) as daemon:
        until(lambda: len(read_topic(apache, scores, 1, "read_committed")) == 3, "it goes on")
        restored = daemon.metrics.registry.get_sample_value("longwatch_restored_streams_total")
        assert restored == (guarantee == "exactly_once"), "from the changelog, where there is one"

"""The whole way against a real broker: 50 streams of 2,000 events in, scores, alerts, refusals and metrics out.

One run, made once; each test looks at another side of it.
"""

from __future__ import annotations

import json
import re
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest
from kafka import KafkaConsumer, TopicPartition
from kafka.consumer.fetcher import ConsumerRecord

from connectors.batches import ALERT_CHANNELS
from tests.brokers import Broker
from tests.daemon.fleet import Fleet, make_fleet
from tests.daemon.receiver import SECRET, Delivery, Receiver
from tests.daemon.records import Record, alerts_by_id, by_place, difference, open_producer, read_topic
from tests.daemon.support import PATIENCE, Longwatch, Samples
from training.evaluate import roc_auc

pytestmark = [pytest.mark.kafka]

STREAMS, ROWS, PARTITIONS = 50, 2_000, 4
EVENTS = STREAMS * ROWS

# What an operator's dashboards and rules are built on: the list in the design, in its order
METRICS = (
    "events", "events_rejected", "score", "rank", "alerts", "alerts_firing", "streams", "streams_evicted",
    "batch_events", "step_seconds", "end_to_end_latency_seconds", "consumer_lag", "checkpoint_seconds",
    "last_checkpoint_timestamp_seconds", "retrain", "retrain_seconds", "training_loss", "gradient_norm", "model_info",
    "model_trained_timestamp_seconds", "deliveries", "outbox_pending", "device_memory_bytes",
)  # fmt: skip

GARBAGE = {  # reason -> record
    "not_json": b"no JSON at all",
    "empty": b"",
    "not_utf8": b'{"stream": "\xff", "value": 1}',
    "not_an_object": b"[1, 2]",
    "no_value": b'{"stream": "host-01/load", "timestamp": 1700000000}',
    "not_a_number": b'{"stream": "host-01/load", "timestamp": 1700000000, "value": "NaN"}',
    "bad_timestamp": b'{"stream": "host-01/load", "timestamp": "yesterday", "value": 1}',
}


class Done(NamedTuple):
    """What the run left behind."""

    fleet: Fleet
    topic: str
    garbage: dict[str, tuple[int, int]]  # reason -> partition and offset
    begun: Samples  # before the first event
    samples: Samples  # after the last one
    health: dict[str, tuple[int, str]]
    status: int
    seconds_to_score: float
    committed: dict[int, int]  # partition -> offset, after the stop
    scores: list[Record]
    score_keys: list[bytes]
    alerts: list[ConsumerRecord]
    rejected: list[ConsumerRecord]
    delivered: list[Delivery]
    refused: list[str]
    again: Samples  # of the second start, after some more events
    more_scores: list[Record]
    log: str


MORE_ROWS = 2  # for the second start


@pytest.fixture(scope="module")
def done(broker: Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Done]:
    folder = tmp_path_factory.mktemp("end-to-end")
    fleet = make_fleet(STREAMS, ROWS + MORE_ROWS, seed=11)
    name = uuid.uuid4().hex[:8]
    topic = broker.create_topic(f"events-{name}", PARTITIONS)
    scores = broker.create_topic(f"scores-{name}", PARTITIONS)
    alerts, rejected = (broker.create_topic(f"{kind}-{name}") for kind in ("alerts", "rejected"))
    with Receiver() as receiver:
        settings: dict[str, Any] = {
            "kafka.bootstrap_servers": broker.bootstrap,
            "kafka.topics": [topic],
            "kafka.group_id": f"group-{name}",
            "kafka.scores_topic": scores,
            "kafka.alerts_topic": alerts,
            "kafka.dead_letter_topic": rejected,
            "state.directory": str(folder / "state"),
            "state.checkpoint_interval_seconds": 1,
            "receivers.hook.url": receiver.url,
            "receivers.hook.tell": "alerts",
            "receivers.hook.secret": SECRET,
            "receivers.hook.allowed_hosts": ["127.0.0.1"],
        }
        producer = open_producer(broker)

        def produce(rows: range) -> None:
            for row in rows:
                for stream in range(STREAMS):
                    partition = stream % PARTITIONS
                    producer.send(topic, fleet.record(row, stream), fleet.names[stream].encode(), partition=partition)

        with Longwatch(folder, settings) as daemon:
            begun = daemon.work_until(
                lambda found: len(found.by("consumer_lag", "partition")) == PARTITIONS, "partitions"
            )
            began = time.monotonic()
            produce(range(ROWS // 2))
            sent = {
                reason: producer.send(topic, raw, b"host-01/load", partition=k % PARTITIONS)
                for k, (reason, raw) in enumerate(GARBAGE.items())
            }
            produce(range(ROWS // 2, ROWS))
            producer.flush(timeout=PATIENCE)
            seconds_to_score = 0.0

            def all_done(found: Samples) -> bool:
                nonlocal seconds_to_score
                seconds_to_score = seconds_to_score or (found("events_scored_total") >= EVENTS) * (
                    time.monotonic() - began
                )
                lag, firing = found.sum("consumer_lag"), found.sum("alerts_total")
                reported = 2 * firing - found("alerts_firing")  # each once as it fires, and those resolved once more
                delivered = found("deliveries_total", receiver="hook", outcome="delivered")
                # An alert is counted as delivered a moment before the outbox is rid of it
                return (
                    bool(seconds_to_score)
                    and lag == 0
                    and delivered == reported
                    and found("outbox_pending", receiver="hook") == 0
                )

            samples = daemon.work_until(all_done, "all events scored, all alerts delivered")
            health = {path: daemon.get(path) for path in ("/livez", "/readyz")}
            status, _ = daemon.terminate()
            log = daemon.log
        committed = committed_offsets(broker, f"group-{name}", topic)
        first = read_topic(broker, scores, PARTITIONS)
        reported, dead = read_topic(broker, alerts), read_topic(broker, rejected)
        delivered, refused = list(receiver.taken), list(receiver.refused)

        with Longwatch(folder, settings) as daemon:
            produce(range(ROWS, ROWS + MORE_ROWS))
            producer.flush(timeout=PATIENCE)
            expected = MORE_ROWS * STREAMS
            again = daemon.work_until(
                lambda found: (
                    found("events_scored_total") >= expected
                    and len(found.by("consumer_lag", "partition")) == PARTITIONS
                    and found.sum("consumer_lag") == 0
                ),
                "the new events scored",
            )
            daemon.terminate()
        producer.close(timeout=PATIENCE)
        both = read_topic(broker, scores, PARTITIONS)
        ends = Counter(record.partition for record in first)
        yield Done(
            fleet=fleet,
            topic=topic,
            garbage={reason: (future.get().partition, future.get().offset) for reason, future in sent.items()},
            begun=begun,
            samples=samples,
            health=health,
            status=status,
            seconds_to_score=seconds_to_score,
            committed=committed,
            scores=[json.loads(record.value) for record in first],
            score_keys=[record.key for record in first],
            alerts=reported,
            rejected=dead,
            delivered=delivered,
            refused=refused,
            again=again,
            more_scores=[json.loads(record.value) for record in both if record.offset >= ends[record.partition]],
            log=log,
        )


def committed_offsets(broker: Broker, group: str, topic: str) -> dict[int, int]:
    consumer = KafkaConsumer(bootstrap_servers=broker.bootstrap, group_id=group, enable_auto_commit=False)
    try:
        return {number: consumer.committed(TopicPartition(topic, number)) for number in range(PARTITIONS)}
    finally:
        consumer.close()


def test_every_event_is_scored_exactly_once(done: Done, capsys: pytest.CaptureFixture[str]) -> None:
    places = by_place(done.scores)
    assert len(done.scores) == len(places) == EVENTS
    assert Counter(len(records) for records in places.values()) == {1: EVENTS}
    named = Counter(record["stream"] for record in done.scores)
    assert named == dict.fromkeys(done.fleet.names, ROWS)
    assert all(key.decode() == record["stream"] for key, record in zip(done.score_keys, done.scores, strict=True))
    with capsys.disabled():
        print(f"\n  {EVENTS:,} events produced, scored and written in {done.seconds_to_score:.1f} s")


def test_a_score_record_matches_its_event(done: Done) -> None:
    fleet = done.fleet
    column = {name: number for number, name in enumerate(fleet.names)}
    rows = dict.fromkeys(fleet.names, 0)
    for record in sorted(done.scores, key=lambda record: (record["partition"], record["offset"])):
        event = json.loads(fleet.record(rows[record["stream"]], column[record["stream"]]))
        rows[record["stream"]] += 1
        assert record["observed"] == event["values"]
        assert (
            record["expected"].keys() == record["lower"].keys() == record["upper"].keys() == record["observed"].keys()
        )
        assert record["topic"] == done.topic


def test_injected_anomalies_score_higher_than_normal_events(done: Done, capsys: pytest.CaptureFixture[str]) -> None:
    fleet = done.fleet
    column = {name: number for number, name in enumerate(fleet.names)}
    score, judged = np.zeros((ROWS, STREAMS)), np.zeros((ROWS, STREAMS), np.bool_)
    rows = dict.fromkeys(fleet.names, 0)
    for record in sorted(done.scores, key=lambda record: (record["partition"], record["offset"])):
        row, stream = rows[record["stream"]], column[record["stream"]]
        rows[record["stream"]] += 1
        score[row, stream], judged[row, stream] = record["score"], not record.get("warming", False)
    spike, onset = fleet.spike[:ROWS], fleet.onset[:ROWS]
    normal = judged & ~(spike | onset | fleet.after[:ROWS])
    figures = {}
    for name, injected in (("spikes", spike), ("first events of a new level", onset), ("both", spike | onset)):
        rows_here = normal | injected
        figures[name] = roc_auc(score[rows_here], injected[rows_here])
    with capsys.disabled():
        reported = ", ".join(f"{name} {figure:.4f}" for name, figure in figures.items())
        print(f"\n  AUC of {int((spike | onset).sum())} injected among {int(normal.sum()):,} normal events: {reported}")
    assert figures["spikes"] > 0.97
    assert figures["both"] > 0.95
    value = np.nan_to_num(np.abs(fleet.values[:ROWS, :, 0] - np.median(fleet.values[:ROWS, :, 0], axis=0)))
    assert np.corrcoef(value[normal | spike], score[normal | spike])[0, 1] > 0, "not the wrong way round"


def test_alerts_reach_topic_and_webhook_under_the_same_ids(done: Done) -> None:
    assert not done.refused, "every signature holds"
    on_topic = alerts_by_id([json.loads(record.value) for record in done.alerts])
    stamped = {dict(record.headers)["webhook-id"].decode(): record for record in done.alerts}
    assert len(stamped) == len(done.alerts) == len(on_topic)
    received = {delivery.id: delivery for delivery in done.delivered}
    assert len(received) == len(done.delivered), "each delivered once"
    assert received.keys() == stamped.keys()
    for name, delivery in received.items():
        assert not difference(delivery.alert, json.loads(stamped[name].value)), name
        assert stamped[name].key.decode() == delivery.alert["stream"]


def test_most_injected_anomalies_alert_and_each_alert_says_what_was_expected(done: Done) -> None:
    fleet = done.fleet
    firing = [json.loads(record.value) for record in done.alerts if b'"firing"' in record.value]
    injected = {fleet.names[stream] for stream in np.flatnonzero(fleet.spike.any(axis=0))}
    assert len(injected & {alert["stream"] for alert in firing}) > 0.9 * len(injected)
    for alert in firing:
        leading = max(alert["contributions"], key=alert["contributions"].get)
        if alert["channel"] == "forecast":
            assert alert["lower"][leading] < alert["expected"][leading] < alert["upper"][leading]
            assert not alert["lower"][leading] <= alert["observed"][leading] <= alert["upper"][leading]
        else:  # it leads by something else than its distance from the forecast: no band is printed
            assert alert["lower"][leading] is alert["upper"][leading] is None
            assert alert["evidence"]
        assert sum(alert["contributions"].values()) == pytest.approx(1)
        assert alert["score"] > alert["threshold"]


def test_invalid_records_go_to_the_dead_letter_topic_with_reason_and_offset(done: Done) -> None:
    assert len(done.rejected) == len(GARBAGE)
    for record in done.rejected:
        headers = {name: value.decode() for name, value in record.headers}
        assert record.value == GARBAGE[headers["reason"]]
        assert headers["topic"] == done.topic
        assert (int(headers["partition"]), int(headers["offset"])) == done.garbage[headers["reason"]]
        assert headers["detail"]


def test_metrics_agree_with_the_outputs(done: Done) -> None:
    found = done.samples
    alerts = [json.loads(record.value) for record in done.alerts]
    firing = Counter(alert["severity"] for alert in alerts if alert["status"] == "firing")
    assert found("events_total") == found("events_scored_total") == EVENTS
    assert found("score_count") == found("end_to_end_latency_seconds_count") == found("batch_events_sum") == EVENTS
    assert found("observations_total") == np.isfinite(done.fleet.values[:ROWS]).sum()
    assert found("streams") == STREAMS
    assert found("lanes") == np.isfinite(done.fleet.values[0]).sum()
    rejected = found.by("events_rejected_total", "reason")
    assert {reason: count for reason, count in rejected.items() if count} == dict.fromkeys(GARBAGE, 1)
    assert found.by("consumer_lag", "partition") == dict.fromkeys(map(str, range(PARTITIONS)), 0)
    assert {name: count for name, count in found.by("alerts_total", "severity").items() if count} == firing
    by_channel = Counter(alert["channel"] for alert in alerts if alert["status"] == "firing")
    assert {name: count for name, count in found.by("alerts_total", "channel").items() if count} == by_channel
    assert found("alerts_firing") == 2 * sum(firing.values()) - len(alerts)
    assert found("deliveries_total", receiver="hook", outcome="delivered") == len(done.delivered)
    assert found("outbox_pending", receiver="hook") == 0
    assert all(count > 0 for count in found.by("step_seconds_count", "stage").values())
    assert found("checkpoint_seconds_count") > 1
    assert abs(found("last_checkpoint_timestamp_seconds") - time.time()) < 600
    assert abs(found("last_loop_timestamp_seconds") - time.time()) < 600
    assert found("score_sum") == pytest.approx(sum(record["score"] for record in done.scores), rel=1e-9)
    assert found("rank_sum") == pytest.approx(sum(record["rank"] for record in done.scores), rel=1e-9)
    for name in ("duplicate", "late"):
        assert found(f"events_{name}_total") == found("events_dropped_total", reason=name) == 0
    assert found("streams_on_two_partitions_total") == 0


def test_every_metric_of_the_design_is_served_and_known_labels_start_at_zero(done: Done) -> None:
    families = done.begun.families
    missing = [name for name in METRICS if f"longwatch_{name}" not in families]
    assert not missing
    begun = done.begun
    assert set(begun.by("alerts_total", "severity")) == {"warning", "critical"}
    assert set(begun.by("alerts_total", "channel")) == set(ALERT_CHANNELS)
    assert GARBAGE.keys() <= begun.by("events_rejected_total", "reason").keys()
    assert set(begun.by("retrain_total", "outcome")) == {"promoted", "rejected", "failed", "skipped"}
    assert set(begun.by("deliveries_total", "outcome")) == {"delivered", "retried", "failed", "dropped"}
    for name in ("alerts_total", "events_rejected_total", "retrain_total", "deliveries_total", "events_total"):
        assert begun.sum(name) == 0
    (model,) = families["longwatch_model_info"].samples
    assert model.labels == {"version": done.scores[0]["model_version"], "cell": "lstm"}
    labels = {label for family in families.values() for sample in family.samples for label in sample.labels}
    assert "stream" not in labels, "no label carries a stream's name"


def test_livez_and_readyz_answer_ok(done: Done) -> None:
    assert done.health["/livez"][0] == 200
    assert done.health["/readyz"] == (200, "scoring\n")


def test_sigterm_drains_and_exits(done: Done) -> None:
    assert done.status == 0
    assert not re.search("Traceback|ERROR", done.log)
    assert sum(done.committed.values()) == EVENTS + len(GARBAGE), "all that was read is committed"


def test_a_restart_after_an_orderly_stop_scores_only_new_events(done: Done) -> None:
    assert done.again("events_scored_total") == len(done.more_scores) == MORE_ROWS * STREAMS
    before = by_place(done.scores).keys()
    assert not before & by_place(done.more_scores).keys()
    assert not any(record.get("warming") for record in done.more_scores), "streams go on as those they were"
    assert done.again.sum("events_rejected_total") == 0

"""What the tests of faults share: workers of one group, a producer that keeps writing, and the results."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import msgspec
from kafka import KafkaConsumer, TopicPartition
from kafka.consumer.fetcher import ConsumerRecord

from connectors.batches import Alert
from detector.config.settings import load_settings
from detector.service.factory import build_daemon
from tests.brokers import Broker
from tests.daemon.fleet import Fleet
from tests.daemon.receiver import SECRET, Receiver
from tests.daemon.records import Record, alerts_by_id, by_place, difference, open_producer, read_lines, read_topic
from tests.daemon.support import PATIENCE, RUN, Longwatch, until

PARTITIONS = 4
SESSION = 6  # s without a heartbeat, after which the group gives a worker's partitions to others


def committed(broker: Broker, topic: str, partitions: int = 1) -> list[ConsumerRecord]:
    """Return what a reader with read_committed sees of a topic, from its beginning to its end as of now."""
    return read_topic(broker, topic, partitions, "read_committed")


def decoded(records: Sequence[ConsumerRecord]) -> list[Record]:
    """Return the records' JSON."""
    return [msgspec.json.decode(record.value) for record in records]


class Topics:
    """The topics of one test, and the settings of its workers."""

    def __init__(self, broker: Broker, folder: Path, name: str, receiver: Receiver | None = None) -> None:
        self.broker, self.folder, self.name, self.receiver = broker, folder, name, receiver
        self.events = broker.create_topic(f"events-{name}", PARTITIONS)
        self.scores = broker.create_topic(f"scores-{name}", 2)
        self.alerts = broker.create_topic(f"alerts-{name}", 2)
        self.changelog = f"group-{name}-{self.events}-changelog"
        self._config = folder / f"{name}.toml"
        self.write_rules(0)

    def write_rules(self, number: int) -> None:
        """Write the file that workers read again: a rule that no stream of the test gets, another by each number."""
        rule = f'[[rules]]\nname = "elsewhere"\nstreams = ["elsewhere-*"]\nthreshold = {5 + number % 7}\n'
        self._config.write_text(rule)

    def settings(self, worker: str, **more: Any) -> dict[str, Any]:
        """Return a worker's settings; its state directory is its own."""
        hook = {}
        if self.receiver is not None:
            hook = {
                "receivers.hook.url": self.receiver.url,
                "receivers.hook.tell": "alerts",
                "receivers.hook.secret": SECRET,
                "receivers.hook.allowed_hosts": ["127.0.0.1"],
                "receivers.hook.retry_base_seconds": 0.2,
            }
        return {
            "kafka.bootstrap_servers": self.broker.bootstrap,
            "kafka.topics": [self.events],
            "kafka.group_id": f"group-{self.name}",
            "kafka.session_timeout_seconds": SESSION,
            "kafka.scores_topic": self.scores,
            "kafka.alerts_topic": self.alerts,
            "kafka.dead_letter_topic": "",
            "kafka.transaction_timeout_seconds": 15,
            "state.directory": str(self.folder / f"{self.name}-{worker}"),
            "state.checkpoint_interval_seconds": 0.5,
            "processing.guarantee": "exactly_once",
            "training.enabled": False,
            "compute.threads": 1,
            **hook,
            **{name.replace("__", "."): value for name, value in more.items()},
        }

    def worker(self, name: str, **more: Any) -> Longwatch:
        """Start a worker."""
        program = (*RUN, "--config", str(self._config))
        return Longwatch(self.folder, self.settings(name, **more), program=program)

    def scored(self) -> list[Record]:
        """Return the committed scores."""
        return decoded(committed(self.broker, self.scores, 2))

    def alerted(self) -> list[Record]:
        """Return the committed alerts."""
        return decoded(committed(self.broker, self.alerts, 2))


class Stream:
    """Writes a fleet's events to the topic, a stream always to the same partition, as far as `until` lets it."""

    def __init__(self, topics: Topics, fleet: Fleet) -> None:
        self.total = fleet.rows * len(fleet.names)
        self._topics, self._fleet = topics, fleet
        self._target = 0
        self._wake, self._stop = threading.Event(), False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.written = 0
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop = True
        self._wake.set()
        self._thread.join(PATIENCE)

    def until(self, events: float) -> None:
        """Let it write until the topic holds so many; returns at once."""
        self._target = min(round(events), self.total)
        self._wake.set()

    def finish(self) -> None:
        """Return when the topic holds all events."""
        self.until(self.total)
        until(lambda: self.written == self.total, "all events are written")

    def _run(self) -> None:
        producer = open_producer(self._topics.broker)
        for number, (stream, record) in enumerate(self._fleet.records()):
            while number >= self._target:
                producer.flush(timeout=PATIENCE)
                self.written = number
                self._wake.wait(0.05)
                self._wake.clear()
                if self._stop:
                    producer.close(timeout=5)
                    return
            key = self._fleet.names[stream].encode()
            producer.send(self._topics.events, record, key, partition=stream % PARTITIONS)
        producer.flush(timeout=PATIENCE)
        self.written = self.total
        producer.close(timeout=PATIENCE)


def scored_events(topics: Topics) -> int:
    """Return how many events of the group have been committed: what its offsets say."""
    consumer = KafkaConsumer(bootstrap_servers=topics.broker.bootstrap, group_id=f"group-{topics.name}")
    try:
        found = [consumer.committed(TopicPartition(topics.events, number)) for number in range(PARTITIONS)]
        return sum(offset or 0 for offset in found)
    finally:
        consumer.close(autocommit=False)


def assert_once(found: Sequence[Record], expected: Sequence[Record]) -> float:
    """Check that each event has one score, and that it is the one it should have; return the largest difference."""
    places, wanted = by_place(found), by_place(expected)
    twice = [place for place, records in places.items() if len(records) > 1]
    assert not twice, f"{len(twice)} events were scored more than once, the first {min(twice)}"
    missing = sorted(wanted.keys() - places.keys())
    assert not missing, f"{len(missing)} events were never scored, the first {missing[0]}"
    assert places.keys() == wanted.keys()
    for place, (record,) in places.items():
        assert not (reported := difference(record, wanted[place][0])), f"{place}: {reported}"
    pairs = [(record["score"], wanted[place][0]["score"]) for place, (record,) in places.items()]
    return float(max(abs(score - other) for score, other in pairs))


def assert_same_alerts(found: Sequence[Record], expected: Sequence[Record]) -> None:
    """Check that the alerts are the same, each once."""
    mine, wanted = alerts_by_id(found), alerts_by_id(expected)
    assert len(mine) == len(found), "each alert is reported once"
    assert mine.keys() == wanted.keys()
    for name, record in mine.items():
        assert not (reported := difference(record, wanted[name])), f"{name}: {reported}"


class Undisturbed:
    """An undisturbed run: scores and alerts of a fleet, made in this process from a file of the same events."""

    def __init__(self, folder: Path, fleet: Fleet) -> None:
        events, scores, alerts = (folder / f"undisturbed-{name}.jsonl" for name in ("events", "scores", "alerts"))
        events.write_bytes(b"\n".join(record for _, record in fleet.records()))
        settings = {
            "source.type": "file",
            "source.paths": f'["{events}"]',
            "state.directory": str(folder / "undisturbed"),
            "compute.device": "cpu",
            "training.enabled": "false",
            "http.port": "0",
            "output.scores_file": str(scores),
            "output.alerts_file": str(alerts),
        }
        build_daemon(
            load_settings(environment={}, overrides=[f"{name}={value}" for name, value in settings.items()])
        ).run()
        self._fleet, self._scores, self._alerts = fleet, read_lines(scores), read_lines(alerts)

    def scores(self, topics: Topics) -> list[Record]:
        """Return the scores as they are of events that `Stream` has written."""
        return [self._placed(record, topics) for record in self._scores]

    def alerts(self, topics: Topics) -> list[Record]:
        """Return the alerts, likewise."""
        return [self._placed(record, topics) for record in self._alerts]

    def _placed(self, record: Record, topics: Topics) -> Record:
        row, stream = divmod(record["offset"], len(self._fleet.names))
        partition = stream % PARTITIONS
        beside = len(range(partition, len(self._fleet.names), PARTITIONS))  # streams of the partition
        offset = row * beside + stream // PARTITIONS
        return record | {"topic": topics.events, "partition": partition, "offset": offset}


def webhook_ids(alerts: Sequence[Record]) -> set[str]:
    """Return the ids under which alerts are sent."""
    return {f"{alert['id']}-{alert['status']}" for alert in alerts}


def alert(number: int) -> Alert:
    return Alert(
        f"id-{number}", "a", "firing", "critical", 1_500_000_000 + number, None, 6.5, 4.0, {"cpu": 9.0}, {"cpu": 1.0},
        {"cpu": 0.0}, {"cpu": 2.0}, {"cpu": 1.0}, "v1", "t", 2, 17,
    )  # fmt: skip

"""Streams that stop, told by the daemon as a process that reads a topic: once, whatever kills it, and no false ones."""

from __future__ import annotations

import json
import sqlite3
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.brokers import Broker
from tests.daemon.records import open_producer, read_topic
from tests.daemon.support import Longwatch, Samples, until

pytestmark = pytest.mark.kafka

START, STEP = 1_790_000_000, 10  # s


class Topic:
    """A topic of events, and the daemon that reads it."""

    def __init__(self, broker: Broker, folder: Path, partitions: int = 1) -> None:
        name = uuid.uuid4().hex[:8]
        self.broker, self.folder, self.partitions = broker, folder, partitions
        self.events = broker.create_topic(f"events-{name}", partitions)
        self.alerts = broker.create_topic(f"alerts-{name}")

    def send(self, streams: Mapping[str, int], first: int, last: int) -> None:
        """Write the events of streams, each to a partition of its own choice, from row `first` up to `last`."""
        with closing(open_producer(self.broker)) as producer:
            for row in range(first, last):
                for stream, partition in streams.items():
                    event = {"stream": stream, "timestamp": START + row * STEP, "values": {"x": row % 7}}
                    producer.send(self.events, json.dumps(event).encode(), stream.encode(), partition=partition)
            producer.flush()

    def daemon(self, **more: Any) -> Longwatch:
        settings = {
            "kafka.bootstrap_servers": self.broker.bootstrap,
            "kafka.topics": [self.events],
            "kafka.group_id": f"group-{self.events}",
            "kafka.scores_topic": "",
            "kafka.alerts_topic": self.alerts,
            "kafka.dead_letter_topic": "",
            "state.directory": str(self.folder / "state"),
            "state.checkpoint_interval_seconds": 0.5,
            "incidents.wait_seconds": 0.5,
            "training.enabled": False,
            "alerting.threshold": 300,
            "alerting.silence": True,
            "alerting.max_silence_seconds": 600,
        }
        return Longwatch(self.folder, settings | {name.replace("__", "."): value for name, value in more.items()})

    def told(self) -> list[dict[str, Any]]:
        return [json.loads(record.value) for record in read_topic(self.broker, self.alerts)]

    def remembered(self) -> list[tuple[str, str, str]]:
        """Return stream, status and channel of all alerts that the dead daemon's directory has."""
        with closing(sqlite3.connect(self.folder / "state" / "incidents.db")) as db:
            return sorted(db.execute("SELECT stream, status, channel FROM alert").fetchall())


def read_to_its_end(topic: Topic) -> Callable[[Samples], bool]:
    """Return what says whether all that was sent has been read."""

    def is_read(found: Samples) -> bool:
        lags = found.by("consumer_lag", "partition")
        return len(lags) == topic.partitions and not any(lags.values())

    return is_read


def counts(told: Sequence[Mapping[str, Any]]) -> dict[str, set[tuple[str, str]]]:
    """Return the ids and states by stream that were told, however often."""
    found: dict[str, set[tuple[str, str]]] = {}
    for alert in told:
        found.setdefault(alert["stream"], set()).add((alert["id"], alert["status"]))
    return found


@pytest.mark.parametrize("moment", ["once it is told", "before it is saved", "long before"])
def test_killed_at_any_time_a_silence_is_told_once_and_ends_once(broker: Broker, tmp_path: Path, moment: str) -> None:
    topic = Topic(broker, tmp_path)
    both, other = {"web-1/cpu": 0, "web-2/cpu": 0}, {"web-2/cpu": 0}
    topic.send(both, 0, 100)
    topic.send(other, 100, 130 if moment == "long before" else 200)
    slow = {"state__checkpoint_interval_seconds": 600} if moment == "before it is saved" else {}
    with topic.daemon(**slow) as daemon:
        daemon.work_until(read_to_its_end(topic), "all is scored")
        if moment != "long before":
            until(topic.told, "the silence is told", every=0.1)
        else:
            until(lambda: daemon.metrics()("events_unsaved") == 0, "it is saved", every=0.1)
        daemon.kill()
    topic.send(other, 130 if moment == "long before" else 200, 260)
    with topic.daemon() as daemon:
        until(lambda: len(counts(topic.told()).get("web-1/cpu", ())) == 1, "the silence is told", every=0.1)
        until(lambda: daemon.metrics()("alerts_firing") == 1, "it fires", every=0.1)
        daemon.kill()
    topic.send(both, 260, 300)
    with topic.daemon() as daemon:
        until(lambda: len(counts(topic.told())["web-1/cpu"]) == 2, "it ends", every=0.1)
        until(lambda: daemon.metrics()("alerts_firing") == 0, "none fires", every=0.1)
        assert daemon.terminate()[0] == 0
    told = topic.told()
    assert set(counts(told)) == {"web-1/cpu"}
    assert len({alert["id"] for alert in told}) == 1
    assert topic.remembered() == [("web-1/cpu", "resolved", "silence")]
    fired, ended = (next(a for a in told if a["status"] == status) for status in ("firing", "resolved"))
    assert fired["summary"] == "no event for 10 min, usual 10 s"
    assert (ended["summary"], ended["resolved_by"]) == ("no event for 27 min, usual 10 s", "back")


def test_a_backlog_and_a_downtime_are_nobodys_silence(broker: Broker, tmp_path: Path) -> None:
    """One partition is read long before the other, and hours pass while the daemon is down."""
    topic = Topic(broker, tmp_path, partitions=2)
    streams = {"a/cpu": 0, "b/cpu": 0, "c/cpu": 1, "d/cpu": 1}
    topic.send(streams, 0, 100)
    with topic.daemon(source__max_poll_records=50) as daemon:
        daemon.work_until(read_to_its_end(topic), "all is scored")
        daemon.kill()
    topic.send({name: p for name, p in streams.items() if p == 0}, 100, 1500)
    topic.send({name: p for name, p in streams.items() if p == 1}, 100, 1500)
    with topic.daemon(source__max_poll_records=50) as daemon:
        daemon.work_until(read_to_its_end(topic), "all is scored")
        time.sleep(3.0)  # read to its end, and not for long enough to be silent
        assert daemon.terminate()[0] == 0
    assert topic.told() == []


def test_once_all_is_read_the_clock_tells_that_all_have_stopped(broker: Broker, tmp_path: Path) -> None:
    topic = Topic(broker, tmp_path)
    streams = {f"rack-1/web-{k}/cpu": 0 for k in range(5)}
    topic.send(streams, 0, 50)

    def is_told(found: Samples) -> bool:
        return found("alerts_firing") == 5 and found("incidents_open") == 1

    with topic.daemon(alerting__max_silence_seconds=15) as daemon:
        daemon.work_until(read_to_its_end(topic), "all is scored")
        until(lambda: is_told(daemon.metrics()), "all five are one incident", every=0.1)
        status, body = daemon.get("/api/v1/incidents?state=open")
        assert status == 200
        (incident,) = json.loads(body)["incidents"]
        assert incident["summary"].startswith("5 streams of rack-1 send nothing any more, such as rack-1/web-")
        daemon.kill()
    with topic.daemon(alerting__max_silence_seconds=15) as daemon:
        until(lambda: is_told(daemon.metrics()), "they still are", every=0.1)
        topic.send(streams, 60, 70)
        until(lambda: daemon.metrics()("alerts_firing") == 0, "they are back", every=0.1)
        assert daemon.terminate()[0] == 0
    found = counts(topic.told())
    assert set(found) == set(streams)
    for told in found.values():  # on a slow machine they have stopped once more by now
        first = next(iter({alert for alert, status in told if status == "resolved"}))
        assert (first, "firing") in told
    assert set(topic.remembered()) >= {(name, "resolved", "silence") for name in streams}

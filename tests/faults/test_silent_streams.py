"""The end of a silent stream's incident is reported once, despite kills, by the worker that owns its partition."""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from connectors.decode.timestamps import parse_time
from detector.config.settings import load_settings
from detector.service.factory import build_daemon
from tests.brokers import Broker
from tests.daemon.records import Record, open_producer
from tests.daemon.support import until
from tests.faults.support import Topics

pytestmark = pytest.mark.kafka

ROWS, STEP, START = 300, 60, 1_790_000_000
INCIDENT = 4  # events


def produce(topics: Topics, stream: str, first: int, values: Sequence[float]) -> None:
    producer = open_producer(topics.broker)
    for row, value in enumerate(values, first):
        record = b'{"stream": "%s", "timestamp": %d, "value": %f}' % (stream.encode(), START + row * STEP, value)
        producer.send(topics.events, record, stream.encode(), partition=0)
    producer.flush()
    producer.close()


def noise(seed: int, rows: int) -> Iterator[float]:
    return iter((10.0 + np.random.default_rng(seed).standard_normal(rows)).tolist())


def of_gone(topics: Topics) -> list[Record]:
    return [alert for alert in topics.alerted() if alert["stream"] == "gone"]


def test_a_silent_streams_incident_ends_once_despite_killed_workers(apache: Broker, tmp_path: Path) -> None:
    topics = Topics(apache, tmp_path, uuid.uuid4().hex[:8])
    more = {"alerting__threshold": 5.0, "state__max_streams": 1}
    produce(topics, "gone", 0, [*noise(1, ROWS), *[500.0] * INCIDENT])
    produce(topics, "other", 0, list(noise(2, ROWS + INCIDENT)))
    with topics.worker("a", **more) as worker:
        until(lambda: len(of_gone(topics)) == 1, "the incident fires", every=0.2)
        until(lambda: len(topics.scored()) == 2 * (ROWS + INCIDENT), "all is scored", every=0.2)
        worker.kill()

    produce(topics, "other", ROWS + INCIDENT, list(noise(3, 60)))  # an hour of the others' time
    with topics.worker("b", **more) as worker:  # with nothing of its own: the changelog says which incidents are open
        until(lambda: len(of_gone(topics)) == 2, "the incident ends", every=0.2)
        worker.kill()
    produce(topics, "other", ROWS + INCIDENT + 60, list(noise(4, 60)))
    with topics.worker("a", **more) as worker:
        until(lambda: len(topics.scored()) == 2 * (ROWS + INCIDENT) + 120, "all is scored", every=0.2)
        assert worker.metrics()("alerts_firing") == 0
        assert worker.terminate()[0] == 0

    fired, resolved = of_gone(topics)
    assert (fired["status"], resolved["status"]) == ("firing", "resolved")
    assert fired["id"] == resolved["id"]
    assert resolved["resolved_by"] == "silence"
    assert "resolved_by" not in fired


def test_without_any_events_the_clock_ends_the_incident(apache: Broker, tmp_path: Path) -> None:
    topics = Topics(apache, tmp_path, uuid.uuid4().hex[:8])
    more = {"alerting__threshold": 5.0, "processing__guarantee": "at_least_once", "http__port": 0}
    settings = topics.settings("a", **more)
    texts = [f"{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in settings.items()]
    daemon = build_daemon(load_settings(environment={}, overrides=texts))
    daemon.incidents._clock = lambda: 600 * time.monotonic()  # ten minutes a second
    produce(topics, "gone", 0, [*noise(1, ROWS), *[500.0] * INCIDENT])
    thread = threading.Thread(target=daemon.run)
    thread.start()
    try:
        until(lambda: len(of_gone(topics)) == 2, "the incident ends", every=0.2)
    finally:
        daemon.stop()
        thread.join()

    fired, resolved = of_gone(topics)
    assert fired["id"] == resolved["id"]
    assert (resolved["status"], resolved["resolved_by"]) == ("resolved", "silence")
    ended = START + (ROWS + INCIDENT - 1) * STEP + 10 * STEP
    assert parse_time(resolved["ended_at"]) == ended * 1_000_000_000

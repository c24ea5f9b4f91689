"""What the README promises: from a topic to an answered alert, and the next one in a real Alertmanager.

By its own settings and commands, with a real broker, and a `kill -9` in the middle.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from kafka import KafkaProducer

from tests.brokers import CHECKOUT, Broker
from tests.connectors.notify.real_alertmanager import Alertmanager, Pager
from tests.daemon.support import RUN, Longwatch, until
from tests.ports import own_port
from tests.tools import NO_ALERTMANAGER, alertmanager

pytestmark = pytest.mark.kafka

README = (CHECKOUT / "README.md").read_text(encoding="utf-8")
FIRST, ADDED = (
    next(text for text in re.findall(r"^```toml\n(.*?)^```$", README, re.M | re.S) if text.startswith(f"# {start}"))
    for start in ("longwatch.toml", "at the end of longwatch.toml")
)
STREAMS = "web-1/cpu", "web-1/requests", "web-2/cpu", "web-2/requests"
KNOWN, STEP = 400, 10  # events of each stream before the first that is out of the ordinary, and s between them


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[Alertmanager]:
    program = alertmanager()
    if program is None:
        pytest.skip(NO_ALERTMANAGER)
    pager = Pager()
    made = Alertmanager(program, tmp_path / "alertmanager", pager)
    try:
        until(made.is_ready, "Alertmanager is ready", every=0.1)
        yield made
    finally:
        made.close()
        pager.server.shutdown()
        pager.server.server_close()


class Topic:
    """A topic that streams send to, in step; some of them out of the ordinary."""

    def __init__(self, broker: Broker) -> None:
        self.name = broker.create_topic(f"metrics-{uuid.uuid4().hex[:8]}", 2)
        self._producer = KafkaProducer(bootstrap_servers=broker.bootstrap, linger_ms=20)
        self._noise, self._sent = np.random.default_rng(8), 0
        self._start = time.time() - KNOWN * STEP

    def send(self, rows: int, wrong: tuple[str, ...] = ()) -> None:
        for _ in range(rows):
            for stream in STREAMS:
                value = 50.0 + self._noise.normal() + (40.0 if stream.startswith(wrong) else 0.0)
                event = {"stream": stream, "timestamp": self._start + self._sent * STEP, "value": round(value, 3)}
                self._producer.send(self.name, json.dumps(event).encode(), key=stream.encode())
            self._sent += 1
        self._producer.flush()

    def close(self) -> None:
        self._producer.close(timeout=60)


def test_from_a_topic_to_an_answered_alert_and_the_next_in_alertmanager(
    broker: Broker, receiver: Alertmanager, tmp_path: Path
) -> None:
    topic, config, port = Topic(broker), tmp_path / "longwatch.toml", own_port()
    text = FIRST.replace("127.0.0.1:9092", broker.bootstrap).replace('"metrics"', f'"{topic.name}"')
    config.write_text(text.replace("/tmp/longwatch", str(tmp_path / "state")) + f"\n[http]\nport = {port}\n\n")
    environ = os.environ | {"LONGWATCH_CONFIG": str(config)}

    def longwatch(*arguments: str) -> str:
        command = [sys.executable, "-m", "detector", *arguments]
        done = subprocess.run(command, cwd=CHECKOUT, env=environ, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def open_incidents() -> list[dict[str, object]]:
        found: list[dict[str, object]] = json.loads(longwatch("alerts", "list", "--state", "open", "--json"))[
            "incidents"
        ]
        return found

    def start() -> Longwatch:
        settings = {
            "http.port": port,
            "kafka.group_id": topic.name,
            "kafka.session_timeout_seconds": 6,
            "incidents.wait_seconds": 1,
        }
        daemon = Longwatch(tmp_path, settings, program=RUN, environ={"LONGWATCH_CONFIG": str(config)})
        daemon.line("Partitions assigned")
        return daemon

    topic.send(KNOWN)
    longwatch("config", "--check")
    try:
        with start() as daemon:
            topic.send(3, wrong=("web-1",))
            (incident,) = until(open_incidents, "an incident is open", every=0.5)
            until(lambda: open_incidents()[0]["streams"] == 2, "both streams of the host are in it", every=0.5)
            shown = longwatch("alerts", "show", str(incident["id"]))
            assert re.search(r"of web-1/\w+\n", shown)
            assert "observed" in shown
            longwatch("mutes", "add", "web-1/*", "--for", "7d", "--reason", "load test")
            assert "web-1/*" in longwatch("mutes", "list")
            daemon.kill()
        with start() as daemon:
            config.write_text(config.read_text() + ADDED.replace("127.0.0.1:9093", f"127.0.0.1:{receiver.port}"))
            assert "receivers" in longwatch("reload")
            assert "took a test alert and its end" in longwatch("alerts", "test")
            topic.send(40)  # all is over
            topic.send(3, wrong=("web-1", "web-2"))
            until(lambda: any(found["labels"]["stream"].startswith("web-2/") for found in receiver.alerts()), "told")
            daemon.terminate()
        told = [found["annotations"] for found in receiver.alerts() if found["labels"]["stream"].startswith("web-2/")]
        assert len(told) == 1, "one notification for both streams"
        assert "web-1/" not in json.dumps(told), "it is muted"
    finally:
        topic.close()

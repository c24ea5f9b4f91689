"""A real Prometheus scrapes a real daemon: what dashboard and rules say while it idles, works, and idles again."""

from __future__ import annotations

import json
import math
import subprocess
import time
import urllib.parse
import urllib.request
import uuid
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from kafka import KafkaProducer

from tests.brokers import Broker
from tests.daemon.support import Longwatch, until
from tests.deploy.paths import RULES, dashboard, panels
from tests.ports import own_port
from tests.tools import NO_PROMETHEUS, prometheus

pytestmark = pytest.mark.kafka

RATE = "5s"  # what stands for Grafana's $__rate_interval: a few scrapes
YEAR = 365.25 * 86_400
WORKING = "sum(rate(longwatch_events_scored_total[5s]))"
# What has no value before something has happened that does not happen in this test
UNTOLD = {"Messages not delivered", "Deliveries", "Outbox"}  # no receiver is set
QUIET = {"Streams in open incidents"}  # young streams without an anomaly
LATE = {"Training loss", "Gradient norm", "Retraining duration", "Age of the model"}


class Answer(NamedTuple):
    """What Prometheus answered to one query of a panel."""

    panel: dict[str, Any]
    expression: str
    values: list[float]


class Server:
    """A Prometheus that scrapes one address every second; use as a context."""

    def __init__(self, program: Path, folder: Path, target: str) -> None:
        address = f"127.0.0.1:{own_port()}"
        configuration = {
            "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(RULES)],
            "scrape_configs": [{"job_name": "longwatch", "static_configs": [{"targets": [target]}]}],
        }
        (folder / "prometheus.yml").write_text(yaml.safe_dump(configuration))
        self._base = f"http://{address}"
        self._log = folder / "prometheus.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [
                    program, f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}",
                    f"--web.listen-address={address}", "--log.level=warn",
                ],
                stdout=log,
                stderr=subprocess.STDOUT,
            )  # fmt: skip

    def __enter__(self) -> Server:
        until(self._is_ready, "Prometheus is ready", every=0.1)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(self._base + path, timeout=240) as answer:
            return json.load(answer)["data"]

    def values(self, expression: str) -> list[float]:
        found = self.get("/api/v1/query?" + urllib.parse.urlencode({"query": expression}))["result"]
        return [float(series["value"][1]) for series in found]

    def answers(self) -> list[Answer]:
        """Ask all that the dashboard asks."""
        filled = [
            (panel, target["expr"].replace("$__rate_interval", RATE).replace("$job", "longwatch"))
            for panel in panels()
            for target in panel["targets"]
        ]
        return [Answer(panel, text, self.values(text.replace("$instance", ".*"))) for panel, text in filled]

    def _is_ready(self) -> bool:
        if self._process.poll() is not None:
            pytest.fail(f"Prometheus ended: {self._log.read_text()}")
        try:
            with urllib.request.urlopen(self._base + "/-/ready", timeout=10) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False


class Seen(NamedTuple):
    """The dashboard's answers, phase by phase, and the rules after all of them."""

    answers: dict[str, list[Answer]]
    rules: list[dict[str, Any]]
    annotations: list[list[float]]


@pytest.fixture(scope="module")
def seen(broker: Broker, tmp_path_factory: pytest.TempPathFactory) -> Seen:
    program = prometheus()
    if program is None:
        pytest.skip(NO_PROMETHEUS)
    folder = tmp_path_factory.mktemp("prometheus")
    topic = broker.create_topic(f"watched-{uuid.uuid4().hex[:12]}", 1)
    broker.create_topic(f"{topic}-alerts", 1)
    broker.create_topic(f"{topic}-rejected", 1)
    settings = {
        "kafka.bootstrap_servers": broker.bootstrap, "kafka.topics": [topic], "kafka.group_id": topic,
        "kafka.alerts_topic": f"{topic}-alerts", "kafka.dead_letter_topic": f"{topic}-rejected",
        "state.directory": str(folder / "state"), "state.checkpoint_interval_seconds": 1,
        "kafka.session_timeout_seconds": 6, "http.stream_scores": ["s0"],
    }  # fmt: skip
    with Longwatch(folder, settings) as daemon:
        target = daemon.line(r"served on http://(127\.0\.0\.1:\d+)/")[1]
        daemon.line("Partitions assigned")
        with Server(program, folder, target) as server:
            answers = {}
            until(lambda: server.values("rate(longwatch_events_scored_total[5s])") == [0.0], "scraped", every=0.2)
            until(lambda: server.values("sum(longwatch_consumer_lag)") == [0.0], "the lag is reported", every=0.2)
            answers["idle"] = server.answers()
            producer = KafkaProducer(bootstrap_servers=broker.bootstrap, linger_ms=5)
            for n in range(100_000):
                event = {"stream": f"s{n % 3}", "timestamp": round(time.time(), 3), "values": {"x": n % 7, "y": n % 5}}
                producer.send(topic, json.dumps(event).encode(), key=b"k")
                if n % 10 == 0:
                    time.sleep(0.05)
                    # a rate over checkpoints too: every panel has had what it needs
                    if n % 100 == 0 and min(server.values("rate(longwatch_checkpoint_seconds_count[5s])")) > 0.5:
                        break
            producer.flush()
            answers["working"] = server.answers()
            producer.close(timeout=240)
            until(lambda: server.values(WORKING) == [0.0], "it idles again", every=0.2)
            answers["idle again"] = server.answers()
            annotations = [
                server.values(annotation["expr"].replace("$job", "longwatch").replace("$instance", ".*"))
                for annotation in dashboard()["annotations"]["list"]
            ]
            rules = [rule for group in server.get("/api/v1/rules")["groups"] for rule in group["rules"]]
        daemon.terminate()
    return Seen(answers, rules, annotations)


@pytest.mark.parametrize("phase", ["idle", "working", "idle again"])
def test_no_panel_shows_nan_or_impossible_values(seen: Seen, phase: str) -> None:
    answers = seen.answers[phase]
    assert [(a.panel["title"], a.values) for a in answers if not all(map(math.isfinite, a.values))] == []
    absurd = [
        (a.panel["title"], value)
        for a in answers
        if a.panel["fieldConfig"]["defaults"].get("unit") == "s"
        for value in a.values
        if not 0 <= value < YEAR
    ]
    assert absurd == []


@pytest.mark.parametrize("phase", ["idle", "working", "idle again"])
def test_a_panel_without_a_value_shows_a_text(seen: Seen, phase: str) -> None:
    empty = [a.panel for a in seen.answers[phase] if not a.values and not a.expression.endswith("> 0")]
    assert [panel["title"] for panel in empty if not panel["fieldConfig"]["defaults"].get("noValue")] == []
    if phase == "working":
        assert {panel["title"] for panel in empty} == LATE | UNTOLD | QUIET


def test_no_retraining_is_not_shown_as_a_perfect_one(seen: Seen) -> None:
    shown = [(a.panel["title"], a.values) for answers in seen.answers.values() for a in answers if a.values]
    assert [(title, values) for title, values in shown if title in LATE] == []


def test_the_delay_is_zero_while_nothing_waits(seen: Seen) -> None:
    (behind,) = [a.values for a in seen.answers["idle"] if a.panel["title"] == "Behind"]
    assert behind == [0.0]


def test_prometheus_evaluates_every_rule_and_none_fires_for_a_healthy_daemon(seen: Seen) -> None:
    assert {rule["health"] for rule in seen.rules} == {"ok"}
    firing = {rule["name"] for rule in seen.rules if rule["state"] == "firing"}
    assert firing <= {"LongwatchAnomaly"}
    assert seen.annotations[0] == []  # a start is no change of model

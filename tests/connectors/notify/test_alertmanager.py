"""The real Alertmanager: told by longwatch itself, and by a real Prometheus with the rules that ship."""

from __future__ import annotations

import json
import subprocess
import threading
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from prometheus_client import start_http_server

from connectors.notify import alertmanager as receiver_module
from connectors.notify.dispatcher import Dispatcher
from connectors.notify.settings import ReceiverSettings
from detector.observability.metrics import Metrics
from tests.connectors.notify.incidents import incident, told
from tests.daemon.support import until
from tests.deploy.paths import RULES
from tests.ports import own_port
from tests.tools import ALERTMANAGER_FOLDER, NO_ALERTMANAGER, NO_PROMETHEUS, alertmanager, prometheus


class Pager:
    """What Alertmanager notifies: the groups that it sends."""

    def __init__(self) -> None:
        self.groups: list[dict[str, Any]] = []
        pager = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                pager.groups.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()


class Alertmanager:
    """One replica, on its own; it notifies a pager soon."""

    def __init__(self, program: Path, folder: Path, pager: Pager) -> None:
        self.port = own_port()
        configuration = {
            "route": {
                "receiver": "pager", "group_by": ["alertname", "incident"], "group_wait": "0s",
                "group_interval": "1s", "repeat_interval": "1h",
            },
            "receivers": [{
                "name": "pager",
                "webhook_configs": [{"url": f"http://127.0.0.1:{pager.server.server_port}/", "send_resolved": True}],
            }],
        }  # fmt: skip
        folder.mkdir()
        (folder / "alertmanager.yml").write_text(yaml.safe_dump(configuration))
        self.log = folder / "log"
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [
                    program, f"--config.file={folder / 'alertmanager.yml'}", f"--storage.path={folder / 'data'}",
                    f"--web.listen-address=127.0.0.1:{self.port}", "--cluster.listen-address=",
                ],
                stdout=log, stderr=subprocess.STDOUT,
                cwd=ALERTMANAGER_FOLDER if ALERTMANAGER_FOLDER.is_dir() else None,
            )  # fmt: skip

    def alerts(self) -> list[dict[str, Any]]:
        """Return what it believes is active."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/api/v2/alerts", timeout=60) as answer:
            found: list[dict[str, Any]] = json.load(answer)
        return found

    def is_ready(self) -> bool:
        if self._process.poll() is not None:
            pytest.fail(f"Alertmanager ended: {self.log.read_text()}")
        try:
            return self.alerts() == []
        except OSError:
            return False

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


@pytest.fixture
def pager() -> Iterator[Pager]:
    made = Pager()
    yield made
    made.server.shutdown()
    made.server.server_close()


@pytest.fixture
def replicas(tmp_path: Path, pager: Pager) -> Iterator[list[Alertmanager]]:
    program = alertmanager()
    if program is None:
        pytest.skip(NO_ALERTMANAGER)
    made = [Alertmanager(program, tmp_path / f"am{n}", pager) for n in range(2)]
    try:
        for one in made:
            until(one.is_ready, "Alertmanager is ready", every=0.1)
        yield made
    finally:
        for one in made:
            one.close()


def test_alertmanager_notifies_once_as_an_incident_opens_and_once_as_it_is_over(
    replicas: list[Alertmanager], pager: Pager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(receiver_module.Alertmanager, "remind_seconds", 0.5)
    url = " ".join(f"http://127.0.0.1:{one.port}" for one in replicas)
    settings = ReceiverSettings.model_validate({"type": "alertmanager", "url": url, "allowed_hosts": ["127.0.0.1"]})
    dispatcher = Dispatcher({"am": settings}, tmp_path, "https://longwatch.example.com")
    began = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    try:
        dispatcher.tell([told(incident(started_at=began))])
        until(lambda: all(len(one.alerts()) == 1 for one in replicas))
        until(lambda: len(pager.groups) == 2)  # one from each replica: they know nothing of each other here
        first = [one.alerts()[0] for one in replicas]
        dispatcher.tell([told(incident(2, streams=5, started_at=began))])
        until(lambda: all(one.alerts()[0]["annotations"]["streams"] == "5" for one in replicas))
        until(lambda: all(one.alerts()[0]["endsAt"] > was["endsAt"] for one, was in zip(replicas, first, strict=True)))
        over = msgspec.structs.replace(incident(3, "resolved", streams=5), started_at=began)
        dispatcher.tell([told(over)])
        until(lambda: all(one.alerts() == [] for one in replicas))
        until(lambda: [group["status"] for group in pager.groups].count("resolved") == 2)
    finally:
        dispatcher.close()
    labels = first[0]["labels"]
    assert labels == {
        "alertname": "LongwatchAnomaly", "incident": "a0", "severity": "warning", "source": "longwatch",
        "stream": incident().stream,
    }  # fmt: skip
    assert first[0]["generatorURL"] == "https://longwatch.example.com/#/incidents/a0"
    assert first[0]["startsAt"].startswith(began.removesuffix("Z"))
    assert [group["status"] for group in pager.groups].count("firing") == 2, "it grew, and nobody was woken again"


def test_prometheus_with_the_rules_that_ship_tells_alertmanager_which_streams(
    replicas: list[Alertmanager], pager: Pager, tmp_path: Path
) -> None:
    program = prometheus()
    if program is None:
        pytest.skip(NO_PROMETHEUS)
    metrics, port = Metrics("0.1.0"), own_port()
    firing = [("a0", 'rack-3/web-1/"cpu"', "critical"), ("a0", "rack-3/web-2/cpu", "critical")]
    metrics.incident_firing.set_function(lambda: [(labels, 1.0) for labels in firing])
    scraped, thread = start_http_server(port, "127.0.0.1", metrics.registry)
    configuration = {
        "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(RULES)],
        "alerting": {"alertmanagers": [{"static_configs": [{"targets": [f"127.0.0.1:{replicas[0].port}"]}]}]},
        "scrape_configs": [{"job_name": "longwatch", "static_configs": [{"targets": [f"127.0.0.1:{port}"]}]}],
    }
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(configuration))
    with (tmp_path / "prometheus.log").open("wb") as log:
        server = subprocess.Popen(
            [
                program, f"--config.file={tmp_path / 'prometheus.yml'}", f"--storage.tsdb.path={tmp_path / 'data'}",
                f"--web.listen-address=127.0.0.1:{own_port()}", "--log.level=warn",
            ],
            stdout=log, stderr=subprocess.STDOUT,
        )  # fmt: skip
    try:
        until(lambda: any(alert["labels"]["alertname"] == "LongwatchAnomaly" for alert in replicas[0].alerts()))
        (alert,) = (a for a in replicas[0].alerts() if a["labels"]["alertname"] == "LongwatchAnomaly")
        firing.clear()
        until(lambda: any(group["status"] == "resolved" for group in pager.groups))
    finally:
        server.kill()
        server.wait()
        scraped.shutdown()
        scraped.server_close()
        thread.join()
    assert alert["labels"]["incident"] == "a0"
    assert 'rack-3/web-1/"cpu" (critical), rack-3/web-2/cpu (critical)' in alert["annotations"]["description"]

"""The real Alertmanager: told by longwatch itself, and by a real Prometheus with the rules that ship."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest
import yaml
from prometheus_client import start_http_server

from connectors.notify import alertmanager as receiver_module
from connectors.notify.dispatcher import Dispatcher
from connectors.notify.settings import ReceiverSettings
from detector.observability.metrics import Metrics
from tests.connectors.notify.incidents import incident, told
from tests.connectors.notify.real_alertmanager import Alertmanager, Pager
from tests.daemon.support import until
from tests.deploy.paths import RULES
from tests.ports import own_port
from tests.tools import NO_ALERTMANAGER, NO_PROMETHEUS, alertmanager, prometheus


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


def test_events_ahead_of_our_clock_are_told_at_once_and_end_with_the_rest(
    replicas: list[Alertmanager], tmp_path: Path
) -> None:
    url = f"http://127.0.0.1:{replicas[0].port}"
    settings = ReceiverSettings.model_validate({"type": "alertmanager", "url": url, "allowed_hosts": ["127.0.0.1"]})
    dispatcher = Dispatcher({"am": settings}, tmp_path, "")
    ahead = (datetime.now(UTC) + timedelta(days=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
    try:
        dispatcher.tell([told(incident(started_at=ahead))])
        until(lambda: len(replicas[0].alerts()) == 1)
        dispatcher.tell([told(msgspec.structs.replace(incident(2, "resolved"), started_at=ahead))])
        until(lambda: replicas[0].alerts() == [])
    finally:
        dispatcher.close()


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

"""Alertmanager's API v2, and what speaks its webhooks' language.

Alertmanager believes that an alert is over if it does not hear of it: what fires is told again every minute, to every
replica, with an `endsAt` some minutes ahead; what has resolved is told for some minutes too, so that a replica that was
away hears of it. An alert is its labels: they never change while the incident lasts, but for the severity as it rises,
and then the former one is told to be over.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec

from connectors.json_records import IncidentRecord
from connectors.notify.client import Client, DeliveryResult
from connectors.notify.outbox import Message
from connectors.notify.receivers import Forgetful, Memory, link_of, read_record
from connectors.notify.settings import ReceiverSettings

REMIND_SECONDS = 60.0
ENDS_SECONDS = 4 * REMIND_SECONDS  # as Prometheus does: three reminders may be lost
RESOLVED_SECONDS = 300.0  # for so long it is told that an incident is over
OPEN_SECONDS = 40 * 86_400.0  # for so long that it is open: a little longer than anyone remembers it
PATH = "/api/v2/alerts"
ALERTNAME, SOURCE = "LongwatchAnomaly", "longwatch"
STREAMS_NAMED = 20
MAX_TOGETHER = 64  # alerts of one request


def labels_of(record: IncidentRecord, severity: str) -> dict[str, str]:
    """Return what identifies an incident to Alertmanager."""
    return {
        "alertname": ALERTNAME,
        "incident": record.id,
        "severity": severity,
        "source": SOURCE,
        "stream": record.stream,  # of its first alert
    }


def annotations_of(record: IncidentRecord) -> dict[str, str]:
    """Return what people read."""
    lines = [f"{alert.severity} {alert.stream}: {alert.summary}" for alert in record.alerts[:STREAMS_NAMED]]
    more = len(record.alerts) - len(lines) + record.alerts_left_out
    return {
        "summary": record.summary,
        "description": "\n".join([*lines, f"and {more:,} more alerts"] if more else lines),
        "streams": f"{record.streams}",
    }


def posted(record: IncidentRecord, link: str, now: float, ended: float | None = None) -> list[dict[str, Any]]:
    """Return an incident as the API takes it; `now` and when it was told to be over are Unix times, s."""
    resolved = record.state == "resolved"
    over = _rfc3339((ended or now) if resolved else now)
    alert: dict[str, Any] = {
        "labels": labels_of(record, record.severity),
        "annotations": annotations_of(record),
        # the API refuses what ends before it begins: the events' clock may be ahead of ours
        "startsAt": min(record.started_at, over),
        "endsAt": over if resolved else _rfc3339(now + ENDS_SECONDS),
    }
    if link:
        alert["generatorURL"] = link
    if record.severity == record.first_severity:
        return [alert]
    former = alert | {"labels": labels_of(record, record.first_severity)}
    former["endsAt"] = over
    return [alert, former]


def _rfc3339(unix: float) -> str:
    return datetime.fromtimestamp(unix, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


class _Standing(msgspec.Struct):
    """What is told again and again."""

    record: IncidentRecord
    ended: float | None = None  # Unix time, s, at which it was told to be over


class Alertmanager:
    """All replicas of one Alertmanager."""

    remind_seconds = REMIND_SECONDS
    retry_cap_seconds = REMIND_SECONDS

    def __init__(self, name: str, settings: ReceiverSettings, external_url: str) -> None:
        """`external_url`: where people find the page, empty: not known. Raises ValueError."""
        self._clients = [Client(name, settings, url) for url in settings.urls()]
        self._external_url = external_url
        self.place = ", ".join(str(client.endpoint) for client in self._clients)

    def deliver(self, message: Message, memory: Memory) -> DeliveryResult:
        """Tell every replica; one that takes it is enough, the others hear of it with the next reminder."""
        record, now = read_record(message), time.time()
        resolved = record.state == "resolved"
        standing = _Standing(record, now if resolved else None)
        result = self._post(posted(record, link_of(self._external_url, record), now, standing.ended))
        if result.delivered:
            kept = msgspec.json.encode(standing)
            memory.remember(record.id, kept, RESOLVED_SECONDS if resolved else OPEN_SECONDS)
        return result

    def remind(self, memory: Memory) -> DeliveryResult | None:
        """Tell every replica what fires, and what has resolved of late."""
        now, alerts = time.time(), list[dict[str, Any]]()
        for value in memory.recall().values():
            standing = msgspec.json.decode(value, type=_Standing)
            alerts += posted(standing.record, link_of(self._external_url, standing.record), now, standing.ended)
        results = [self._post(alerts[at : at + MAX_TOGETHER]) for at in range(0, len(alerts), MAX_TOGETHER)]
        return next((result for result in results if not result.delivered), results[0] if results else None)

    def end(self) -> None:
        """Cancel the attempt in progress and every later one; thread-safe."""
        for client in self._clients:
            client.end()

    def _post(self, alerts: Sequence[dict[str, Any]]) -> DeliveryResult:
        body = msgspec.json.encode(alerts)
        results = [client.post(body, path="" if client.endpoint.target.endswith(PATH) else PATH)
                   for client in self._clients]  # fmt: skip
        return next((result for result in results if result.delivered), results[0])


class AlertmanagerWebhook(Forgetful):
    """The webhook that Alertmanager itself sends, version 4."""

    def deliver(self, message: Message, memory: Memory) -> DeliveryResult:
        """Make one attempt."""
        return self._client.post(msgspec.json.encode(webhook_v4(read_record(message), self._external_url)))


def webhook_v4(record: IncidentRecord, external_url: str) -> dict[str, Any]:
    """Return an incident in the shape of Alertmanager's webhooks: a group of one alert."""
    resolved = record.state == "resolved"
    status, labels, link = "resolved" if resolved else "firing", labels_of(record, record.severity), ""
    link = link_of(external_url, record)
    annotations = annotations_of(record)
    alert = {
        "status": status,
        "labels": labels,
        "annotations": annotations,
        "startsAt": record.started_at,
        "endsAt": record.ended_at if resolved else "0001-01-01T00:00:00Z",
        "generatorURL": link,
        "fingerprint": record.id[:16],
    }
    group = {"alertname": ALERTNAME, "incident": record.id}
    return {
        "version": "4",
        "groupKey": f'{{}}:{{alertname="{ALERTNAME}", incident="{record.id}"}}',
        "truncatedAlerts": 0,
        "status": status,
        "receiver": SOURCE,
        "groupLabels": group,
        "commonLabels": labels,
        "commonAnnotations": annotations,
        "externalURL": external_url,
        "alerts": [alert],
    }

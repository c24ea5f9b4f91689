"""PagerDuty's Events API v2: an incident triggers once, is updated, and resolves, under one key."""

from __future__ import annotations

from typing import Any

import msgspec
from pydantic import SecretStr

from connectors.json_records import IncidentRecord
from connectors.notify.client import DeliveryResult
from connectors.notify.outbox import Message
from connectors.notify.receivers import Forgetful, Memory, fewer_alerts, read_record
from connectors.notify.settings import ReceiverSettings

MAX_SUMMARY = 1024  # characters, as the API says
MAX_SOURCE = 1024
MAX_BYTES = 400_000  # of a request; the API refuses 512 KB
ALERTS_SHOWN = 20


class PagerDuty(Forgetful):
    """One service, by its integration key."""

    def __init__(self, name: str, settings: ReceiverSettings, external_url: str) -> None:
        super().__init__(name, settings, external_url)
        self._key: SecretStr = settings.routing_key

    def deliver(self, message: Message, memory: Memory) -> DeliveryResult:
        """Make one attempt."""
        record = read_record(message)
        event = {"routing_key": self._key.get_secret_value(), **event_body(record, self.link(record))}
        return self._client.post(msgspec.json.encode(event))


def event_body(record: IncidentRecord, link: str) -> dict[str, Any]:
    """Return the event without its key."""
    if record.state == "resolved":
        return {"event_action": "resolve", "dedup_key": record.id}
    shown = fewer_alerts(record, ALERTS_SHOWN)
    body: dict[str, Any] = {
        "event_action": "trigger",
        "dedup_key": record.id,
        "client": "longwatch",
        "payload": {
            "summary": record.summary[:MAX_SUMMARY],
            "source": record.stream[:MAX_SOURCE] or "longwatch",
            "severity": record.severity,
            "timestamp": record.started_at,
            "component": record.stream[:MAX_SOURCE],
            "class": record.alerts[0].channel if record.alerts else "",
            "custom_details": {
                "streams": record.streams,
                "firing": record.firing,
                "score": round(record.score, 3),
                "alerts": [f"{one.severity} {one.stream}: {one.summary}"[:MAX_SUMMARY] for one in shown.alerts],
                "alerts_left_out": shown.alerts_left_out,
            },
        },
    }
    if link:
        body |= {"client_url": link, "links": [{"href": link, "text": "The incident in longwatch"}]}
    return body

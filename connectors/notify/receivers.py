"""What the courier needs of a receiver, and the one for webhooks."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any, Protocol

import msgspec

from connectors.json_records import IncidentMessage, IncidentRecord
from connectors.notify.client import Client, DeliveryResult
from connectors.notify.outbox import ALERT, Message
from connectors.notify.settings import ReceiverSettings, parse_secrets
from connectors.notify.standard_webhooks import MAX_BODY_BYTES, sign
from connectors.notify.template import NAMES, Template


class Memory(Protocol):
    """What a receiver remembers of incidents, on disk."""

    def recall(self) -> Mapping[str, bytes]:
        """Return it by incident."""

    def remember(self, incident: str, value: bytes, seconds: float) -> None:
        """Keep it for so long."""


class Receiver(Protocol):
    """Delivers messages to one place, one at a time."""

    place: str  # for the log: what of its URL may be shown, and how
    remind_seconds: float  # between two calls of `remind`; infinite: there are none
    retry_cap_seconds: float  # the longest wait between two attempts

    def deliver(self, message: Message, memory: Memory) -> DeliveryResult:
        """Make one attempt, in at most `timeout_seconds` for each request."""

    def remind(self, memory: Memory) -> DeliveryResult | None:
        """Tell again what has to be told again and again; None: nothing has."""

    def end(self) -> None:
        """Cancel the attempt in progress and every later one; thread-safe."""


RETRY_CAP_SECONDS = 1800.0  # so late an alert may come after an outage of hours or days, at two requests an hour


class Forgetful:
    """What receivers have in common that need not be reminded, of one URL."""

    remind_seconds = math.inf
    retry_cap_seconds = RETRY_CAP_SECONDS

    def __init__(self, name: str, settings: ReceiverSettings, external_url: str) -> None:
        """`external_url`: where people find the page, empty: not known. Raises ValueError."""
        self._client = Client(name, settings, settings.urls()[0])
        self._external_url = external_url
        self.place = str(self._client.endpoint)

    def remind(self, memory: Memory) -> DeliveryResult | None:
        """Do nothing."""
        return None

    def end(self) -> None:
        """Cancel the attempt in progress and every later one; thread-safe."""
        self._client.end()

    def link(self, record: IncidentRecord) -> str:
        """Return the address of an incident's page, empty where that is not known."""
        return link_of(self._external_url, record)


def link_of(external_url: str, record: IncidentRecord) -> str:
    """Return the address of an incident's page, empty where that is not known."""
    return f"{external_url.rstrip('/')}/#/incidents/{record.id}" if external_url else ""


def event_of(record: IncidentRecord) -> str:
    """Return what is told: "opened", "updated" or "resolved"."""
    return "resolved" if record.state == "resolved" else "opened" if record.revision <= 1 else "updated"


def read_record(message: Message) -> IncidentRecord:
    """Return the incident in a message."""
    return msgspec.json.decode(message.body, type=IncidentRecord)


def values_of(record: IncidentRecord, event: str, link: str) -> dict[str, Any]:
    """Return what a template may name; `event` is opened, updated or resolved, `link` the incident's page."""
    known = {name: getattr(record, name) for name in NAMES if hasattr(record, name)}
    return known | {"event": event, "link": link}


class Webhook(Forgetful):
    """Standard Webhooks: JSON of longwatch's own, or by a template, signed."""

    def __init__(self, name: str, settings: ReceiverSettings, external_url: str) -> None:
        super().__init__(name, settings, external_url)
        self._keys = parse_secrets(settings.secret.get_secret_value())
        self._template = Template(settings.template) if settings.template else None
        self.place += ", signed" if self._keys else f", unsigned, since receivers.{name}.secret is empty"

    def deliver(self, message: Message, memory: Memory) -> DeliveryResult:
        """Make one attempt."""
        body = message.body if message.kind == ALERT else self._body(read_record(message))
        timestamp, message_id = int(time.time()), message.id
        headers = {"webhook-id": message_id, "webhook-timestamp": str(timestamp)}
        if self._keys:
            headers["webhook-signature"] = sign(self._keys, message_id, timestamp, body)
        return self._client.post(body, headers)

    def _body(self, record: IncidentRecord) -> bytes:
        event = event_of(record)
        if self._template is not None:
            return msgspec.json.encode(self._template.body(values_of(record, event, self.link(record))))
        return incident_body(record)


def incident_body(record: IncidentRecord) -> bytes:
    """Return an incident's message as JSON, with as many of its alerts as MAX_BODY_BYTES have room for."""
    kind: str = f"incident.{event_of(record)}"
    while True:
        message = IncidentMessage(
            type=kind,  # type: ignore[arg-type]  # one of three
            timestamp=record.ended_at or record.started_at,
            data=record,
        )
        body = msgspec.json.encode(message)
        if len(body) <= MAX_BODY_BYTES or len(record.alerts) <= 1:
            return body
        record = fewer_alerts(record, len(record.alerts) // 2)


def fewer_alerts(record: IncidentRecord, count: int) -> IncidentRecord:
    """Return an incident with so many of its alerts, the worst."""
    left_out = record.alerts_left_out + max(len(record.alerts) - count, 0)
    return msgspec.structs.replace(record, alerts=record.alerts[:count], alerts_left_out=left_out)

"""An alert as a message of Standard Webhooks: its id, its body and its signature."""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import replace
from typing import Any
from urllib.parse import quote

import msgspec

from connectors.batches import Alert
from connectors.encode import alert_fields
from connectors.json_records import WebhookMessage

MAX_BODY_BYTES = 20_000  # what Standard Webhooks tells receivers to expect
MAX_ID_CHARACTERS = 200  # a header that every server takes


def sign(keys: Sequence[bytes], message_id: str, timestamp: int, body: bytes) -> str:
    """Return the `webhook-signature` header: HMAC-SHA256 over id.timestamp.body by every key, separated by spaces."""
    content = f"{message_id}.{timestamp}.".encode() + body
    digests = (hmac.new(key, content, hashlib.sha256).digest() for key in keys)
    return " ".join("v1," + base64.b64encode(digest).decode() for digest in digests)


def webhook_id(alert: Alert) -> str:
    """Return the id that an alert's message keeps through retries, crashes and replays: its id and status."""
    return header_id(f"{alert.id}-{alert.status}")


def header_id(text: str) -> str:
    """Return a message's id as a header takes it.

    A header must be ASCII, and the signature's scheme forbids full stops (they separate what is signed), so other
    characters are percent-encoded; a long id is cut and made unique again by its hash.
    """
    text = quote(text, safe="/:@+,=").replace(".", "%2E")
    if len(text) <= MAX_ID_CHARACTERS:
        return text
    digest = hashlib.sha256(text.encode()).hexdigest()
    return f"{text[: MAX_ID_CHARACTERS - 65]}-{digest}"


def webhook_body(alert: Alert) -> bytes:
    """Return the message's JSON.

    It depends on the alert alone. Where features are so many that it would be over MAX_BODY_BYTES, those with the
    largest contributions are kept and `features_left_out` counts the others.
    """
    body = _envelope(alert)
    kept = len(alert.observed)
    while len(body) > MAX_BODY_BYTES and kept > 1:
        kept //= 2
        body = _envelope(leading_features(alert, kept))
    return body


def _envelope(alert: Alert) -> bytes:
    record = alert_fields(alert)
    message = WebhookMessage(
        type="alert.firing" if alert.status == "firing" else "alert.resolved",
        timestamp=record.ended_at or record.started_at,
        features_left_out=alert.features_left_out,
        data=record,
    )
    return msgspec.json.encode(message)


def leading_features(alert: Alert, count: int) -> Alert:
    """Return an alert with so many of its features, those with the largest contributions."""
    names = sorted(alert.observed, key=lambda name: -alert.contributions.get(name, 0.0))[:count]
    by_feature: dict[str, Any] = {
        field: {name: values[name] for name in names if name in values}
        for field in Alert.__slots__
        if field != "evidence" and isinstance(values := getattr(alert, field), dict)
    }
    left_out = alert.features_left_out + len(alert.observed) - len(names)
    return replace(alert, **by_feature, features_left_out=left_out)

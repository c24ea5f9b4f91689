"""A test alert through each receiver, so that people know before it matters."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import msgspec

from connectors.encode import rfc3339_of
from connectors.json_records import IncidentAlert, IncidentRecord
from connectors.notify.dispatcher import make_receiver
from connectors.notify.outbox import INCIDENT, Message
from connectors.notify.settings import ReceiverSettings

STREAM = "longwatch/test"
TEXT = "a test of this receiver, nothing is wrong"


class Tried(NamedTuple):
    """What came of a receiver's test."""

    receiver: str
    place: str  # for people: what of its URL may be shown
    problem: str  # empty: it took the test


class _InMemory:
    """What a receiver remembers, for the test's time."""

    def __init__(self) -> None:
        self._values: dict[str, bytes] = {}

    def recall(self) -> Mapping[str, bytes]:
        return self._values

    def remember(self, incident: str, value: bytes, seconds: float) -> None:
        self._values[incident] = value


def try_receivers(
    receivers: Mapping[str, ReceiverSettings], only: str | None = None, external_url: str = ""
) -> Iterator[Tried]:
    """Send a test incident that opens and resolves at once to each receiver, or to one; not through the outbox.

    Raises ValueError where there is none of that name.
    """
    if only is not None and only not in receivers:
        known = ", ".join(receivers) or "none is set"
        raise ValueError(f"there is no receiver {only:.40}: expected one of {known}")
    for name, settings in receivers.items():
        if only in {None, name}:
            yield _tried(name, settings, external_url)


def _tried(name: str, settings: ReceiverSettings, external_url: str) -> Tried:
    receiver, memory = make_receiver(name, settings, external_url), _InMemory()
    for record in _records(time.time_ns()):
        message_id = f"{record.id}-{record.revision}"
        body = msgspec.json.encode(record)
        result = receiver.deliver(Message(0, message_id, INCIDENT, record.id, body, time.time(), 0), memory)
        if not result.delivered:
            return Tried(name, receiver.place, result.reason or f"it answered {result.status}")
    return Tried(name, receiver.place, "")


def _records(now: int) -> Iterator[IncidentRecord]:
    """Yield the test's states."""
    began, incident_id = rfc3339_of(now), f"test-{uuid.uuid4().hex[:12]}"
    alert = IncidentAlert(
        id=incident_id, stream=STREAM, status="firing", severity="warning", started_at=began, ended_at=None, score=0.0,
        channel="", summary=TEXT,
    )  # fmt: skip
    opened = IncidentRecord(
        id=incident_id, state="open", severity="warning", first_severity="warning", summary=f"{STREAM}: {TEXT}",
        stream=STREAM, started_at=began, ended_at=None, score=0.0, streams=1, firing=1, revision=1, alerts=[alert],
    )  # fmt: skip
    yield opened
    ended = rfc3339_of(now + 1_000_000)
    over = msgspec.structs.replace(alert, status="resolved", ended_at=ended)
    yield msgspec.structs.replace(opened, state="resolved", ended_at=ended, firing=0, revision=2, alerts=[over])

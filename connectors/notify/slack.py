"""Slack: a message for each incident that is updated as it goes on, or new ones by an incoming webhook."""

from __future__ import annotations

from typing import Any

import msgspec

from connectors.json_records import IncidentRecord
from connectors.notify.client import DeliveryResult
from connectors.notify.outbox import Message
from connectors.notify.receivers import Forgetful, Memory, event_of, read_record
from connectors.notify.settings import ReceiverSettings

POST, UPDATE = "/chat.postMessage", "/chat.update"
MAX_TEXT = 3_000  # characters of a section, as the API says
MAX_HEADER = 150
ALERTS_SHOWN = 10
REMEMBER_SECONDS = 40 * 86_400.0
# What the API answers with 200 and an error, as the status that says the same
_STATUS = {
    "ratelimited": 429, "rate_limited": 429, "internal_error": 500, "fatal_error": 500, "service_unavailable": 503,
    "request_timeout": 503, "team_added_to_org": 503,
}  # fmt: skip
_GONE = frozenset({"message_not_found", "cant_update_message", "edit_window_closed"})  # then it is posted anew
_SIGNS = {"critical": ":red_circle:", "warning": ":large_yellow_circle:"}


class _Answer(msgspec.Struct):
    ok: bool
    error: str = ""
    ts: str = ""
    channel: str = ""


class _Place(msgspec.Struct):
    """Where an incident's message is."""

    channel: str
    ts: str


class Slack(Forgetful):
    """One channel."""

    def __init__(self, name: str, settings: ReceiverSettings, external_url: str) -> None:
        super().__init__(name, settings, external_url)
        self._token, self._channel = settings.token, settings.channel

    def deliver(self, message: Message, memory: Memory) -> DeliveryResult:
        """Make one attempt."""
        record = read_record(message)
        shown = content(record, self.link(record))
        if not self._token.get_secret_value():
            return self._client.post(msgspec.json.encode(shown))
        known = memory.recall().get(record.id)
        if known is not None:
            place = msgspec.json.decode(known, type=_Place)
            result, answer = self._call(UPDATE, shown | {"channel": place.channel, "ts": place.ts})
            if answer.error not in _GONE:
                return result
        result, answer = self._call(POST, shown | {"channel": self._channel})
        if result.delivered and answer.ts:
            place = _Place(answer.channel or self._channel, answer.ts)
            memory.remember(record.id, msgspec.json.encode(place), REMEMBER_SECONDS)
        return result

    def _call(self, method: str, body: dict[str, Any]) -> tuple[DeliveryResult, _Answer]:
        """Call a method, and return the result with the status that its answer means."""
        headers = {
            "authorization": f"Bearer {self._token.get_secret_value()}",
            "content-type": "application/json; charset=utf-8",
        }
        result = self._client.post(msgspec.json.encode(body), headers, method, answers=True)
        if not result.delivered:
            return result, _Answer(ok=False)
        try:
            answer = msgspec.json.decode(result.body, type=_Answer)
        except msgspec.MsgspecError:
            return DeliveryResult(502, "its answer is not Slack's"), _Answer(ok=False)
        if answer.ok:
            return result, answer
        status = _STATUS.get(answer.error, 400)
        return DeliveryResult(status, f"Slack answered {answer.error:.100}", result.retry_after), answer


def escaped(text: str) -> str:
    """Return a text that Slack shows as it is: no link, no mention."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def content(record: IncidentRecord, link: str) -> dict[str, Any]:
    """Return what the message says, for notifications and as blocks."""
    event = event_of(record)
    sign = ":white_check_mark:" if event == "resolved" else _SIGNS[record.severity]
    what = "resolved" if event == "resolved" else record.severity
    text = f"{sign} {what}: {escaped(record.summary)}"
    lines = [f"• {escaped(one.stream)}: {escaped(one.summary)}" for one in record.alerts[:ALERTS_SHOWN]]
    more = len(record.alerts) - len(lines) + record.alerts_left_out
    if more > 0:
        lines.append(f"and {more:,} more alerts")
    since = f"since {record.started_at}" + (f" until {record.ended_at}" if record.ended_at else "")
    blocks: list[dict[str, Any]] = [{"type": "section", "text": {"type": "mrkdwn", "text": text[:MAX_TEXT]}}]
    if record.streams > 1:
        blocks.append({"type": "section", "text": {"type": "mrkdwn", "text": "\n".join(lines)[:MAX_TEXT]}})
    about = f"{since}; {record.firing} firing" + (f"; <{link}|look at it>" if link else "")
    blocks.append({"type": "context", "elements": [{"type": "mrkdwn", "text": about}]})
    return {"text": text[:MAX_TEXT], "blocks": blocks, "unfurl_links": False, "unfurl_media": False}

"""Incidents to tell, and the schemas of what services take, by their own documents."""

from __future__ import annotations

from typing import Any

import msgspec

from connectors.json_records import IncidentAlert, IncidentRecord
from connectors.notify.dispatcher import Told

BEGAN, ENDED = "2026-11-20T08:15:00Z", "2026-11-20T08:45:00Z"


def incident(revision: int = 1, state: str = "open", streams: int = 3, **values: Any) -> IncidentRecord:
    alerts = [
        IncidentAlert(
            id=f"a{n}", stream=f"rack-3/web-{n}/<cpu> & \"more\"", status="firing", severity="warning",
            started_at=BEGAN, ended_at=None, score=5.0 + n, channel="forecast", summary="observed 9, expected 1",
        )
        for n in range(streams)
    ]  # fmt: skip
    record = IncidentRecord(
        id="a0", state="open", severity="warning", first_severity="warning", summary=f"{streams} streams of rack-3",
        stream=alerts[0].stream, started_at=BEGAN, ended_at=None, score=7.0, streams=streams, firing=streams,
        revision=revision, alerts=alerts,
    )  # fmt: skip
    if state == "resolved":
        record = msgspec.structs.replace(record, state="resolved", ended_at=ENDED, firing=0)
    return msgspec.structs.replace(record, **values)


def told(record: IncidentRecord) -> Told:
    return Told(record, [alert.stream for alert in record.alerts])


LIFE = incident(1), incident(2, streams=5), incident(3, "resolved", streams=5)


def _object(required: dict[str, Any], **optional: Any) -> dict[str, Any]:
    return {
        "type": "object", "required": list(required), "properties": required | optional, "additionalProperties": False,
    }  # fmt: skip


TEXT = {"type": "string", "minLength": 1}
TIME = {"type": "string", "pattern": r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z$"}
TEXTS = {"type": "object", "additionalProperties": {"type": "string"}}

# developer.pagerduty.com, Send an Alert Event
PAGERDUTY = {
    "oneOf": [
        _object(
            {
                "routing_key": {"type": "string", "minLength": 32, "maxLength": 32},
                "event_action": {"const": "trigger"},
                "dedup_key": {"type": "string", "minLength": 1, "maxLength": 255},
                "payload": _object(
                    {
                        "summary": {"type": "string", "minLength": 1, "maxLength": 1024},
                        "source": TEXT,
                        "severity": {"enum": ["critical", "error", "warning", "info"]},
                    },
                    timestamp=TIME, component={"type": "string"}, group={"type": "string"},
                    **{"class": {"type": "string"}}, custom_details={"type": "object"},
                ),
            },
            client={"type": "string"}, client_url=TEXT,
            links={"type": "array", "items": _object({"href": TEXT, "text": TEXT})}, images={"type": "array"},
        ),
        _object(
            {
                "routing_key": {"type": "string", "minLength": 32, "maxLength": 32},
                "event_action": {"enum": ["resolve", "acknowledge"]},
                "dedup_key": {"type": "string", "minLength": 1, "maxLength": 255},
            }
        ),
    ]
}  # fmt: skip

# github.com/prometheus/alertmanager, api/v2/openapi.yaml: postableAlerts
LABELS = {
    "type": "object", "minProperties": 1, "patternProperties": {"^[a-zA-Z_][a-zA-Z0-9_]*$": TEXT},
    "additionalProperties": False,
}  # fmt: skip
ALERTMANAGER = {
    "type": "array",
    "minItems": 1,
    "items": _object(
        {"labels": LABELS, "startsAt": TIME, "endsAt": TIME}, annotations=TEXTS, generatorURL={"type": "string"}
    ),
}

# prometheus.io/docs/alerting, webhook_config
WEBHOOK_V4 = _object(
    {
        "version": {"const": "4"}, "groupKey": TEXT, "truncatedAlerts": {"type": "integer"},
        "status": {"enum": ["resolved", "firing"]}, "receiver": TEXT, "groupLabels": TEXTS, "commonLabels": TEXTS,
        "commonAnnotations": TEXTS, "externalURL": {"type": "string"},
        "alerts": {
            "type": "array", "minItems": 1,
            "items": _object({
                "status": {"enum": ["resolved", "firing"]}, "labels": LABELS, "annotations": TEXTS, "startsAt": TIME,
                "endsAt": TIME, "generatorURL": {"type": "string"}, "fingerprint": TEXT,
            }),
        },
    }
)  # fmt: skip

# docs.slack.dev, chat.postMessage, chat.update and Block Kit
_MARKDOWN = _object({"type": {"const": "mrkdwn"}, "text": {"type": "string", "minLength": 1, "maxLength": 3000}})
_MESSAGE = {
    "text": {"type": "string", "minLength": 1, "maxLength": 40_000},
    "blocks": {
        "type": "array", "minItems": 1, "maxItems": 50,
        "items": {
            "oneOf": [
                _object({"type": {"const": "section"}, "text": _MARKDOWN}),
                _object({"type": {"const": "context"}, "elements": {"type": "array", "maxItems": 10,
                                                                   "items": _MARKDOWN}}),
            ]
        },
    },
}  # fmt: skip
_UNFURL = {"unfurl_links": {"type": "boolean"}, "unfurl_media": {"type": "boolean"}}
SLACK_POST = _object(_MESSAGE | {"channel": TEXT}, **_UNFURL)
SLACK_UPDATE = _object(_MESSAGE | {"channel": TEXT, "ts": {"type": "string", "pattern": r"^\d+\.\d+$"}}, **_UNFURL)
SLACK_WEBHOOK = _object(_MESSAGE, **_UNFURL)

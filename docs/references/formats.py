"""docs/formats.md: every record that longwatch writes, its fields and an example."""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec

from connectors.json_records import (
    AlertRecord,
    IncidentAlert,
    IncidentMessage,
    IncidentRecord,
    RejectedRecord,
    ScoreRecord,
    WebhookMessage,
)
from detector.commands.schema import schema

_HEAD = """# Formats

The records that longwatch writes, made from the types that encode them (`make references`; a test compares).
`longwatch schema scores`, `alerts`, `webhook`, `incident` and `rejected` print each as JSON Schema. Files hold a record
a line. A time is RFC 3339 in UTC with up to nine decimals, by the events' clock. Fields may be added: ignore those that
you do not know.
"""


class _Format(NamedTuple):
    title: str
    example: msgspec.Struct


_ALERT = AlertRecord(
    id="ac133362c28049ca9ded75c7", stream="nyc_taxi", status="firing", severity="critical",
    summary="observed 39,197, expected 21,361 [17,414 .. 25,308]", channel="forecast", feature="value",
    return_period="once in 100 years", started_at="2014-11-02T01:00:00Z", ended_at=None,
    score=6.278, threshold=3.0, rank=1.966,
    evidence={"observed": 39197.0, "expected": 21360.8, "lower": 17414.0, "upper": 25307.6},
    observed={"value": 39197.0}, expected={"value": 21360.8}, lower={"value": 17414.0}, upper={"value": 25307.6},
    contributions={"value": 1.0}, model_version="8b82654a9d45", topic="metrics", partition=0, offset=5954,
)  # fmt: skip
FORMATS = {
    "scores": _Format(
        "Scores",
        ScoreRecord(
            stream="web-1/log", timestamp="2026-11-20T08:15:00.25Z", score=2.31, threshold=4.5, alert=False,
            rank=0.83, channel="forecast", return_period="once in 3 hours",
            surprise=1.94, observed={"seconds": 0.41, "code": "E17"}, expected={"seconds": 0.38, "code": "E12"},
            lower={"seconds": 0.3}, upper={"seconds": 0.47}, model_version="8b82654a9d45", topic="metrics",
            partition=2, offset=981, observed_probability={"code": 0.02}, expected_probability={"code": 0.9},
        ),
    ),
    "alerts": _Format("Alerts", _ALERT),
    "webhook": _Format(
        "Webhook messages", WebhookMessage(type="alert.firing", timestamp="2014-11-02T01:00:00Z", data=_ALERT)
    ),
    "incident": _Format(
        "Messages about incidents",
        IncidentMessage(
            type="incident.opened", timestamp="2014-11-02T01:00:00Z",
            data=IncidentRecord(
                id=_ALERT.id, state="open", severity="critical", first_severity="critical",
                summary=f"nyc_taxi: {_ALERT.summary}", stream="nyc_taxi", started_at="2014-11-02T01:00:00Z",
                ended_at=None, score=6.278, streams=1, firing=1, revision=1,
                alerts=[IncidentAlert(
                    id=_ALERT.id, stream="nyc_taxi", status="firing", severity="critical",
                    started_at="2014-11-02T01:00:00Z", ended_at=None, score=6.278, channel="forecast",
                    summary=_ALERT.summary,
                )],
            ),
        ),
    ),
    "rejected": _Format(
        "Rejected records",
        RejectedRecord(
            "metrics", 0, 17, "bad_timestamp", "'noon': expected RFC 3339 or a Unix time",
            raw='{"stream": "web-1", "timestamp": "noon", "value": 1}',
        ),
    ),
}  # fmt: skip


def reference() -> str:
    """Return docs/formats.md."""
    parts = [_HEAD]
    for name, (title, example) in FORMATS.items():
        found = schema(name)
        text = found["description"].replace("\n\n", "\n")
        parts.append(f"\n## {title}\n\n{text}\n\n| field | type | meaning |\n|---|---|---|\n")
        for field, about in found["properties"].items():
            optional = "" if field in found["required"] else "; optional"
            parts.append(f"| `{field}` | {_type(about)}{optional} | {about.get('description', '')} |\n")
        shown = msgspec.json.format(msgspec.json.encode(example), indent=2).decode()
        parts.append(f"\n```json\n{shown}\n```\n")
    return "".join(parts)


def _type(about: dict[str, Any]) -> str:
    """Return a field's type in words: "number, ≥ 0", "object of number or null", "`firing`, `resolved`"."""
    if "enum" in about:
        return ", ".join(f"`{value}`" for value in about["enum"])
    if "anyOf" in about:
        return " or ".join(_type(option) for option in about["anyOf"])
    if "$ref" in about:
        record: str = about["$ref"].rpartition("/")[2]
        return record.removesuffix("Record").lower()
    if about["type"] == "object":
        return f"object of {_type(about['additionalProperties'])}"
    kind = {"date-time": "time", "base64": "base64"}.get(
        about.get("format", about.get("contentEncoding", "")), {"string": "text"}.get(about["type"], about["type"])
    )
    bounds = [f"{sign} {about[at]}" for at, sign in (("minimum", "≥"), ("maximum", "≤")) if at in about]
    return ", ".join([kind, *bounds])

"""What `longwatch schema` shows: the JSON Schemas of the records that longwatch writes."""

from __future__ import annotations

import argparse
import json
from typing import Any

import msgspec

from connectors.json_records import AlertRecord, IncidentMessage, RejectedRecord, ScoreRecord, WebhookMessage
from detector.config.settings import Settings
from detector.observability.metrics import REJECTED_REASONS

RECORDS: dict[str, type[msgspec.Struct]] = {
    "scores": ScoreRecord,
    "alerts": AlertRecord,
    "webhook": WebhookMessage,
    "incident": IncidentMessage,
    "rejected": RejectedRecord,
}


def run(_: Settings, options: argparse.Namespace) -> None:
    """Print a record's schema."""
    print(json.dumps(schema(options.record), indent=2))


def schema(record: str) -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of one of RECORDS."""
    kind = RECORDS[record]
    (_,), definitions = msgspec.json.schema_components([kind], ref_template="#/$defs/{name}")
    own = definitions.pop(kind.__name__)
    if record == "rejected":
        own["properties"]["reason"]["enum"] = list(REJECTED_REASONS)
    own = {"$schema": "https://json-schema.org/draft/2020-12/schema", **own}
    return own | ({"$defs": definitions} if definitions else {})

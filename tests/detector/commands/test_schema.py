"""`longwatch schema`: what sinks write is valid, and docs/formats.md is made from the same types."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import pytest
from jsonschema import Draft202012Validator

from connectors.batches import Alert, Partition, RawBatch, Rejected, Scores
from connectors.decode.decoder import Decoder, DecodeSettings
from connectors.encode import alert_record, rejected_record, score_records, shortened
from connectors.notify.standard_webhooks import webhook_body
from detector.cli import main
from detector.commands.schema import RECORDS, schema
from detector.engine.engine import Engine, EngineSettings
from detector.observability.metrics import ENGINE_ERROR
from detector.scoring.incidents import AlertRules
from docs.references.formats import FORMATS, reference
from tests.brokers import CHECKOUT
from training.network.weights import load_prior

EVENTS, SPIKE = 400, 390


def event(row: int, stream: str) -> bytes:
    values = dict.fromkeys({"one": "x", "many": "xyz"}.get(stream, ""), row % 7 + 50.0 * (row >= SPIKE))
    symbol = {"code": f"E{row % 3}"} if stream == "words" else {}
    return json.dumps({"stream": stream, "timestamp": 1_700_000_000 + 60 * row, "values": values} | symbol).encode()


@pytest.fixture(scope="module")
def written() -> tuple[Scores, list[Alert], list[Rejected]]:
    """What an engine makes of numbers, symbols and what cannot be decoded."""
    values = [event(row, stream) for row in range(EVENTS) for stream in ("one", "many", "words")]
    values += [b"{", b"\xff", b'{"stream": "one"}']
    count = len(values)
    raw = RawBatch([Partition("metrics", 0)], [0] * count, list(range(count)), [-1] * count, [None] * count, values)
    batch, rejected = Decoder(DecodeSettings()).decode(raw)
    engine = Engine(load_prior("lstm"), EngineSettings(rules=AlertRules(fixed_threshold=1.5)))
    step = engine.step(batch)
    engine.close()
    return step.scores, step.alerts, rejected


def fields_of_valid(records: list[bytes], name: str) -> set[str]:
    """Return the fields that occur in records, all of which are valid and have no field that is not described."""
    described = schema(name)
    Draft202012Validator.check_schema(described)
    validator = Draft202012Validator(described, format_checker=Draft202012Validator.FORMAT_CHECKER)
    found: set[str] = set()
    for record in records:
        fields: Mapping[str, Any] = json.loads(record)
        validator.validate(fields)
        found.update(fields)
    assert found <= described["properties"].keys()
    return found


def test_score_records_are_valid(written: tuple[Scores, list[Alert], list[Rejected]]) -> None:
    records = [value for _, value in score_records(written[0])]
    cut, left_out = shortened(records[-2], {}, len(records[-2]) - 1)
    assert left_out > 0
    young = replace(written[0], held_back=written[0].alert.astype(np.int8), missing=12 * written[0].alert)
    records += [cut, *(value for _, value in score_records(young))]
    assert fields_of_valid(records, "scores") == schema("scores")["properties"].keys()


def test_alert_records_and_webhook_messages_are_valid(written: tuple[Scores, list[Alert], list[Rejected]]) -> None:
    firing = next(alert for alert in written[1] if alert.stream == "many")
    symbols = replace(
        firing, observed={"code": "E17"}, expected={"code": None}, lower={}, upper={}, contributions={"code": 1.0},
        observed_probability={"code": 0.01}, expected_probability={"code": 0.9}, features_left_out=3,
    )  # fmt: skip
    resolved = replace(firing, status="resolved", ended_at=firing.started_at + 5, resolved_by="accepted", rule="web")
    alerts = [*written[1], firing, symbols, resolved]
    records = [alert_record(alert)[1] for alert in alerts]
    assert fields_of_valid(records, "alerts") == schema("alerts")["properties"].keys()
    bodies = [webhook_body(alert) for alert in alerts]
    assert fields_of_valid(bodies, "webhook") == schema("webhook")["properties"].keys()


def test_rejected_records_are_valid(written: tuple[Scores, list[Alert], list[Rejected]]) -> None:
    poison = Rejected("metrics", 0, 1, ENGINE_ERROR, "IndexError in an event of stream 'one'", b"{}")
    records = [rejected_record(rejected) for rejected in (*written[2], poison)]
    assert fields_of_valid(records, "rejected") == schema("rejected")["properties"].keys()


@pytest.mark.parametrize("name", RECORDS)
def test_a_record_with_a_wrong_field_is_invalid(name: str) -> None:
    record = json.loads(msgspec.json.encode(FORMATS[name].example))
    validator = Draft202012Validator(schema(name))
    validator.validate(record)
    for field in schema(name)["required"]:
        assert not validator.is_valid(record | {field: [record[field]]})
        assert not validator.is_valid({key: value for key, value in record.items() if key != field})


def test_the_command_prints_a_schema(capsys: pytest.CaptureFixture[str]) -> None:
    main(["schema", "alerts"])
    assert json.loads(capsys.readouterr().out) == schema("alerts")


def test_the_reference_is_made_from_the_code() -> None:
    assert {name: type(example) for name, (_, example) in FORMATS.items()} == RECORDS
    text = (CHECKOUT / "docs" / "formats.md").read_text(encoding="utf-8")
    assert text == reference()
    examples = [json.loads(block) for block in re.findall(r"```json\n(.*?)```", text, re.DOTALL)]
    for name, example in zip(FORMATS, examples, strict=True):
        Draft202012Validator(schema(name)).validate(example)

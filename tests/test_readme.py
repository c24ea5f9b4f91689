"""What the README shows is what the program takes and gives."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from pathlib import Path

import pytest

from connectors.batches import Alert, Partition, RawBatch
from connectors.decode.decoder import Decoder
from connectors.json_records import AlertRecord
from connectors.words import summary
from detector.config.settings import load_settings
from detector.observability.alert_text import describe

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
SETTINGS = [text for kind, text in BLOCKS if kind == "toml" and text.startswith("# longwatch.toml")]
ADDED = [text for kind, text in BLOCKS if kind == "toml" and text.startswith("# at the end of longwatch.toml")]
RECORDS = [json.loads(text) for kind, text in BLOCKS if kind == "json"]


def decode(record, text, tmp_path):
    config = tmp_path / "longwatch.toml"
    config.write_text(text)
    decoder = Decoder(load_settings(config, environment={}).decode)
    value = json.dumps(record).encode()
    batch, rejected = decoder.decode(RawBatch([Partition("metrics", 0)], [0], [0], [-1], [None], [value]))
    assert not rejected
    return batch.streams, batch.features, batch.value.tolist()


@pytest.mark.parametrize("text", SETTINGS)
def test_the_readmes_settings_are_accepted(text, tmp_path):
    (tmp_path / "longwatch.toml").write_text(text)
    load_settings(tmp_path / "longwatch.toml", environment={})


def test_what_the_readme_adds_to_its_settings_is_accepted(tmp_path):
    (tmp_path / "longwatch.toml").write_text(SETTINGS[0] + "".join(ADDED))
    assert list(load_settings(tmp_path / "longwatch.toml", environment={}).receivers) == ["alertmanager"]


def test_the_readmes_event_is_decoded(tmp_path):
    assert decode(RECORDS[0], SETTINGS[0], tmp_path) == (["web-1/cpu"], ["user", "system"], [0.41, 0.07])


def test_the_readmes_telegraf_and_prometheus_settings_decode(tmp_path):
    telegraf = {
        "name": "cpu",
        "tags": {"host": "a"},
        "fields": {"user": 1.5, "uptime_text": "3 d"},
        "timestamp": 1700000000,
    }
    assert decode(telegraf, SETTINGS[1], tmp_path) == (["a/cpu"], ["user"], [1.5])
    adapter = {"name": "up", "labels": {"instance": "a:1"}, "value": "1", "timestamp": "2026-11-20T08:15:00Z"}
    assert decode(adapter, SETTINGS[2], tmp_path) == (["a:1/up"], ["value"], [1.0])


def test_the_readmes_alert_has_an_alerts_fields():
    record = RECORDS[1]
    # of symbols; when it is over; of what is too large for its topic; where there are rules
    at_times = {"observed_probability", "expected_probability", "resolved_by", "features_left_out", "rule"}
    assert list(record) == [name for name in AlertRecord.__struct_fields__ if name not in at_times]
    assert set(AlertRecord.__struct_fields__) == {field.name for field in fields(Alert)}
    ns = 1_414_890_000 * 10**9  # 2014-11-02T01:00:00Z
    line = describe(Alert(**{**record, "started_at": ns}))
    shown = re.search(r"^critical alert: .*$", README, re.MULTILINE)[0]
    assert line == shown
    assert record["summary"] == summary(record["channel"], record["feature"], record["evidence"])


def test_the_readmes_links_exist():
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", README)
    missing = [target for target in targets if not (ROOT / target).exists()]
    assert not missing


def test_the_readmes_picture_is_small():
    assert (ROOT / "docs/images/demo.png").stat().st_size < 300_000

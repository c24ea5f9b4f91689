"""Decoding: what is an event, what is refused and why, and that nothing a record holds can raise."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from connectors.decode.decoder import REASONS, DecodeSettings
from tests.connectors.decode.support import NOON, NOON_NS, RECEIVED_MS, decode, events, one, reason


def test_the_documented_record_is_an_event():
    value = {"stream": "web-1/cpu", "timestamp": "2025-11-20T12:00:00Z", "values": {"user": 0.41, "system": 0.07}}
    assert one(value) == ("web-1/cpu", NOON_NS, {"user": 0.41, "system": 0.07})


def test_columns_are_coded_and_keep_the_records_order():
    batch, rejected = decode(
        {"stream": "a", "timestamp": NOON, "values": {"x": 1, "y": 2}},
        {"stream": "b", "timestamp": NOON, "value": 3},
        {"stream": "a", "timestamp": NOON + 1, "values": {"y": 4, "x": None}},
    )
    assert rejected == []
    assert batch.streams == ["a", "b"]
    assert batch.features == ["x", "y", "value"]
    assert batch.stream.tolist() == [0, 1, 0]
    assert batch.start.tolist() == [0, 2, 3, 4]
    assert batch.feature.tolist() == [0, 1, 2, 1]
    assert batch.value.tolist() == [1, 2, 3, 4]
    assert batch.offset.tolist() == [100, 101, 102]
    assert batch.partition.tolist() == [0, 0, 0]
    assert batch.received.tolist() == [RECEIVED_MS * 1_000_000] * 3
    dtypes = [column.dtype for column in (batch.stream, batch.time, batch.start, batch.feature, batch.value)]
    assert dtypes == [np.int32, np.int64, np.int64, np.int32, np.float64]


@pytest.mark.parametrize(
    ("number", "value"),
    [(1, 1.0), (-2.5, -2.5), ("3.25", 3.25), ("-1e3", -1000.0), (" 7 ", 7.0), (2**70, float(2**70))],
)
def test_numbers_written_as_text_are_parsed(number, value):
    assert one({"stream": "a", "value": number})[2] == {"value": value}
    assert one({"stream": "a", "values": {"x": number}})[2] == {"x": value}


@pytest.mark.parametrize(
    "number",
    [
        b"NaN",
        b"Infinity",
        b"-Infinity",
        b"1e999",
        b"true",
        b'"x"',
        b'""',
        b'"NaN"',
        b'"+Inf"',
        b'"1_0"',
        b"[1]",
        b"{}",
        '"٣"'.encode(),
        b"9" * 400,
        b"9" * 5_000,
        b'"' + b"9" * 400 + b'"',
    ],
)
def test_values_that_are_not_finite_numbers_are_rejected(number):
    assert reason(b'{"stream": "a", "values": {"x": 1, "y": ' + number + b"}}") == "not_a_number"
    assert reason(b'{"stream": "a", "value": ' + number + b"}") == "not_a_number"


def test_null_is_missing_and_an_event_without_values_is_rejected():
    assert one({"stream": "a", "values": {"x": None, "y": 0}})[2] == {"y": 0.0}
    for value in ({"values": {"x": None}}, {"values": {}}, {"value": None}, {}):
        assert reason({"stream": "a", **value}) == "no_value"


def test_values_win_over_value():
    assert one({"stream": "a", "values": {"x": 1}, "value": 2})[2] == {"x": 1.0}


def test_the_last_of_duplicate_json_keys_wins():
    assert one(b'{"stream": "a", "stream": "b", "value": 1, "value": 2}')[::2] == ("b", {"value": 2.0})
    assert one(b'{"stream": "a", "values": {"x": 1, "x": 2}}')[2] == {"x": 2.0}


def test_a_rejected_event_leaves_no_trace_in_the_batch():
    batch, rejected = decode(
        {"stream": "refused", "values": {"only-here": 1, "x": "no"}},
        {"stream": "kept", "values": {"x": 1}},
        {"stream": "also-refused", "values": {"other": 1}, "timestamp": "no"},
        {"stream": "kept", "values": {"y": 2}},
    )
    assert events(batch) == [
        ("kept", RECEIVED_MS * 1_000_000, {"x": 1.0}),
        ("kept", RECEIVED_MS * 1_000_000, {"y": 2.0}),
    ]
    assert (batch.streams, batch.features) == (["kept"], ["x", "y"])
    assert batch.offset.tolist() == [101, 103]
    assert [refusal.offset for refusal in rejected] == [100, 102]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"", "empty"),
        (b" ", "not_json"),
        (b"cpu,host=a usage=1 1763640000", "not_json"),
        (b'{"stream": "a", "value": 1', "not_json"),
        (b'{"stream": "a", "value": 1} {"stream": "a"}', "not_json"),
        (b'\x00\x00\x00\x00\x07{"stream": "a", "value": 1}', "unsupported"),
        (b'{"stream": "a", "code": 1.5}', "bad_code"),
        (b'{"stream": "a", "code": true}', "bad_code"),
        (b'{"stream": "a", "code": ["E5"]}', "bad_code"),
        (b'{"stream": "a", "code": ""}', "bad_code"),
        (b'{"stream": "a", "code": " \\t\\n"}', "bad_code"),
        (b'{"stream": "a", "code": "E5\\u0007"}', "bad_code"),
        (b'{"stream": "a", "code": "\\ud800"}', "bad_code"),
        (b'{"stream": "a", "code": 1' + 100 * b"0" + b"}", "bad_code"),
        (b'{"stream": "a", "code": "E5", "values": {"code": 1}}', "bad_code"),
        (b'{"stream": "a", "code": "' + 1025 * b"E" + b'"}', "code_too_long"),
        (b'{"stream": "a", "code": null}', "no_value"),
        (b"[1, 2]", "not_an_object"),
        (b"3", "not_an_object"),
        (b"null", "not_an_object"),
        (b'{"stream": "a", "values": [1, 2]}', "not_an_object"),
        (b'{"stream": "a", "values": 3}', "not_an_object"),
        (b'{"stream": "\xff", "value": 1}', "not_utf8"),
        ('{"stream": "a", "value": 1}'.encode("utf-16"), "not_utf8"),
        ('{"stream": "a", "value": 1}'.encode("utf-16-le"), "not_json"),
        (b'{"stream": {"a": 1}, "value": 1}', "bad_name"),
        (b'{"stream": true, "value": 1}', "bad_name"),
        (b'{"stream": "a", "values": {"": 1}}', "bad_name"),
        (b'{"deep": ' + b"[" * 200_000 + b"]" * 200_000 + b', "value": 1}', "too_deep"),
        (b'{"stream": "a", "value": 1, "padding": "' + b"x" * 5_000_000 + b'"}', "too_large"),
        (
            b'{"stream": "a", "values": {' + b",".join(b'"f%d": 1' % n for n in range(1_001)) + b"}}",
            "too_many_features",
        ),
    ],
    ids=lambda value: value[:24] if isinstance(value, str) else repr(value[:24]),
)
def test_a_rejection_has_a_reason_and_the_raw_bytes(value, expected):
    assert reason(value) == expected
    assert decode(value)[1][0].raw == value


def test_a_record_with_too_many_events_is_rejected_as_a_whole():
    config = DecodeSettings(batch="metrics")
    few, many = ({"metrics": [{"stream": "a", "timestamp": NOON, "value": 1}] * count} for count in (10_000, 10_001))
    batch, rejected = decode(few, config=config)
    assert (len(batch), rejected) == (10_000, [])
    batch, rejected = decode(many, config=config)
    assert (len(batch), [refusal.reason for refusal in rejected]) == (0, ["too_many_events"])
    assert rejected[0].detail == "10001 events, at most 10000 are expected; send fewer in one record"


def test_a_byte_order_mark_is_skipped():
    assert one(b'\xef\xbb\xbf{"stream": "a", "value": 1}')[0] == "a"


def test_odd_values_in_unused_fields_are_ignored():
    assert one(b'{"stream": "a", "value": 1, "note": NaN, "more": {"x": "\\ud800"}}')[2] == {"value": 1.0}


def test_renamed_fields_decode_like_the_default_ones():
    config = DecodeSettings(stream="{host}", timestamp="ts", values="fields", value="reading")
    assert one({"host": "h", "ts": NOON, "reading": "5"}, config=config) == ("h", NOON_NS, {"value": 5.0})
    assert one({"host": "h", "ts": NOON, "fields": {"x": 5}}, config=config) == ("h", NOON_NS, {"x": 5.0})


TELEGRAF = DecodeSettings(stream="{tags.host}/{name}", values="fields", batch="metrics", exclude_features=("uptime_*",))


def telegraf(**fields):
    return {"name": "cpu", "tags": {"host": "web-1"}, "fields": fields, "timestamp": NOON}


def test_telegraf_decodes_by_settings_alone():
    value = telegraf(usage_user=0.5, uptime_format="3 days")
    assert one(value, config=TELEGRAF) == ("web-1/cpu", NOON_NS, {"usage_user": 0.5})


def test_a_batch_in_one_record_gives_an_event_each_with_the_same_offset():
    good, bad = telegraf(usage_user=0.5), telegraf(usage_user="high")
    batch, rejected = decode({"metrics": [good, bad, good]}, good, {"metrics": []}, config=TELEGRAF)
    assert batch.offset.tolist() == [100, 100, 101]
    assert [(refusal.offset, refusal.reason) for refusal in rejected] == [(100, "not_a_number"), (102, "no_value")]
    assert json.loads(rejected[0].raw) == bad


def test_prometheus_kafka_adapter_decodes_by_settings_alone():
    config = DecodeSettings(stream="{labels.instance}/{name}")
    value = {
        "timestamp": "2025-11-20T12:00:00Z",
        "value": "9876543210",
        "name": "node_load1",
        "labels": {"__name__": "node_load1", "instance": "web-1:9100", "job": "node"},
    }
    assert one(value, config=config) == ("web-1:9100/node_load1", NOON_NS, {"value": 9876543210.0})
    for text in ("NaN", "+Inf"):
        batch, (refusal,) = decode({**value, "value": text}, config=config)
        assert (len(batch), refusal.reason) == (0, "not_a_number")
        assert text in refusal.detail


def test_every_rejection_reason_is_tested():
    here = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
    assert [label for label in REASONS if f'"{label}"' not in here] == []

"""Decoding: what is an event, what is refused and why, and that nothing a record holds can raise."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from connectors.batches import CsvLayout, Partition, RawBatch
from connectors.decode.decoder import REASONS, Decoder, DecodeSettings
from connectors.decode.timestamps import parse_time

NOON = 1_763_640_000  # 2025-11-20T12:00:00Z
NOON_NS = NOON * 10**9
RECEIVED_MS = NOON * 1_000 + 250
CSV = CsvLayout(cells=4, timestamp=0, stream=1, values=((2, "cpu"), (3, "mem")))


def raw_batch(*values, key=b"from-key", received=RECEIVED_MS, csv=None):
    values = [value if isinstance(value, bytes) else json.dumps(value).encode() for value in values]
    count = len(values)
    partitions = [Partition("metrics", 3)]
    offsets = list(range(100, 100 + count))
    return RawBatch(partitions, [0] * count, offsets, [received] * count, [key] * count, values, csv=csv or {})


def decode(*values, config=None, **more):
    return Decoder(config).decode(raw_batch(*values, **more))


def events(batch):
    """Return a batch as [(stream, ns, {feature: value})]; a symbol's value is text."""

    def value_of(cell):
        if batch.symbols and batch.symbol[cell] >= 0:
            assert math.isnan(batch.value[cell])
            return batch.symbols[batch.symbol[cell]]
        return float(batch.value[cell])

    return [
        (
            batch.streams[batch.stream[row]],
            int(batch.time[row]),
            {
                batch.features[batch.feature[cell]]: value_of(cell)
                for cell in range(batch.start[row], batch.start[row + 1])
            },
        )
        for row in range(len(batch))
    ]


def one(value, **more):
    batch, rejected = decode(value, **more)
    assert rejected == []
    (event,) = events(batch)
    return event


def reason(value, **more):
    batch, rejected = decode(value, **more)
    assert len(batch) == 0
    (refusal,) = rejected
    assert refusal.reason in REASONS
    assert (refusal.topic, refusal.partition, refusal.offset) == ("metrics", 3, 100)
    assert refusal.detail.isprintable()
    assert len(refusal.detail) < 400
    return refusal.reason


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
    ("timestamp", "nanoseconds"),
    [
        ("2025-11-20T12:00:00Z", 0),
        ("2025-11-20t12:00:00z", 0),
        ("2025-11-20 12:00:00", 0),
        ("2025-11-20T12:00:00", 0),
        ("2025-11-20 12:00:00 UTC", 0),
        ("2025-11-20T17:30:00+05:30", 0),
        ("2025-11-20T04:00:00-0800", 0),
        ("2025-11-20T12:00:00.5Z", 500_000_000),
        ("2025-11-20T12:00:00.123456Z", 123_456_000),
        ("2025-11-20T12:00:00.123456789Z", 123_456_789),
        ("2025-11-20T13:00:00.1234567891234+01:00", 123_456_789),
        ("2025-11-20T11:59:60Z", 0),
        (NOON, 0),
        (NOON + 0.25, 250_000_000),
        (NOON * 10**3 + 7, 7_000_000),
        (NOON * 10**6 + 7, 7_000),
        (NOON * 10**9 + 7, 7),
        (f"{NOON}", 0),
        (f"{NOON}.000000007", 7),
        (f"{NOON * 10**3 + 7}", 7_000_000),
        (f"{NOON * 10**6 + 7}", 7_000),
        (f"{NOON * 10**9 + 7}", 7),
        (float(NOON * 10**3), 0),
    ],
)
def test_a_time_is_read_in_every_layout_and_unit(timestamp, nanoseconds):
    assert one({"stream": "a", "timestamp": timestamp, "value": 1})[1] == NOON_NS + nanoseconds


def test_a_date_alone_is_its_midnight():
    assert parse_time("1970-01-02") == 86_400 * 10**9


@pytest.mark.parametrize(
    "timestamp",
    [
        "",
        "yesterday",
        "2025-13-01T00:00:00Z",
        "2025-11-20T24:30:00Z",
        "9999-12-31T00:00:00Z",
        "0001-01-01T00:00:00+14:00",
        0,
        12,
        -NOON,
        10**40,
        1e300,
        True,
        {},
        [NOON],
        "1970-01-01T00:00:12Z",
        NOON + 40 * 86_400,
    ],
)
def test_a_time_that_is_none_or_cannot_be_is_refused(timestamp):
    assert reason({"stream": "a", "timestamp": timestamp, "value": 1}) == "bad_timestamp"


def test_without_a_timestamp_the_records_own_serves():
    assert one({"stream": "a", "value": 1})[1] == RECEIVED_MS * 1_000_000
    assert one({"stream": "a", "timestamp": None, "value": 1})[1] == RECEIVED_MS * 1_000_000
    assert reason({"stream": "a", "value": 1}, received=-1) == "bad_timestamp"
    assert reason({"stream": "a", "value": 1}, received=2**62) == "bad_timestamp"


def test_a_record_without_a_time_of_its_own_may_be_of_any_age():
    batch, _ = decode({"stream": "a", "timestamp": 12, "value": 1}, received=-1)
    assert batch.time.tolist() == batch.received.tolist() == [12 * 10**9]


def test_age_and_lead_are_settings():
    value = {"stream": "a", "timestamp": NOON - 7200, "value": 1}
    assert one(value)[1] == NOON_NS - 7200 * 10**9
    assert reason(value, config=DecodeSettings(max_age_days=0.05)) == "bad_timestamp"
    value["timestamp"] = NOON + 7200
    assert one(value)[1] == NOON_NS + 7200 * 10**9
    assert reason(value, config=DecodeSettings(max_ahead_seconds=3600)) == "bad_timestamp"


def test_the_payload_names_the_stream_and_only_else_the_key():
    assert one({"stream": "payload", "value": 1})[0] == "payload"
    assert one({"value": 1})[0] == "from-key"
    assert one({"stream": "", "value": 1})[0] == "from-key"
    assert one({"stream": None, "value": 1}, key="schlüssel".encode())[0] == "schlüssel"
    assert one({"stream": 17, "value": 1})[0] == "17"
    for key in (None, b"", b"\xff\xfe"):
        assert reason({"value": 1}, key=key) == "no_stream"


@pytest.mark.parametrize("template", ["{host}", "{tags.host}/{name}", "web/{stream}", "{tags.host}/{name}/{tags.cpu}"])
@pytest.mark.parametrize(
    "record",
    [{"value": 1.5}, {"values": {"a": 1.5}}, {"tags": {"host": "web-1"}, "stream": "", "host": "", "value": 2.5}],
)
def test_a_record_without_a_field_of_the_template_has_no_name_whatever_its_key(template, record):
    record = {"timestamp": NOON, **record}
    config = DecodeSettings(stream=template)
    assert reason(record, config=config) == "no_stream"
    batch, rejected = decode(*[record] * 3, config=config)
    assert (len(batch), [refusal.reason for refusal in rejected]) == (0, ["no_stream"] * 3)
    many = DecodeSettings(stream=template, batch="metrics")
    assert reason({"metrics": [record]}, config=many) == "no_stream"


def test_measurements_of_one_host_do_not_become_one_stream():
    config = DecodeSettings(stream="{tags.host}/{name}/{tags.cpu}", values="fields")
    cpu = {"name": "cpu", "tags": {"host": "web-1", "cpu": "cpu0"}, "fields": {"user": 1.5}, "timestamp": NOON}
    others = [{**cpu, "name": name, "tags": {"host": "web-1"}} for name in ("mem", "system", "swap")]
    batch, rejected = decode(cpu, *others, config=config, key=b"web-1")
    assert batch.streams == ["web-1/cpu/cpu0"]
    assert [refusal.detail for refusal in rejected] == ["`tags.cpu`, of decode.stream, is missing or empty"] * 3


def test_in_a_csv_file_the_fields_of_the_template_are_columns():
    decoder = Decoder(DecodeSettings(stream="{host}/{disk}"))
    layout = decoder.csv_layout(b"timestamp,host,ms,disk")
    rows = [b"5,web-1,12,sda", b"6,web-1,12,", b"7,web-1,13,sdb"]
    batch, rejected = decoder.decode(raw_batch(*rows, csv={0: layout}, received=-1))
    assert events(batch) == [("web-1/sda", 5 * 10**9, {"ms": 12.0}), ("web-1/sdb", 7 * 10**9, {"ms": 13.0})]
    assert [refusal.reason for refusal in rejected] == ["no_stream"]
    named = decoder.csv_layout(b"timestamp,stream,ms")
    batch, rejected = decoder.decode(raw_batch(b"5,x,12", b"6,,12", csv={0: named}, received=-1, key=None))
    assert (batch.streams, [refusal.reason for refusal in rejected]) == (["x"], ["no_stream"])
    with pytest.raises(ValueError, match=r"no columns for \{host\}/\{disk\}, decode.stream"):
        decoder.csv_layout(b"timestamp,host_id,ms")


@pytest.mark.parametrize("name", ["a\nb", "a\x1b[31m", "a\x00", "\u202ebackwards", "\u2028", "\ud800"])
def test_a_name_that_could_forge_a_log_line_is_refused(name):
    assert reason({"stream": name, "value": 1}) == "bad_name"
    assert reason({"stream": "a", "values": {name: 1}}) == "bad_name"
    assert reason({"value": 1}, key=name.encode(errors="surrogatepass")) in ("bad_name", "no_stream")


def test_a_name_is_bounded_in_bytes():
    config = DecodeSettings(max_name_bytes=4)
    assert one({"stream": "éé", "value": 1}, config=DecodeSettings(max_name_bytes=5))[0] == "éé"
    assert reason({"stream": "ééé", "values": {"x": 1}}, config=config) == "name_too_long"
    assert reason({"stream": "a", "values": {"abcde": 1}}, config=config) == "name_too_long"


@pytest.mark.parametrize(
    ("number", "value"),
    [(1, 1.0), (-2.5, -2.5), ("3.25", 3.25), ("-1e3", -1000.0), (" 7 ", 7.0), (2**70, float(2**70))],
)
def test_numbers_may_be_written_as_text(number, value):
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
def test_what_is_not_a_finite_number_is_refused(number):
    assert reason(b'{"stream": "a", "values": {"x": 1, "y": ' + number + b"}}") == "not_a_number"
    assert reason(b'{"stream": "a", "value": ' + number + b"}") == "not_a_number"


def test_null_is_missing_and_an_event_of_nothing_else_is_refused():
    assert one({"stream": "a", "values": {"x": None, "y": 0}})[2] == {"y": 0.0}
    for value in ({"values": {"x": None}}, {"values": {}}, {"value": None}, {}):
        assert reason({"stream": "a", **value}) == "no_value"


def test_values_count_where_value_is_there_too():
    assert one({"stream": "a", "values": {"x": 1}, "value": 2})[2] == {"x": 1.0}


def test_of_a_key_that_stands_twice_the_last_counts():
    assert one(b'{"stream": "a", "stream": "b", "value": 1, "value": 2}')[::2] == ("b", {"value": 2.0})
    assert one(b'{"stream": "a", "values": {"x": 1, "x": 2}}')[2] == {"x": 2.0}


def test_a_refused_event_leaves_nothing_behind():
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
def test_a_refusal_says_why_and_keeps_the_bytes(value, expected):
    assert reason(value) == expected
    assert decode(value)[1][0].raw == value


def test_a_record_with_too_many_events_is_refused_as_one():
    config = DecodeSettings(batch="metrics", max_batch_events=3)
    few, many = ({"metrics": [{"stream": "a", "timestamp": NOON, "value": 1}] * count} for count in (3, 4))
    batch, rejected = decode(few, config=config)
    assert (len(batch), rejected) == (3, [])
    batch, rejected = decode(many, config=config)
    assert (len(batch), [refusal.reason for refusal in rejected]) == (0, ["too_many_events"])
    assert rejected[0].detail == "4; decode.max_batch_events is 3"


def test_a_byte_order_mark_is_passed_over():
    assert one(b'\xef\xbb\xbf{"stream": "a", "value": 1}')[0] == "a"


def test_what_is_odd_in_fields_that_nobody_asked_for_does_not_matter():
    assert one(b'{"stream": "a", "value": 1, "note": NaN, "more": {"x": "\\ud800"}}')[2] == {"value": 1.0}


def test_dotted_paths_lead_into_objects_and_a_key_with_dots_wins():
    config = DecodeSettings(stream="{meta.host.name}", timestamp="meta.at", values="data.numbers")
    value = {"meta": {"host": {"name": "deep"}, "at": NOON}, "data": {"numbers": {"x": 1}}}
    assert one(value, config=config) == ("deep", NOON_NS, {"x": 1.0})
    value["meta"]["host.name"] = "longer key"
    assert one(value, config=config)[0] == "longer key"
    value["meta.host.name"] = "whole key"
    assert one(value, config=config)[0] == "whole key"


def test_renamed_fields_decode_as_the_default_ones_do():
    config = DecodeSettings(stream="{host}", timestamp="ts", values="fields", value="reading")
    assert one({"host": "h", "ts": NOON, "reading": "5"}, config=config) == ("h", NOON_NS, {"value": 5.0})
    assert one({"host": "h", "ts": NOON, "fields": {"x": 5}}, config=config) == ("h", NOON_NS, {"x": 5.0})


def test_a_template_takes_integers_for_text():
    config = DecodeSettings(stream="{tags.host}/{name}")
    assert one({"tags": {"host": "h"}, "name": 7, "value": 1}, config=config)[0] == "h/7"
    assert one({"host": 0, "value": 1}, config=DecodeSettings(stream="{host}"))[0] == "0"


@pytest.mark.parametrize("template", ["", "stream", "{}", "{a", "a}", "{a}}", "{{a}}"])
def test_a_template_that_names_no_field_is_refused(template):
    with pytest.raises(ValidationError, match="braces"):
        DecodeSettings(stream=template)


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


@pytest.mark.parametrize(
    ("row", "event"),
    [
        (b"2025-11-20 12:00:00,a,1.5,2", ("a", NOON_NS, {"cpu": 1.5, "mem": 2.0})),
        (b'1763640000,"a,b",,2', ("a,b", NOON_NS, {"mem": 2.0})),
    ],
)
def test_a_csv_row_is_an_event_and_an_empty_cell_is_missing(row, event):
    assert one(row, csv={0: CSV}, received=-1) == event


@pytest.mark.parametrize(
    ("record", "values"),
    [
        ({"code": "E5"}, {"code": "E5"}),
        ({"code": 404}, {"code": "404"}),
        ({"code": -(2**70)}, {"code": str(-(2**70))}),
        ({"code": "Got <*> from <*>\n\tat <*>"}, {"code": "Got <*> from <*> at <*>"}),
        ({"code": "two  blanks"}, {"code": "two  blanks"}),
        ({"code": "\u00fcber \U0001f600"}, {"code": "\u00fcber \U0001f600"}),
        ({"code": "E5", "value": 1.5}, {"value": 1.5, "code": "E5"}),
        ({"code": "E5", "values": {"x": 1, "y": None}}, {"x": 1.0, "code": "E5"}),
        ({"code": None, "value": 2.5}, {"value": 2.5}),
    ],
)
def test_a_code_is_an_observation_of_the_feature_code(record, values):
    assert one({"stream": "a", "timestamp": NOON, **record}) == ("a", NOON_NS, values)


def test_a_symbol_is_one_whether_it_is_written_as_a_number_or_as_text():
    batch, _ = decode(*({"stream": "a", "timestamp": NOON, "code": code} for code in (404, "404", "E5", 404)))
    assert batch.symbols == ["404", "E5"]
    assert batch.symbol.tolist() == [0, 0, 1, 0]


def test_a_batch_without_symbols_carries_no_column_of_them():
    for record in ({"value": 1.5}, {"value": "1.5"}, {"value": 1.5, "code": None}):
        batch, _ = decode({"stream": "a", "timestamp": NOON, **record})
        assert (batch.symbols, len(batch.symbol)) == ([], 0)


def test_symbols_of_refused_events_leave_nothing_behind():
    batch, rejected = decode(
        {"stream": "a", "timestamp": "noon", "code": "bad"},
        {"stream": "a", "timestamp": NOON, "code": "good", "value": 1},
    )
    assert len(rejected) == 1
    assert batch.symbols == ["good"]
    assert batch.symbol.tolist() == [-1, 0]


def test_the_code_may_lie_anywhere_and_be_passed_over():
    record = {"stream": "a", "timestamp": NOON, "log": {"template": "E5"}, "code": "no"}
    assert one(record, config=DecodeSettings(code="log.template"))[2] == {"code": "E5"}
    assert one({**record, "value": 1}, config=DecodeSettings(code="nowhere"))[2] == {"value": 1.0}
    assert one({**record, "value": 1}, config=DecodeSettings(exclude_features=("code",)))[2] == {"value": 1.0}
    assert reason({"stream": "a", "code": "E55"}, config=DecodeSettings(max_code_bytes=2)) == "code_too_long"


def test_a_csv_column_of_codes_is_named_by_the_setting():
    decoder = Decoder(DecodeSettings(code="level"))
    layout = decoder.csv_layout(b"timestamp,level,ms,code")
    assert layout == CsvLayout(4, 0, None, ((2, "ms"), (3, "code")), 1)
    assert Decoder().csv_layout(b"timestamp,code") == CsvLayout(2, 0, None, (), 1)
    rows = [b"5,ERROR,12,", b"6,,12,", b'7,"a,b",,']
    batch, rejected = Decoder().decode(raw_batch(*rows, csv={0: layout}, received=-1))
    assert rejected == []
    assert [values for *_, values in events(batch)] == [{"ms": 12.0, "code": "ERROR"}, {"ms": 12.0}, {"code": "a,b"}]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (b"2025-11-20 12:00:00,a,1", "bad_row"),
        (b"2025-11-20 12:00:00,a,1,2,3", "bad_row"),
        (b'2025-11-20 12:00:00,"a,1,2', "bad_row"),
        (b"2025-11-20 12:00:00,\xff,1,2", "not_utf8"),
        (b"2025-11-20 12:00:00,,1,2", "no_stream"),
        (b"2025-11-20 12:00:00,a,one,2", "not_a_number"),
        (b"2025-11-20 12:00:00,a,nan,2", "not_a_number"),
        (b"2025-11-20 12:00:00,a,,", "no_value"),
        (b",a,1,2", "bad_timestamp"),
        (b"noon,a,1,2", "bad_timestamp"),
    ],
)
def test_a_csv_row_that_is_no_event_is_refused(row, expected):
    assert reason(row, csv={0: CSV}, received=-1, key=None) == expected


def test_every_reason_is_reached_by_these_tests():
    here = Path(__file__).read_text()
    assert [label for label in REASONS if f'"{label}"' not in here] == []


NAMES = st.one_of(st.text(max_size=8), st.sampled_from(["stream", "timestamp", "values", "value", "code", "metrics"]))
NUMBERS = st.one_of(
    st.integers(), st.floats(), st.integers(-(10**400), 10**400), st.floats().map(str), st.sampled_from(["1_0", "0x1"])
)
LEAVES = st.one_of(st.none(), st.booleans(), NUMBERS, st.text(max_size=12))
ANYTHING = st.recursive(
    LEAVES,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(NAMES, inner, max_size=3)),
    max_leaves=6,
)
TIMES = st.one_of(
    st.integers(0, 2 * 10**18),
    st.floats(0, 2e18),
    st.datetimes().map(str),
    st.datetimes().map(lambda t: f"{t.isoformat()}Z"),
)
OBJECTS = st.fixed_dictionaries(
    {},
    optional={
        "stream": st.one_of(st.sampled_from(["a", "b"]), ANYTHING),
        "timestamp": st.one_of(TIMES, ANYTHING),
        "values": st.one_of(st.dictionaries(NAMES, NUMBERS, max_size=4), ANYTHING),
        "value": st.one_of(NUMBERS, ANYTHING),
        "code": ANYTHING,
        "metrics": st.lists(ANYTHING, max_size=3),
    },
)
ENCODINGS = st.sampled_from(["utf-8", "utf-8", "utf-8", "utf-8-sig", "utf-16", "utf-32", "latin-1"])


@st.composite
def records(draw):
    text = json.dumps(draw(st.one_of(OBJECTS, ANYTHING)), ensure_ascii=draw(st.booleans()))
    encoding = draw(ENCODINGS)
    value = text.encode(encoding, "replace" if encoding == "latin-1" else "surrogatepass")
    damage = draw(st.sampled_from(["none", "none", "none", "cut", "byte", "raw", "double"]))
    if damage == "cut":
        return value[: draw(st.integers(0, len(value)))]
    if damage == "byte" and value:
        place = draw(st.integers(0, len(value) - 1))
        return value[:place] + bytes([draw(st.integers(0, 255))]) + value[place + 1 :]
    if damage == "raw":
        return draw(st.binary(max_size=40))
    return value.replace(b"{", b'{"value": 1, ', 1) if damage == "double" else value


FUZZED = [DecodeSettings(), DecodeSettings(stream="{tags.host}/{name}", values="values.x", max_features=2)]
BATCH_OF_RECORDS = 20


@settings(
    max_examples=3_000 // BATCH_OF_RECORDS, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
@given(data=st.data())
def test_thousands_of_made_records_are_each_decoded_or_refused(data):
    keys = st.one_of(st.none(), st.binary(max_size=6), st.just(b"key"))
    row = st.tuples(records(), keys, st.sampled_from([-1, RECEIVED_MS, 2**62]))
    rows = data.draw(st.lists(row, min_size=BATCH_OF_RECORDS, max_size=BATCH_OF_RECORDS))
    values, key, received = ([row[column] for row in rows] for column in range(3))
    raw = RawBatch([Partition("t", 0)], [0] * len(rows), list(range(len(rows))), received, key, values)
    csv = RawBatch(raw.partitions, raw.partition, raw.offset, received, key, values, csv={0: CSV})
    for config, batch_of in ((FUZZED[0], raw), (FUZZED[1], raw), (FUZZED[0], csv)):
        batch, rejected = Decoder(config).decode(batch_of)
        assert len(batch) + len(rejected) == len(rows)
        assert sorted(batch.offset.tolist() + [refusal.offset for refusal in rejected]) == raw.offset
        number = batch.symbol < 0 if batch.symbols else np.ones(len(batch.value), bool)
        assert np.array_equal(np.isfinite(batch.value), number)
        assert set(range(len(batch.symbols))) == set(batch.symbol[~number].tolist() if batch.symbols else [])
        assert set(range(len(batch.streams))) == set(batch.stream.tolist())
        assert set(range(len(batch.features))) == set(batch.feature.tolist())
        assert all(np.diff(batch.start) > 0)
        assert all(name.isprintable() for name in batch.streams + batch.features)
        for refusal in rejected:
            assert refusal.reason in REASONS
            assert refusal.raw == values[refusal.offset]
            assert refusal.detail.isprintable()


def test_what_a_record_becomes_does_not_depend_on_its_batch():
    values = [
        json.dumps({"stream": f"s{n % 3}", "timestamp": NOON + n, "values": {f"f{n % 5}": n / 3, "bad": None}}).encode()
        for n in range(50)
    ]
    values[7] = b"{"
    together, _ = decode(*values)
    singly = [event for value in values for event in events(decode(value)[0])]
    assert events(together) == singly
    assert math.isclose(together.value.sum(), sum(value for *_, cells in singly for value in cells.values()))


PLAIN = st.fixed_dictionaries(
    {
        "stream": st.sampled_from(["a", "b", "web 1/cpu"]),
        "timestamp": st.one_of(
            st.integers(NOON - 100, NOON + 100), st.sampled_from(["2025-11-20T12:00:00Z", "2025-11-20", NOON + 0.5])
        ),
    },
    optional={
        "values": st.dictionaries(st.sampled_from("xyz"), st.floats(-1e9, 1e9) | st.integers(), max_size=3),
        "code": st.sampled_from(["E5", "E6", 7, "7", "a\tb"]),
    },
)
NEARLY_PLAIN = st.sampled_from(
    [
        {"value": "3.5"},
        {"stream": None},
        {"timestamp": None},
        {"timestamp": NOON + 10**6},
        {"values": {"x": None, "y": 1}},
        {"values": {"bad\nname": 1}},
        {"stream": "bad\nname"},
        {"stream": 7},
        {"value": True},
        {"code": 1.5},
        {"code": "E5", "values": {"code": 1.0}},
    ]
)


@settings(deadline=None)
@given(
    plain=st.lists(PLAIN, min_size=1, max_size=8),
    value=st.none() | st.floats(-1e9, 1e9),
    odd=st.none() | NEARLY_PLAIN,
    received=st.sampled_from([-1, RECEIVED_MS]),
)
def test_plain_records_decode_at_once_as_they_do_one_by_one(plain, value, odd, received):
    """The broken record at the end makes the decoder look at each."""
    records = [record if value is None else {"value": value, **record} for record in plain]
    if odd:
        records[len(plain) // 2] |= odd
    at_once, refused = decode(*records, received=received)
    singly, refused_singly = decode(*records, b"{", received=received)

    assert events(at_once) == events(singly)
    assert set(at_once.symbols) == set(singly.symbols)
    assert refused == refused_singly[:-1]
    for column in ("received", "partition", "offset"):
        assert getattr(at_once, column).tolist() == getattr(singly, column).tolist()
    assert [at_once.streams, at_once.features] == [
        list(dict.fromkeys(at_once.streams)),
        list(dict.fromkeys(at_once.features)),
    ]

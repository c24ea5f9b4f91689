"""Rows of CSV files as events."""

from __future__ import annotations

import pytest

from connectors.batches import CsvLayout
from connectors.decode.decoder import Decoder, DecodeSettings
from tests.connectors.decode.support import CSV, NOON_NS, events, one, raw_batch, reason


def test_csv_template_fields_are_columns():
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


@pytest.mark.parametrize(
    ("row", "event"),
    [
        (b"2025-11-20 12:00:00,a,1.5,2", ("a", NOON_NS, {"cpu": 1.5, "mem": 2.0})),
        (b'1763640000,"a,b",,2', ("a,b", NOON_NS, {"mem": 2.0})),
    ],
)
def test_a_csv_row_is_an_event_and_an_empty_cell_is_missing(row, event):
    assert one(row, csv={0: CSV}, received=-1) == event


def test_the_code_setting_names_the_csv_column_of_codes():
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
def test_an_invalid_csv_row_is_rejected_with_its_reason(row, expected):
    assert reason(row, csv={0: CSV}, received=-1, key=None) == expected

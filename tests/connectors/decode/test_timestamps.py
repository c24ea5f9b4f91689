"""When an event was: layouts, units, and what cannot be a time."""

from __future__ import annotations

import pytest

from connectors.decode.decoder import DecodeSettings
from connectors.decode.timestamps import parse_time
from tests.connectors.decode.support import NOON, NOON_NS, RECEIVED_MS, decode, one, reason


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
def test_timestamps_of_every_layout_and_unit_are_parsed(timestamp, nanoseconds):
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
def test_invalid_and_impossible_timestamps_are_rejected(timestamp):
    assert reason({"stream": "a", "timestamp": timestamp, "value": 1}) == "bad_timestamp"


def test_without_a_timestamp_field_the_records_own_time_is_used():
    assert one({"stream": "a", "value": 1})[1] == RECEIVED_MS * 1_000_000
    assert one({"stream": "a", "timestamp": None, "value": 1})[1] == RECEIVED_MS * 1_000_000
    assert reason({"stream": "a", "value": 1}, received=-1) == "bad_timestamp"
    assert reason({"stream": "a", "value": 1}, received=2**62) == "bad_timestamp"


def test_a_record_without_broker_time_may_be_of_any_age():
    batch, _ = decode({"stream": "a", "timestamp": 12, "value": 1}, received=-1)
    assert batch.time.tolist() == batch.received.tolist() == [12 * 10**9]


def test_max_age_and_max_lead_follow_the_settings():
    value = {"stream": "a", "timestamp": NOON - 7200, "value": 1}
    assert one(value)[1] == NOON_NS - 7200 * 10**9
    assert reason(value, config=DecodeSettings(max_age_days=0.05)) == "bad_timestamp"
    value["timestamp"] = NOON + 7200
    assert one(value)[1] == NOON_NS + 7200 * 10**9
    assert reason(value, config=DecodeSettings(max_ahead_seconds=3600)) == "bad_timestamp"

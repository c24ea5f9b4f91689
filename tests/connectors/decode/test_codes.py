"""Codes of log lines: symbols next to numbers."""

from __future__ import annotations

import pytest

from connectors.decode.decoder import DecodeSettings
from tests.connectors.decode.support import NOON, NOON_NS, decode, one, reason


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
def test_a_code_becomes_a_symbol_of_the_feature_code(record, values):
    assert one({"stream": "a", "timestamp": NOON, **record}) == ("a", NOON_NS, values)


def test_a_code_written_as_number_or_as_text_is_the_same_symbol():
    batch, _ = decode(*({"stream": "a", "timestamp": NOON, "code": code} for code in (404, "404", "E5", 404)))
    assert batch.symbols == ["404", "E5"]
    assert batch.symbol.tolist() == [0, 0, 1, 0]


def test_a_batch_without_symbols_has_no_symbol_column():
    for record in ({"value": 1.5}, {"value": "1.5"}, {"value": 1.5, "code": None}):
        batch, _ = decode({"stream": "a", "timestamp": NOON, **record})
        assert (batch.symbols, len(batch.symbol)) == ([], 0)


def test_symbols_of_rejected_events_are_not_kept():
    batch, rejected = decode(
        {"stream": "a", "timestamp": "noon", "code": "bad"},
        {"stream": "a", "timestamp": NOON, "code": "good", "value": 1},
    )
    assert len(rejected) == 1
    assert batch.symbols == ["good"]
    assert batch.symbol.tolist() == [-1, 0]


def test_the_code_field_is_configurable_and_can_be_excluded():
    record = {"stream": "a", "timestamp": NOON, "log": {"template": "E5"}, "code": "no"}
    assert one(record, config=DecodeSettings(code="log.template"))[2] == {"code": "E5"}
    assert one({**record, "value": 1}, config=DecodeSettings(code="nowhere"))[2] == {"value": 1.0}
    assert one({**record, "value": 1}, config=DecodeSettings(exclude_features=("code",)))[2] == {"value": 1.0}
    assert one({"stream": "a", "code": "E" * 1024})[2] == {"code": "E" * 1024}
    assert reason({"stream": "a", "code": "é" * 513}) == "code_too_long"

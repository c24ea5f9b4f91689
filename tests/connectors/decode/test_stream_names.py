"""Which stream an event belongs to: fields, templates, keys, and names that are refused."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from connectors.decode.decoder import DecodeSettings
from tests.connectors.decode.support import NOON, NOON_NS, decode, one, reason


def test_the_stream_name_comes_from_the_payload_then_from_the_key():
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
def test_a_record_lacking_a_template_field_is_rejected_even_with_a_key(template, record):
    record = {"timestamp": NOON, **record}
    config = DecodeSettings(stream=template)
    assert reason(record, config=config) == "no_stream"
    batch, rejected = decode(*[record] * 3, config=config)
    assert (len(batch), [refusal.reason for refusal in rejected]) == (0, ["no_stream"] * 3)
    many = DecodeSettings(stream=template, batch="metrics")
    assert reason({"metrics": [record]}, config=many) == "no_stream"


def test_measurements_lacking_a_template_field_do_not_merge_into_one_stream():
    config = DecodeSettings(stream="{tags.host}/{name}/{tags.cpu}", values="fields")
    cpu = {"name": "cpu", "tags": {"host": "web-1", "cpu": "cpu0"}, "fields": {"user": 1.5}, "timestamp": NOON}
    others = [{**cpu, "name": name, "tags": {"host": "web-1"}} for name in ("mem", "system", "swap")]
    batch, rejected = decode(cpu, *others, config=config, key=b"web-1")
    assert batch.streams == ["web-1/cpu/cpu0"]
    assert [refusal.detail for refusal in rejected] == ["`tags.cpu`, of decode.stream, is missing or empty"] * 3


@pytest.mark.parametrize("name", ["a\nb", "a\x1b[31m", "a\x00", "\u202ebackwards", "\u2028", "\ud800"])
def test_a_name_that_could_forge_a_log_line_is_rejected(name):
    assert reason({"stream": name, "value": 1}) == "bad_name"
    assert reason({"stream": "a", "values": {name: 1}}) == "bad_name"
    assert reason({"value": 1}, key=name.encode(errors="surrogatepass")) in ("bad_name", "no_stream")


def test_names_are_limited_in_bytes():
    longest = "é" * 127 + "a"  # 255 bytes
    assert one({"stream": longest, "values": {longest: 1}})[0] == longest
    assert reason({"stream": "é" * 128, "values": {"x": 1}}) == "name_too_long"
    assert reason({"stream": "a", "values": {"a" * 256: 1}}) == "name_too_long"


def test_dotted_paths_descend_into_objects_and_literal_dotted_keys_win():
    config = DecodeSettings(stream="{meta.host.name}", timestamp="meta.at", values="data.numbers")
    value = {"meta": {"host": {"name": "deep"}, "at": NOON}, "data": {"numbers": {"x": 1}}}
    assert one(value, config=config) == ("deep", NOON_NS, {"x": 1.0})
    value["meta"]["host.name"] = "longer key"
    assert one(value, config=config)[0] == "longer key"
    value["meta.host.name"] = "whole key"
    assert one(value, config=config)[0] == "whole key"


def test_template_fields_may_be_integers():
    config = DecodeSettings(stream="{tags.host}/{name}")
    assert one({"tags": {"host": "h"}, "name": 7, "value": 1}, config=config)[0] == "h/7"
    assert one({"host": 0, "value": 1}, config=DecodeSettings(stream="{host}"))[0] == "0"


@pytest.mark.parametrize("template", ["", "stream", "{}", "{a", "a}", "{a}}", "{{a}}"])
def test_a_template_without_fields_is_refused(template):
    with pytest.raises(ValidationError, match="braces"):
        DecodeSettings(stream=template)

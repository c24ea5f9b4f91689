"""Made records: each is decoded or refused, and alike in every batch."""

from __future__ import annotations

import json
import math

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from connectors.batches import Partition, RawBatch
from connectors.decode.decoder import REASONS, Decoder, DecodeSettings
from tests.connectors.decode.support import CSV, NOON, RECEIVED_MS, decode, events

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
def test_thousands_of_generated_records_are_each_decoded_or_rejected(data):
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


def test_decoding_a_record_does_not_depend_on_its_batch():
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
def test_fast_and_slow_decoding_paths_agree(plain, value, odd, received):
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

"""Whatever arrives: each record is scored, counted as late or duplicate, or refused with its reason; nothing breaks."""

import json
import math
import random
import warnings
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from connectors.batches import Partition, RawBatch
from connectors.decode.decoder import REASONS, Decoder
from detector.engine.engine import Engine, EngineSettings, Step
from tests.streams import clock, in_batches, numbered, run, seasonal, wide
from training.network.weights import Weights

RECORDS = 10_000
NOW_MS = 1_790_000_000_000
PARTITIONS = [Partition("metrics", 0), Partition("metrics", 1)]


def raw_batch(values: list[bytes], keys: list[bytes | None], first_offset: int = 0) -> RawBatch:
    count = len(values)
    return RawBatch(
        partitions=PARTITIONS,
        partition=[k % 2 for k in range(count)],
        offset=list(range(first_offset, first_offset + count)),
        received=[NOW_MS + first_offset + k if k % 7 else -1 for k in range(count)],
        key=keys,
        value=values,
    )


class Account:
    """What became of records, by how many."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.decoder = engine, Decoder()
        self.records = self.scored = self.late = self.duplicates = 0
        self.refused: Counter[str] = Counter()

    def take(self, raw: RawBatch) -> Step:
        """Decode and score a batch; checks that each record has one fate and that every number is sound."""
        batch, rejected = self.decoder.decode(raw)
        step = self.engine.step(batch)
        scores = step.scores
        self.records += len(raw)
        self.scored += len(scores)
        self.late, self.duplicates = self.late + step.late, self.duplicates + step.duplicates
        self.refused.update(refusal.reason for refusal in rejected)

        fates = sorted([*batch.offset.tolist(), *(refusal.offset for refusal in rejected)])
        assert fates == raw.offset
        assert all(refusal.reason in REASONS and refusal.detail for refusal in rejected)
        assert len(scores) + step.late + step.duplicates == len(batch)
        assert np.isfinite(scores.score).all()
        assert (scores.score >= 0).all()
        assert np.isfinite(scores.threshold).all()
        assert np.isfinite(scores.surprise).all()
        for column in (scores.expected, scores.lower, scores.upper):
            assert not np.isinf(column).any()
        assert np.isfinite(scores.contribution).all()
        for alert in step.alerts:
            assert math.isfinite(alert.score)
            assert all(isinstance(x, str) or math.isfinite(x) for x in alert.observed.values())
        return step

    def check_sums(self) -> None:
        assert self.records == self.scored + self.late + self.duplicates + self.refused.total()


# --- Records of every kind --------------------------------------------------------------------------------------------

NUMBERS = [
    0, -0.0, 1, 1.5, -3, 1e308, -1.7976931348623157e308, 5e-324, 2.2e-308, 1e-300, 1e30, -1e31, 2**63, -(2**64),
    10**400, "1.25", " 7 ", "1e400", "NaN", "0x10", "١٢", "", True, False, None, [], {}, [1], {"x": 1},
]  # fmt: skip
TIMES = [
    None, 0, -1, 1, 1e18, -1e18, 2**63, 2**80, 1.5, "2026-11-20T08:15:00Z", "yesterday", "", [], {}, True, "9999-12-31",
    "0001-01-01T00:00:00Z", NOW_MS, NOW_MS * 1000, NOW_MS / 1000, str(NOW_MS), "2026-09-21T14:13:20.123456789+02:00",
    float(NOW_MS) * 1e6, "1e300", "-99999999999999999999",
]  # fmt: skip
NAMES = [
    "a",
    "b",
    "web-1/cpu",
    "",
    None,
    7,
    "x" * 300,
    "ключ",
    "naïve\u202e",
    "line\nbreak",
    "\ud800",
    "a\x00b",
    {"a": 1},
]
WHOLE = [
    b"", b"{", b"null", b"[]", b"7", b'"text"', b"{}", b"\xff\xfe{\x00", b"\x00\x00\x00\x00\x01", b"\xef\xbb\xbf{}",
    b'{"stream": "a", "value": NaN}', b'{"stream": "a", "value": Infinity}', b'{"stream": "a", "value": 1} trailing',
    b'{"stream": "a", "value": 1, "value": 2}', b'{"stream": "a", "stream": "b", "value": 2}', b"[" * 100_000,
    b'{"stream": "a", "values": {"x": 1, "x": 2}}', '{"stream": "a", "value": 1}'.encode("utf-16"),
    '{"stream": "ä", "value": 1}'.encode("latin-1"), b'{"stream": "a", "code": "E42"}', b'{"stream": "a", "code": []}',
    b'{"value": 1' + b" " * 500,
]  # fmt: skip


def made(choose: random.Random, number: int) -> tuple[bytes, bytes | None]:
    """Make one record and its key: mostly sound, so that streams get old enough to be judged."""
    key = choose.choice([None, b"", b"key", b"\xff\xfe", b"k" * 400])
    kind = choose.random()
    if kind < 0.08:
        return choose.choice(WHOLE), key
    record: dict[str, object] = {"stream": choose.choice("abcdef"), "timestamp": NOW_MS + 1000 * (number // 3 * 3)}
    width = choose.choice([1, 1, 3])
    record["values"] = {f"f{k}": choose.gauss(0, 1) for k in range(width)}
    if record["stream"] in "ab":
        record["value"] = choose.gauss(0, 1)
        del record["values"]
    if record["stream"] == "f":
        record["code"] = f"E{number % 9}"
    if kind < 0.5:
        if choose.random() < 0.3:
            record["stream"] = choose.choice(NAMES)
        if choose.random() < 0.3:
            record["timestamp"] = choose.choice([*TIMES, NOW_MS + choose.randrange(-(10**7), 10**7)])
        if choose.random() < 0.5:
            field = choose.choice(["value", "values"])
            record[field] = choose.choice(
                [*NUMBERS, {choose.choice(["f0", "f1", "", "é", "\n"]): choose.choice(NUMBERS)}]
            )
        if choose.random() < 0.1:
            record["values"] = {f"new{number}-{k}": choose.choice(NUMBERS[:13]) for k in range(choose.randrange(40))}
        if choose.random() < 0.1:
            del record[choose.choice(list(record))]
    value = json.dumps(record).encode("utf-8", "surrogatepass")
    if choose.random() < 0.02:
        cut = choose.randrange(len(value))
        value = value[:cut] + bytes([choose.randrange(256)]) + value[cut + choose.randrange(3) :]
    return value, key


@pytest.mark.parametrize("limit", [100_000, 4], ids=["roomy", "evicting"])
def test_ten_thousand_records_of_every_kind_are_scored_counted_or_rejected(model: Weights, limit: int) -> None:
    choose = random.Random(20_261_120)
    rows: dict[str, bytes] = {}
    engine = Engine(model, EngineSettings(max_streams=limit), fetch=lambda names: [rows.get(name) for name in names])
    account, first = Account(engine), 0
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)  # an overflow that numpy sees is one too many
        while first < RECORDS:
            size = min(choose.choice([1, 3, 50, 700]), RECORDS - first)
            values, keys = map(list, zip(*(made(choose, first + k) for k in range(size)), strict=True))
            account.take(raw_batch(values, keys, first))
            first += size
            if choose.random() < 0.2:
                rows.update(engine.streams.drain())

    account.check_sums()
    assert account.records == RECORDS
    assert account.scored > 3000
    assert account.late > 100
    assert account.duplicates > 10
    assert {
        "empty", "not_json", "not_utf8", "too_deep", "not_an_object", "no_stream", "bad_name", "name_too_long",
        "bad_timestamp", "no_value", "not_a_number", "bad_code", "unsupported",
    } <= set(account.refused)  # fmt: skip


def test_records_of_megabytes_and_thousands_of_features_are_scored_or_rejected(model: Weights) -> None:
    def wide_record(features: int, number: int, name: str = "w") -> bytes:
        values = {f"{name}{number}-{k}": 1.0 for k in range(features)}
        return json.dumps({"stream": "wide", "timestamp": NOW_MS + number, "values": values}).encode()

    account = Account(Engine(model))
    values = [
        b'{"stream": "a", "value": 1, "note": "' + b"x" * 5_000_000 + b'"}',
        b'{"stream": "' + b"a" * 5_000_000 + b'", "value": 1}',
        b'{"stream": "a", "value": ' + b"9" * 900_000 + b"}",
        b'{"stream": "a", "value": "' + b"9" * 900_000 + b'"}',
        b'{"stream": "a", "timestamp": "' + b"2" * 900_000 + b'", "value": 1}',
        b"\x00" * 5_000_000,
        *(wide_record(900, number) for number in range(6)),  # 5,400 features of one stream: most have no lane
        wide_record(1001, 99),
    ]
    step = account.take(raw_batch(values, [b"key"] * len(values)))
    later = [wide_record(900, 0).replace(str(NOW_MS).encode(), str(NOW_MS + 1000).encode())]
    again = account.take(raw_batch(later, [None], len(values)))

    account.check_sums()
    assert account.refused["too_large"] == 3
    assert account.refused["too_many_features"] == 1
    assert step.features_dropped == 5400 - 1024
    assert again.features_dropped == 0


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=8,
)
EVENTS = st.fixed_dictionaries(
    {"stream": st.sampled_from("abc")},
    optional={
        "timestamp": st.integers(NOW_MS - 10**6, NOW_MS + 10**6) | JSON,
        "value": st.floats() | st.integers() | JSON,
        "values": st.dictionaries(
            st.sampled_from(["x", "y", "z"]) | st.text(max_size=3), st.floats() | JSON, max_size=4
        ),
        "code": st.sampled_from(["E1", "E2", 3]) | JSON,
    },
)


@given(
    records=st.lists(st.binary(max_size=40) | JSON.map(json.dumps) | EVENTS.map(json.dumps), min_size=1, max_size=40)
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_generated_record_is_scored_counted_or_rejected(shared: Account, records: list[bytes | str]) -> None:
    """One engine for all examples: its streams grow old with all that came before."""
    values = [record if isinstance(record, bytes) else record.encode("utf-8", "surrogatepass") for record in records]
    shared.take(raw_batch(values, [None] * len(values)))
    shared.check_sums()


@pytest.fixture(scope="module")
def shared(model: Weights) -> Account:
    return Account(Engine(model))


# --- Magnitudes -------------------------------------------------------------------------------------------------------

DISTURBANCES: dict[str, Callable[[np.ndarray], None]] = {
    "one 1e308": lambda x: x.__setitem__(1000, 1e308),
    "one -1e30": lambda x: x.__setitem__(1000, -1e30),
    "one 4294967295": lambda x: x.__setitem__(1000, 4294967295.0),
    "one denormal": lambda x: x.__setitem__(1000, 5e-324),
    "alternating 1e300": lambda x: x.__setitem__(slice(1000, 1010), 1e300 * np.where(np.arange(10) % 2, 1.0, -1.0)),
    "alternating 1e-300": lambda x: x.__setitem__(slice(1000, 1010), 1e-300 * np.where(np.arange(10) % 2, 1.0, -1.0)),
    "1e300 and 1e-300": lambda x: x.__setitem__(slice(1000, 1004), [1e300, 1e-300, -1e300, -1e-300]),
}


@pytest.mark.parametrize("disturb", DISTURBANCES)
def test_after_wild_values_a_single_feature_stream_scores_normally_again(model: Weights, disturb: str) -> None:
    """Novelty is measured against the range of the last 8,000 events, so that long it is dull."""
    rows = 14_000
    value = seasonal(np.random.default_rng(1), clock(rows))
    value[np.arange(9500, rows, 500)] += 6.0
    wild = value.copy()
    DISTURBANCES[disturb](wild)

    spoilt = run(Engine(model), in_batches(numbered(wide("s", clock(rows), wild[:, None])), 2000))
    clean = run(Engine(model), in_batches(numbered(wide("s", clock(rows), value[:, None])), 2000))

    spikes = np.arange(9500, rows, 500)
    assert np.isfinite(spoilt.score).all()
    assert np.median(spoilt.score[spikes]) > 3.0, f"undisturbed: {np.median(clean.score[spikes])}"
    alerts = [len([a for a in o.alerts if a.status == "firing"]) for o in (spoilt, clean)]
    assert alerts[0] <= alerts[1] + 6


SOON = ["one 1e308", "one -1e30", "one 4294967295", "one denormal", "alternating 1e-300"]


@pytest.mark.parametrize("features", [2, 6])
@pytest.mark.parametrize("disturb", SOON)
def test_after_wild_values_a_multi_feature_stream_scores_normally_again(
    model: Weights, disturb: str, features: int
) -> None:
    rows = 5000
    rng = np.random.default_rng(2)
    value = np.stack([seasonal(rng, clock(rows)) for _ in range(features)], axis=1)
    spikes = np.arange(1700, rows, 300)
    value[spikes, 0] += 6.0
    wild = value.copy()
    DISTURBANCES[disturb](wild[:, 0])

    spoilt = run(Engine(model), in_batches(numbered(wide("s", clock(rows), wild)), 2000))
    clean = run(Engine(model), in_batches(numbered(wide("s", clock(rows), value)), 2000))

    assert np.isfinite(spoilt.score).all()
    assert spoilt.score[spikes[0]] > spoilt.threshold[spikes[0]] + 1.0  # critical, as without
    assert (spoilt.score[spikes] > spoilt.threshold[spikes] + 0.2).all()  # what comes again is told, but no rarer
    assert (spoilt.score[spikes] > 0.6 * clean.score[spikes]).all()


@pytest.mark.parametrize("features", [1, 3, 8])
def test_values_of_all_magnitudes_leave_every_state_finite(model: Weights, features: int) -> None:
    rng = np.random.default_rng(3)
    rows = 3000
    value = rng.standard_normal((rows, features)) * 10.0 ** rng.integers(-320, 308, (rows, features))
    engine = Engine(model)

    outcome = run(engine, in_batches(numbered(wide("s", clock(rows), value)), 500))

    assert np.isfinite(outcome.score).all()
    states = engine.streams.states
    stream = states.streams.rows[states.slots["s"]]
    lanes = states.lanes.rows[stream["first_lane"] : stream["first_lane"] + features]
    assert finite(lanes)
    assert finite(stream)
    assert np.isfinite(states.recurrent.read(np.arange(stream["first_lane"], stream["first_lane"] + features))).all()


def finite(rows: np.ndarray) -> bool:
    """Whether every float of a structured array is finite."""
    if rows.dtype.names is None:
        return rows.dtype.kind != "f" or bool(np.isfinite(rows).all())
    return all(finite(rows[name]) for name in rows.dtype.names)

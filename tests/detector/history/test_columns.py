"""Events in columns, in memory and as bytes: what comes back is what went in, and damage is found."""

from __future__ import annotations

import contextlib
import zlib

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from detector.history.columns import (
    COLUMNS,
    EVENT,
    Columns,
    DamagedChunkError,
    StreamWindow,
    joined,
    no_events,
    of_bytes,
    to_bytes,
)

NAMES = ["x", "a long name/with parts", "é", "\x00"]


def columns(events: int, seed: int = 0) -> Columns:
    rng = np.random.default_rng(seed)
    start = np.concatenate(([0], np.cumsum(rng.integers(0, 4, events))))
    values = {}
    for name, dtype in COLUMNS.items():
        rows = events if name in EVENT else int(start[-1])
        values[name] = rng.standard_normal(rows).astype(dtype)
    values["feature"] = rng.integers(0, 4, int(start[-1])).astype(np.int32)
    values["symbol"] = rng.integers(-1, 2, int(start[-1])).astype(np.int32)
    values["expected_symbol"] = rng.integers(-1, 2, int(start[-1])).astype(np.int32)
    values["model"], values["channel"] = (rng.integers(-1, 2, events).astype(COLUMNS[n]) for n in ("model", "channel"))
    values["alert"] = rng.random(events) < 0.5
    values["time"] = np.cumsum(rng.integers(0, 10**12, events))
    return Columns(NAMES, ["ok", "bad"], ["one", "two"], start.astype(np.int64), values)


def shown(found: Columns) -> dict:
    return StreamWindow("s", found, True, "").document()


@given(st.lists(st.integers(0, 20), max_size=5))
def test_parts_in_a_row_are_the_whole(sizes: list[int]) -> None:
    parts = [columns(size, seed) for seed, size in enumerate(sizes)]
    whole = joined(parts)
    assert len(whole) == sum(sizes)
    assert whole.observations == sum(part.observations for part in parts)
    at = 0
    for part in parts:
        mine, expected = shown(joined([whole.rows(at, at + len(part))])), shown(joined([part]))
        assert {**mine, "features": sorted(mine["features"])} == {**expected, "features": sorted(expected["features"])}
        at += len(part)


@given(st.integers(0, 50), st.integers(0, 100))
def test_bytes_give_back_what_went_in(events: int, seed: int) -> None:
    before = columns(events, seed)
    after = of_bytes(to_bytes(before))
    assert (after.features, after.symbols, after.models) == (before.features, before.symbols, before.models)
    np.testing.assert_array_equal(after.start, before.start)
    for name in COLUMNS:
        np.testing.assert_array_equal(after.values[name], before.values[name])
        assert after.values[name].dtype == COLUMNS[name]


@given(st.integers(0, 10_000), st.integers(0, 255))
def test_a_damaged_chunk_is_told_or_harmless(at: int, byte: int) -> None:
    data = bytearray(to_bytes(columns(20)))
    data[at % len(data)] = byte
    with contextlib.suppress(DamagedChunkError):
        shown(of_bytes(bytes(data)))


@given(st.binary(max_size=200))
def test_other_bytes_are_no_chunk(data: bytes) -> None:
    with pytest.raises(DamagedChunkError):
        of_bytes(data)
    with pytest.raises(DamagedChunkError):
        of_bytes(zlib.compress(data))


def test_a_chunk_that_says_something_else_than_it_holds_is_refused() -> None:
    chunk = msgspec.msgpack.decode(zlib.decompress(to_bytes(columns(5))))
    for position, value in ((3, 6), (4, 1 << 60), (3, -1), (0, []), (5, {})):
        forged = [*chunk]
        forged[position] = value
        with pytest.raises(DamagedChunkError):
            of_bytes(zlib.compress(msgspec.msgpack.encode(forged)))


def test_what_is_not_finite_is_null() -> None:
    one = columns(1, 3)
    one.values["score"][:] = np.nan
    one.values["observed"][:] = np.inf
    assert shown(one)["score"] == [None]
    assert shown(no_events())["time"] == []

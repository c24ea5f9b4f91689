"""The ring: the last events of all streams, whichever way it has gone round."""

from __future__ import annotations

import numpy as np
import pytest

from connectors.batches import Scores
from detector.engine.engine import Engine
from detector.history import ring as module
from detector.history.ring import Ring, hashes_of
from tests.streams import MINUTE, START, Event, batch_of


def events(streams: int, rows: int, features: int = 2, first: int = 0) -> list[Event]:
    rng = np.random.default_rng(first)
    return [
        Event(f"s{s}", START + (first + r) * MINUTE, {f"f{k}": float(rng.normal()) for k in range(features)},
              offset=(first + r) * streams + s)
        for r in range(rows) for s in range(streams)
    ]  # fmt: skip


def scored(engine: Engine, some: list[Event]) -> Scores:
    return engine.step(batch_of(some)).scores


def observed(ring: Ring, name: str, most: int = 1000) -> tuple[list[int], list[float]]:
    (numbers,) = ring.find([hash(name)], most)
    columns = ring.columns(numbers)
    mine = [columns.features[code] for code in columns.values["feature"]]
    values = [v for v, feature in zip(columns.values["observed"].tolist(), mine, strict=True) if feature == "f1"]
    return ((columns.values["time"] - START) // MINUTE).tolist(), values


@pytest.mark.parametrize(("rows", "size"), [(1, 1), (3, 5), (40, 7), (200, 50), (300, 300)])
def test_it_holds_the_last_events_of_each_stream(rows: int, size: int) -> None:
    engine, ring = Engine(), Ring(events=100, observations=150)
    all_events = events(3, rows)
    for at in range(0, len(all_events), size):
        scores = scored(engine, all_events[at : at + size])
        first = ring.append(scores, hashes_of(scores.batch.streams))
        assert ring.written == first + len(scores)
    for stream in range(3):
        wanted = [e for e in all_events if e.stream == f"s{stream}"]
        times, values = observed(ring, f"s{stream}")
        assert min(len(wanted), 24) <= len(times) <= 25 or len(times) == len(wanted), "75 events fit, of two features"
        assert times == [(e.time - START) // MINUTE for e in wanted[-len(times) :]]
        assert values == [e.values["f1"] for e in wanted[-len(times) :]]


def test_a_few_are_found_and_those_before_a_number() -> None:
    engine, ring = Engine(), Ring(events=100, observations=300)
    scores = scored(engine, events(2, 40))
    ring.append(scores, hashes_of(scores.batch.streams))
    assert observed(ring, "s1", 3)[0] == [37, 38, 39]
    found = ring.find([hash("s1"), hash("s0"), hash("none")], 100, before=20)
    assert [len(numbers) for numbers in found] == [10, 10, 0]
    assert [len(numbers) for numbers in ring.find([hash("s0")], 0)] == [0]


def test_what_was_taken_back_comes_again_once() -> None:
    engine, ring = Engine(), Ring(events=100, observations=300)
    some = events(1, 30)
    for part in (some[:10], some[10:20]):
        scores = scored(engine, part)
        before = ring.append(scores, hashes_of(scores.batch.streams))
    ring.take_back(before)
    assert observed(ring, "s0")[0] == list(range(10))
    again = Engine()
    scores = scored(again, some[10:])
    ring.append(scores, hashes_of(scores.batch.streams))
    assert observed(ring, "s0")[0] == list(range(30))
    ring.append(scores, hashes_of(scores.batch.streams))
    assert observed(ring, "s0")[0] == list(range(30)), "what comes twice is there once"


def test_names_that_no_event_has_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_NAMES", 20)
    engine, ring = Engine(), Ring(events=16, observations=16)
    for row in range(60):
        one = Event("s", START + row * MINUTE, {f"n{row}": float(row), "state": f"v{row}"}, offset=row)
        scores = scored(engine, [one])
        ring.append(scores, hashes_of(scores.batch.streams))
    assert max(len(ring._features), len(ring._symbols)) <= 24
    (numbers,) = ring.find([hash("s")], 3)
    columns = ring.columns(numbers)
    names = [columns.features[code] for code in columns.values["feature"]]
    assert sorted(names) == ["n57", "n58", "n59", "state", "state", "state"]
    symbols = columns.values["symbol"][columns.values["symbol"] >= 0]
    assert [columns.symbols[code] for code in symbols] == ["v57", "v58", "v59"]


def test_it_takes_forty_megabytes() -> None:
    assert Ring().nbytes < 40e6

"""Any stream's recent window, forecast and hidden state; and that looking changes nothing that is scored."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from detector.engine.engine import Engine, EngineSettings
from detector.history.recent import look_at
from detector.history.ring import Ring, hashes_of
from tests.detector.history.support import FIRED, Recorded, events_of, rows, values_of
from tests.streams import MINUTE, START, Event, fleet, in_batches, interleaved
from training.network.weights import Weights


def fed(engine: Engine, ring: Ring, events: list[Event], size: int = 100) -> None:
    for batch in in_batches(events, size):
        ring.append(engine.step(batch).scores, hashes_of(batch.streams))


def test_a_window_has_what_was_scored(tmp_path: Path) -> None:
    recorded = Recorded(tmp_path)
    recorded.feed(events_of(features=("x", "y")))
    look = look_at(recorded.engine, recorded.history.ring, "a/b")
    assert look is not None
    found = look.window(200)
    document = found.document()
    assert rows(document) == list(range(1300, 1500))
    assert document["by_feature"]["x"]["observed"] == values_of()[1300:].tolist()
    assert (document["complete"], document["note"]) == (True, "")
    assert len(look.window(10).columns) == 10


def test_what_the_ring_lost_is_restored_from_the_row(tmp_path: Path) -> None:
    engine, ring = Engine(), Ring()
    fed(engine, ring, events_of(features=("x", "y")))
    scored = look_at(engine, ring, "a/b").window(128).document()
    restored = look_at(engine, Ring(), "a/b").window(300).document()
    assert rows(restored) == rows(scored)
    assert restored["score"] == [None] * 128
    assert not restored["complete"]
    assert "scores are not known" in restored["note"]
    for feature in ("x", "y"):
        mine, theirs = restored["by_feature"][feature], scored["by_feature"][feature]
        assert mine["observed"] == pytest.approx(theirs["observed"], abs=1e-3)
        error = np.array(mine["expected"]) - np.array(theirs["expected"])
        assert np.abs(error[20:]).mean() < 0.05, "a tenth of the noise: the state begins from a window"
        assert np.mean(np.less_equal(mine["lower"], mine["expected"])) == 1


def test_a_young_stream_has_what_it_has() -> None:
    engine = Engine()
    fed(engine, Ring(), events_of(rows=50))
    found = look_at(engine, Ring(), "a/b").window(300).document()
    assert rows(found) == list(range(50))
    assert found["by_feature"]["x"]["observed"] == pytest.approx(values_of(50).tolist(), abs=1e-3)
    assert found["by_feature"]["x"]["expected"][0] is None


def test_values_far_out_are_restored_as_far_as_their_unit_goes() -> None:
    rng = np.random.default_rng(0)
    value = np.concatenate([rng.normal(0, 1, 400), rng.normal(0, 1, 100) + 1000 * (np.arange(100) % 10 == 0)])
    events = [Event("s", START + i * MINUTE, {"x": float(v)}, offset=i) for i, v in enumerate(value)]
    engine = Engine()
    fed(engine, Ring(), events)
    found = look_at(engine, Ring(), "s").window(128).document()["by_feature"]["x"]["observed"]
    usual = value[-128:] < 100
    assert np.array(found)[usual] == pytest.approx(value[-128:][usual], abs=0.2)
    assert (np.array(found)[~usual] > 100).all()


def test_a_forecast_is_what_the_engine_then_expects() -> None:
    engine = Engine()
    events = events_of(features=("x", "y"), rows=FIRED - 1)
    fed(engine, Ring(), events[:-1])
    said = look_at(engine, Ring(), "a/b").forecast()
    scores = engine.step(next(in_batches(events[-1:], 1))).scores
    assert said["x"].horizons == [1, 10]
    for feature, expected in zip(("x", "y"), scores.expected.tolist(), strict=True):
        assert said[feature].expected[0] == pytest.approx(expected, rel=1e-6)
        assert said[feature].lower[0] < expected < said[feature].upper[0]
        assert said[feature].lower[1] < said[feature].expected[1] < said[feature].upper[1]


def test_a_forecast_after_a_swap_is_the_new_models(other_model: Weights) -> None:
    engine = Engine()
    events = events_of(rows=FIRED - 1)
    fed(engine, Ring(), events[:-1])
    engine.use(other_model)
    said = look_at(engine, Ring(), "a/b").forecast()
    scores = engine.step(next(in_batches(events[-1:], 1))).scores
    assert said["x"].expected[0] == pytest.approx(float(scores.expected[0]), rel=1e-6)


def test_hidden_states_end_where_the_engine_is() -> None:
    engine = Engine()
    fed(engine, Ring(), events_of())
    look = look_at(engine, Ring(), "a/b")
    found = look.hidden("x")
    assert found.values.shape == (128, engine.weights.shape.hidden_size)
    assert found.time[-1] == START + 1499 * MINUTE
    row = engine.streams.states.recurrent.read(np.array([0]))[0, : engine.weights.shape.hidden_size]
    assert np.abs(found.values[-1] - row).max() < 0.2, "the window leaves out what came before it"
    with pytest.raises(KeyError):
        look.hidden("none")


def test_nobody_knows_an_unknown_stream() -> None:
    assert look_at(Engine(), Ring(), "none") is None


def test_a_stream_on_disk_is_read_there() -> None:
    engine = Engine()
    fed(engine, Ring(), events_of())
    row, other = engine.pack("a/b"), Engine()
    look = look_at(other, Ring(), "a/b", {"a/b": row}.get)
    assert look is not None
    assert rows(look.window(300).document()) == list(range(1372, 1500))
    assert len(other.streams) == 0


def test_looking_changes_nothing_that_is_scored() -> None:
    """All kinds of streams, with evictions between: packed rows are equal to the bit."""
    events = [e for e in interleaved(fleet(), 5) if e.stream != "wild many"][:6000]
    saved: list[dict[str, bytes]] = []
    for looking in (False, True):
        rows_of = dict[str, bytes]()
        engine = Engine(settings=EngineSettings(max_streams=5), fetch=lambda names: [rows_of.get(n) for n in names])  # noqa: B023
        ring = Ring(events=2000, observations=3000)
        for batch in in_batches(events, 250):
            ring.append(engine.step(batch).scores, hashes_of(batch.streams))
            rows_of.update(engine.streams.drain())
            if looking:
                for name in {event.stream for event in events}:
                    if (look := look_at(engine, ring, name, rows_of.get)) is not None:
                        look.window(300).document()
                        look.forecast()
                        for feature in look._copy.features[:2]:
                            look.hidden(feature)
        saved.append(rows_of)
    assert saved[0] == saved[1]

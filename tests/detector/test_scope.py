"""`model.scope = "stream"`: each stream its own weights, learning online, and still the engine's first law."""

import logging
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from connectors.records import EventBatch
from detector import engine as engine_module
from detector import own_weights
from detector.assembly import engine_settings
from detector.engine import Engine, EngineSettings
from detector.errors import StateError
from detector.rows import HEADER
from detector.settings import Settings, load_settings
from tests.streams import Event, Outcome, batch_of, clock, fleet, in_batches, interleaved, run, seasonal, wide
from training import online
from training.model import Forecaster
from training.online import CHUNK
from training.prior import load_prior

OWN = EngineSettings(own_weights=True)
ROWS = 330  # beyond the warm-ups, ten steps
SOME = ("single", "irregular", "wild few", "two", "many", "changing", "growing")


@pytest.fixture(scope="module")
def model() -> Forecaster:
    return load_prior()


@pytest.fixture(scope="module")
def streams() -> list[list[Event]]:
    return [events[:ROWS] for events in fleet() if events[0].stream in SOME]


@pytest.fixture(scope="module")
def events(streams: list[list[Event]]) -> list[Event]:
    return interleaved(streams, 0)


@pytest.fixture(scope="module")
def reference(model: Forecaster, streams: list[list[Event]]) -> Outcome:
    """Each stream as one long sequence, alone: no step is worked out beside another stream's."""
    return run(Engine(model, OWN), [batch_of(events) for events in streams])


def assert_same(found: Outcome, wanted: Outcome) -> None:
    """Scores to 1e-5, as the law has it; the same alerts."""
    for name in ("score", "threshold", "surprise", "contribution"):
        np.testing.assert_allclose(getattr(found, name), getattr(wanted, name), rtol=0, atol=1e-5, err_msg=name)
    for name in ("expected", "lower", "upper"):
        np.testing.assert_allclose(getattr(found, name), getattr(wanted, name), rtol=1e-5, atol=1e-5, err_msg=name)
    assert [(a.id, a.status) for a in found.alerts] == [(a.id, a.status) for a in wanted.alerts]


def seasonal_stream(name: str, rows: int, seed: int, first: int = 0) -> list[Event]:
    rng, time = np.random.default_rng(seed), clock(first + rows)
    value = seasonal(rng, time)[:, None] + 0.1 * rng.standard_normal((len(time), 1))
    return wide(name, time[first:], value[first:])


def weights(engine: Engine, stream: str) -> np.ndarray:
    assert engine._own
    return engine._own._streams[engine.states.slots[stream]].copy()


# --- Parity -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 31, 257, 1_000_000])
def test_micro_batches_of_any_size_give_the_scores_of_one_long_sequence(
    model: Forecaster, streams: list[list[Event]], reference: Outcome, size: int
) -> None:
    if size == 1:  # what is slow about it is the engine, not the learning: fewer streams
        some = [streams[0], streams[2]]
        wanted = run(Engine(model, OWN), [batch_of(events) for events in some])
        assert_same(run(Engine(model, OWN), in_batches(interleaved(some, 1), size)), wanted)
        return
    assert_same(run(Engine(model, OWN), in_batches(interleaved(streams, size), size)), reference)


def test_threads_change_nothing(
    model: Forecaster, events: list[Event], reference: Outcome, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "THREAD_EVENTS", 1)
    engine = Engine(model, EngineSettings(own_weights=True, threads=4))
    assert_same(run(engine, in_batches(events, 500)), reference)
    engine.close()


def test_how_many_streams_learn_in_one_call_changes_nothing(
    model: Forecaster, events: list[Event], reference: Outcome, monkeypatch: pytest.MonkeyPatch
) -> None:
    for lanes in (1, 100_000):
        monkeypatch.setattr(online, "LANES_AT_ONCE", lanes)
        assert_same(run(Engine(model, OWN), in_batches(events, 2000)), reference)


class Store:
    def __init__(self) -> None:
        self.rows: dict[str, bytes] = {}

    def save(self, engine: Engine) -> None:
        self.rows.update(engine.drain())

    def fetch(self, names: Sequence[str]) -> list[bytes | None]:
        return [self.rows.get(name) for name in names]


class Changing:
    """An engine to `run` that is another one now and then."""

    def __init__(self, change: Callable[[], Engine]) -> None:
        self._change = change
        self.engine = change()

    def step(self, batch: EventBatch) -> object:
        self.engine = self._change()
        return self.engine.step(batch)


def test_restored_at_random_points_is_as_if_never_stopped(
    model: Forecaster, events: list[Event], reference: Outcome
) -> None:
    choose, store, engines = random.Random(1), Store(), [Engine(model, OWN)]

    def now_and_then_another() -> Engine:
        if choose.random() < 0.3:
            store.save(engines[-1])
            engines.append(Engine(model, OWN, fetch=store.fetch))
        return engines[-1]

    assert_same(run(Changing(now_and_then_another), in_batches(events, 211)), reference)  # type: ignore[arg-type]
    assert len(engines) > 4


@pytest.mark.parametrize("most", [1, 5])
def test_a_stream_that_was_evicted_and_returns_is_as_if_it_had_stayed(
    model: Forecaster, events: list[Event], reference: Outcome, most: int
) -> None:
    store = Store()
    engine = Engine(model, EngineSettings(max_streams=most, own_weights=True), fetch=store.fetch)

    def drained_now_and_then() -> Iterator[EventBatch]:
        for number, batch in enumerate(in_batches(events, 23)):
            if number % 4 == 3:
                store.save(engine)
            yield batch

    assert_same(run(engine, drained_now_and_then()), reference)
    assert len(engine.states.slots) == most


@pytest.mark.parametrize(
    "shape",
    [
        {"cell": "rnn"},
        {"cell": "gru"},
        {"cell": "esn"},
        {"cell": "lstm", "layers": 2, "attention_window": 5, "horizons": (1, 3, 20)},
    ],
    ids=str,
)
def test_every_shape_learns_and_keeps_the_law(shape: dict[str, Any]) -> None:
    torch.manual_seed(1)
    model = Forecaster(**shape, hidden_size=16).eval()
    some = [events[:150] for events in fleet() if events[0].stream in {"single", "three", "changing"}]
    one, two = Engine(model, OWN), Engine(model, OWN)

    found = run(one, [batch_of(events) for events in some])
    again = run(two, in_batches(interleaved(some, 3), 77))

    assert_same(again, found)
    assert weights(one, "single")["steps"] >= 3


# --- What is learnt, and when -----------------------------------------------------------------------------------------


def test_a_stream_learns_after_every_chunk_of_its_own_events_and_nobody_elses(model: Forecaster) -> None:
    engine = Engine(model, OWN)
    ticks, quiet = seasonal_stream("ticks", 3 * CHUNK, 1), seasonal_stream("quiet", CHUNK - 1, 2)
    engine.step(batch_of(quiet))
    began = weights(engine, "quiet")
    engine.step(batch_of(ticks[:CHUNK]))
    first = weights(engine, "ticks")
    engine.step(batch_of(ticks[CHUNK : 2 * CHUNK - 1]))
    between = weights(engine, "ticks")
    engine.step(batch_of(ticks[2 * CHUNK - 1 : 2 * CHUNK]))
    second = weights(engine, "ticks")

    assert first["steps"] == 1
    assert np.array_equal(between["weights"], first["weights"])
    assert second["steps"] == 2
    assert not np.array_equal(second["weights"], first["weights"])
    assert np.array_equal(weights(engine, "quiet")["weights"], began["weights"])
    assert np.array_equal(began["weights"], engine._own._prior)  # type: ignore[union-attr]


def test_until_its_first_step_a_stream_is_scored_as_by_the_shared_model_and_then_by_its_own(model: Forecaster) -> None:
    events = seasonal_stream("s", 4 * CHUNK, 1)
    shared = run(Engine(model), in_batches(events, 50))
    own = run(Engine(model, OWN), in_batches(events, 50))

    assert np.array_equal(own.surprise[:CHUNK], shared.surprise[:CHUNK])
    assert not np.array_equal(own.surprise[CHUNK:], shared.surprise[CHUNK:])


def test_a_stream_unlike_what_the_prior_knows_is_forecast_better_by_its_own_weights(model: Forecaster) -> None:
    row = np.arange(3000)  # its sign changes with every event; no series of the prior is like it
    value = (-1.0) ** row * (1 + row // 2 % 3) + 0.05 * np.random.default_rng(1).standard_normal(3000)
    events = wide("alternating", clock(3000), value[:, None])
    shared = run(Engine(model), in_batches(events, 1000))
    own = run(Engine(model, OWN), in_batches(events, 1000))

    last = slice(-1000, None)
    assert own.surprise[last].mean() < shared.surprise[last].mean() - 0.1


def test_what_belongs_to_an_incident_is_not_learnt(model: Forecaster, monkeypatch: pytest.MonkeyPatch) -> None:
    known: list[np.ndarray] = []
    learn = online.OnlineLearner.learn

    def watched(
        self: online.OnlineLearner, copies: online.Copies, states: online.Float32, chunks: online.Chunks
    ) -> online.Learnt:
        known.append(chunks.known[0, : chunks.rows[0, 0], 0])
        return learn(self, copies, states, chunks)

    monkeypatch.setattr(online.OnlineLearner, "learn", watched)
    events = seasonal_stream("s", 30 * CHUNK, 1)
    at = 20 * CHUNK + 40
    events[at : at + 10] = [e._replace(values={next(iter(e.values)): 60.0}) for e in events[at : at + 10]]
    engine = Engine(model, OWN)
    outcome = run(engine, in_batches(events, 500))
    history = engine.states.lanes.rows["history"][0]

    times = [a.started_at for a in outcome.alerts if a.status == "firing"]
    assert any(events[at].time <= time <= events[at + 2].time for time in times)
    learnt = np.concatenate(known)  # [rows, horizons]: rows of the lane from the first on, nine behind
    incident = np.flatnonzero(~learnt[at:, 0]) + at
    assert incident[0] <= at + 2
    assert (np.diff(incident[:40]) == 1).all()  # until it resolves, at the soonest after 30 calm events
    assert learnt[at - 30 : at - 9].all()
    assert not learnt[incident[0] - 9 : incident[0], 1].any()  # nor forecasts of its rows from before it
    assert history["events"] == len(events)


def test_a_step_that_is_left_out_is_counted_told_and_forgotten(
    model: Forecaster, caplog: pytest.LogCaptureFixture
) -> None:
    engine = Engine(model, OWN)
    events = seasonal_stream("s", 4 * CHUNK, 1)
    engine.step(batch_of(events[:CHUNK]))
    assert engine._own
    engine._own._streams["first"][engine.states.slots["s"]][0] = np.inf
    before = weights(engine, "s")
    step = engine.step(batch_of(events[CHUNK : 2 * CHUNK]))
    after = weights(engine, "s")

    assert step.left_out == 1
    assert "left out" in caplog.text
    assert np.array_equal(before["weights"], after["weights"])
    assert engine.step(batch_of(events[2 * CHUNK : 3 * CHUNK - 1])).left_out == 0


def test_symbols_beside_numbers_are_left_to_their_own_network(model: Forecaster) -> None:
    events = [
        Event("s", t, {"load": float(np.sin(k / 9)), "code": "ok" if k % 7 else "retry"})  # type: ignore[dict-item]
        for k, t in enumerate(clock(3 * CHUNK).tolist())
    ]
    engine = Engine(model, OWN)
    outcome = run(engine, in_batches(events, 10))

    assert len(outcome.score) == 3 * CHUNK
    assert weights(engine, "s")["steps"] == 3


# --- State ------------------------------------------------------------------------------------------------------------


def test_weights_and_moments_come_back_bit_for_bit(model: Forecaster) -> None:
    engine = Engine(model, OWN)
    engine.step(batch_of(seasonal_stream("s", 5 * CHUNK + 7, 1)))
    rows = dict(engine.drain())
    back = Engine(model, OWN, fetch=lambda names: [rows.get(name) for name in names])
    back.step(batch_of(seasonal_stream("s", 1, 1, first=5 * CHUNK + 7)))

    wanted, found = weights(engine, "s"), weights(back, "s")
    assert wanted["steps"] == 5
    assert found["events"] == wanted["events"] + 1
    for name in ("steps", "weights", "first", "second"):
        assert np.array_equal(found[name], wanted[name]), name


def test_a_stream_costs_what_the_documentation_says(model: Forecaster) -> None:
    one = seasonal_stream("s", 50, 1)
    shared, own = Engine(model), Engine(model, OWN)
    shared.step(batch_of(one))
    own.step(batch_of(one))
    row, other = (len(next(engine.drain())[1]) for engine in (own, shared))

    assert own._own
    assert own._own.stored_bytes == 16 + 3 * 4 * 12_050
    assert 144_000 < row - other < 148_000
    assert own._own.bytes_a_stream == own._own.stored_bytes + 4 * 12_050


@pytest.mark.parametrize(("before", "after"), [(False, True), (True, False)])
def test_after_a_change_of_scope_a_stream_goes_on_with_the_shared_weights(
    model: Forecaster, before: bool, after: bool
) -> None:
    events = seasonal_stream("s", 12 * CHUNK, 1)
    first = Engine(model, EngineSettings(own_weights=before))
    first.step(batch_of(events[: 10 * CHUNK]))
    rows = dict(first.drain())
    second = Engine(model, EngineSettings(own_weights=after), fetch=lambda names: [rows.get(n) for n in names])
    found = run(second, in_batches(events[10 * CHUNK :], CHUNK))
    never = Engine(model)
    wanted = run(never, in_batches(events, CHUNK)).surprise[10 * CHUNK :]

    assert not found.warming.any()
    assert abs(found.surprise.mean() - wanted.mean()) < 0.1  # states primed by a window, not carried on
    if after:
        assert weights(second, "s")["steps"] == 1  # the targets of rows from before the change are gone


def test_weights_of_another_prior_are_not_gone_on_with(model: Forecaster) -> None:
    engine = Engine(model, OWN)
    engine.step(batch_of(seasonal_stream("s", 5 * CHUNK, 1)))
    rows = dict(engine.drain())
    other = load_prior()
    other.from_hidden.bias.data += 0.01
    back = Engine(other, OWN, fetch=lambda names: [rows.get(name) for name in names])
    back.step(batch_of(seasonal_stream("s", 1, 1, first=5 * CHUNK)))

    assert weights(back, "s")["steps"] == 0
    assert np.array_equal(weights(back, "s")["weights"], back._own._prior)  # type: ignore[union-attr]


def test_damaged_weights_are_refused(model: Forecaster) -> None:
    engine = Engine(model, OWN)
    engine.step(batch_of(seasonal_stream("s", 10, 1)))
    row = next(engine.drain())[1]
    *head, length = HEADER.unpack_from(row)
    version, features, note, known, own = msgspec.msgpack.decode(row[HEADER.size : HEADER.size + length])
    notes = msgspec.msgpack.encode([version, features, note, known, own[:-4]])
    bad = HEADER.pack(*head, len(notes)) + notes + row[HEADER.size + length :]
    back = Engine(model, OWN, fetch=lambda names: [bad])

    with pytest.raises(StateError, match="weights"):
        back.step(batch_of(seasonal_stream("s", 1, 1, first=10)))
    assert not back.states.slots


def test_there_is_no_swapping_of_weights(model: Forecaster) -> None:
    with pytest.raises(ValueError, match=r"model\.scope"):
        Engine(model, OWN).use(model)


# --- Settings and the start -------------------------------------------------------------------------------------------


def test_the_setting_reaches_the_engine_and_shared_is_the_default() -> None:
    assert not engine_settings(Settings()).own_weights
    assert engine_settings(load_settings(None, {}, ["model.scope=stream"])).own_weights


def test_a_fleet_whose_weights_may_not_fit_is_warned_of_at_the_start(
    model: Forecaster, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, own_weights.__name__):
        Engine(model, EngineSettings(max_streams=50, own_weights=True))
        small = [record.levelname for record in caplog.records]
        Engine(model, EngineSettings(max_streams=10_000_000, own_weights=True))

    assert small == ["INFO"]
    assert caplog.records[-1].levelname == "WARNING"
    assert "state.max_streams = 10000000" in caplog.records[-1].getMessage()

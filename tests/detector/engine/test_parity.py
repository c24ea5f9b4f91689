"""The engine's first law: cut, interleave, thread, stop and restore as you like, the scores are the same.

All at the shipped settings and with the shipped prior. On a CPU "the same" is bit for bit.
"""

import random
from collections.abc import Iterator

import pytest

from connectors.batches import EventBatch
from detector.engine import stages
from detector.engine.engine import Engine, EngineSettings
from detector.errors import StateError
from tests.detector.engine.restarts import Store, assert_same, restarted, run_parts
from tests.streams import DAY, Event, Outcome, batch_of, fleet, in_batches, interleaved, run
from training.network.weights import Weights


@pytest.fixture(scope="module")
def streams() -> list[list[Event]]:
    return fleet()


@pytest.fixture(scope="module")
def events(streams: list[list[Event]]) -> list[Event]:
    return interleaved(streams, 0)


@pytest.fixture(scope="module")
def reference(model: Weights, streams: list[list[Event]]) -> Outcome:
    """Each stream as one long sequence."""
    return run(Engine(model), [batch_of(events) for events in streams])


def test_the_streams_of_these_tests_alert_in_every_family(reference: Outcome) -> None:
    fired = {alert.stream for alert in reference.alerts if alert.status == "firing"}
    resolved = {alert.stream for alert in reference.alerts if alert.status == "resolved"}

    assert {"single", "constant", "two", "many", "changing", "growing"} <= fired
    assert {"single", "many"} <= resolved
    assert reference.duplicates >= 1
    assert reference.late >= 10
    assert reference.repartitioned == {"irregular"}
    assert (reference.score[~reference.warming] > 0).sum() > 3000


@pytest.mark.parametrize("size", [1, 7, 256, 10_000, 1_000_000])
def test_scores_do_not_depend_on_batch_sizes(
    model: Weights, events: list[Event], reference: Outcome, size: int
) -> None:
    assert_same(run(Engine(model), in_batches(events, size)), reference)


@pytest.mark.parametrize("seed", [1, 2])
def test_scores_do_not_depend_on_how_streams_interleave(
    model: Weights, streams: list[list[Event]], reference: Outcome, seed: int
) -> None:
    assert_same(run(Engine(model), in_batches(interleaved(streams, seed), 997)), reference)


def test_scores_do_not_depend_on_the_number_of_threads(
    model: Weights, events: list[Event], reference: Outcome, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages, "THREAD_EVENTS", 1)  # else small batches would stay on one thread
    for size in (50, 10_000):
        engine = Engine(model, EngineSettings(threads=4))
        assert_same(run(engine, in_batches(events, size)), reference)
        engine.close()


@pytest.mark.parametrize(("seed", "size"), [(1, 400), (2, 399), (3, 401), (4, 53)])
def test_restoring_at_random_points_does_not_change_scores(
    model: Weights, events: list[Event], reference: Outcome, seed: int, size: int
) -> None:
    assert_same(run_parts(restarted(model, in_batches(events, size), seed)), reference)


@pytest.mark.parametrize("most", [1, 3, 8])
def test_eviction_and_return_do_not_change_scores(
    model: Weights, events: list[Event], reference: Outcome, most: int
) -> None:
    store = Store()
    engine = Engine(model, EngineSettings(max_streams=most), fetch=store.fetch)

    def drained_now_and_then() -> Iterator[EventBatch]:
        for number, batch in enumerate(in_batches(events, 23)):
            if number % 4 == 3:
                store.save(engine)
            yield batch

    assert_same(run(engine, drained_now_and_then()), reference)
    assert len(engine.streams) == most


def test_restoring_into_an_engine_with_other_slots_does_not_change_scores(
    model: Weights, events: list[Event], reference: Outcome
) -> None:
    """A rebalance hands a stream to an engine that already knows others."""
    half, store = len(events) // 2, Store()
    first = Engine(model)
    before = [*in_batches(events[:half], 700)]
    stranger = Engine(model, fetch=store.fetch)
    strangers = [
        Event(f"stranger {k}", t, {"zzz": 1.0, f"f{k}": 2.0}) for k in range(7) for t in range(DAY, 2 * DAY, DAY // 9)
    ]
    stranger.step(batch_of(strangers))

    def parts() -> Iterator[tuple[Engine, EventBatch]]:
        for batch in before:
            yield first, batch
        store.save(first)
        for batch in in_batches(events[half:], 700):
            yield stranger, batch

    assert_same(run_parts(parts()), reference)


def test_states_kept_by_a_framework_give_the_same_scores_on_any_worker(
    model: Weights, events: list[Event], reference: Outcome
) -> None:
    choose, kept = random.Random(7), dict[str, bytes]()
    workers = [Engine(model) for _ in range(3)]

    def parts() -> Iterator[tuple[Engine, EventBatch]]:
        for batch in in_batches(events, 997):
            engine = choose.choice(workers)
            for name in kept.keys() & set(batch.streams):
                engine.unpack(name, kept[name])
            yield engine, batch
            for name in batch.streams:
                state = engine.pack(name)
                assert state is not None
                kept[name] = state
            engine.streams.forget(batch.streams)
            assert all(engine.pack(name) is None for name in batch.streams)

    assert_same(run_parts(parts()), reference)


def test_a_damaged_state_is_refused_and_the_stream_starts_without_one(model: Weights, events: list[Event]) -> None:
    engine = Engine(model)
    engine.step(batch_of(events[:100]))
    name = events[0].stream
    state = engine.pack(name)
    assert state is not None
    with pytest.raises(StateError, match="damaged"):
        engine.unpack(name, state[:-1])
    assert engine.pack(name) is None

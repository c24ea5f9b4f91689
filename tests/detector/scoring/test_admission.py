"""Who is admitted: wrong clocks that are mended, backlogs that are sent again, producers that take turns."""

import random
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest

from detector.engine.engine import Engine, EngineSettings
from detector.scoring.admission import REMEMBERED
from tests.detector.engine.restarts import Store, assert_same, restarted, run_parts
from tests.streams import (
    HOUR,
    MINUTE,
    START,
    Event,
    Outcome,
    batch_of,
    clock,
    in_batches,
    interleaved,
    numbered,
    run,
    wide,
)
from training.network.weights import Weights

SECOND = MINUTE // 60
RULE = 5  # late events that agree, the last of which is taken
FEW = 3 * RULE  # by chance an event or two may look like one of those before


def calm(rows: int, name: str = "s", start: int = START, step: int = MINUTE, seed: int = 0) -> list[Event]:
    noise = np.random.default_rng(seed).standard_normal(rows)
    return wide(name, clock(rows, step, start), 10.0 + noise[:, None])


def stepped(engine: Engine, events: Sequence[Event], size: int = 1000) -> Outcome:
    return run(engine, in_batches(numbered(events), size))


def record_of(engine: Engine, name: str = "s") -> np.void:
    return engine.streams.states.streams.rows[engine.streams.states.slots[name]]["admission"]


@pytest.mark.parametrize("after", [1, 5, 12, 30, 700])
def test_one_event_ahead_of_time_does_not_make_later_events_late(model: Weights, after: int) -> None:
    ahead = [Event("s", START + after * MINUTE + 23 * HOUR, {"f0": 10.0})]
    right = [event._replace(values={"f0": 500.0}) for event in calm(600, start=START + (after + 1) * MINUTE)]

    found = stepped(Engine(model), [*calm(after), *ahead, *right])

    assert RULE - 1 <= found.late < FEW
    assert len(found.score) == after + 1 + len(right) - found.late


def test_streams_recover_after_their_clock_was_set_back_by_an_hour(model: Weights) -> None:
    streams = [
        numbered([*calm(300, name, seed=k), *calm(200, name, START + 240 * MINUTE, seed=100 + k)])
        for k, name in enumerate(f"host-{k}" for k in range(20))
    ]
    engine = Engine(model)
    lost = 0
    moved = []
    for batch in in_batches(interleaved(streams, 1), 997):
        step = engine.step(batch)
        lost += step.late
        moved += step.moved_back

    assert 20 * (RULE - 1) <= lost < 20 * FEW
    assert sorted(back.stream for back in moved) == sorted(f"host-{k}" for k in range(20))
    assert {back.former for back in moved} == {START + 299 * MINUTE}
    assert all(START + (240 + RULE - 1) * MINUTE <= back.time < START + (240 + FEW) * MINUTE for back in moved)


@pytest.mark.parametrize("step", [10 * SECOND, MINUTE, 5 * MINUTE])
def test_a_backlog_sent_twice_is_dropped(model: Weights, step: int) -> None:
    rows = HOUR // step + 500
    events = calm(rows, step=step)
    engine = Engine(model)
    again = min(HOUR // step, REMEMBERED)

    found = stepped(engine, [*events, *events[-again:], *calm(50, start=START + rows * step, step=step)])

    assert len(found.score) == rows + 50
    assert (found.late, found.duplicates) == (again - 1, 1)


def test_events_that_fill_a_gap_later_are_scored_once(model: Weights) -> None:
    """A collector that lost its connection: first what is new, then what it had kept."""
    events = calm(500)

    found = stepped(Engine(model), [*events[:400], events[460], *events[400:460], *events[461:]])

    assert 500 - FEW < len(set(found.offset.tolist())) == len(found.score) <= 500 - (RULE - 1)


def test_late_events_among_punctual_ones_do_not_reset_the_clock(model: Weights) -> None:
    right, behind = calm(400), calm(400, start=START - HOUR + SECOND, seed=1)

    found = stepped(Engine(model), [event for pair in zip(right, behind, strict=True) for event in pair])

    assert len(found.score) == 400
    assert found.late == 400


@pytest.mark.parametrize("order", ["falling", "any"])
def test_late_events_with_inconsistent_times_are_dropped(model: Weights, order: str) -> None:
    late = calm(60, start=START - 5 * HOUR, step=5 * MINUTE, seed=1)
    late = late[::-1] if order == "falling" else random.Random(5).sample(late, len(late))

    found = stepped(Engine(model), [*calm(300), *late])

    assert len(found.score) == 300
    assert found.late == 60


def test_widely_spaced_late_events_need_more_of_them_to_reset_the_clock(model: Weights) -> None:
    engine = Engine(model)
    stepped(engine, calm(300))

    few = stepped(engine, calm(10, start=START - 500 * HOUR, step=HOUR, seed=1))
    more = stepped(engine, calm(50, start=START - 490 * HOUR, step=HOUR, seed=2))

    assert len(few.score) == 0
    assert 30 < len(more.score) < 50


def test_with_late_events_scored_the_stream_follows_their_time(model: Weights) -> None:
    engine = Engine(model, EngineSettings(keep_late=True))
    ahead = Event("s", START + 23 * HOUR, {"f0": 10.0})

    found = stepped(engine, [*calm(300), ahead, *calm(100, start=START + 300 * MINUTE)])

    assert len(found.score) == 401
    assert RULE - 1 <= found.late < FEW
    assert record_of(engine)["time"] == START + 399 * MINUTE


@pytest.mark.parametrize("after", [5, 12, 18, 30, 400])
def test_a_wrong_time_does_not_change_the_estimated_interval(model: Weights, after: int) -> None:
    """Neither the stream's nor its lanes': they set the threshold, and what the network sees as a gap."""
    engine = Engine(model)
    ahead = Event("s", START + after * MINUTE + 23 * HOUR, {"f0": 10.0})
    stepped(engine, [*calm(after), ahead, *calm(300, start=START + after * MINUTE)])
    slot = engine.streams.states.slots["s"]
    lane = engine.streams.states.lanes.rows[int(engine.streams.states.streams.rows[slot]["first_lane"])]

    assert record_of(engine)["interval"] == pytest.approx(60, rel=0.03)
    assert lane["input"]["interval"] == pytest.approx(60, rel=0.03)
    assert record_of(engine)["pause"] <= 5 * 60 * 1.03


def test_a_stream_whose_clock_stands_still_is_logged_once(model: Weights) -> None:
    engine = Engine(model)
    stuck = [Event("s", START + 299 * MINUTE, {"f0": float(k)}) for k in range(100)]
    reported = [name for batch in in_batches([*calm(300), *stuck], 7) for name in engine.step(batch).blocked]

    assert reported == ["s"]
    assert engine.streams.census().blocked == 1
    engine.step(batch_of(calm(1, start=START + 300 * MINUTE)))
    assert engine.streams.census().blocked == 0


def test_an_incident_with_a_time_ahead_starts_before_it_ends(model: Weights) -> None:
    ahead = [event._replace(values={"f0": 900.0}) for event in calm(3, start=START + 800 * MINUTE + 23 * HOUR)]
    engine = Engine(model)

    found = stepped(engine, [*calm(800), *ahead, *calm(300, start=START + 800 * MINUTE, seed=2)])

    firing, resolved = found.alerts[:2]
    assert (firing.status, resolved.status) == ("firing", "resolved")
    assert firing.id == resolved.id
    assert firing.started_at == START + 800 * MINUTE + 23 * HOUR
    assert resolved.ended_at is not None
    assert START + 800 * MINUTE < resolved.started_at <= resolved.ended_at < START + 1100 * MINUTE


def test_eviction_goes_by_use_not_by_event_time(model: Weights) -> None:
    engine = Engine(model, EngineSettings(max_streams=2))
    for event in (*calm(1, "ahead", START + 23 * HOUR), *calm(1, "b", START), *calm(1, "c", START + MINUTE)):
        engine.step(batch_of([event]))

    assert set(engine.streams.states.slots) == {"b", "c"}


def troubled() -> list[list[Event]]:
    """Streams with every trouble of time at once: ahead, set back, sent again, shuffled; of numbers and of symbols."""
    choose = random.Random(3)
    made = []
    for k, name in enumerate(("single", "many", "code")):
        events = calm(900, name, seed=k)
        if name == "many":
            events = [
                event._replace(values={"a": event.values["f0"], "b": 1.0 + i % 7}) for i, event in enumerate(events)
            ]
        if name == "code":
            events = [event._replace(values={"code": choose.choice("aaab")}) for event in events]
        ahead = events[300]._replace(time=events[300].time + 20 * HOUR)
        back = [event._replace(time=event.time - HOUR) for event in events[600:]]
        swapped = events[310:400]
        for _ in range(20):
            i = choose.randrange(len(swapped) - 1)
            swapped[i], swapped[i + 1] = swapped[i + 1], swapped[i]
        made.append([*events[:300], ahead, *swapped, *events[400:500], *events[450:500], *events[500:600], *back])
    return [[event._replace(offset=2000 * k + i) for i, event in enumerate(events)] for k, events in enumerate(made)]


def test_admission_does_not_depend_on_batches_interleaving_or_restores(model: Weights) -> None:
    streams = troubled()
    reference = run(Engine(model), [batch_of(events) for events in streams])
    mixed = interleaved(streams, 2)

    assert reference.late > 100
    for size in (1, 13, 500):
        assert_same(run(Engine(model), in_batches(mixed, size)), reference)
    assert_same(run_parts(restarted(model, in_batches(mixed, 131), 1)), reference)
    store = Store()
    engine = Engine(model, EngineSettings(max_streams=1), fetch=store.fetch)
    assert_same(run(engine, in_batches(mixed, 40)), reference)


@pytest.mark.parametrize(("duplicates", "late"), [(False, False), (True, False), (False, True)])
def test_a_history_is_admitted_by_the_engines_rule(model: Weights, duplicates: bool, late: bool) -> None:
    from detector.scoring import admission

    events = [event for events in troubled()[:2] for event in events]
    batch = batch_of(numbered(events))

    scored = Engine(model, EngineSettings(keep_duplicates=duplicates, keep_late=late)).step(batch).scores.event
    kept = admission.admitted_of(
        batch.stream.astype(np.int64), batch.time, batch.start, batch.value, duplicates=duplicates, late=late
    )

    assert np.flatnonzero(kept).tolist() == scored.tolist()
    assert all(a < b for a, b in pairwise(scored.tolist()))

"""Events of the streams that somebody looks at."""

from __future__ import annotations

import pytest

from connectors.batches import EventBatch
from detector.engine.engine import Engine, EngineSettings
from detector.web import live
from detector.web.live import LiveStreams
from tests.detector.engine.support import noisy
from tests.streams import Event, clock, in_batches, numbered, wide
from training.network.weights import Weights


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def take(engine: Engine, watching: LiveStreams, batch: EventBatch) -> None:
    step = engine.step(batch)
    watching.step(step.scores, step.slot, engine.streams.states.slots)


def test_only_what_is_asked_for_is_kept_and_each_event_comes_once(model: Weights) -> None:
    engine, watching = Engine(model, EngineSettings()), LiveStreams()
    events = numbered(
        sorted(wide("a", clock(80), noisy(80, 2)) + wide("b", clock(80), noisy(80)), key=lambda e: e.time)
    )
    after, points, expected = 0, [], []
    for number, batch in enumerate(in_batches(events, 20)):
        if number == 2:
            after, found = watching.points("a")
            assert found == []
        step = engine.step(batch)
        scores = step.scores
        watching.step(step.scores, step.slot, engine.streams.states.slots)
        if number >= 2:
            for row, event in enumerate(scores.event):
                if batch.streams[batch.stream[event]] == "a":
                    expected.append((int(batch.time[event]), scores.score[row]))
            after, found = watching.points("a", after)
            points += found
    assert [(point.time, point.score) for point in points] == expected
    assert list(points[-1].values) == ["f0", "f1"]
    share = sum(value.contribution for value in points[-1].values.values())
    assert share == 0.0 or share == pytest.approx(1.0)
    assert watching.points("b")[1] == []


def test_a_symbol_has_no_band(model: Weights) -> None:
    engine, watching = Engine(model, EngineSettings()), LiveStreams()
    watching.points("a")
    events = [Event("a", int(time), {"state": "up", "x": 1.0}) for time in clock(50)]
    for batch in in_batches(numbered(events), 50):
        take(engine, watching, batch)
    state = watching.points("a")[1][-1].values["state"]
    assert (state.observed, state.expected, state.lower, state.upper) == ("up", "up", None, None)


def test_how_many_are_watched_and_for_how_long_is_bounded(model: Weights, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "MAX_WATCHED", 3)
    monkeypatch.setattr(live, "KEPT", 10)
    ticking = Clock()
    engine, watching = Engine(model, EngineSettings()), LiveStreams(ticking)
    batches = list(in_batches(numbered(wide("a", clock(90), noisy(90))), 30))
    watching.points("a")
    take(engine, watching, batches[0])
    assert len(watching.points("a")[1]) == 10, "the last ones"
    for number in range(3):
        ticking.now += 1
        watching.points(f"other-{number}")
    take(engine, watching, batches[1])
    assert watching.points("a")[1] == [], "it was the one not asked for for longest"
    ticking.now += live.FORGOTTEN_SECONDS + 1
    take(engine, watching, batches[2])
    assert watching.points("a")[1] == []

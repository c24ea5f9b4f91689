"""What an engine last said of each stream."""

from __future__ import annotations

import numpy as np
import pytest

from connectors.batches import CHANNELS
from detector.engine.engine import Engine, EngineSettings
from tests.detector.engine.support import noisy
from tests.streams import clock, in_batches, numbered, wide
from training.network.weights import Weights


def latest(engine: Engine, names: list[str]) -> np.ndarray:
    states = engine.streams.states
    slot = np.array([states.slots[name] for name in names])
    return engine.latest.of(slot, states.streams.rows["score"]["time"][slot])


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_it_is_the_last_score_however_batches_are_cut(model: Weights, size: int) -> None:
    events = [
        event for name in ("a", "b") for event in wide(name, clock(120), noisy(120, seed=len(name) + ord(name[0])))
    ]
    events.sort(key=lambda event: event.time)
    engine, said = Engine(model, EngineSettings()), {}
    for batch in in_batches(numbered(events), size):
        scores = engine.step(batch).scores
        for row, event in enumerate(scores.event):
            channel = int(scores.channel[row])
            said[batch.streams[batch.stream[event]]] = (scores.score[row], scores.threshold[row], channel)
    found = latest(engine, ["a", "b"])
    for row, name in zip(found, ("a", "b"), strict=True):
        score, threshold, channel = said[name]
        assert row["score"] == pytest.approx(score, rel=1e-6)
        assert row["threshold"] == pytest.approx(threshold, rel=1e-6)
        assert row["channel"] == channel
        assert -1 <= row["channel"] < len(CHANNELS)


def test_nothing_is_said_of_what_another_engine_scored_or_a_former_stream_in_the_slot(model: Weights) -> None:
    first, second = Engine(model, EngineSettings()), Engine(model, EngineSettings())
    for batch in in_batches(numbered(wide("a", clock(100), noisy(100))), 100):
        first.step(batch)
    second.unpack("a", first.pack("a"))
    assert np.isnan(latest(second, ["a"])["score"]).all()
    assert latest(second, ["a"])["channel"].tolist() == [-1]
    first.streams.forget(["a"])
    first.unpack("b", second.pack("a"))
    first.streams.states.streams.rows["score"]["time"][first.streams.states.slots["b"]] += 1
    assert np.isnan(latest(first, ["b"])["score"]).all()

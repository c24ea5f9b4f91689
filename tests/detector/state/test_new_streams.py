"""Many streams at once: they begin as one by one, and at no cost of Python for each."""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any

import numpy as np
import pytest

from connectors.batches import EventBatch
from detector.engine.batch_layout import MAX_LANES
from detector.engine.engine import Engine, EngineSettings
from tests.streams import MINUTE, START, Event, batch_of, numbered
from training.network.weights import Weights

STREAMS = 1_000


def first_events(features: int) -> EventBatch:
    values: dict[str, float | str] = {f"f{k}": float(k) for k in range(features)}
    return batch_of(numbered(Event(f"s{i}", START, values) for i in range(STREAMS)))


@pytest.mark.parametrize("limit", [0, 1 << 30])
@pytest.mark.parametrize("features", [1, 5])
def test_new_streams_of_a_batch_cost_no_python_each(model: Weights, features: int, limit: int) -> None:
    engine = Engine(model, EngineSettings(memory_bytes=limit))
    engine.step(first_events(features).slice(0, 1))  # what is done once
    calls = 0

    def count(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal calls
        calls += event == "call"

    batch = first_events(features)
    sys.setprofile(count)
    try:
        engine.step(batch)
    finally:
        sys.setprofile(None)
    assert len(engine.streams) == STREAMS
    assert calls < STREAMS / 2


def test_streams_that_begin_together_are_those_that_begin_one_by_one(model: Weights) -> None:
    shapes: list[dict[str, float | str]] = [
        {"a": 1.0},
        {"b": 2.0, "a": 1.0, "c": 3.0, "code": "E1"},
        {"code": "E2"},
        {f"f{k}": float(k) for k in range(MAX_LANES + 5)},
    ]
    more: dict[str, float | str] = {"new": 1.0, "code": "E1", "a": 2.0}
    events = [Event(f"s{i}", START, shapes[i % len(shapes)]) for i in range(40)]
    events += [Event(f"s{i}", START + MINUTE, more) for i in range(45)]
    events = numbered(events)
    engine, other = Engine(model), Engine(model)

    together, alone = engine.step(batch_of(events)), [other.step(batch_of([event])) for event in events]

    assert together.features_dropped == sum(step.features_dropped for step in alone) > 0
    for name, slot in engine.streams.states.slots.items():
        features = engine.streams.states.features_of(slot)
        assert features == other.streams.states.features_of(other.streams.states.slots[name])
        assert len(set(features)) == len(features) <= MAX_LANES
    assert engine.streams.census() == other.streams.census()
    later = [Event(f"s{i}", START + t * MINUTE, {**more, "b": 4.0 * t}) for i in range(45) for t in (2, 3)]
    found, wanted = engine.step(batch_of(numbered(later))).scores, other.step(batch_of(numbered(later))).scores
    for column in ("expected", "lower", "upper", "surprise", "observed_probability"):
        np.testing.assert_array_equal(getattr(found, column), getattr(wanted, column), column)

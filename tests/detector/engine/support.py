"""Streams scored by a whole engine at the shipped settings."""

import numpy as np

from connectors.batches import Alert
from detector.engine.engine import Engine, EngineSettings
from detector.scoring.incidents import AlertRules
from tests.streams import (
    MINUTE,
    Event,
    Outcome,
    clock,
    in_batches,
    numbered,
    run,
    seasonal,
)
from training.network.weights import Weights


def scored(model: Weights, events: list[Event], **settings: object) -> Outcome:
    return run(Engine(model, EngineSettings(**settings)), in_batches(numbered(events), 1000))


def ruled(model: Weights, events: list[Event], **rules: object) -> Outcome:
    return scored(model, events, rules=AlertRules(**rules))


def fired(outcome: Outcome) -> list[Alert]:
    return [alert for alert in outcome.alerts if alert.status == "firing"]


def rows_of(alerts: list[Alert]) -> list[int]:
    """Rows at which alerts began, of a stream with an event every five minutes."""
    return [(alert.started_at - int(clock(1)[0])) // (5 * MINUTE) for alert in alerts]


def noisy(rows: int, features: int = 1, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.stack([seasonal(rng, clock(rows)) for _ in range(features)], axis=1)

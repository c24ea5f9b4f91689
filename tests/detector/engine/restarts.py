"""Engines that are stopped and restored between batches, and scores that must be the same."""

import random
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import pytest

from connectors.batches import EventBatch
from detector.engine.engine import Engine
from tests.streams import Outcome, run
from training.network.weights import Weights


def assert_same(found: Outcome, wanted: Outcome) -> None:
    """Bit for bit: scores, bands, contributions, and alerts by id with all that they say."""
    for name, column, other in zip(Outcome._fields, found, wanted, strict=True):
        if isinstance(column, np.ndarray):
            same = column.shape == other.shape and np.array_equal(column, other, equal_nan=column.dtype.kind == "f")
            if not same and column.shape == other.shape:
                at = np.flatnonzero(~((column == other) | ((column != column) & (other != other))))
                pytest.fail(
                    f"{name}: {len(at)} of {len(column)} differ, first {at[:5]}: {column[at[:5]]}, {other[at[:5]]}"
                )
            assert same, f"{name}: {column.shape} against {other.shape}"
    assert [repr(alert) for alert in found.alerts] == [repr(alert) for alert in wanted.alerts]  # repr: NaN is NaN
    assert (found.duplicates, found.late, found.repartitioned) == (wanted.duplicates, wanted.late, wanted.repartitioned)


class Store:
    """What a state store is to the engine: rows by name."""

    def __init__(self) -> None:
        self.rows: dict[str, bytes] = {}

    def save(self, engine: Engine) -> None:
        self.rows.update(engine.streams.drain())

    def fetch(self, names: Sequence[str]) -> list[bytes | None]:
        return [self.rows.get(name) for name in names]


def restarted(model: Weights, batches: Iterable[EventBatch], seed: int) -> Iterator[tuple[Engine, EventBatch]]:
    """Yield batches with the engine that is to score each; it is stopped and restored after about one in five."""
    choose, store = random.Random(seed), Store()
    engine = Engine(model, fetch=store.fetch)
    for batch in batches:
        yield engine, batch
        if choose.random() < 0.2:
            store.save(engine)
            engine = Engine(model, fetch=store.fetch)


def run_parts(parts: Iterable[tuple[Engine, EventBatch]]) -> Outcome:
    """As `run`, where the engine changes on the way."""

    class Changing:
        def __init__(self) -> None:
            self.engine: Engine | None = None

        def step(self, batch: EventBatch) -> object:
            assert self.engine
            return self.engine.step(batch)

    front = Changing()

    def feed() -> Iterator[EventBatch]:
        for engine, batch in parts:
            front.engine = engine
            yield batch

    return run(front, feed())

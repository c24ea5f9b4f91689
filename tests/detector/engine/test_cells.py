"""Every cell and shape of network goes through the engine as the default does: parity, restarts, swaps, devices."""

import random
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from connectors.batches import EventBatch
from detector.engine.engine import Engine
from detector.state.lane_network import KernelLanes
from detector.state.torch_lanes import TorchLanes
from tests.streams import Event, batch_of, fleet, in_batches, interleaved, run
from training.network.cells import CELLS
from training.network.enlarge import enlarge
from training.network.inputs import INPUT_SIZE
from training.network.model import Forecaster
from training.network.weights import Weights, load_prior

EVENTS, SWAP = 5000, 3000
SHAPES: dict[str, dict[str, Any]] = {
    **{cell: {"cell": cell} for cell in CELLS},
    "layers": {"cell": "gru", "layers": 3},
    "attention": {"cell": "lstm", "attention_window": 8},
    "horizons": {"cell": "lstm", "horizons": (1, 3, 20)},
    "one horizon": {"cell": "rnn", "horizons": (1,)},
}


@pytest.fixture(scope="module", params=SHAPES)
def models(request: pytest.FixtureRequest) -> tuple[Weights, Weights]:
    """A network of the shape, and another one that a retraining might make of it."""
    shape = SHAPES[request.param]
    torch.manual_seed(4)
    prior = load_prior(shape["cell"], shape.get("horizons", (1, 10)))
    first, other = (Forecaster.of(enlarge(prior, prior.shape._replace(**shape))) for _ in range(2))
    with torch.no_grad():
        for model, spread in ((first, 0.02), (other, 0.05)):  # so that what was added says something too
            for parameter in model.parameters():
                parameter.add_(spread * torch.randn_like(parameter) * parameter.std())
            model.from_hidden.weight.add_(spread * torch.randn_like(model.from_hidden.weight) / 10)
            if model.attention:
                model.attention.out.weight.normal_(std=0.05)
    return first.weights, other.weights


@pytest.fixture(scope="module")
def events() -> list[Event]:
    return interleaved(fleet(), 0)[:EVENTS]


class Restarting:
    """An engine that is stopped and restored now and then, and swaps its weights at event number SWAP."""

    def __init__(self, first: Weights, other: Weights, chance: float) -> None:
        self._rows: dict[str, bytes] = {}
        self._other, self._seen, self._chance, self._choose = other, 0, chance, random.Random(1)
        self.engine = Engine(first, fetch=self._fetch)
        self._model = first

    def _fetch(self, names: Sequence[str]) -> list[bytes | None]:
        return [self._rows.get(name) for name in names]

    def step(self, batch: EventBatch) -> object:
        if self._seen == SWAP:
            self._model = self._other
            self.engine.use(self._other)
        if self._choose.random() < self._chance:
            self._rows.update(self.engine.streams.drain())
            self.engine = Engine(self._model, fetch=self._fetch)
        self._seen += len(batch)
        return self.engine.step(batch)


def batches(events: list[Event], size: int) -> Iterator[EventBatch]:
    yield from in_batches(events[:SWAP], size)
    yield from in_batches(events[SWAP:], size)


def test_batch_cuts_restarts_and_a_model_swap_change_no_bit(
    models: tuple[Weights, Weights], events: list[Event]
) -> None:
    wanted = run(Restarting(*models, chance=0.0), [batch_of(events[:SWAP]), batch_of(events[SWAP:])])

    found = run(Restarting(*models, chance=0.2), batches(events, 173))

    np.testing.assert_array_equal(found.score, wanted.score)
    np.testing.assert_array_equal(found.expected, wanted.expected)
    assert [repr(alert) for alert in found.alerts] == [repr(alert) for alert in wanted.alerts]
    assert (found.score > 0).sum() > 500


def test_torch_and_kernels_step_lanes_alike(models: tuple[Weights, Weights]) -> None:
    model, _ = models
    rng = np.random.default_rng(0)
    lane = np.sort(rng.zipf(1.6, 400) % 40)  # some lanes have many events, some one
    inputs = rng.standard_normal((400, INPUT_SIZE)).astype(np.float32)
    found = []
    for lanes in (KernelLanes(model), TorchLanes(model, "cpu")):
        lanes.resize(40)
        out = np.empty((400, model.shape.output_size), np.float32)
        for first in range(0, 400, 80):
            lanes.step(lane, inputs, first, first + 80, out)
        found.append((out, lanes.read(np.arange(40))))
    (kernel, kernel_states), (torch_, torch_states) = found
    np.testing.assert_allclose(torch_, kernel, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(torch_states, kernel_states, rtol=1e-4, atol=1e-4)

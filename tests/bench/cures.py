"""Regularisation, layers, attention and scheduled sampling on the forecaster itself: trained on little data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.bench.make_priors import SCORED_FROM, held_back_nll
from training.learn.optimisers import build_optimiser, build_schedule
from training.learn.scheduled_sampling import AVERAGE_FAST, AVERAGE_SLOW, CHANGE, VALUE, ScheduledSampling
from training.learn.settings import Learning
from training.learn.tbptt import Sequences, train
from training.network.inputs import FAST, LIMIT, SLOW
from training.network.model import Forecast, Forecaster
from training.network.shape import Shape
from training.prior.synthetic import make_series, tensors_of

ROWS, CHUNK = 400, 100
PASSES = 60  # over all rows: far more than so few series have to say
SERIES, HELD_BACK_SERIES = 8, 100
AHEAD = 10


def free_running(model: Forecaster, inputs: Tensor, state: Tensor, steps: int) -> Forecast:
    """Roll a forecast on from its own one-step forecasts; each array of the result is [steps, lanes, horizons].

    inputs: [steps or more, lanes, INPUT_SIZE]; the first row is as observed, of the others only what is known
    beforehand is read: profiles and time. state: before the first row [lanes, state_size].

    Row k forecasts, in its location[..., 0], the value of the k-th event from the first row's own; it stays in the
    unit of the first row.
    """
    row = inputs[0]
    forecasts = []
    with torch.no_grad():
        for k in range(steps):
            forecast, state = model(row[None], state)
            forecasts.append(forecast)
            if k + 1 < steps:
                row = _next(row, forecast.location[0, :, 0].clamp(-LIMIT, LIMIT), inputs[k + 1])
    return Forecast(*(torch.cat(arrays) for arrays in zip(*forecasts, strict=True)))


def _next(row: Tensor, value: Tensor, known: Tensor) -> Tensor:
    """Return the row after `row` if `value` [lanes] is observed; what is known of it beforehand is as in `known`."""
    result = known.clone()  # [lanes, INPUT_SIZE]
    result[:, VALUE] = value
    result[:, CHANGE] = (value - row[:, VALUE]).clamp(-LIMIT, LIMIT)
    for column, weight in ((AVERAGE_FAST, FAST), (AVERAGE_SLOW, SLOW)):
        result[:, column] = row[:, column] + weight * (value - row[:, column])
    return result


def drawn(seed: int, count: int) -> Sequences:
    """Return synthetic series of all ordinary kinds, a lane each."""
    return tensors_of(make_series(np.random.default_rng(seed), count, ROWS, irregular=0.0))


def rolled_on(model: Forecaster, test: Sequences) -> float:
    """Return the mean absolute error of the last of AHEAD forecasts, each made from the one before it."""
    found = []
    with torch.no_grad():
        for at in range(SCORED_FROM, ROWS - AHEAD, 30):
            _, state = model(test.inputs[:at], model.initial_state(test.inputs.shape[1]))
            said = free_running(model, test.inputs[at:], state, AHEAD).location[-1, :, 0]
            found.append((said - test.inputs[at + AHEAD, :, VALUE]).abs().mean())
    return float(torch.stack(found).mean())


def learnt(learning: Learning, shape: dict[str, Any], seed: int) -> Forecaster:
    """Train a fresh forecaster on few series by the product's own loop and settings."""
    torch.manual_seed(seed)
    model = Forecaster(Shape(**shape))
    steps = PASSES * ROWS // CHUNK
    optimiser = build_optimiser(learning, model)
    loss = ScheduledSampling(learning.sampling, steps, learning.sampling_rise, seed)
    train(
        model,
        [drawn(100 + seed, SERIES)] * PASSES,
        optimiser,
        chunk=CHUNK,
        loss=loss,
        schedule=build_schedule(learning, optimiser, steps),
        clip_norm=learning.clip_norm,
        on_step=loss.on_step,
    )
    return model.eval()


KINDS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("none", {}, {}),
    ("L2, weight_decay 0.01", {"weight_decay": 0.01}, {}),
    ("adamw, weight_decay 1", {"optimiser": "adamw", "weight_decay": 1.0}, {}),
    ("L1, 0.001", {"l1": 0.001}, {}),
    ("dropout 0.2", {}, {"dropout": 0.2}),
    ("two layers", {}, {"layers": 2}),
    ("attention over 16", {}, {"attention_window": 16}),
    ("scheduled sampling to 0.5", {"sampling": 0.5}, {}),
]


def measured(seeds: Sequence[int]) -> Iterator[list[str]]:
    """Yield a row for each kind: likelihoods on the series learnt from and on others, weights, rolled-on error."""
    test = drawn(1, HELD_BACK_SERIES)
    for name, how, shape in KINDS:
        found = []
        for seed in seeds:
            model = learnt(Learning.model_validate({"learning_rate": 0.01} | how), shape, seed)
            inside, outside = (held_back_nll(model, part).mean(axis=0) for part in (drawn(100 + seed, SERIES), test))
            size = sum(float(p.detach().abs().sum()) for p in model.parameters() if p.ndim == 2)
            found.append([inside[0], outside[0], outside[1], size, rolled_on(model, test)])
        mean = np.mean(found, axis=0)
        yield [name, *(f"{value:.2f}" for value in mean[:3]), f"{mean[3]:.0f}", f"{mean[4]:.3f}"]

"""Synthetic series as a forecaster learns from them: inputs, targets and masks of lanes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from training.learn.tbptt import Sequences
from training.network.horizons import HORIZONS
from training.network.inputs import INPUT_SIZE, Observations, inputs_of, targets
from training.prior.synthetic import Series, make_series

ROWS = 1200  # of a series
WARM_UP = 5  # rows: with fewer, the normaliser knows nothing of the series


def tensors_of(series: Series, horizons: Sequence[int] = HORIZONS) -> Sequences:
    """Make inputs and targets of each series as one lane: Sequences [rows, series, ...]."""
    count, rows = series.value.shape
    lane = np.repeat(np.arange(count), rows)
    inputs, frames = inputs_of(Observations(lane, series.time.ravel(), series.value.ravel()))
    frames = frames.reshape(count, rows)
    target = np.empty((len(horizons), count, rows), np.float32)
    for h, horizon in enumerate(horizons):
        for i in range(count):
            targets(series.value[i], frames[i], horizon, target[h, i])
    by_row = torch.from_numpy(np.ascontiguousarray(target.transpose(2, 1, 0)))  # [rows, series, horizons]
    mask = torch.isfinite(by_row)
    mask[:WARM_UP] = False
    by_lane = inputs.reshape(count, rows, INPUT_SIZE).transpose(1, 0, 2)
    return Sequences(torch.from_numpy(np.ascontiguousarray(by_lane)), torch.nan_to_num(by_row), mask)


def replay_set(rng: np.random.Generator, count: int, length: int, horizons: Sequence[int] = HORIZONS) -> Sequences:
    """Draw `count` windows of `length` rows at random places of fresh synthetic series, to mix into a retraining.

    A network that learns a fleet forgets what the fleet does not show; a share of these in each batch prevents that.
    """
    rows = max(ROWS, length)
    whole = tensors_of(make_series(rng, count, rows), horizons)
    first = torch.from_numpy(rng.integers(0, rows - length + 1, count))
    row = first[None, :] + torch.arange(length)[:, None]  # [length, count]
    lane = torch.arange(count)[None, :]
    return Sequences(*(tensor[row, lane] for tensor in whole))

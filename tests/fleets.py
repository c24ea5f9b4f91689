"""Lanes whose recent windows are known to the last value: what retraining is tested on."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from training.network.history import INPUT_HISTORY, record
from training.network.inputs import Observations, inputs_of

MINUTE = 60_000_000_000  # ns
# of what a window gives back, by column of inputs: half a step of each code, and what rounding adds
RING_ERROR = np.array([1e-4, 2e-4, 1.1e-4, 1.1e-4, 0.024, 0.0, 0.024, 0.0, 0.0124, 0.0124, 0.012])
ODD_WAVE = np.array([0, 0, 5, -3, 0, 0, 1, 2, 3, 0, -1, 0, 0], np.float64)  # the prior has seen nothing like it


def minutes(lanes: int, rows: int) -> NDArray[np.int64]:
    """Return times a minute apart [lanes, rows]."""
    return np.repeat(1_700_000_000_000_000_000 + MINUTE * np.arange(rows)[None], lanes, axis=0)


def odd_waves(lanes: int, rows: int, seed: int = 0) -> NDArray[np.float64]:
    """Return lanes that all repeat ODD_WAVE, each from another place and in another unit, with noise."""
    rng = np.random.default_rng(seed)
    wave = ODD_WAVE[(np.arange(rows)[None] + rng.integers(0, len(ODD_WAVE), (lanes, 1))) % len(ODD_WAVE)]
    return (wave + 0.1 * rng.standard_normal((lanes, rows))) * rng.uniform(1, 5, (lanes, 1))


def noise(lanes: int, rows: int, seed: int = 0) -> NDArray[np.float64]:
    """Return lanes of which nothing can be learnt."""
    return np.random.default_rng(seed).standard_normal((lanes, rows))


def rings(
    value: NDArray[np.float64], masked: NDArray[np.bool_] | None = None, time: NDArray[np.int64] | None = None
) -> tuple[NDArray[np.void], NDArray[np.void]]:
    """Let lanes see values [lanes, rows], as the engine does; return INPUT_HISTORY [lanes] and FRAME [lanes, rows]."""
    lanes, rows = value.shape
    time = minutes(lanes, rows) if time is None else time
    lane = np.repeat(np.arange(lanes), rows)
    inputs, frames = inputs_of(Observations(lane, time.ravel(), value.ravel(), time.ravel()))
    histories = np.zeros(lanes, INPUT_HISTORY)
    masked = np.zeros(value.shape, np.bool_) if masked is None else masked
    record(histories, lane, inputs, masked.ravel(), 0, len(lane))
    return histories, frames.reshape(lanes, rows)

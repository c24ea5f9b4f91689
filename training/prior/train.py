"""The prior: the forecaster that every installation starts from, trained on synthetic series only.

`make prior` (`tests/bench/make_priors.py`) trains the shipped ones again and judges them; `priors/<cell>.json` says
with which seeds, figures and versions they were made.

All weights are trained with the heads of the two default horizons; the heads of the others are then fitted to the
finished recurrent layers. So the choice of horizons does not change the forecasts of the others.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from tqdm import trange

from training.learn.optimisers import train_one_cycle
from training.learn.readout import fit_locations, only_heads, with_heads_of
from training.learn.tbptt import Sequences
from training.network.horizons import HORIZONS, SHIPPED_HORIZONS
from training.network.model import Forecaster
from training.network.shape import Shape
from training.prior.synthetic import ROWS, make_series, tensors_of

FURTHER_HORIZONS = tuple(horizon for horizon in SHIPPED_HORIZONS if horizon not in HORIZONS)
FURTHER_RATE = 1e-2
READOUT_BATCHES = 100  # for fitting a reservoir's readout in closed form, before gradient descent
LANES, CHUNK = 48, 400  # of a step: 48 series side by side, three chunks through each
# Peak of the one-cycle schedule by cell, and held-back NLL: lstm at 6e-3 0.078, 1e-2 0.045, 2e-2 0.022, 3e-2 0.010;
# gru at 1e-2 0.023, 3e-2 0.180; rnn at 4e-3 0.173, 1e-2 0.146, 3e-2 0.229
PEAK_RATES = {"rnn": 1e-2, "lstm": 3e-2, "gru": 1e-2, "esn": 3e-2}


def train_prior(cell: str, seed: int, batches: int, series: int) -> Forecaster:
    """Train a fresh forecaster on the synthetic series of `seed`; minutes on one core."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    sequences = tensors_of(make_series(rng, series, ROWS))
    model = Forecaster(Shape(cell))
    if cell == "esn":
        fit_locations(model, _draw(sequences, rng, min(batches, READOUT_BATCHES)))
    drawn = _draw(sequences, rng, batches)
    train_one_cycle(model, drawn, steps=batches * (ROWS // CHUNK), chunk=CHUNK, peak_rate=PEAK_RATES[cell])
    return model


def with_further_horizons(model: Forecaster, seed: int, batches: int, series: int) -> Forecaster:
    """Return the model with heads of FURTHER_HORIZONS added, fitted to synthetic series."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    horizons = (1, *FURTHER_HORIZONS)
    sequences = tensors_of(make_series(rng, series, ROWS), horizons)
    further = only_heads(model, horizons)
    drawn = _draw(sequences, rng, batches)
    train_one_cycle(further, drawn, steps=batches, chunk=ROWS, peak_rate=FURTHER_RATE)
    return with_heads_of(model, further)


def _draw(sequences: Sequences, rng: np.random.Generator, batches: int) -> Iterator[Sequences]:
    for _ in trange(batches, unit="batch", disable=None):
        lanes = torch.from_numpy(rng.choice(sequences.inputs.shape[1], LANES, replace=False))
        yield Sequences(*(tensor[:, lanes] for tensor in sequences))

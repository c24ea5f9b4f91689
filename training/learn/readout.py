"""Heads fitted to a network with fixed recurrent weights: in closed form, or by gradient.

For the echo state network, and to add horizons to a trained network.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from training.learn.tbptt import Sequences
from training.network.inputs import INPUT_SIZE
from training.network.model import Forecaster
from training.network.shape import PARAMETERS_OF_T

PENALTY = 1e-3  # of the ridge regression, a row


@torch.no_grad()
def fit_locations(model: Forecaster, batches: Iterable[Sequences], penalty: float = PENALTY) -> None:
    """Set the weights of all locations by ridge regression on F = hidden states, inputs and 1 (Jaeger 2001).

    w = (F'F + n penalty I)^-1 F'y, for n rows (Hoerl and Kennard 1970), summed batch by batch.

    Scales and degrees of freedom are left for the gradient. Horizons are fitted on the rows that have a target.
    """
    width = model.from_hidden.in_features + INPUT_SIZE + 1
    count = len(model.horizons)
    gram = torch.zeros(count, width, width, dtype=torch.float64)
    moment, rows = torch.zeros(count, width, dtype=torch.float64), torch.zeros(count)
    for batch in batches:
        hidden = _hidden(model, batch)
        features = torch.cat([hidden, batch.inputs, torch.ones_like(hidden[..., :1])], dim=-1).double()
        for h in range(count):
            known = batch.mask[..., h]
            kept, target = features[known], batch.targets[..., h][known].double()
            gram[h] += kept.T @ kept
            moment[h] += kept.T @ target
            rows[h] += len(kept)
    for h in range(count):
        gram[h].diagonal().add_(penalty * float(rows[h]))
        weights = torch.linalg.solve(gram[h], moment[h]).float()
        model.from_hidden.weight.data[h] = weights[: -INPUT_SIZE - 1]
        model.from_input.weight.data[h] = weights[-INPUT_SIZE - 1 : -1]
        model.from_hidden.bias.data[h] = weights[-1]


def _hidden(model: Forecaster, batch: Sequences) -> Tensor:
    """Return what the heads read, [time, lanes, layers * hidden_size], each sequence from a zero state."""
    found: list[Tensor] = []
    keep = model.from_hidden.register_forward_pre_hook(lambda _, given: found.append(given[0]))
    model(batch.inputs, model.initial_state(batch.inputs.shape[1]))
    keep.remove()
    return found[0]


def with_heads_of(model: Forecaster, other: Forecaster) -> Forecaster:
    """Return the first model with the second's heads added, horizons rising; both share all else."""
    horizons = sorted({*model.horizons, *other.horizons})
    combined = Forecaster(model.shape._replace(horizons=tuple(horizons)))
    combined.load_state_dict(model.state_dict() | {
        name: value for name, value in combined.state_dict().items() if name.startswith("from_")
    })  # fmt: skip
    for row, horizon in enumerate(horizons):
        source = model if horizon in model.horizons else other
        column, count = source.horizons.index(horizon), len(source.horizons)
        for k in range(PARAMETERS_OF_T):
            to, of = row + k * len(horizons), column + k * count
            combined.from_hidden.weight.data[to] = source.from_hidden.weight.data[of]
            combined.from_hidden.bias.data[to] = source.from_hidden.bias.data[of]
            if k < PARAMETERS_OF_T - 1:
                combined.from_input.weight.data[to] = source.from_input.weight.data[of]
    return combined.eval()


def only_heads(model: Forecaster, horizons: Sequence[int]) -> Forecaster:
    """Return a forecaster of other horizons on the same recurrent weights: heads fresh, all else frozen."""
    fresh = Forecaster(model.shape._replace(horizons=tuple(horizons)))
    weights = {name: value for name, value in model.state_dict().items() if not name.startswith("from_")}
    fresh.load_state_dict(fresh.state_dict() | weights)
    for name, parameter in fresh.named_parameters():
        parameter.requires_grad_(name.startswith("from_"))
    return fresh

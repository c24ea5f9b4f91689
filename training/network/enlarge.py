"""A model made larger: layers and attention that are added have no effect before they have learnt."""

from __future__ import annotations

import numpy as np

from training.network.shape import ModelError, Shape
from training.network.weights import Weights


def enlarge(weights: Weights, wanted: Shape) -> Weights:
    """Return weights in a shape that is at least as large, with the same forecasts.

    The heads do not read added layers and attention yet; only the wanted horizons stay. Raises ModelError if the shape
    is smaller in anything, or has a horizon that these weights have not.
    """
    has = weights.shape
    fits = {
        "cell": wanted.cell == has.cell,
        "hidden_size": wanted.hidden_size == has.hidden_size,
        "layers": wanted.layers >= has.layers,
        "attention_window": wanted.attention_window > 0 or not has.attention_window,
    }
    for name in (name for name, fit in fits.items() if not fit):
        raise ModelError(f"{name} is {getattr(wanted, name)}, the model has {getattr(has, name)}")
    chosen = weights.select(wanted.horizons)
    wanted = wanted._replace(horizons=chosen.shape.horizons)
    if dict(wanted.arrays()) == dict(chosen.shape.arrays()):
        return Weights(wanted, chosen.arrays)

    import torch  # noqa: PLC0415 - takes seconds, and only what is added needs it

    from training.network.model import Forecaster  # noqa: PLC0415 - likewise

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # all workers, at every start, must add the same
        larger = Forecaster(wanted).weights
    former = chosen.arrays["from_hidden.weight"]
    heads = np.zeros_like(larger.arrays["from_hidden.weight"])
    heads[:, : former.shape[1]] = former
    return Weights(larger.shape, {**larger.arrays, **chosen.arrays, "from_hidden.weight": heads})

"""A second model."""

import numpy as np
import pytest

from training.network.weights import Weights, load_prior


@pytest.fixture
def other_model() -> Weights:
    """The prior, a little changed."""
    prior = load_prior()
    arrays = dict(prior.arrays)
    arrays["from_hidden.bias"] = arrays["from_hidden.bias"] + np.float32(1e-4)
    return Weights(prior.shape, arrays)

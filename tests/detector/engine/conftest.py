"""The weights that ship."""

import pytest

from training.network.weights import Weights, load_prior


@pytest.fixture(scope="module")
def model() -> Weights:
    return load_prior()

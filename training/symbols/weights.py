"""The weights of the categorical lanes' network, as shipped and as the kernels take them; without torch."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from importlib import resources

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file

from training.network.shape import ModelError
from training.symbols.counts import EXPERTS, HIDDEN, SIZE, STATISTICS
from training.symbols.kernels import Weights

Float32 = NDArray[np.float32]

FILE = "priors/symbols.safetensors"
EMBEDDING = 16
SHAPES = {
    "embedding.weight": (SIZE, EMBEDDING),
    "is_new": (EMBEDDING,),
    "rnn.weight_ih_l0": (4 * HIDDEN, EMBEDDING),
    "rnn.weight_hh_l0": (4 * HIDDEN, HIDDEN),
    "rnn.bias_ih_l0": (4 * HIDDEN,),
    "rnn.bias_hh_l0": (4 * HIDDEN,),
    "mix.weight": (EXPERTS + 1, HIDDEN + STATISTICS),
    "mix.bias": (EXPERTS + 1,),
    "out.weight": (SIZE, HIDDEN),
}


def shipped_arrays() -> dict[str, Float32]:
    """Return the shipped network's arrays, by the names that `network.SymbolNetwork` has for them.

    Raises ModelError if the file is missing or damaged.
    """
    with resources.as_file(resources.files("training") / FILE) as path:
        try:
            found = dict(load_file(path))
        except (OSError, SafetensorError) as error:
            raise ModelError(f"{path}: missing or damaged ({error}): install longwatch again") from error
    if {name: value.shape for name, value in found.items()} != SHAPES:
        raise ModelError(
            f"{path}: missing or damaged (its arrays are not those of the network): install longwatch again"
        )
    return found


def kernel_weights(value: Mapping[str, Float32]) -> Weights:
    """Lay arrays out for the kernels; the embedding's product with the input gates is computed once."""
    W = value["rnn.weight_ih_l0"].T
    inputs = value["embedding.weight"] @ W + value["rnn.bias_ih_l0"] + value["rnn.bias_hh_l0"]
    arrays = [inputs, value["is_new"] @ W, value["rnn.weight_hh_l0"].T, value["mix.weight"].T, value["mix.bias"]]
    ordered = [np.ascontiguousarray(array, np.float32) for array in [*arrays, value["out.weight"].T]]
    digest = hashlib.blake2b(digest_size=7)
    for name in sorted(value):  # as they are in the file: the same on every machine
        digest.update(value[name].tobytes())
    return Weights(int.from_bytes(digest.digest(), "little") | 1, *ordered)

"""A forecaster's weights as arrays, their file, and the same forecasts in a larger shape.

Without torch, which only learning and `enlarge` need.

`model.Forecaster` is the torch module of the same equations: `Forecaster.of(weights)` starts from them, and its
`weights` returns them. `kernels.Network` runs them on a CPU.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from training.network.horizons import HORIZONS
from training.network.inputs import INPUT_SIZE
from training.network.shape import PARAMETERS_OF_T, ModelError, Shape

Float32 = NDArray[np.float32]

FORMAT = "longwatch-forecaster-2"
PRIORS = "priors"  # folder of what ships


@dataclass(frozen=True, slots=True, eq=False)
class Weights:
    """The numbers of a forecaster: `arrays` by name, as `shape.arrays()` has them, never changed."""

    shape: Shape
    arrays: Mapping[str, Float32]

    def fingerprint(self) -> str:
        """Return a short name for these exact weights: scores of other weights cannot be compared."""
        digest = hashlib.sha256(repr((self.shape.cell, self.shape.horizons)).encode())
        for name, value in sorted(self.arrays.items()):
            digest.update(name.encode() + value.tobytes())
        return digest.hexdigest()[:12]

    def select(self, horizons: Sequence[int]) -> Weights:
        """Return them with the heads of these horizons only. Raises ModelError for a horizon that has none."""
        shape = self.shape._replace(horizons=tuple(horizons)).checked()
        missing = [str(horizon) for horizon in horizons if horizon not in self.shape.horizons]
        if missing:
            there = ", ".join(map(str, self.shape.horizons))
            raise ModelError(f"the model has no forecast of horizon {', '.join(missing)}; it has {there}")
        rows = np.array([self.shape.horizons.index(horizon) for horizon in horizons])
        of_t = np.concatenate([rows + k * len(self.shape.horizons) for k in range(PARAMETERS_OF_T)])
        heads = {
            "from_hidden.weight": self.arrays["from_hidden.weight"][of_t],
            "from_hidden.bias": self.arrays["from_hidden.bias"][of_t],
            "from_input.weight": self.arrays["from_input.weight"][of_t[: 2 * len(rows)]],
        }
        return Weights(shape, {**self.arrays, **heads})


def to_bytes(weights: Weights, notes: dict[str, str] | None = None) -> bytes:
    """Serialise to safetensors, with the shape that they have; equal weights give equal bytes."""
    about = {"format": FORMAT, "inputs": INPUT_SIZE, "shape": weights.shape._asdict()}
    arrays = {name: np.ascontiguousarray(value) for name, value in weights.arrays.items()}
    # one entry of metadata: safetensors writes several in random order
    return bytes(save(arrays, metadata={"longwatch": json.dumps(about | {"notes": notes or {}}, sort_keys=True)}))


def load_weights(path: Path) -> Weights:
    """Read what `to_bytes` wrote.

    Raises ModelError for a file that is missing, damaged, or made for other inputs.
    """
    try:
        with safe_open(str(path), framework="numpy") as file:
            about = json.loads((file.metadata() or {}).get("longwatch", "{}"))
            if about.get("format") != FORMAT:
                raise ModelError(f"{path}: not a longwatch model of this version (format {about.get('format')!r})")
            if about["inputs"] != INPUT_SIZE:
                raise ModelError(f"{path}: made for {about['inputs']} inputs, not {INPUT_SIZE}: train again")
            shape = Shape(**about["shape"]).checked()
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except ModelError as error:
        raise error if str(path) in str(error) else ModelError(f"{path}: {error}") from None
    except FileNotFoundError:
        raise ModelError(f"{path}: no such model file") from None
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (
        SafetensorError,
        ArithmeticError,
        AttributeError,
        LookupError,
        TypeError,
        ValueError,
        RuntimeError,
    ) as error:
        raise ModelError(f"{path}: damaged or foreign model file ({error})") from error
    expected = dict(shape.arrays())
    if {name: value.shape for name, value in arrays.items()} != expected:
        raise ModelError(f"{path}: damaged or foreign model file (its arrays are not those of its shape)")
    if any(value.dtype != np.float32 for value in arrays.values()):
        raise ModelError(f"{path}: damaged or foreign model file (not all of its numbers are float32)")
    return Weights(shape, {name: arrays[name] for name in expected})


def load_prior(cell: str = "lstm", horizons: Sequence[int] = HORIZONS) -> Weights:
    """Return the shipped prior of a cell.

    Raises ModelError if the installation lacks it, or it has no forecast of a horizon.
    """
    with resources.as_file(resources.files("training") / PRIORS / f"{cell}.safetensors") as path:
        return load_weights(path).select(horizons)


def prior_of(shape: Shape) -> Weights | None:
    """Return the shipped prior of this shape; None if there is none."""
    try:
        prior = load_prior(shape.cell, shape.horizons)
    except ModelError:
        return None
    return prior if prior.shape.hidden_size == shape.hidden_size else None

"""The forecaster: one recurrent network that every lane runs through, and what it says of the next observations.

`Forecaster` is the torch module that learns, and that scores on a GPU; `kernels.py` steps the same equations on a CPU.

One or more recurrent layers (`cells.py`), each on the hidden states of the one below; where asked for, attention over
the last layer's recent hidden states (`attention.py`); and heads that read all layers (skip connections as in Graves
2013, eq. 9-11). For each horizon they say a Student-t distribution of the target (`inputs.targets`), so that surprise
is a negative log-likelihood: location mu = w.h + k.x, log sigma = w.h + k.x (inputs clipped at +-3), degrees of
freedom nu = 1.5 + 4 softplus(w.h).
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional

from training.attention import CausalAttention
from training.cells import CELLS, GATES, cell_parameter_count
from training.horizons import HORIZONS, check_horizons
from training.inputs import INPUT_SIZE, LIMIT

PARAMETERS_OF_T = 3  # location, log scale, degrees of freedom
SCALE_INPUT_LIMIT = 3.0  # a wild input may move the location freely, the scale only so far
LEAST_FREEDOM = 1.5  # below, a Student-t's tails hold so much that nothing is a surprise
FORMAT = "longwatch-forecaster-2"


class ModelError(Exception):
    """A model file that cannot be used, with the file's name, what is wrong and what to do."""


class Forecast(NamedTuple):
    """Student-t distributions of the observations ahead; each array is [..., horizons]."""

    location: Tensor
    log_scale: Tensor
    freedom: Tensor


class Forecaster(nn.Module):
    """Recurrent layers and their heads; the same weights for every lane.

    horizons: events ahead that are forecast, rising, the first 1. attention_window: hidden states to look back on; 0
    is no attention. dropout: share of the hidden units that a training leaves out on the way up (to the next layer,
    to the heads), one mask a sequence and lane (Gal and Ghahramani 2016).

    `state` is a Tensor [batch, state_size]: of each layer its own (`Cell`), then the attention's. It is the caller's
    to keep. Raises ModelError for a shape that cannot be.
    """

    def __init__(
        self,
        cell: str = "lstm",
        hidden_size: int = 48,
        layers: int = 1,
        dropout: float = 0.0,
        attention_window: int = 0,
        horizons: Sequence[int] = HORIZONS,
    ) -> None:
        super().__init__()
        if cell not in CELLS:
            raise ModelError(f"model.cell: {cell!r} is not known; known are: {', '.join(CELLS)}")
        if hidden_size < 1 or layers < 1 or attention_window < 0 or not 0 <= dropout < 1:
            raise ModelError("hidden_size and layers are at least 1, attention_window 0, dropout from 0 to below 1")
        _check(horizons)
        self.cell, self.hidden_size, self.dropout = cell, hidden_size, dropout
        self.horizons = tuple(horizons)
        sizes = [INPUT_SIZE] + [hidden_size] * (layers - 1)
        self.layers = nn.ModuleList(CELLS[cell](size, hidden_size, draw=False) for size in sizes)
        self.attention = CausalAttention(hidden_size, attention_window) if attention_window else None
        count = len(self.horizons)
        self.from_hidden = nn.Linear(layers * hidden_size, PARAMETERS_OF_T * count)  # location, log scale, freedom
        self.from_input = nn.Linear(INPUT_SIZE, 2 * count, bias=False)  # location, log scale
        for layer in self.layers:
            layer.reset_parameters()  # type: ignore[operator]  # a ModuleList does not say what it holds
        nn.init.normal_(self.from_hidden.weight, std=0.1 / math.sqrt(hidden_size))
        nn.init.zeros_(self.from_hidden.bias)
        nn.init.zeros_(self.from_input.weight)
        self.from_input.weight.data[:count, 0] = 1.0  # a forecast of "as last time" to start from
        self._masks: list[Tensor] = []

    @property
    def shape(self) -> dict[str, Any]:
        """What `Forecaster(**shape)` builds this one's like from."""
        return {
            "cell": self.cell,
            "hidden_size": self.hidden_size,
            "layers": len(self.layers),
            "dropout": self.dropout,
            "attention_window": self.attention.window if self.attention else 0,
            "horizons": self.horizons,
        }

    @property
    def state_sizes(self) -> list[int]:
        """Numbers a lane carries: for each layer, and for the attention where there is one."""
        return [part.state_size for part in (*self.layers, *([self.attention] if self.attention else []))]

    @property
    def state_size(self) -> int:
        """Numbers a lane carries."""
        return sum(self.state_sizes)

    def forward(self, inputs: Tensor, state: Tensor) -> tuple[Forecast, Tensor]:
        """Run the sequence `inputs` [time, batch, INPUT_SIZE] on from `state`; return forecasts and the new state."""
        before, after, outputs = torch.split(state, self.state_sizes, dim=-1), [], []
        below = inputs
        for k, layer in enumerate(self.layers):
            hidden, last = layer(below, before[k])
            if self.attention and k == len(self.layers) - 1:
                hidden, window = self.attention(hidden, before[-1])
                last = torch.cat([last, window], dim=-1)
            below = self._dropped(hidden, k)
            outputs.append(below)
            after.append(last)
        return self.heads(torch.cat(outputs, dim=-1), inputs), torch.cat(after, dim=-1)

    def heads(self, hidden: Tensor, inputs: Tensor) -> Forecast:
        """Return what hidden states [..., layers * hidden_size] and their inputs [..., INPUT_SIZE] say."""
        location, log_scale, freedom = self.from_hidden(hidden).chunk(PARAMETERS_OF_T, dim=-1)
        skip_location, _ = self.from_input(inputs).chunk(2, dim=-1)
        _, skip_scale = self.from_input(inputs.clamp(-SCALE_INPUT_LIMIT, SCALE_INPUT_LIMIT)).chunk(2, dim=-1)
        return Forecast(
            location + skip_location,
            (log_scale + skip_scale).clamp(-8.0, 4.0),
            LEAST_FREEDOM + 4.0 * functional.softplus(freedom),
        )

    def initial_state(self, batch: int) -> Tensor:
        """Return the state of lanes that have seen nothing: zeros [batch, state_size]. Dropout draws new masks."""
        self._masks = []
        return torch.zeros(batch, self.state_size, device=self.from_hidden.weight.device)

    def _dropped(self, hidden: Tensor, layer: int) -> Tensor:
        """Leave out units by the sequence's mask; the others stand in for them."""
        if not self.training or not self.dropout:
            return hidden
        if len(self._masks) == layer:
            self._masks.append(functional.dropout(torch.ones_like(hidden[0]), self.dropout))
        return hidden * self._masks[layer]

    def shaped(
        self, cell: str, hidden_size: int, layers: int, dropout: float, attention_window: int, horizons: Sequence[int]
    ) -> Forecaster:
        """Return this forecaster in a shape that holds all of it, and whose forecasts are the same.

        Layers and attention that are added are not read out yet; of the horizons only those asked for stay. Raises
        ModelError where the shape has no room for what is there, or asks for a horizon that is not.
        """
        fits = {
            "cell": cell == self.cell,
            "hidden_size": hidden_size == self.hidden_size,
            "layers": layers >= len(self.layers),
            "attention_window": attention_window > 0 or not self.attention,
        }
        asked: dict[str, Any] = {"cell": cell, "hidden_size": hidden_size, "layers": layers}
        asked["attention_window"] = attention_window
        for name in (name for name, fit in fits.items() if not fit):
            raise ModelError(f"model.{name} is {asked[name]}, the model has {self.shape[name]}")
        model = self.select(horizons)
        asked |= {"dropout": dropout, "horizons": model.horizons}
        if asked == model.shape:
            return model
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # all workers, at every start, are to add the same
            larger = Forecaster(**asked)
        weights = larger.state_dict()
        weights |= {name: value for name, value in model.state_dict().items() if name != "from_hidden.weight"}
        weights["from_hidden.weight"].zero_()
        weights["from_hidden.weight"][:, : model.from_hidden.in_features] = model.from_hidden.weight.detach()
        larger.load_state_dict(weights)
        return larger.eval()

    def select(self, horizons: Sequence[int]) -> Forecaster:
        """Return a copy with the heads of these horizons only. Raises ModelError where there is none for one."""
        _check(horizons)
        missing = [str(horizon) for horizon in horizons if horizon not in self.horizons]
        if missing:
            there = ", ".join(map(str, self.horizons))
            raise ModelError(f"the model has no forecast of horizon {', '.join(missing)}; it has {there}")
        rows = torch.tensor([self.horizons.index(horizon) for horizon in horizons])
        count = len(self.horizons)
        model = copy.deepcopy(self)
        model.horizons = tuple(horizons)
        model.from_hidden = nn.Linear(self.from_hidden.in_features, PARAMETERS_OF_T * len(rows))
        model.from_input = nn.Linear(INPUT_SIZE, 2 * len(rows), bias=False)
        of_t = torch.cat([rows + k * count for k in range(PARAMETERS_OF_T)])
        model.from_hidden.weight.data = self.from_hidden.weight.data[of_t]
        model.from_hidden.bias.data = self.from_hidden.bias.data[of_t]
        model.from_input.weight.data = self.from_input.weight.data[of_t[: 2 * len(rows)]]
        return model


def student_t_nll(forecast: Forecast, target: Tensor) -> Tensor:
    """Return -log p of `target` [..., horizons] in nats, elementwise; NaN targets give NaN."""
    nu = forecast.freedom
    z = (target - forecast.location) * torch.exp(-forecast.log_scale)
    return (
        torch.lgamma(nu / 2)
        - torch.lgamma((nu + 1) / 2)
        + 0.5 * torch.log(math.pi * nu)
        + forecast.log_scale
        + (nu + 1) / 2 * torch.log1p(z * z / nu)
    )


def _check(horizons: Sequence[int]) -> None:
    try:
        check_horizons(horizons)
    except ValueError as error:
        raise ModelError(str(error)) from None


def parameter_count(model: Forecaster) -> dict[str, int]:
    """Work the number of trained parameters out as the theory does, for d inputs, H units, L layers and n horizons.

    Cells: gates ((d + H) H + H) for the first layer, gates ((H + H) H + H) for those above, with 1 gate (rnn), 4
    (lstm), 3 (gru) or none that is trained (esn). torch keeps two bias vectors a gate (beside W, beside U; their sum
    is the theory's one, but for the gru's candidate): gates H more a layer. Heads: 3 n (L H + 1) + 2 n d.
    """
    d, size, layers, count = INPUT_SIZE, model.hidden_size, len(model.layers), len(model.horizons)
    first, above = (cell_parameter_count(model.cell, below, size) for below in (d, size))
    return {
        "cells": first + (layers - 1) * above,
        "second_biases": GATES[model.cell] * size * layers,
        "attention": 2 * size * size if model.attention else 0,
        "heads": PARAMETERS_OF_T * count * (layers * size + 1) + 2 * count * d,
    }


def to_bytes(model: Forecaster, notes: dict[str, str] | None = None) -> bytes:
    """Serialise to safetensors, with what is needed to build the module again; equal models give equal bytes."""
    about = {"format": FORMAT, "inputs": INPUT_SIZE, "shape": model.shape}
    tensors = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    # one entry of metadata: safetensors writes several in random order
    return bytes(save(tensors, metadata={"longwatch": json.dumps(about | {"notes": notes or {}}, sort_keys=True)}))


def load_model(path: Path) -> Forecaster:
    """Read a model that `to_bytes` wrote.

    Raises ModelError for a file that is missing, damaged, or made for other inputs.
    """
    try:
        with safe_open(str(path), framework="pt") as file:
            about = json.loads((file.metadata() or {}).get("longwatch", "{}"))
            if about.get("format") != FORMAT:
                raise ModelError(f"{path}: not a longwatch model of this version (format {about.get('format')!r})")
            if about["inputs"] != INPUT_SIZE:
                raise ModelError(f"{path}: made for {about['inputs']} inputs, not {INPUT_SIZE}: train anew")
            model = Forecaster(**about["shape"])
            model.load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118 (no mapping)
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
    return model.eval()


def fingerprint(model: Forecaster) -> str:
    """Return a short name for these exact weights: scores are only comparable under the same one."""
    digest = hashlib.sha256(repr((model.cell, model.horizons)).encode())
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode() + value.detach().cpu().numpy().tobytes())
    return digest.hexdigest()[:12]


assert LIMIT > SCALE_INPUT_LIMIT  # noqa: S101 (a slip here would be silent)

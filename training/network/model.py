"""The forecaster: one recurrent network for all lanes, and its forecasts of the next observations.

`Forecaster` is the torch module that learns, and that scores on a GPU; `kernels.py` steps the same equations on a CPU,
from the same weights (`weights.py`).

One or more recurrent layers (`cells.py`), each on the hidden states of the one below; where asked for, attention over
the last layer's recent hidden states; and heads that read all layers (skip connections as in Graves
2013, eq. 9-11). For each horizon they give a Student-t distribution of the target (`inputs.targets`), so that surprise
is a negative log-likelihood: location mu = w.h + k.x, log sigma = w.h + k.x (inputs clipped at +-3), degrees of
freedom nu = 1.5 + 4 softplus(w.h).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.network.cells import CELLS
from training.network.inputs import INPUT_SIZE
from training.network.shape import (
    FREEDOM_SLOPE,
    MAX_LOG_SCALE,
    MIN_DEGREES_OF_FREEDOM,
    MIN_LOG_SCALE,
    PARAMETERS_OF_T,
    SCALE_INPUT_LIMIT,
    Shape,
)
from training.network.weights import Weights


class Forecast(NamedTuple):
    """Student-t distributions of the observations ahead; each array is [..., horizons]."""

    location: Tensor
    log_scale: Tensor
    freedom: Tensor


class Learner(nn.Module, ABC):
    """A recurrent network whose state between two calls is kept by the caller."""

    @abstractmethod
    def initial_state(self, batch: int) -> Tensor:
        """Return the state of lanes that have seen nothing: zeros [batch, ...]."""


class CausalAttention(nn.Module):
    """Causal attention over the last `window` hidden states: looked up instead of squeezed into a fixed-size state.

    For the hidden state h_t and the last W of them, h_t among them (Bahdanau et al. 2015; scaled as Vaswani et al.
    2017, eq. 1, with one head and the hidden states themselves as keys and values):

        e_k = (Q h_t) . h_k / sqrt(H),   a = softmax(e),   h'_t = h_t + O sum_k a_k h_k

    O starts as zeros: a network that gains attention forecasts as before until it has learnt to use it.

    Its state, [batch, window * hidden_size + 1], is those hidden states, the oldest first, and how many there are.
    """

    def __init__(self, hidden_size: int, window: int) -> None:
        super().__init__()
        self.hidden_size, self.window = hidden_size, window
        self.query = nn.Linear(hidden_size, hidden_size, bias=False)
        self.out = nn.Linear(hidden_size, hidden_size, bias=False)
        nn.init.orthogonal_(self.query.weight)
        nn.init.zeros_(self.out.weight)

    def forward(self, hidden: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Attend from each of a sequence of hidden states [time, batch, hidden_size], on from `state`."""
        batch = hidden.shape[1]
        before = state[:, :-1].reshape(batch, self.window, self.hidden_size).transpose(0, 1)
        every = torch.cat([before, hidden])  # [window + time, batch, hidden_size]
        kept = every[1:].unfold(0, self.window, 1).movedim(-1, -2)  # [time, batch, window, hidden_size]
        since = torch.arange(1, len(hidden) + 1, device=hidden.device)[:, None, None]
        count = (state[None, :, -1:] + since).clamp(max=self.window)  # [time, batch, 1]
        last = every[-self.window :].transpose(0, 1).reshape(batch, -1)
        return self._attend(hidden, kept, count), torch.cat([last, count[-1]], dim=-1)

    def _attend(self, hidden: Tensor, kept: Tensor, count: Tensor) -> Tensor:
        e = (kept @ self.query(hidden)[..., None])[..., 0] / math.sqrt(self.hidden_size)  # [..., window]
        missing = torch.arange(self.window, device=hidden.device) < self.window - count
        a = torch.softmax(e.masked_fill(missing, -math.inf), dim=-1)
        context = (a[..., None, :] @ kept)[..., 0, :]
        attended: Tensor = hidden + self.out(context)
        return attended


class Forecaster(Learner):
    """Recurrent layers and their heads; the same weights for every lane.

    Dropout is on the way up (to the next layer, to the heads), one mask for each sequence and lane (Gal and Ghahramani
    2016).

    `state` is a Tensor [batch, state_size]: that of each layer (`Cell`), then the attention's. The caller keeps it.
    Raises ModelError for an impossible shape.
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape = shape.checked()
        self.cell, self.hidden_size, layers, self.dropout, window, self.horizons = shape
        below = [INPUT_SIZE] + [self.hidden_size] * (layers - 1)
        self.layers = nn.ModuleList(CELLS[self.cell](size, self.hidden_size, draw=False) for size in below)
        self.attention = CausalAttention(self.hidden_size, window) if window else None
        count = len(self.horizons)
        self.from_hidden = nn.Linear(layers * self.hidden_size, PARAMETERS_OF_T * count)  # location, log scale, freedom
        self.from_input = nn.Linear(INPUT_SIZE, 2 * count, bias=False)  # location, log scale
        for layer in self.layers:
            layer.reset_parameters()  # type: ignore[operator]  # a ModuleList does not say what it holds
        nn.init.normal_(self.from_hidden.weight, std=0.1 / math.sqrt(self.hidden_size))
        nn.init.zeros_(self.from_hidden.bias)
        nn.init.zeros_(self.from_input.weight)
        self.from_input.weight.data[:count, 0] = 1.0  # the first forecast is the last value
        self._masks: list[Tensor] = []

    @classmethod
    def of(cls, weights: Weights) -> Self:
        """Return a module with these weights, ready to forecast."""
        model = cls(weights.shape)
        model.load_state_dict({name: torch.tensor(value) for name, value in weights.arrays.items()})
        return model.eval()

    @property
    def weights(self) -> Weights:
        """Its weights as they are now."""
        arrays = {name: value.detach().cpu().numpy().copy() for name, value in self.state_dict().items()}
        return Weights(self.shape, arrays)

    def forward(self, inputs: Tensor, state: Tensor) -> tuple[Forecast, Tensor]:
        """Run the sequence `inputs` [time, batch, INPUT_SIZE] on from `state`; return forecasts and the new state."""
        before, after, outputs = torch.split(state, self.shape.state_sizes, dim=-1), [], []
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
        """Return forecasts from hidden states [..., layers * hidden_size] and their inputs [..., INPUT_SIZE]."""
        location, log_scale, freedom = self.from_hidden(hidden).chunk(PARAMETERS_OF_T, dim=-1)
        skip_location, _ = self.from_input(inputs).chunk(2, dim=-1)
        _, skip_scale = self.from_input(inputs.clamp(-SCALE_INPUT_LIMIT, SCALE_INPUT_LIMIT)).chunk(2, dim=-1)
        return Forecast(
            location + skip_location,
            (log_scale + skip_scale).clamp(MIN_LOG_SCALE, MAX_LOG_SCALE),
            MIN_DEGREES_OF_FREEDOM + FREEDOM_SLOPE * functional.softplus(freedom),
        )

    def initial_state(self, batch: int) -> Tensor:
        """Return the state of lanes that have seen nothing: zeros [batch, state_size]. Dropout draws new masks."""
        self._masks = []
        return torch.zeros(batch, self.shape.state_size, device=self.from_hidden.weight.device)

    def _dropped(self, hidden: Tensor, layer: int) -> Tensor:
        """Drop units by the sequence's mask and scale the others up."""
        if not self.training or not self.dropout:
            return hidden
        if len(self._masks) == layer:
            self._masks.append(functional.dropout(torch.ones_like(hidden[0]), self.dropout))
        return hidden * self._masks[layer]


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

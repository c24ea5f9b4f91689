"""The network's equations as textbooks have them, an observation at a time and a line for each, and their Jacobians.

`training/network/cells.py` runs the same equations over whole sequences; tests hold the two together.
"""

from __future__ import annotations

import torch
from torch import Tensor

from training.network.cells import Cell, EchoStateCell, GruCell, LstmCell, VanillaCell
from training.network.model import CausalAttention, Forecast, Forecaster
from training.network.shape import LEAK_RATE


def vanilla_step(cell: VanillaCell, x: Tensor, state: Tensor) -> Tensor:
    """Elman 1990: x [batch, input_size], state [batch, state_size], as in all of them."""
    W, U, b, c = cell.weights()
    return torch.tanh(x @ W.T + b + state @ U.T + c)


def lstm_step(cell: LstmCell, x: Tensor, state: Tensor) -> Tensor:
    """Hochreiter and Schmidhuber 1997, with the forget gate of Gers et al. 2000."""
    W, U, b, c = cell.weights()
    h, C = state.chunk(2, dim=-1)
    i, f, candidate, o = (x @ W.T + b + h @ U.T + c).chunk(4, dim=-1)
    C = torch.sigmoid(f) * C + torch.sigmoid(i) * torch.tanh(candidate)
    h = torch.sigmoid(o) * torch.tanh(C)
    return torch.cat([h, C], dim=-1)


def gru_step(cell: GruCell, x: Tensor, state: Tensor) -> Tensor:
    """Cho et al. 2014, reset after the product, as cuDNN has it."""
    W, U, b, c = cell.weights()
    r, z, n = (x @ W.T + b).chunk(3, dim=-1)
    r_h, z_h, n_h = (state @ U.T + c).chunk(3, dim=-1)
    z = torch.sigmoid(z + z_h)
    candidate = torch.tanh(n + torch.sigmoid(r + r_h) * n_h)
    return (1 - z) * candidate + z * state


def echo_state_step(cell: EchoStateCell, x: Tensor, state: Tensor) -> Tensor:
    """Jaeger 2001, with a leak rate."""
    return (1 - LEAK_RATE) * state + LEAK_RATE * torch.tanh(x @ cell.W.T + cell.b + state @ cell.U.T)


def step(cell: Cell, x: Tensor, state: Tensor) -> Tensor:
    """Return the state of any cell after one input."""
    match cell:
        case VanillaCell():
            return vanilla_step(cell, x, state)
        case LstmCell():
            return lstm_step(cell, x, state)
        case GruCell():
            return gru_step(cell, x, state)
        case EchoStateCell():
            return echo_state_step(cell, x, state)
    raise TypeError(f"{type(cell).__name__} is not in the textbook")


def attention_step(attention: CausalAttention, hidden: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """Attend from one hidden state [batch, hidden_size]; return what comes of it and the new state."""
    size, window = attention.hidden_size, attention.window
    kept = torch.cat([state[:, size:-1], hidden], dim=-1).view(-1, window, size)
    count = (state[:, -1:] + 1).clamp(max=window)
    e = torch.einsum("bs,bws->bw", attention.query(hidden), kept) / size**0.5
    missing = torch.arange(window) < window - count
    a = torch.softmax(e.masked_fill(missing, -torch.inf), dim=-1)
    attended = hidden + attention.out(torch.einsum("bw,bws->bs", a, kept))
    return attended, torch.cat([kept.flatten(1), count], dim=-1)


def forecast_step(model: Forecaster, x: Tensor, state: Tensor) -> tuple[Forecast, Tensor]:
    """Step all of a forecaster once, without dropout."""
    before, after, outputs = torch.split(state, model.shape.state_sizes, dim=-1), [], []
    below = x
    for k, layer in enumerate(model.layers):
        last = step(layer, below, before[k])
        below = last[..., : model.hidden_size]
        if model.attention and k == len(model.layers) - 1:
            below, window = attention_step(model.attention, below, before[-1])
            last = torch.cat([last, window], dim=-1)
        outputs.append(below)
        after.append(last)
    return model.heads(torch.cat(outputs, dim=-1), x), torch.cat(after, dim=-1)


def jacobians(cell: Cell, inputs: Tensor, state: Tensor) -> Tensor:
    """Return J_i = ds_i/ds_(i-1) of each step of one lane: [time, state_size, state_size].

    inputs: [time, input_size]; state: [state_size], before the first of them.
    """

    def of_one(x: Tensor, state: Tensor) -> Tensor:
        return step(cell, x[None], state[None])[0]

    each = []
    with torch.no_grad():
        for x in inputs:
            each.append(torch.func.jacrev(of_one, argnums=1)(x, state))
            state = of_one(x, state)
    return torch.stack(each)


def product_norms(each: Tensor) -> tuple[Tensor, Tensor]:
    """Return the spectral norm of J_T ... J_(T-k+1) for k = 1 to T, and the bound, the product of their norms.

    each: `jacobians`, [time, state_size, state_size]; both answers are [time], in float64.
    """
    product = torch.eye(each.shape[-1], dtype=torch.float64)
    norms = []
    for jacobian in each.double().flip(0):
        product = product @ jacobian
        norms.append(torch.linalg.matrix_norm(product, ord=2))
    bounds = torch.linalg.matrix_norm(each.double().flip(0), ord=2).cumprod(0)
    return torch.stack(norms), bounds

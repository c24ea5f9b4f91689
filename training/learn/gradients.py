"""How far back a gradient reaches: vanishing and exploding, measured.

Back-propagation through time multiplies Jacobians. For the state s_t that a cell carries (the LSTM's is h_t with C_t)

    dL_t/ds_(t-k) = dL_t/ds_t . J_t . J_(t-1) ... J_(t-k+1),     J_i = ds_i/ds_(i-1)

so that |dL_t/ds_(t-k)| <= |dL_t/ds_t| |J_t| ... |J_(t-k+1)| in spectral norms: held below 1 it vanishes with k, and
only a product above 1 can explode (Bengio et al. 1994; Pascanu et al. 2013).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn


def state_gradients(
    model: nn.Module, inputs: Tensor, state: Tensor, lags: Sequence[int], loss: Callable[[Any], Tensor]
) -> Tensor:
    """Return dL_t/ds_(t-k) for each k of `lags`, t being the last step: [lags, batch, state_size].

    model: its `forward(inputs [time, batch, input_size], state [batch, state_size])` returns (outputs, state), as a
    Cell's and a Forecaster's do. `state` is the one before the first input.
    lags: each from 1 to time; the lag `time` is `state` itself.
    loss: L_t from the outputs of the last step (a sequence of one, [1, batch, ...]), summed over the batch; no lane may
    meet another in it, so that each row is its own lane's gradient.

    Raises ValueError for a lag out of range.
    """
    if min(lags) < 1 or max(lags) > len(inputs):
        raise ValueError(f"lags {min(lags)} to {max(lags)}: {len(inputs)} steps hold lags 1 to {len(inputs)}")
    state = state.detach().requires_grad_()
    states = [state]  # s_0 to s_(T-1)
    for t in range(len(inputs) - 1):
        _, state = model(inputs[t : t + 1], state)
        states.append(state)
    outputs, _ = model(inputs[-1:], state)
    return torch.stack(torch.autograd.grad(loss(outputs), [states[-k] for k in lags]))

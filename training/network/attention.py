"""Causal attention over a lane's last hidden states: looked up instead of squeezed into a fixed-size state.

For the hidden state h_t and the last W of them, h_t among them (Bahdanau et al. 2015; scaled as Vaswani et al. 2017,
eq. 1, with one head and the hidden states themselves as keys and values):

    e_k = (Q h_t) . h_k / sqrt(H),   a = softmax(e),   h'_t = h_t + O sum_k a_k h_k

O starts as zeros: a network that gains attention forecasts as before until it has learnt to use it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class CausalAttention(nn.Module):
    """Attention over the last `window` hidden states.

    Its state, [batch, state_size], is those hidden states, the oldest first, and how many of them there are.
    """

    def __init__(self, hidden_size: int, window: int) -> None:
        super().__init__()
        self.hidden_size, self.window = hidden_size, window
        self.query = nn.Linear(hidden_size, hidden_size, bias=False)
        self.out = nn.Linear(hidden_size, hidden_size, bias=False)
        nn.init.orthogonal_(self.query.weight)
        nn.init.zeros_(self.out.weight)

    @property
    def state_size(self) -> int:
        """Numbers a lane carries for it."""
        return self.window * self.hidden_size + 1

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

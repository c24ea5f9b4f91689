"""The recurrent cells: vanilla (tanh), LSTM, GRU and echo state, behind one interface.

Each runs whole sequences at once, by the textbook's equations (a test compares it with these, step by step). For the
input x_t, the hidden state h and * elementwise:

    rnn    h_t = tanh(W x_t + U h_(t-1) + b)                                      Elman 1990
    lstm   i, f, o = sigmoid(W_. x_t + U_. h_(t-1) + b_.)                         Hochreiter and Schmidhuber 1997;
           C~ = tanh(W_c x_t + U_c h_(t-1) + b_c)                                 forget gate: Gers et al. 2000
           C_t = f * C_(t-1) + i * C~,   h_t = o * tanh(C_t)
    gru    r, z = sigmoid(W_. x_t + U_. h_(t-1) + b_.)                            Cho et al. 2014, reset after the
           h~ = tanh(W_n x_t + b_n + r * (U_n h_(t-1) + c_n))                     product, as cuDNN has it
           h_t = (1 - z) * h~ + z * h_(t-1)
    esn    h_t = (1 - a) h_(t-1) + a tanh(W x_t + U h_(t-1) + b)                  Jaeger 2001, leak rate a; W, U, b
                                                                                  are drawn once and stay as they are

Initial weights are the literature's against vanishing and exploding gradients: W Xavier uniform (Glorot and Bengio
2010), U orthogonal (Saxe et al. 2014), the LSTM's forget bias 1 (Gers et al. 2000; Jozefowicz et al. 2015), the
reservoir's U scaled to a spectral radius below 1.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from training.network.shape import LEAK_RATE

SPECTRAL_RADIUS = 0.95  # of the reservoir: below 1, or echoes of the past do not die away
LINKS = 10  # of each unit of the reservoir to others: sparse ones have richer dynamics for their size


class Cell(nn.Module, ABC):
    """One recurrent layer. Its state, [batch, state_size], begins with the hidden state, [batch, hidden_size].

    draw: draw the initial weights at once; otherwise the caller calls `reset_parameters`.
    """

    parts = 1  # vectors of hidden_size in a state

    def __init__(self, input_size: int, hidden_size: int, *, draw: bool = True) -> None:
        super().__init__()
        self.input_size, self.hidden_size = input_size, hidden_size
        self.allocate()
        if draw:
            self.reset_parameters()

    @abstractmethod
    def allocate(self) -> None:
        """Create the parameters."""

    @property
    def state_size(self) -> int:
        """Numbers a lane carries from event to event."""
        return self.parts * self.hidden_size

    @abstractmethod
    def reset_parameters(self) -> None:
        """Draw the initial weights."""

    @abstractmethod
    def forward(self, inputs: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Run `inputs` [time, batch, input_size] on from `state`.

        Returns the hidden state after each, [time, batch, hidden_size], and the state after the last.
        """


class _Fused(Cell):
    """A cell whose sequences torch runs in one call; `rnn` holds its weights under torch's names."""

    gates = 1
    module: type[nn.RNN | nn.LSTM | nn.GRU]
    rnn: nn.RNN | nn.LSTM | nn.GRU

    def allocate(self) -> None:
        """Create torch's module."""
        self.rnn = self.module(self.input_size, self.hidden_size)

    def reset_parameters(self) -> None:
        """Draw the weights of each gate: W Xavier uniform, U orthogonal, biases 0."""
        size, (W, U, b, c) = self.hidden_size, self.weights()
        for gate in range(self.gates):
            rows = slice(gate * size, (gate + 1) * size)
            nn.init.orthogonal_(U.data[rows])
            nn.init.xavier_uniform_(W.data[rows])
        nn.init.zeros_(b.data)
        nn.init.zeros_(c.data)

    def weights(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return W [gates hidden, input], U [gates hidden, hidden] and their biases [gates hidden]."""
        W, U, b, c = (getattr(self.rnn, name) for name in ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"))
        return W, U, b, c

    def forward(self, inputs: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Run a sequence; see Cell."""
        outputs, last = self.rnn(inputs, state[None].contiguous())
        return outputs, last[0]


class VanillaCell(_Fused):
    """Elman's cell, tanh."""

    module = nn.RNN


class LstmCell(_Fused):
    """Long short-term memory with a forget gate; its state is the hidden state, then the cell state."""

    module = nn.LSTM
    parts = 2
    gates = 4  # in torch's order: input, forget, candidate, output

    def reset_parameters(self) -> None:
        """As every cell's, with the forget gate open: at first the cell state is kept."""
        super().reset_parameters()
        _, _, b, _ = self.weights()
        b.data[self.hidden_size : 2 * self.hidden_size] = 1.0

    def forward(self, inputs: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Run a sequence; see Cell."""
        h, C = state.chunk(2, dim=-1)
        outputs, (h, C) = self.rnn(inputs, (h[None].contiguous(), C[None].contiguous()))
        return outputs, torch.cat([h[0], C[0]], dim=-1)


class GruCell(_Fused):
    """Gated recurrent unit."""

    module = nn.GRU
    gates = 3  # in torch's order: reset, update, candidate


class EchoStateCell(Cell):
    """A fixed random reservoir; only its readout is trained."""

    W: Tensor
    U: Tensor
    b: Tensor

    def allocate(self) -> None:
        """Create the reservoir as buffers, which no optimiser changes."""
        size = self.hidden_size
        for name, shape in {"W": (size, self.input_size), "U": (size, size), "b": (size,)}.items():
            self.register_buffer(name, torch.empty(shape))

    def reset_parameters(self) -> None:
        """Draw the reservoir: W Xavier uniform, U sparse and of the spectral radius, small biases."""
        hidden_size = self.hidden_size
        U = torch.zeros(hidden_size, hidden_size)
        links = min(LINKS, hidden_size)
        for unit in range(hidden_size):
            U[unit, torch.randperm(hidden_size)[:links]] = torch.randn(links)
        radius = float(torch.linalg.eigvals(U).abs().max())
        nn.init.xavier_uniform_(self.W)
        self.U.copy_(U * (SPECTRAL_RADIUS / max(radius, 1e-6)))
        self.b.uniform_(-0.2, 0.2)

    def forward(self, inputs: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Run a sequence; see Cell."""
        driven = inputs @ self.W.T + self.b
        hidden = []
        for drive in driven:
            state = (1 - LEAK_RATE) * state + LEAK_RATE * torch.tanh(drive + state @ self.U.T)
            hidden.append(state)
        return torch.stack(hidden), state


CELLS: dict[str, type[Cell]] = {"rnn": VanillaCell, "lstm": LstmCell, "gru": GruCell, "esn": EchoStateCell}

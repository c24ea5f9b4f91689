"""The network of categorical lanes: a distribution over a lane's own vocabulary, and how the shipped one is trained.

What a lane has counted (`kernels.py`) gives for each slot k the log-probabilities x_1..x_4 of four experts
(symbols slowly and quickly forgotten, pairs, triples) and x_5, minus half the log of the events since k was last seen.
An LSTM reads the sequence of slots; its hidden state h and statistics s of the counting (how much each expert has
seen, how well it did recently) say how far each is to be trusted:

    h_t = LSTM(E[place_t] + n [the symbol was new], h_(t-1))
    g = 2 sigmoid(G [h, s] + b)                                  weights of the experts
    z_k = g_1 x_1k + ... + g_5 x_5k + (O h)_k + [k = 0] v.[h, s]
    p = softmax(z) over slot 0 and the slots in use            surprise of the symbol at slot k: -log p_k

So a symbol never seen has a probability that was learnt, by whatever new symbols meant in lanes that were like this.
Slots are given in order of appearance, so in training each sequence has its own vocabulary, in any order.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from tqdm import trange

from training.learn.optimisers import train_one_cycle
from training.network.cells import LstmCell
from training.network.model import Learner
from training.symbols.counts import EXPERTS, HIDDEN, LANE_SYMBOLS, SIZE, STATISTICS, replay_counts
from training.symbols.synthetic import make_symbols
from training.symbols.weights import EMBEDDING

LANES, ROWS, CHUNK = 48, 600, 200  # of a batch: lanes side by side, events of each that are learnt, events of a step
MAX_PAST = 30_000  # events that were counted before the first that is learnt
PEAK_RATE = 1e-2


class SymbolSequences(NamedTuple):
    """What counting makes of events."""

    x: Tensor  # float32 [rows, lanes, EXPERTS, SIZE] log-probabilities
    statistics: Tensor  # float32 [rows, lanes, STATISTICS]
    used: Tensor  # int64 [rows, lanes] slots in use before each event
    found: Tensor  # int64 [rows, lanes] the event's slot then, 0 if none
    slot: Tensor  # int64 [rows, lanes] its slot from then on


class SymbolNetwork(Learner):
    """LSTM over slots, and how it mixes what was counted; `state` is [lanes, 2 * HIDDEN], the caller's to keep."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(SIZE, EMBEDDING)
        self.is_new = nn.Parameter(torch.zeros(EMBEDDING))
        cell = LstmCell(EMBEDDING, HIDDEN, draw=False)
        self.rnn = cell.rnn
        self.mix = nn.Linear(HIDDEN + STATISTICS, EXPERTS + 1)
        self.out = nn.Linear(HIDDEN, SIZE, bias=False)
        cell.reset_parameters()
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.mix.weight)
        with torch.no_grad():  # to start from: pairs and triples share, the others hardly count
            self.mix.bias.copy_(torch.tensor([-3.0, -3.0, -1.0, -1.0, -4.0, 0.0]))

    def initial_state(self, batch: int) -> Tensor:
        """Return the state of lanes that have seen nothing: zeros [batch, 2 * HIDDEN]."""
        return torch.zeros(batch, 2 * HIDDEN)

    def forward(self, part: SymbolSequences, state: Tensor) -> tuple[Tensor, Tensor]:
        """Return log p [rows, lanes, SIZE] of each event by what was known before it, and the state after the last."""
        hidden, cell = state[:, :HIDDEN], state[:, HIDDEN:]
        inputs = self.embedding(part.slot) + (part.found == 0)[..., None] * self.is_new
        outputs, (last, cell) = self.rnn(inputs, (hidden[None].contiguous(), cell[None].contiguous()))
        before = torch.cat([hidden[None], outputs[:-1]])
        mix = self.mix(torch.cat([before, part.statistics], dim=-1))
        logits = torch.einsum("rle,rlek->rlk", 2.0 * torch.sigmoid(mix[..., :EXPERTS]), part.x) + self.out(before)
        logits = logits + functional.pad(mix[..., EXPERTS:], (0, SIZE - 1))
        unused = torch.arange(SIZE) > part.used[..., None]
        return functional.log_softmax(logits.masked_fill(unused, -torch.inf), dim=-1), torch.cat([last[0], cell[0]], 1)


def surprise(log_p: Tensor, found: Tensor) -> Tensor:
    """Return -log p of what came, in nats, [rows, lanes]."""
    return -log_p.gather(-1, found[..., None])[..., 0]


def count_sequences(symbols: list[NDArray[np.int64]], from_row: int) -> SymbolSequences:
    """Count sequences of one length; return what the network sees of the events from a row on."""
    rows, lanes = len(symbols[0]) - from_row, len(symbols)
    x, statistics = torch.zeros(rows, lanes, EXPERTS, SIZE), torch.zeros(rows, lanes, STATISTICS)
    found = SymbolSequences(x, statistics, *torch.zeros(3, rows, lanes, dtype=torch.int64))
    arrays = SymbolSequences._make(tensor.numpy() for tensor in found)  # of the same memory
    replay_counts(np.zeros(lanes, LANE_SYMBOLS), np.stack(symbols), from_row, arrays)
    return found


def draw_sequences(rng: np.random.Generator, lanes: int, kind: str | None = None) -> SymbolSequences:
    """Draw sequences of any kind, after a past of any length: half of them short."""
    past = int(np.exp(rng.uniform(0.0, np.log(MAX_PAST)))) if rng.random() < 0.8 else 0
    return count_sequences([make_symbols(rng, past + ROWS, kind) for _ in range(lanes)], past)


def loss_of(network: SymbolNetwork, part: SymbolSequences, state: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean surprise of a chunk, and the state after it."""
    log_p, state = network(part, state)
    return surprise(log_p, part.found).mean(), state


def train_symbols(seed: int, batches: int) -> SymbolNetwork:
    """Train a fresh network on the synthetic sequences of `seed`."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    network = SymbolNetwork()
    drawn = (draw_sequences(rng, LANES) for _ in trange(batches, unit="batch", disable=None))
    steps = batches * (ROWS // CHUNK)
    train_one_cycle(network, drawn, steps=steps, chunk=CHUNK, peak_rate=PEAK_RATE, loss=loss_of)
    return network
